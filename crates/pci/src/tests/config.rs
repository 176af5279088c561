//! Config space, BARs, bridge windows.

use std::sync::Arc;

use super::*;
use crate::{
    BarKind, BarLayout, FunctionLayout, Links, Msix, MsixInside, MsixLayout, PciError,
    VendorCapability,
    testing::{ID, REG_ADDRESS, REG_DMA, REG_ID, REG_SCRATCH},
};

#[test]
fn bus_0_has_a_host_bridge_and_its_ports_and_nothing_else() {
    let bus = Bus::new();
    let class = |device| bus.word(Bdf::at(0, device), 8) >> 16;
    assert_eq!([0, 1, 2, 3].map(class), [0x0600, 0x0604, 0x0604, 0xffff]);
    assert_eq!(bus.word(Bdf::new(0, 1, 1), 0), u32::MAX);
    assert_eq!(bus.read::<1>(PORT, 0xe), [1]);
}

/// PCIe 6.0, section 2.3.2: an unsupported request reads as all ones.
#[test]
fn an_empty_slot_and_a_bus_of_nobody_read_as_all_ones() {
    let bus = Bus::new();
    assert_eq!(bus.word(PROBE, 0), u32::MAX);
    assert_eq!(bus.word(Bdf::at(9, 0), 0), u32::MAX);
    let (bus, _) = Bus::with_probe();
    assert_eq!(bus.word(PROBE, 0), 0x0bed_1234);
    assert_eq!(bus.word(Bdf::at(1, 1), 0), u32::MAX);
}

#[test]
fn an_access_across_two_functions_is_nobodys() {
    let (bus, _) = Bus::with_probe();
    let mut data = [0; 4];
    bus.ecam.read(&Nobody, Bus::offset(PROBE, 0xffe), &mut data);
    assert_eq!(data, [0xff; 4]);
    bus.write(PROBE, 0xfff, &[0; 8]);
}

#[test]
fn config_space_follows_the_bus_numbers_that_the_guest_gives() {
    let (bus, _) = Bus::with_probe();
    bus.write(PORT, 0x18, &[0, 7, 9]);
    assert_eq!(bus.word(PROBE, 0), u32::MAX);
    assert_eq!(bus.word(Bdf::at(7, 0), 0), 0x0bed_1234);
    assert_eq!(bus.word(Bdf::at(8, 0), 0), u32::MAX);
}

#[test]
fn a_table_of_msix_among_other_registers_takes_no_bar_of_its_own() {
    let inside = MsixInside {
        table: 0x2000,
        pending_bar: 2,
        pending: 0x800,
    };
    let msix = MsixLayout {
        vectors: 3,
        bar: 0,
        inside: Some(inside),
    };
    assert_eq!(msix.places(), [(0, 0x2000), (2, 0x800)]);
    let layout = FunctionLayout {
        msix: Some(msix),
        ..layout()
    };
    assert_eq!(layout.all_bars(), layout.bars);
    let bus = Bus::new();
    let sink = Arc::new(bus.board.messages.clone());
    let table = Msix::new(3, sink, PROBE.requester());
    table.write_table(0x10, &[0; 16]);
    let (mut bytes, mut pending) = ([0xff; 4], [0xff; 8]);
    table.read_table(0x1c, &mut bytes);
    table.read_pending(0, &mut pending);
    assert_eq!((bytes, pending), ([0; 4], [0; 8]));
    assert!(!table.is_open(1) && !table.is_open(3));
    table.read_table(u64::MAX - 1, &mut bytes);
    table.read_pending(u64::MAX, &mut pending);
}

/// PCI 3.0, section 6.2.5.1: all ones written read back as the size.
#[test]
fn a_bar_tells_its_size_and_type() {
    let (bus, _) = Bus::with_probe();
    let size = |index: u64| {
        let at = 0x10 + index * 4;
        let old = bus.word(PROBE, at);
        bus.set_word(PROBE, at, u32::MAX);
        let found = bus.word(PROBE, at);
        bus.set_word(PROBE, at, old);
        found
    };
    assert_eq!([0, 1].map(size), [0xffff_f000, 0]);
    assert_eq!([2, 3].map(size), [0xffff_c00c, 0xffff_ffff]);
    assert_eq!([4, 5].map(size), [0xffff_f000, 0]);
}

#[test]
fn firmware_gives_bars_places_inside_the_windows_of_their_port() {
    let (bus, probe) = Bus::with_probe();
    assert_eq!(bus.read::<3>(PORT, 0x18), [0, 1, 1]);
    let (base, limit) = (bus.half(PORT, 0x20), bus.half(PORT, 0x22));
    assert_eq!((base, limit), (0xc000, 0xc070));
    assert_eq!(
        (bus.bar(PROBE, 0), bus.bar(PROBE, 4)),
        (0xc000_0000, 0xc000_1000)
    );
    let upper = bus.word(PROBE, 0x1c);
    assert_eq!((upper, bus.word(PORT, 0x28)), (0x10, 0x10));
    // Nothing is decoded before the guest says so.
    assert!(probe.places().is_empty());
    assert_eq!(bus.load(0xc000_0000), u32::MAX);
}

/// PCIe 6.0, section 7.5.1.1.3.
#[test]
fn bars_answer_while_memory_space_is_enabled_and_follow_moves() {
    let (bus, probe) = Bus::with_probe();
    bus.enable(PROBE);
    assert_eq!(bus.load(0xc000_0000 + REG_ID), ID);
    probe.places();
    bus.set_word(PROBE, 0x10, 0xc010_0000);
    assert_eq!(bus.load(0xc000_0000), u32::MAX);
    assert_eq!(bus.load(0xc010_0000), ID);
    bus.set_half(PROBE, 4, 0);
    assert_eq!(bus.load(0xc010_0000), u32::MAX);
    let places = [(0, None), (0, Some(0xc010_0000)), (0, None), (2, None)];
    assert_eq!(probe.places(), places);
}

#[test]
fn a_bar_outside_the_windows_of_its_port_does_not_answer() {
    let (bus, _) = Bus::with_probe();
    bus.enable(PROBE);
    bus.set_word(PROBE, 0x10, 0xd000_0000);
    assert_eq!(bus.load(0xd000_0000), u32::MAX);
    bus.set_half(PORT, 0x22, 0xd000);
    assert_eq!(bus.load(0xd000_0000), ID);
    bus.set_half(PORT, 4, 4);
    assert_eq!(bus.load(0xd000_0000), u32::MAX);
}

/// PCIe 6.0, section 5.3.1.4: no memory requests in D3hot; No_Soft_Reset.
#[test]
fn a_function_in_d3_answers_config_space_alone_and_keeps_its_state() {
    let (bus, _) = Bus::with_probe();
    bus.enable(PROBE);
    bus.store(0xc000_0000 + REG_SCRATCH, 5);
    let power = bus.capability(PROBE, 1) + 4;
    bus.set_half(PROBE, power, 3);
    assert_eq!(bus.load(0xc000_0000), u32::MAX);
    assert_eq!(bus.half(PROBE, 4), 6);
    bus.set_half(PROBE, power, 0);
    assert_eq!(bus.load(0xc000_0000 + REG_SCRATCH), 5);
}

/// PCIe 6.0, section 6.6.2.
#[test]
fn a_function_level_reset_puts_registers_and_function_back() {
    let (bus, _) = Bus::with_probe();
    bus.enable(PROBE);
    bus.store(0xc000_0000 + REG_SCRATCH, 5);
    let control = bus.capability(PROBE, 0x10) + 8;
    bus.set_half(PROBE, control, 0x8000);
    assert_eq!((bus.half(PROBE, 4), bus.word(PROBE, 0x10)), (0, 0));
    bus.set_word(PROBE, 0x10, 0xc000_0000);
    bus.enable(PROBE);
    assert_eq!(bus.load(0xc000_0000 + REG_SCRATCH), 0);
}

/// PCIe 6.0, section 7.5.1.3.13.
#[test]
fn a_secondary_bus_reset_resets_what_is_behind_the_port() {
    let (bus, _) = Bus::with_probe();
    bus.enable(PROBE);
    bus.store(0xc000_0000 + REG_SCRATCH, 5);
    bus.set_half(PORT, 0x3e, 0x40);
    bus.set_half(PORT, 0x3e, 0);
    assert_eq!(bus.half(PROBE, 4), 0);
    assert_eq!(bus.half(PORT, 4), 6);
}

#[test]
fn a_window_in_a_capability_is_the_functions() {
    let (bus, _) = Bus::with_probe();
    let own = bus.capability(PROBE, 9);
    bus.set_word(PROBE, own + 4, 0x1234_5678);
    assert_eq!(bus.word(PROBE, own + 4), 0x1234_5678);
    bus.set_half(PROBE, own + 2, 0xffff);
    assert_eq!(bus.half(PROBE, own + 2), 0xff08);
    bus.enable(PROBE);
    assert_eq!(bus.load(0xc000_0000 + REG_SCRATCH), 0x1234_5678);
}

#[test]
fn a_function_reaches_memory_both_ways_and_is_told_of_a_fault() {
    let (bus, _) = Bus::with_probe();
    bus.enable(PROBE);
    let at = bus.bar(PROBE, 0);
    bus.board.memory.write(Gpa(0x1000), b"from memory").unwrap();
    bus.store(at + REG_ADDRESS, 0x1000);
    bus.store(at + REG_DMA, 1);
    bus.store(at + REG_ADDRESS, 0x2000);
    bus.store(at + REG_DMA, 2);
    let mut data = [0; 11];
    bus.board.memory.read(Gpa(0x2000), &mut data).unwrap();
    assert_eq!((&data, bus.load(at + REG_DMA)), (b"from memory", 0));
    bus.store(at + REG_ADDRESS, 0xffff);
    bus.store(at + REG_DMA, 2);
    assert_eq!(bus.load(at + REG_DMA), 3);
}

#[test]
fn a_machine_reset_is_a_fresh_start_with_firmwares_addresses() {
    let (bus, _) = Bus::with_probe();
    bus.enable(PROBE);
    bus.store(0xc000_0000 + REG_SCRATCH, 5);
    bus.write(PORT, 0x18, &[0, 7, 9]);
    bus.ecam.reset();
    assert_eq!(bus.read::<3>(PORT, 0x18), [0, 1, 1]);
    assert_eq!((bus.bar(PROBE, 0), bus.half(PROBE, 4)), (0xc000_0000, 0));
    bus.enable(PROBE);
    assert_eq!(bus.load(0xc000_0000 + REG_SCRATCH), 0);
}

fn layout() -> FunctionLayout {
    Probe::default().layout()
}

#[test]
fn layouts_that_no_function_can_have_are_refused() {
    let bar = |index, size, kind| BarLayout { index, size, kind };
    let bad_bars = [
        bar(6, 0x1000, BarKind::Memory32),
        bar(5, 0x1000, BarKind::Memory64),
        bar(1, 0x1001, BarKind::Memory32),
        bar(1, 64, BarKind::Memory32),
        bar(1, 1 << 32, BarKind::Memory32),
        bar(3, 0x1000, BarKind::Memory32),
        bar(255, 0x1000, BarKind::Memory64),
    ];
    for bad in bad_bars {
        let mut layout = layout();
        layout.bars.push(bad);
        assert!(
            matches!(layout.check("x"), Err(PciError::Layout { .. })),
            "{bad:?}"
        );
    }
    for (vectors, bar) in [(0, 4), (2049, 4), (1, 2), (1, 6)] {
        let msix = Some(MsixLayout {
            vectors,
            bar,
            inside: None,
        });
        let layout = FunctionLayout { msix, ..layout() };
        assert!(layout.check("x").is_err(), "{msix:?}");
    }
    let capabilities = vec![
        VendorCapability {
            id: 9,
            body: vec![0; 30],
            writable: Vec::new(),
        };
        4
    ];
    let layout = FunctionLayout {
        capabilities,
        ..layout()
    };
    assert!(layout.check("x").is_err());
}

#[test]
fn ports_that_are_taken_or_not_there_are_named() {
    let (bus, _) = Bus::with_probe();
    let plug = |port| {
        let function = Arc::new(Probe::default()) as Arc<dyn Function>;
        bus.root.plug(function, port, Plug::Cold)
    };
    assert_eq!(
        plug(Some(1)),
        Err(PciError::Taken {
            port: 1,
            device: "probe"
        })
    );
    for port in [0, 3, 255] {
        assert_eq!(plug(Some(port)), Err(PciError::NoPort { port, count: 2 }));
    }
    assert_eq!(plug(None), Ok(2));
    assert_eq!(plug(None), Err(PciError::Full { count: 2 }));
}

#[test]
fn links_say_where_the_function_is() {
    let (bus, probe) = Bus::with_probe();
    let Links {
        bdf,
        dma,
        capabilities,
        ..
    } = probe.links().unwrap();
    assert_eq!((*bdf, dma.requester()), (PROBE, PROBE.requester()));
    assert_eq!(u64::from(capabilities[0]), bus.capability(PROBE, 9));
}
