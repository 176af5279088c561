//! MSI-X and INTx of functions.

use vmlet_bus::Msi;

use super::*;
use crate::testing::{REG_LINE, REG_VECTOR};

const ON: u16 = 0x8000;
const MASKED: u16 = 0x4000;

/// A bus whose probe has MSI-X on and vector 1 unmasked: 0xfee01000 with data 0x31.
fn ready() -> (Bus, u64) {
    let (bus, _) = Bus::with_probe();
    bus.enable(PROBE);
    let control = bus.capability(PROBE, 0x11) + 2;
    bus.set_half(PROBE, control, ON);
    let entry = bus.bar(PROBE, 4) + 16;
    bus.store(entry, 0xfee0_1000);
    bus.store(entry + 8, 0x31);
    bus.store(entry + 12, 0);
    (bus, control)
}

fn trigger(bus: &Bus, vector: u32) {
    bus.store(bus.bar(PROBE, 0) + REG_VECTOR, vector);
}

fn sent(bus: &Bus) -> Vec<Msi> {
    let sent = bus.board.messages.take();
    sent.iter()
        .map(|(requester, msi)| {
            assert_eq!(*requester, PROBE.requester());
            *msi
        })
        .collect()
}

fn pending(bus: &Bus) -> u32 {
    bus.load(bus.bar(PROBE, 4) + 4 * 16)
}

const MESSAGE: Msi = Msi {
    address: 0xfee0_1000,
    data: 0x31,
};

/// PCIe 6.0, section 7.7.2.7: masked after reset.
#[test]
fn table_entries_are_masked_at_first_and_hold_what_is_written() {
    let (bus, _) = Bus::with_probe();
    bus.enable(PROBE);
    let table = bus.bar(PROBE, 4);
    assert_eq!([0, 4, 8, 12].map(|at| bus.load(table + at)), [0, 0, 0, 1]);
    for at in [0, 4, 8, 12] {
        bus.store(table + at, u32::MAX);
    }
    let held = [0, 4, 8, 12].map(|at| bus.load(table + at));
    assert_eq!(held, [0xffff_fffc, u32::MAX, u32::MAX, 1]);
}

#[test]
fn a_vector_sends_its_message_and_a_route_is_made_for_used_vectors_alone() {
    let (bus, _) = ready();
    assert_eq!(bus.board.messages.routes(), 0);
    trigger(&bus, 1);
    assert_eq!(
        (sent(&bus), bus.board.messages.routes()),
        (vec![MESSAGE], 1)
    );
}

/// PCIe 6.0, section 6.1.4.5: pending while masked, sent when unmasked.
#[test]
fn a_masked_vector_is_pending_and_sent_once_when_unmasked() {
    let (bus, _) = ready();
    let mask = bus.bar(PROBE, 4) + 16 + 12;
    bus.store(mask, 1);
    trigger(&bus, 1);
    trigger(&bus, 1);
    assert_eq!((sent(&bus), pending(&bus)), (vec![], 2));
    bus.store(mask, 0);
    assert_eq!((sent(&bus), pending(&bus)), (vec![MESSAGE], 0));
}

#[test]
fn the_function_mask_holds_for_every_vector() {
    let (bus, control) = ready();
    bus.set_half(PROBE, control, ON | MASKED);
    trigger(&bus, 1);
    assert_eq!((sent(&bus), pending(&bus)), (vec![], 2));
    bus.set_half(PROBE, control, ON);
    assert_eq!(sent(&bus), [MESSAGE]);
}

/// PCIe 6.0, section 7.5.1.1.3: a message is a memory write.
#[test]
fn without_bus_mastering_a_message_waits() {
    let (bus, _) = ready();
    bus.set_half(PROBE, 4, 2);
    trigger(&bus, 1);
    assert_eq!(sent(&bus), []);
    bus.enable(PROBE);
    assert_eq!(sent(&bus), [MESSAGE]);
}

#[test]
fn with_msix_off_nothing_is_sent_or_kept() {
    let (bus, control) = ready();
    bus.set_half(PROBE, control, 0);
    trigger(&bus, 1);
    bus.set_half(PROBE, control, ON);
    assert_eq!((sent(&bus), pending(&bus)), (vec![], 0));
}

#[test]
fn vectors_that_do_not_exist_and_writes_past_the_table_are_harmless() {
    let (bus, _) = ready();
    for vector in [4, 5, 0xffff] {
        trigger(&bus, vector);
    }
    let table = bus.bar(PROBE, 4);
    bus.store(table + 4 * 16, u32::MAX);
    bus.store(table + 0xffc, u32::MAX);
    bus.board.mmio.write(&Nobody, table + 0x3e, &[0xff; 8]);
    assert_eq!((sent(&bus), pending(&bus)), (vec![], 0));
}

#[test]
fn a_message_changed_while_unmasked_is_the_next_one_sent() {
    let (bus, _) = ready();
    trigger(&bus, 1);
    bus.store(bus.bar(PROBE, 4) + 16 + 8, 0x32);
    trigger(&bus, 1);
    assert_eq!(
        sent(&bus).iter().map(|m| m.data).collect::<Vec<_>>(),
        [0x31, 0x32]
    );
}

#[test]
fn inta_of_a_function_is_its_ports_line_and_its_status_is_read() {
    let (bus, _) = Bus::with_probe();
    bus.enable(PROBE);
    let line = &bus.board.lines[1];
    bus.store(bus.bar(PROBE, 0) + REG_LINE, 1);
    assert!(line.is_high());
    assert_eq!(bus.half(PROBE, 6) & 8, 8);
    bus.store(bus.bar(PROBE, 0) + REG_LINE, 0);
    assert!(!line.is_high());
    assert_eq!(bus.half(PROBE, 6) & 8, 0);
}

/// PCIe 6.0, sections 7.5.1.1.3 (Interrupt Disable) and 6.1.4 (none while MSI-X is on).
#[test]
fn interrupt_disable_and_msix_silence_inta() {
    let (bus, _) = Bus::with_probe();
    bus.enable(PROBE);
    bus.store(bus.bar(PROBE, 0) + REG_LINE, 1);
    let line = &bus.board.lines[1];
    bus.set_half(PROBE, 4, 0x406);
    assert!(!line.is_high());
    assert_eq!(bus.half(PROBE, 6) & 8, 8);
    bus.enable(PROBE);
    assert!(line.is_high());
    let control = bus.capability(PROBE, 0x11) + 2;
    bus.set_half(PROBE, control, ON | MASKED);
    assert!(!line.is_high());
}

#[test]
fn a_function_is_told_whether_it_may_master_its_bus_and_interrupt_by_its_line() {
    let (bus, probe) = Bus::with_probe();
    let told = || (probe.switches().bus_master, probe.switches().line);
    assert_eq!(told(), (false, true));
    bus.set_half(PROBE, 4, 6);
    assert_eq!(told(), (true, true));
    bus.set_half(PROBE, 4, 1 << 10);
    assert_eq!(told(), (false, false));
    bus.set_half(PROBE, 4, 4);
    bus.set_half(PROBE, bus.capability(PROBE, 0x11) + 2, ON);
    assert_eq!(told(), (true, false));
    bus.root.pull(1, Plug::Hot).unwrap();
    assert_eq!(told(), (false, false));
}
