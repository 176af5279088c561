//! The address map.
//!
//! ```text
//! 0              640 KiB   896 KiB        1 MiB        3 GiB          4 GiB
//! | RAM ......... | nothing | ACPI tables  | RAM ...... | devices      | RAM .......
//!
//! 3 GiB          3.5 GiB         3.75 GiB                        4 GiB
//! | PCI registers | config space | nothing | I/O, local APICs | . |
//! ```
//!
//! Prefetchable PCI registers lie behind the memory above 4 GiB, from the next gibibyte on.

use std::ops::Range;

use vmlet_boot::{MemoryKind, MemoryRange};
use vmlet_pci::{Root, Windows};

/// The end of memory below the device hole.
pub(crate) const LOW_END: u64 = 0xc000_0000;
/// Where memory goes on behind the hole.
pub(crate) const HIGH_START: u64 = 0x1_0000_0000;
/// The most memory a machine takes.
pub(crate) const MAX_MEMORY: u64 = 1 << 40;

/// Conventional memory ends here, as every PC's does; firmware's data area would follow.
const CONVENTIONAL_END: u64 = 0x9_fc00;
/// ACPI tables, in the range that software searches for the root pointer.
pub(crate) const ACPI_START: u64 = 0xe_0000;
pub(crate) const ACPI_LEN: u64 = 0x2_0000;
const EXTENDED_START: u64 = 0x10_0000;

/// PCI registers below 4 GiB.
const PCI_LOW: Range<u64> = LOW_END..0xe000_0000;
/// Config space of all PCI buses.
pub(crate) const ECAM: u64 = 0xe000_0000;
/// Where PCI's addresses below 4 GiB end.
pub(crate) const PCI_END: u64 = 0xf000_0000;
/// PCI registers above 4 GiB begin at a multiple of this, and take so much at most.
const PCI_HIGH_ALIGN: u64 = 1 << 30;
const PCI_HIGH_MOST: u64 = 64 << 30;

/// The I/O APIC's registers.
pub(crate) const IOAPIC: u64 = 0xfec0_0000;
/// The local APICs' registers, in the engine.
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;

/// Ports.
pub(crate) const PORT_RTC: u64 = 0x70;
pub(crate) const PORT_KEYBOARD: u64 = 0x64;
pub(crate) const PORT_DEBUG: u16 = 0xe9;
pub(crate) const PORT_COM1: u16 = 0x3f8;
pub(crate) const PORT_PVPANIC: u16 = 0x505;
pub(crate) const PORT_SLEEP: u16 = 0x600;
pub(crate) const PORT_PM_TIMER: u16 = 0x608;
pub(crate) const PORT_RESET: u16 = 0xcf9;

/// The serial port's pin.
pub(crate) const IRQ_COM1: u8 = 4;
/// Pins below 5 belong to the PC's timer, keyboard and serial ports, 8 to its clock.
pub(crate) const BOARD_PINS: [u8; 6] = [0, 1, 2, 3, IRQ_COM1, 8];

/// The first of the pins of PCI's lines, and how many there are.
pub(crate) const PCI_FIRST_PIN: u8 = 16;
pub(crate) const PCI_PINS: u8 = 8;

/// The PCI part of a board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PciLayout {
    /// Root ports.
    pub(crate) ports: u8,
    /// Addresses for registers.
    pub(crate) windows: Windows,
}

impl PciLayout {
    /// The last bus that the guest is told of: the last slot's, for there are no switches. Linux
    /// looks for a device in every place of every bus that it is told of, and a look is an exit.
    pub(crate) fn last_bus(&self) -> u8 {
        self.ports
    }
}

/// Where PCI lies on a board with `memory` bytes whose processor has addresses of `bits` bits;
/// `None` on one without root ports.
pub(crate) fn pci(ports: u8, memory: u64, bits: u32) -> Option<PciLayout> {
    let start = memory_end(memory).max(HIGH_START);
    let start = start.next_multiple_of(PCI_HIGH_ALIGN);
    let end = 1u64.checked_shl(bits).unwrap_or(u64::MAX);
    let end = end.min(start.saturating_add(PCI_HIGH_MOST));
    let windows = Windows {
        low: PCI_LOW,
        high: start.min(end)..end,
    };
    (ports > 0).then_some(PciLayout { ports, windows })
}

/// Bytes of `memory` that lie below the hole.
pub(crate) fn low_bytes(memory: u64) -> u64 {
    memory.min(LOW_END)
}

/// The end of the last address that `memory` bytes take.
pub(crate) fn memory_end(memory: u64) -> u64 {
    let high = memory.saturating_sub(LOW_END);
    if high == 0 {
        memory
    } else {
        HIGH_START.saturating_add(high)
    }
}

/// The memory map as the guest is told, of a board with PCI or without.
pub(crate) fn memory_map(memory: u64, pci: bool) -> Vec<MemoryRange> {
    let range = |gpa, end: u64, kind| MemoryRange {
        gpa,
        len: end - gpa,
        kind,
    };
    let low = low_bytes(memory);
    let mut map = vec![
        range(0, CONVENTIONAL_END, MemoryKind::Ram),
        range(CONVENTIONAL_END, ACPI_START, MemoryKind::Reserved),
        range(ACPI_START, ACPI_START + ACPI_LEN, MemoryKind::Acpi),
    ];
    if low > EXTENDED_START {
        map.push(range(EXTENDED_START, low, MemoryKind::Ram));
    }
    if pci {
        // Linux uses config space in memory only where it is reserved.
        map.push(range(ECAM, ECAM + Root::ECAM_BYTES, MemoryKind::Reserved));
    }
    if memory > low {
        map.push(range(
            HIGH_START,
            HIGH_START + (memory - low),
            MemoryKind::Ram,
        ));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_above_the_hole_is_what_does_not_fit_below() {
        let map = memory_map(4 << 30, true);
        let last = map.last().unwrap();
        assert_eq!((last.gpa, last.len), (HIGH_START, 1 << 30));
    }

    #[test]
    fn the_map_is_sorted_and_without_overlaps() {
        for memory in [1 << 20, 256 << 20, 6 << 30] {
            let map = memory_map(memory, true);
            assert!(
                map.windows(2)
                    .all(|pair| pair[0].gpa + pair[0].len <= pair[1].gpa)
            );
        }
    }

    #[test]
    fn pci_registers_lie_behind_memory_and_within_the_processors_addresses() {
        let high = |memory, bits| pci(1, memory, bits).unwrap().windows.high;
        assert_eq!(high(256 << 20, 40), 4 << 30..68 << 30);
        assert_eq!(high((6 << 30) + 4096, 36), 8 << 30..64 << 30);
        assert!(high(63 << 30, 36).is_empty());
        assert_eq!(pci(0, 256 << 20, 40), None);
    }
}
