//! Devices that the machine's user brings: where they lie, and what they get.
//!
//! They stand beside the board's own devices and are served by the same dispatch. A device of the
//! user's may run code of the user's in an access; what it needs for that it finds in its [`Link`].

use std::{
    fmt::Debug,
    sync::{Arc, Weak},
};

use vmlet_bus::{Device, IrqLine, NoIrq};
use vmlet_devices::ioapic::IoApic;

use crate::{
    Event, EventKind, MachineError,
    board::{Board, layout},
    lifecycle::Life,
};

/// Ports there are.
const PORTS: u64 = 0x1_0000;
/// Addresses that mean messages to local APICs.
const MESSAGES: u64 = 0xfee0_0000;
const MESSAGES_END: u64 = 0xfef0_0000;

/// Which addresses a device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// I/O ports.
    Ports,
    /// Guest-physical addresses.
    Memory,
}

/// A device of the machine's user.
pub trait AttachedDevice: Device {
    /// The device is on a board; called once for each board, before guest code runs there.
    fn connect(&self, link: Link);
}

/// A device of the user's and its place.
#[derive(Clone, Debug)]
pub struct Attached {
    /// Ports or memory.
    pub space: Space,
    /// First address.
    pub at: u64,
    /// Addresses.
    pub len: u64,
    /// The pin of the I/O APIC that its line leads to; none: nowhere.
    pub pin: Option<u8>,
    /// The device.
    pub device: Arc<dyn AttachedDevice>,
}

/// What a device of the user's gets from its board.
#[derive(Clone, Debug)]
pub struct Link {
    /// Its interrupt line.
    pub irq: Arc<dyn IrqLine>,
    /// The clock counts instructions: what is not done within the access makes runs differ.
    pub counted: bool,
    /// The run of guest code.
    pub run: RunHandle,
}

/// Ends a machine's run from wherever a device is, without waiting for it.
#[derive(Clone, Debug)]
pub struct RunHandle(pub(crate) Weak<Life>);

impl RunHandle {
    /// Ends the run as a failure of a device; nothing happens if it is over.
    pub fn fail(&self, detail: String) {
        self.end(EventKind::Error, detail);
    }

    /// Ends the run at a device's wish; nothing happens if it is over.
    pub fn stop(&self, detail: String) {
        self.end(EventKind::Stopped, detail);
    }

    fn end(&self, kind: EventKind, detail: String) {
        if let Some(life) = self.0.upgrade() {
            life.end(Event {
                source: "device",
                detail,
                ..Event::by_user(kind)
            });
        }
    }
}

fn refuse(detail: String, remedy: &'static str) -> MachineError {
    MachineError::Config {
        what: "devices",
        detail,
        remedy,
    }
}

/// Refuses places that cannot be, before anything is made.
pub(crate) fn check(devices: &[Attached], memory: u64, ports: u8) -> Result<(), MachineError> {
    let mut pins = Vec::new();
    for one in devices {
        check_place(one, memory, ports > 0)?;
        let Some(pin) = one.pin else {
            continue;
        };
        let name = one.device.name();
        let of_pci = ports > 0 && pin >= layout::PCI_FIRST_PIN;
        if usize::from(pin) >= IoApic::PINS || layout::BOARD_PINS.contains(&pin) || of_pci {
            return Err(refuse(
                format!("{name} on irq {pin}"),
                "Give a pin of the I/O APIC from 5 to 15, but not 8.",
            ));
        }
        if pins.contains(&pin) {
            return Err(refuse(
                format!("two devices on irq {pin}"),
                "Give each device a pin of its own.",
            ));
        }
        pins.push(pin);
    }
    Ok(())
}

fn check_place(one: &Attached, memory: u64, pci: bool) -> Result<(), MachineError> {
    let Attached { space, at, len, .. } = one;
    let place = format!("{} at {at:#x}+{len:#x}", one.device.name());
    let Some(end) = at.checked_add(*len).filter(|_| *len > 0) else {
        return Err(refuse(
            place,
            "Give a range that is neither empty nor wraps around.",
        ));
    };
    if *space == Space::Ports {
        return match end {
            0..=PORTS => Ok(()),
            _ => Err(refuse(place, "Give ports below 0x10000.")),
        };
    }
    let in_memory = layout::memory_map(memory, false)
        .iter()
        .any(|range| *at < range.gpa + range.len && range.gpa < end);
    if in_memory || *at < layout::low_bytes(memory) {
        return Err(refuse(
            format!("{place}, where the VM has memory"),
            "Give addresses without memory, such as 0xf0000000.",
        ));
    }
    if pci && *at < layout::PCI_END && layout::LOW_END < end {
        return Err(refuse(
            format!("{place}, where PCI devices are"),
            "Give other addresses, such as 0xf0000000.",
        ));
    }
    if *at < MESSAGES_END && MESSAGES < end {
        return Err(refuse(
            format!("{place}, where the local APICs are"),
            "Give other addresses, such as 0xf0000000.",
        ));
    }
    Ok(())
}

/// Puts the devices on the board.
pub(crate) fn connect(
    devices: &[Attached],
    board: &Board,
    life: &Arc<Life>,
) -> Result<(), MachineError> {
    for one in devices {
        let space = match one.space {
            Space::Ports => board.dispatch.ports(),
            Space::Memory => board.dispatch.mmio(),
        };
        let device = Arc::clone(&one.device) as Arc<dyn Device>;
        space
            .add(one.at, one.len, device)
            .map_err(|error| refuse(error.to_string(), "Give each device its own addresses."))?;
        let irq = one.pin.map_or_else(
            || Arc::new(NoIrq) as Arc<dyn IrqLine>,
            |pin| board.dispatch.ioapic.pin(usize::from(pin)),
        );
        one.device.connect(Link {
            irq,
            counted: life.journal.get().is_some(),
            run: RunHandle(Arc::downgrade(life)),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vmlet_bus::{AccessContext, Flow};

    use super::*;

    #[derive(Debug)]
    struct Nothing;

    impl Device for Nothing {
        fn name(&self) -> &'static str {
            "nothing"
        }
        fn read(&self, _: &dyn AccessContext, _: u64, _: &mut [u8]) -> Flow {
            Flow::Continue
        }
        fn write(&self, _: &dyn AccessContext, _: u64, _: &[u8]) -> Flow {
            Flow::Continue
        }
        fn reset(&self) {}
    }

    impl AttachedDevice for Nothing {
        fn connect(&self, _: Link) {}
    }

    fn at(space: Space, at: u64, len: u64, pin: Option<u8>) -> Attached {
        Attached {
            space,
            at,
            len,
            pin,
            device: Arc::new(Nothing),
        }
    }

    #[test]
    fn places_in_memory_at_the_local_apics_and_beyond_the_ports_are_refused() {
        let memory = 256 << 20;
        for (space, first, len) in [
            (Space::Memory, 0x1000, 0x1000),
            (Space::Memory, 0x0fff_f000, 0x2000),
            (Space::Memory, 0xa_0000, 0x1000),
            (Space::Memory, 0xfee0_0000, 0x1000),
            (Space::Memory, u64::MAX, 2),
            (Space::Memory, 0xd000_0000, 0),
            (Space::Ports, 0xffff, 2),
        ] {
            assert!(check(&[at(space, first, len, None)], memory, 0).is_err());
        }
        assert!(check(&[at(Space::Memory, 0xd000_0000, 0x1000, None)], memory, 0).is_ok());
        assert!(check(&[at(Space::Ports, 0xffff, 1, None)], memory, 0).is_ok());
        assert!(check(&[at(Space::Memory, 0xd000_0000, 0x1000, None)], memory, 1).is_err());
        assert!(check(&[at(Space::Memory, 0xf000_0000, 0x1000, None)], memory, 1).is_ok());
    }

    #[test]
    fn a_pin_belongs_to_one_device() {
        let [one, two] = [0xd000_0000, 0xd000_1000].map(|a| at(Space::Memory, a, 8, Some(5)));
        assert!(check(&[one.clone(), two], 1 << 20, 0).is_err());
        assert!(check(&[one], 1 << 20, 0).is_ok());
        for pin in [4, 24] {
            assert!(check(&[at(Space::Ports, 0, 1, Some(pin))], 1 << 20, 0).is_err());
        }
    }
}
