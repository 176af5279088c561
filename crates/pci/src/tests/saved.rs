//! Saved state: all of it comes back, and damage is refused.

use proptest::prelude::*;
use vmlet_bus::{Msi, SavedError, SavedState};

use super::*;
use crate::testing::{REG_LINE, REG_SCRATCH, REG_VECTOR};

/// A bus in use: BARs moved, a vector pending, the slot's button pressed.
fn used() -> (Bus, SavedState) {
    let (bus, _) = Bus::with_probe();
    bus.enable(PROBE);
    bus.set_word(PROBE, 0x10, 0xc010_0000);
    bus.store(0xc010_0000 + REG_SCRATCH, 77);
    let table = bus.bar(PROBE, 4);
    bus.store(table, 0xfee0_0000);
    bus.store(table + 8, 0x55);
    let control = bus.capability(PROBE, 0x11) + 2;
    bus.set_half(PROBE, control, 0x8000);
    bus.store(0xc010_0000 + REG_VECTOR, 0);
    bus.root.request_unplug(1).unwrap();
    let saved = bus.ecam.save().unwrap();
    (bus, saved)
}

#[test]
fn a_restored_bus_goes_on_where_it_was_once_its_function_is_back() {
    let (old, saved) = used();
    let bus = Bus::new();
    bus.ecam.restore(&saved).unwrap();
    assert_eq!(bus.root.waiting(), [(1, "probe".to_owned())]);
    // Saved again before it is put back, the function's state is not lost.
    assert_eq!(bus.ecam.save().unwrap(), saved);
    bus.plug(Plug::Cold);
    assert!(bus.root.waiting().is_empty());
    assert_eq!(bus.ecam.save().unwrap(), saved);
    assert_eq!(bus.load(0xc010_0000 + REG_SCRATCH), 77);
    bus.store(bus.bar(PROBE, 4) + 12, 0);
    let message = Msi {
        address: 0xfee0_0000,
        data: 0x55,
    };
    assert_eq!(bus.board.messages.take(), [(PROBE.requester(), message)]);
    for at in (0..0x100).step_by(4) {
        assert_eq!(bus.word(PROBE, at), old.word(PROBE, at), "{at:#x}");
    }
}

#[test]
fn a_restored_line_is_high_again() {
    let (bus, _) = Bus::with_probe();
    bus.enable(PROBE);
    bus.store(0xc000_0000 + REG_LINE, 1);
    let saved = bus.ecam.save().unwrap();
    let (other, _) = Bus::with_probe();
    other.ecam.restore(&saved).unwrap();
    assert!(other.board.lines[1].is_high());
}

#[test]
fn a_function_that_waits_keeps_its_port() {
    let (_, saved) = used();
    let bus = Bus::new();
    bus.ecam.restore(&saved).unwrap();
    let function = Arc::new(Probe::default()) as Arc<dyn Function>;
    assert_eq!(bus.root.plug(function, None, Plug::Cold), Ok(2));
}

#[test]
fn a_state_of_another_board_is_refused() {
    let (bus, saved) = used();
    let root = Root::new(bus.board.wiring(), 3);
    let error = Ecam::new(&root).restore(&saved).unwrap_err();
    assert!(matches!(error, SavedError::Damaged { .. }), "{error}");
}

/// Replaces part of a state's text.
fn damaged(saved: &SavedState, from: &str, to: &str) -> SavedState {
    assert!(saved.data.contains(from), "{from} in {}", saved.data);
    SavedState {
        data: saved.data.replacen(from, to, 1),
        ..saved.clone()
    }
}

#[test]
fn damage_is_refused_and_changes_nothing() {
    let (_, saved) = used();
    let bus = Bus::new();
    let before = bus.ecam.save().unwrap();
    for (from, to) in [
        // Ids of the host bridge and of a port.
        ("[54,27,8,0", "[54,27,9,0"),
        ("[54,27,12,0", "[54,27,13,0"),
        ("\"config\":[", "\"config\":[0,"),
        ("\"wanted\"", "\"unknown\""),
    ] {
        let bad = damaged(&saved, from, to);
        assert!(bus.ecam.restore(&bad).is_err(), "{from}");
        assert_eq!(bus.ecam.save().unwrap(), before, "{from}");
    }
}

#[test]
fn a_function_does_not_take_what_is_not_its_own() {
    let (_, saved) = used();
    for (from, to) in [
        ("\"probe\"", "\"other\""),
        ("[52,18,237,11", "[52,18,238,11"),
        (
            "\"msix\":[{",
            "\"msix\":[{\"address\":0,\"data\":0,\"masked\":true,\"pending\":false},{",
        ),
        ("\"kind\":\"probe\"", "\"kind\":\"else\""),
    ] {
        let bus = Bus::new();
        bus.ecam.restore(&damaged(&saved, from, to)).unwrap();
        let function = Arc::new(Probe::default()) as Arc<dyn Function>;
        let refused = bus.root.plug(function, Some(1), Plug::Cold);
        assert!(refused.is_err(), "{from}");
        assert_eq!(bus.root.waiting().len(), 1, "{from}");
    }
}

proptest! {
    #[test]
    fn any_accesses_leave_a_state_that_another_bus_takes(
        ops in proptest::collection::vec(
            (0u8..5, any::<u8>(), 0u64..0x104, any::<u64>(), 1usize..9), 0..200)
    ) {
        let (bus, _) = Bus::with_probe();
        for (what, bus_number, register, value, len) in ops {
            let bdf = [PORT, PROBE, Bdf::at(0, 0), Bdf::new(bus_number, 0, 0)][usize::from(bus_number) % 4];
            let mut data = value.to_le_bytes();
            let data = &mut data[..len.min(8)];
            match what {
                0 | 1 => bus.write(bdf, register, data),
                2 => { let _: [u8; 4] = bus.read(bdf, register); }
                3 => { bus.board.mmio.write(&Nobody, bus.bar(PROBE, u64::from(bus_number % 2) * 4) + register, data); }
                _ => { let _ = bus.root.request_unplug(1); }
            }
        }
        let saved = bus.ecam.save().unwrap();
        let other = Bus::new();
        other.ecam.restore(&saved).unwrap();
        if !other.root.waiting().is_empty() {
            other.plug(Plug::Cold);
        }
        prop_assert!(other.ecam.save().unwrap() == saved);
    }
}
