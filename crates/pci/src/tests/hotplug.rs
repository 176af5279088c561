//! Native hot-plug (PCIe 6.0, section 6.7).

use std::sync::{Mutex, Weak};

use vmlet_bus::{AccessContext, Flow, SavedError, SavedState};

use super::*;
use crate::{
    FunctionLayout, Links, PciError,
    testing::{Ejected, ID},
};

const LINK_STATUS: u64 = 0x12;
const CONTROL: u64 = 0x18;
const STATUS: u64 = 0x1a;

const BUTTON: u16 = 1;
const PRESENCE_CHANGED: u16 = 8;
const PRESENT: u16 = 0x40;
const LINK_CHANGED: u16 = 0x100;
/// Attention button, presence, link and interrupt enabled; the power indicator's bits are 9:8.
const ENABLES: u16 = 0x1029;
const ON: u16 = 0x100;
const BLINK: u16 = 0x200;
const OFF: u16 = 0x300;

impl Bus {
    fn express(&self, register: u64) -> u64 {
        self.capability(PORT, 0x10) + register
    }

    fn slot_status(&self) -> u16 {
        self.half(PORT, self.express(STATUS))
    }

    fn control_slot(&self, value: u16) {
        self.set_half(PORT, self.express(CONTROL), value);
    }

    fn link_is_active(&self) -> bool {
        self.half(PORT, self.express(LINK_STATUS)) & 0x2000 != 0
    }

    /// The port's MSI: 0xfee00000 with data 0x41.
    fn port_msi(&self) {
        let msi = self.capability(PORT, 5);
        self.set_word(PORT, msi + 4, 0xfee0_0000);
        self.set_half(PORT, msi + 12, 0x41);
        self.set_half(PORT, msi + 2, 1);
    }

    fn messages(&self) -> usize {
        let sent = self.board.messages.take();
        assert!(
            sent.iter()
                .all(|(from, msi)| (*from, msi.data) == (PORT.requester(), 0x41))
        );
        sent.len()
    }
}

#[test]
fn a_port_says_that_its_slot_takes_hot_plug_and_numbers_it() {
    let bus = Bus::new();
    let slot = bus.word(PORT, bus.express(0x14));
    assert_eq!(slot & 0x7f, 0b111_0001);
    assert_eq!(slot >> 19, 1);
    let link = bus.word(PORT, bus.express(0xc));
    assert_eq!((link >> 20 & 1, link >> 24), (1, 1));
    assert!(!bus.link_is_active() && bus.slot_status() == 0);
    let (bus, _) = Bus::with_probe();
    assert!(bus.link_is_active() && bus.slot_status() == PRESENT);
    assert_eq!(bus.half(PORT, bus.express(CONTROL)) & OFF, ON);
}

#[test]
fn a_function_put_in_while_the_guest_runs_is_seen_with_one_message() {
    let bus = Bus::new();
    bus.port_msi();
    bus.control_slot(ENABLES | OFF);
    bus.plug(Plug::Hot);
    assert_eq!(bus.messages(), 1);
    assert_eq!(bus.slot_status(), PRESENT | PRESENCE_CHANGED | LINK_CHANGED);
    assert!(bus.link_is_active());
    bus.set_half(PORT, bus.express(STATUS), 0xffff);
    assert_eq!(bus.slot_status(), PRESENT);
    // It has no addresses until the guest gives it some.
    assert_eq!(bus.word(PROBE, 0x10), 0);
    bus.set_word(PROBE, 0x10, 0xc000_0000);
    bus.enable(PROBE);
    assert_eq!(bus.load(0xc000_0000), ID);
    assert_eq!(bus.messages(), 0);
}

#[test]
fn without_msi_the_ports_line_is_high_until_its_events_are_cleared() {
    let bus = Bus::new();
    bus.control_slot(ENABLES | OFF);
    bus.plug(Plug::Hot);
    let line = &bus.board.lines[1];
    assert!(line.is_high());
    assert_eq!(bus.half(PORT, 6) & 8, 8);
    bus.set_half(PORT, bus.express(STATUS), PRESENCE_CHANGED);
    assert!(line.is_high());
    bus.set_half(PORT, bus.express(STATUS), LINK_CHANGED);
    assert!(!line.is_high());
}

#[test]
fn events_that_are_not_enabled_interrupt_nobody_until_they_are() {
    let bus = Bus::new();
    bus.port_msi();
    bus.plug(Plug::Hot);
    assert_eq!(bus.messages(), 0);
    bus.control_slot(ENABLES | OFF);
    assert_eq!(bus.messages(), 1);
}

#[test]
fn a_masked_port_message_is_pending_and_sent_when_unmasked() {
    let bus = Bus::new();
    bus.port_msi();
    let msi = bus.capability(PORT, 5);
    bus.set_word(PORT, msi + 16, 1);
    bus.control_slot(ENABLES | OFF);
    bus.plug(Plug::Hot);
    assert_eq!((bus.messages(), bus.word(PORT, msi + 20)), (0, 1));
    bus.set_word(PORT, msi + 16, 0);
    assert_eq!((bus.messages(), bus.word(PORT, msi + 20)), (1, 0));
}

#[test]
fn a_function_leaves_when_the_guest_has_switched_its_slot_off() {
    let (bus, probe) = Bus::with_probe();
    bus.port_msi();
    bus.control_slot(ENABLES | ON);
    bus.enable(PROBE);
    bus.root.request_unplug(1).unwrap();
    assert_eq!((bus.messages(), bus.slot_status()), (1, PRESENT | BUTTON));
    bus.set_half(PORT, bus.express(STATUS), BUTTON);
    bus.control_slot(ENABLES | BLINK);
    assert!(!probe.is_unplugged() && bus.board.ejected.take().is_empty());
    bus.control_slot(ENABLES | OFF);
    assert!(probe.is_unplugged());
    assert_eq!(bus.board.ejected.take(), [1]);
    assert_eq!(bus.slot_status(), PRESENCE_CHANGED | LINK_CHANGED);
    assert_eq!((bus.messages(), bus.word(PROBE, 0)), (1, u32::MAX));
    assert_eq!(bus.load(0xc000_0000), u32::MAX);
    // And another one takes its place.
    bus.set_half(PORT, bus.express(STATUS), 0xffff);
    bus.plug(Plug::Hot);
    assert_eq!(bus.messages(), 1);
}

/// Notes, at its end and when it is dropped, whether its slot looks empty and the end is told.
#[derive(Debug)]
struct Leaver {
    bus: Weak<Root>,
    ejected: Arc<Ejected>,
    seen: Arc<Mutex<Vec<(&'static str, bool)>>>,
}

impl Leaver {
    fn note(&self, when: &'static str) {
        let empty = self.bus.upgrade().unwrap().is_empty(1);
        let told = !self.ejected.take().is_empty();
        self.seen.lock().unwrap().push((when, empty || told));
    }
}

impl Drop for Leaver {
    fn drop(&mut self) {
        self.note("drop");
    }
}

impl Function for Leaver {
    fn name(&self) -> &'static str {
        "leaver"
    }
    fn layout(&self) -> FunctionLayout {
        FunctionLayout::default()
    }
    fn connect(&self, _: Links) {}
    fn read_bar(&self, _: &dyn AccessContext, _: u8, _: u64, _: &mut [u8]) -> Flow {
        Flow::Continue
    }
    fn write_bar(&self, _: &dyn AccessContext, _: u8, _: u64, _: &[u8]) -> Flow {
        Flow::Continue
    }
    fn reset(&self) {}
    fn save(&self) -> Option<SavedState> {
        None
    }
    fn restore(&self, _: &SavedState) -> Result<(), SavedError> {
        Ok(())
    }
    fn unplug(&self) {
        self.note("unplug");
    }
}

#[test]
fn a_slot_is_empty_once_its_function_has_ended_and_is_dropped() {
    let bus = Bus::new();
    let seen = Arc::default();
    for take in [Root::request_unplug, |root: &Root, port| {
        root.pull(port, Plug::Hot)
    }] {
        assert!(bus.root.is_empty(1));
        let leaver = Arc::new(Leaver {
            bus: Arc::downgrade(&bus.root),
            ejected: Arc::clone(&bus.board.ejected),
            seen: Arc::clone(&seen),
        });
        bus.root.plug(leaver, Some(1), Plug::Hot).unwrap();
        assert!(!bus.root.is_empty(1));
        bus.control_slot(ENABLES | ON);
        take(&bus.root, 1).unwrap();
        bus.control_slot(ENABLES | OFF);
        assert!(bus.root.is_empty(1));
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(seen, [("unplug", false), ("drop", false)]);
        bus.board.ejected.take();
    }
}

/// Section 6.7.1.5: a second press within five seconds takes the wish back.
#[test]
fn a_request_while_the_indicator_blinks_presses_nothing() {
    let (bus, _) = Bus::with_probe();
    bus.control_slot(ENABLES | BLINK);
    bus.root.request_unplug(1).unwrap();
    assert_eq!(bus.slot_status() & BUTTON, 0);
    bus.control_slot(ENABLES | OFF);
    assert_eq!(bus.board.ejected.take(), [1]);
}

#[test]
fn a_slot_that_the_guest_switches_off_by_itself_keeps_its_function_until_it_is_asked_for() {
    let (bus, probe) = Bus::with_probe();
    bus.control_slot(ENABLES | OFF);
    assert!(!probe.is_unplugged());
    bus.root.request_unplug(1).unwrap();
    assert!(probe.is_unplugged());
    assert_eq!(bus.board.ejected.take(), [1]);
}

#[test]
fn a_pulled_function_is_gone_at_once_and_the_guest_hears_of_it() {
    let (bus, probe) = Bus::with_probe();
    bus.port_msi();
    bus.control_slot(ENABLES | ON);
    bus.root.pull(1, Plug::Hot).unwrap();
    assert!(probe.is_unplugged());
    assert_eq!((bus.messages(), bus.board.ejected.take()), (1, vec![]));
    assert!(!bus.link_is_active());
    assert_eq!(
        bus.root.pull(1, Plug::Hot),
        Err(PciError::Empty { port: 1 })
    );
    assert_eq!(bus.root.request_unplug(1), Err(PciError::Empty { port: 1 }));
}

/// Section 7.5.3.7.
#[test]
fn a_disabled_link_hides_the_function_and_comes_back() {
    let (bus, _) = Bus::with_probe();
    let control = bus.express(0x10);
    bus.set_half(PORT, control, 0x10);
    assert_eq!(bus.word(PROBE, 0), u32::MAX);
    assert_eq!(bus.slot_status(), PRESENT | LINK_CHANGED);
    bus.set_half(PORT, control, 0);
    assert_eq!(bus.word(PROBE, 0), 0x0bed_1234);
}

#[test]
fn a_line_that_a_function_drove_falls_with_it() {
    let (bus, _) = Bus::with_probe();
    bus.enable(PROBE);
    bus.store(bus.bar(PROBE, 0) + crate::testing::REG_LINE, 1);
    assert!(bus.board.lines[1].is_high());
    bus.root.pull(1, Plug::Hot).unwrap();
    assert!(!bus.board.lines[1].is_high());
}
