//! The capability list, and the capabilities that every function has.

use crate::{FunctionLayout, MsixLayout, registers::Registers};

/// Status: the capability list is there (PCIe 6.0, section 7.5.1.1.4).
const STATUS: u16 = 0x06;
const CAPABILITY_LIST: u8 = 1 << 4;
/// Offset of the first capability (section 7.5.1.1.11).
const FIRST_LINK: u16 = 0x34;
/// Where capabilities begin.
const START: u16 = 0x40;

pub(crate) const PM: u8 = 0x01;
pub(crate) const MSI: u8 = 0x05;
pub(crate) const EXPRESS: u8 = 0x10;
pub(crate) const MSIX: u8 = 0x11;

/// Control and status, from the power management capability on (section 7.5.2.2).
pub(crate) const PM_CONTROL: u16 = 4;
/// Message Control, from the MSI-X capability on (section 7.7.2.2).
pub(crate) const MSIX_CONTROL: u16 = 2;
/// Device Control, from the PCI Express capability on (section 7.5.3.4).
pub(crate) const DEVICE_CONTROL: u16 = 8;

/// Adds capabilities one behind the other.
#[derive(Debug)]
pub(crate) struct List {
    next: u16,
    link: u16,
}

impl List {
    /// An empty list.
    pub(crate) fn new() -> List {
        List {
            next: START,
            link: FIRST_LINK,
        }
    }

    /// Adds a capability whose `body` follows id and link; gives where it begins.
    pub(crate) fn add(&mut self, registers: &mut Registers, id: u8, body: &[u8]) -> u16 {
        let at = self.next;
        let end = at.saturating_add(u16::try_from(body.len() + 2).unwrap_or(u16::MAX));
        registers.fix(STATUS, &[CAPABILITY_LIST]);
        registers.fix(self.link, &[u8::try_from(at).unwrap_or(0)]);
        registers.fix(at, &[id, 0]);
        registers.fix(at + 2, body);
        self.link = at + 1;
        self.next = end.next_multiple_of(4);
        at
    }

    /// Adds power management (section 7.5.2): D0 and D3hot, whose leaving is no reset.
    pub(crate) fn add_power(&mut self, registers: &mut Registers) -> u16 {
        // Version 3; No_Soft_Reset.
        let at = self.add(registers, PM, &[0x03, 0, 0x08, 0, 0, 0]);
        registers.allow(at + PM_CONTROL, &[3]);
        at
    }

    /// Adds PCI Express (section 7.5.3), with the body of `express`.
    pub(crate) fn add_express(&mut self, registers: &mut Registers, express: &Express) -> u16 {
        let at = self.add(registers, EXPRESS, &express.body());
        // Error reporting, relaxed ordering, payload, tags, no snoop, read size.
        registers.allow(at + DEVICE_CONTROL, &[0xff, 0x7f]);
        registers.clear_by_ones(at + 0xa, &[0x0f]);
        // ASPM, read completion boundary, common clock, extended synch, power management.
        registers.allow(at + 0x10, &[0xcb, 0x01]);
        // Completion timeout.
        registers.allow(at + 0x28, &[0x1f]);
        // Target link speed.
        registers.allow(at + 0x30, &[0x0f]);
        at
    }

    /// Adds MSI-X (section 7.7.2).
    pub(crate) fn add_msix(&mut self, registers: &mut Registers, msix: MsixLayout) -> u16 {
        let mut body = msix.vectors.saturating_sub(1).to_le_bytes().to_vec();
        for (bar, offset) in msix.places() {
            body.extend((offset & !7 | u32::from(bar)).to_le_bytes());
        }
        let at = self.add(registers, MSIX, &body);
        registers.allow(at + MSIX_CONTROL, &[0, 0xc0]);
        at
    }

    /// Adds a function's own capabilities; gives where each begins, and where the last ends.
    pub(crate) fn add_own(
        &mut self,
        registers: &mut Registers,
        layout: &FunctionLayout,
    ) -> Vec<u16> {
        let capabilities = layout.capabilities.iter();
        capabilities
            .map(|own| {
                let at = self.add(registers, own.id, &own.body);
                let room = own.body.len().min(own.writable.len());
                registers.allow(at + 2, own.writable.get(..room).unwrap_or_default());
                at
            })
            .collect()
    }

    /// Where the list ends.
    pub(crate) fn end(&self) -> u16 {
        self.next
    }
}

/// What the PCI Express capability says (section 7.5.3).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Express {
    /// Type of the function: 0 endpoint, 4 root port, 9 integrated endpoint.
    pub(crate) port_type: u16,
    /// Bits of Device Capabilities beside those that all have.
    pub(crate) device: u32,
    /// Bits of Link Capabilities beside speed and width.
    pub(crate) link: u32,
    /// Slot Capabilities, of a port with a slot.
    pub(crate) slot: Option<u32>,
}

/// Function Level Reset can be asked for.
pub(crate) const FLR_CAPABLE: u32 = 1 << 28;
/// Role-Based Error Reporting, which all have.
const ROLE_BASED: u32 = 1 << 15;
/// 2.5 GT/s over one lane: speed and width of a link that has neither.
const LINK: u16 = 0x11;

impl Express {
    /// The capability from behind its link on, 58 bytes: version 2.
    fn body(&self) -> Vec<u8> {
        let slot = u16::from(self.slot.is_some()) << 8;
        let flags = 2 | self.port_type << 4 | slot;
        let mut body = flags.to_le_bytes().to_vec();
        body.extend((ROLE_BASED | self.device).to_le_bytes());
        body.extend([0; 4]);
        body.extend((u32::from(LINK) | self.link).to_le_bytes());
        body.extend([0; 2]);
        body.extend(LINK.to_le_bytes());
        body.extend(self.slot.unwrap_or(0).to_le_bytes());
        // Slot control and status, root registers, Device Capabilities 2, control and status.
        body.extend([0; 20]);
        // Link Capabilities 2: 2.5 GT/s; Link Control 2: that is the target.
        body.extend([2, 0, 0, 0, 1, 0, 0, 0]);
        body.resize(0x3a, 0);
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_linked_aligned_and_end() {
        let (mut registers, mut list) = (Registers::default(), List::new());
        let first = list.add(&mut registers, 9, &[5, 1, 2]);
        let second = list.add_power(&mut registers);
        assert_eq!((first, second, list.end()), (0x40, 0x48, 0x50));
        assert_eq!(registers.byte(STATUS) & CAPABILITY_LIST, CAPABILITY_LIST);
        let links = [FIRST_LINK, first + 1, second + 1].map(|at| registers.byte(at));
        assert_eq!(links, [0x40, 0x48, 0]);
    }

    #[test]
    fn the_msix_capability_names_size_table_and_pending_bits() {
        let (mut registers, mut list) = (Registers::default(), List::new());
        let at = list.add_msix(
            &mut registers,
            MsixLayout {
                vectors: 3,
                bar: 2,
                inside: None,
            },
        );
        registers.write(at + MSIX_CONTROL, &[0xff, 0xff]);
        assert_eq!(registers.half(at + MSIX_CONTROL), 0xc002);
        assert_eq!((registers.word(at + 4), registers.word(at + 8)), (2, 0x32));
    }

    #[test]
    fn the_express_capability_is_60_bytes_of_version_2() {
        let (mut registers, mut list) = (Registers::default(), List::new());
        let express = Express {
            port_type: 4,
            device: 0,
            link: 0,
            slot: Some(1 << 6),
        };
        let at = list.add_express(&mut registers, &express);
        assert_eq!((list.end() - at, registers.half(at + 2)), (0x3c, 0x0142));
        assert_eq!(
            (registers.word(at + 0x14), registers.word(at + 0x2c)),
            (0x40, 2)
        );
        assert_eq!(registers.half(at + 0x12), LINK);
    }
}
