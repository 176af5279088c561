//! The slot of a root port: presence, link, attention button, power indicator and their interrupt
//! (PCIe 6.0, sections 6.7 and 7.5.3.9 to 7.5.3.11).
//!
//! There is no power controller, so that a slot is off when its driver switches the indicator off,
//! and commands complete at once (No Command Completed Support).

use crate::registers::Registers;

/// Registers from the PCI Express capability on.
const LINK_CONTROL: u16 = 0x10;
const LINK_STATUS: u16 = 0x12;
const SLOT_CONTROL: u16 = 0x18;
const SLOT_STATUS: u16 = 0x1a;

/// Slot Capabilities: attention button, power indicator, surprise, hot-plug, no command completed.
pub(crate) const CAPABILITIES: u32 = 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 18;
/// Slot Capabilities: where the physical slot number begins.
pub(crate) const NUMBER_SHIFT: u32 = 19;
/// Link Capabilities: Data Link Layer Link Active Reporting.
pub(crate) const LINK_REPORTING: u32 = 1 << 20;

/// Link Control: Link Disable.
const LINK_DISABLE: u16 = 1 << 4;
/// Link Status: Data Link Layer Link Active.
const LINK_ACTIVE: u16 = 1 << 13;

/// Slot Status.
const BUTTON_PRESSED: u16 = 1;
const PRESENCE_CHANGED: u16 = 1 << 3;
const PRESENT: u16 = 1 << 6;
const LINK_CHANGED: u16 = 1 << 8;
/// Cleared by ones; power fault, latch sensor and command completed never are set.
const EVENTS: u16 = BUTTON_PRESSED | 1 << 1 | 1 << 2 | PRESENCE_CHANGED | 1 << 4 | LINK_CHANGED;

/// Slot Control.
const BUTTON_ENABLE: u16 = 1;
const PRESENCE_ENABLE: u16 = 1 << 3;
const INTERRUPT_ENABLE: u16 = 1 << 5;
const LINK_ENABLE: u16 = 1 << 12;
const INDICATOR: u16 = 3 << 8;
const INDICATOR_ON: u16 = 1 << 8;
const INDICATOR_BLINKS: u16 = 2 << 8;
const INDICATOR_OFF: u16 = 3 << 8;
/// What of it a guest can write: enables, both indicators.
const CONTROL_BITS: u16 = 0x13ff;

/// The slot's registers in those of its port, from `at` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) at: u16,
}

impl Slot {
    /// Adds what a slot has to its port's registers; it is empty.
    pub(crate) fn define(self, registers: &mut Registers) {
        registers.allow(self.at + SLOT_CONTROL, &CONTROL_BITS.to_le_bytes());
        registers.clear_by_ones(self.at + SLOT_STATUS, &EVENTS.to_le_bytes());
        registers.changes(self.at + SLOT_STATUS, &PRESENT.to_le_bytes());
        registers.changes(self.at + LINK_STATUS, &LINK_ACTIVE.to_le_bytes());
        registers.allow(self.at + LINK_CONTROL, &[0xdb, 0x01]);
        self.set_indicator(registers, INDICATOR_OFF);
    }

    fn set_indicator(self, registers: &mut Registers, value: u16) {
        let control = registers.half(self.at + SLOT_CONTROL) & !INDICATOR;
        registers.fix(self.at + SLOT_CONTROL, &(control | value).to_le_bytes());
    }

    /// The guest may reach what is in the slot.
    pub(crate) fn link_is_active(self, registers: &Registers) -> bool {
        registers.half(self.at + LINK_STATUS) & LINK_ACTIVE != 0
    }

    /// There is, or is not, a card in the slot. With `events` the guest is to notice; without, it
    /// was so when the machine started, and firmware has switched the slot on.
    pub(crate) fn set_present(self, registers: &mut Registers, present: bool, events: bool) {
        if events {
            registers.set_bits(self.at + SLOT_STATUS, PRESENCE_CHANGED, true);
        } else if present {
            self.set_indicator(registers, INDICATOR_ON);
        } else {
            self.set_indicator(registers, INDICATOR_OFF);
        }
        registers.set_bits(self.at + SLOT_STATUS, PRESENT, present);
        self.update_link(registers, events);
    }

    /// Has presence and link be those of a slot that has a card or not.
    pub(crate) fn correct(self, registers: &mut Registers, present: bool) {
        registers.set_bits(self.at + SLOT_STATUS, PRESENT, present);
        self.update_link(registers, false);
    }

    /// The link is active while there is a card and nobody has disabled the link.
    pub(crate) fn update_link(self, registers: &mut Registers, events: bool) {
        let present = registers.half(self.at + SLOT_STATUS) & PRESENT != 0;
        let active = present && registers.half(self.at + LINK_CONTROL) & LINK_DISABLE == 0;
        let was = self.link_is_active(registers);
        registers.set_bits(self.at + LINK_STATUS, LINK_ACTIVE, active);
        if events && active != was {
            registers.set_bits(self.at + SLOT_STATUS, LINK_CHANGED, true);
        }
    }

    /// Presses the attention button, unless it has been: pressed again while the indicator blinks
    /// it takes the wish back (section 6.7.1.5).
    pub(crate) fn press_button(self, registers: &mut Registers) {
        if registers.half(self.at + SLOT_CONTROL) & INDICATOR != INDICATOR_BLINKS {
            registers.set_bits(self.at + SLOT_STATUS, BUTTON_PRESSED, true);
        }
    }

    /// The guest has switched the slot off.
    pub(crate) fn is_off(self, registers: &Registers) -> bool {
        registers.half(self.at + SLOT_CONTROL) & INDICATOR == INDICATOR_OFF
    }

    /// The slot asks for an interrupt (section 6.7.3.4).
    pub(crate) fn wants_interrupt(self, registers: &Registers) -> bool {
        let control = registers.half(self.at + SLOT_CONTROL);
        let status = registers.half(self.at + SLOT_STATUS);
        let due = [
            (BUTTON_PRESSED, BUTTON_ENABLE),
            (PRESENCE_CHANGED, PRESENCE_ENABLE),
            (LINK_CHANGED, LINK_ENABLE),
        ]
        .iter()
        .any(|(event, enable)| status & event != 0 && control & enable != 0);
        due && control & INTERRUPT_ENABLE != 0
    }
}
