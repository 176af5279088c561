//! The address map.
//!
//! ```text
//! 0              640 KiB   896 KiB        1 MiB        3 GiB          4 GiB
//! | RAM ......... | nothing | ACPI tables  | RAM ...... | devices      | RAM .......
//! ```

use vmlet_boot::{MemoryKind, MemoryRange};

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

/// The memory map as the guest is told.
pub(crate) fn memory_map(memory: u64) -> Vec<MemoryRange> {
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
        let map = memory_map(4 << 30);
        let last = map.last().unwrap();
        assert_eq!((last.gpa, last.len), (HIGH_START, 1 << 30));
    }

    #[test]
    fn the_map_is_sorted_and_without_overlaps() {
        for memory in [1 << 20, 256 << 20, 6 << 30] {
            let map = memory_map(memory);
            assert!(
                map.windows(2)
                    .all(|pair| pair[0].gpa + pair[0].len <= pair[1].gpa)
            );
        }
    }
}
