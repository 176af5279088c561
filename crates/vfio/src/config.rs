//! Config space as VFIO shows it, and writes to it that would be fatal.
//!
//! The kernel answers an access to a mapped region with SIGBUS while memory decoding is off or the
//! function sleeps (drivers/vfio/pci/vfio_pci_core.c), and that ends the process. So while a region
//! is mapped, nothing that leads there is written.

use std::ops::Range;

/// Registers of the header (PCIe 6.0, section 7.5.1).
pub(crate) const COMMAND: u64 = 4;
const STATUS: u64 = 6;
const CAPABILITIES: u64 = 0x34;
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// The command register's bits: memory decoding, bus mastering.
pub(crate) const MEMORY: u16 = 1 << 1;
pub(crate) const MASTER: u16 = 1 << 2;
/// Power management (PCI Bus Power Management 1.2, section 3.2): id, and the control register.
const POWER: u8 = 1;
const POWER_CONTROL: u64 = 4;
const POWER_STATE: u16 = 3;
/// Where capabilities can begin.
const HEADER: u64 = 0x40;
/// Entries of a list in 256 bytes.
const MOST: usize = 48;

/// Where capabilities begin, and their ids; `read` gives a byte of config space.
pub(crate) fn capabilities(
    mut read: impl FnMut(u64) -> Option<u8>,
) -> impl Iterator<Item = (u64, u8)> {
    let mut link = Some(CAPABILITIES);
    let status = read(STATUS).zip(read(STATUS + 1));
    let status = status.map_or(0, |(low, high)| u16::from_le_bytes([low, high]));
    if status & STATUS_CAPABILITIES == 0 {
        link = None;
    }
    let next = move || {
        let at = u64::from(read(link?)? & !3);
        link = (at >= HEADER).then_some(at + 1);
        Some((at, link.and_then(|_| read(at))?))
    };
    std::iter::from_fn(next).take(MOST)
}

/// Where the power control register is; `read` gives a byte of config space.
pub(crate) fn power_control(read: impl FnMut(u64) -> Option<u8>) -> Option<u64> {
    let mut all = capabilities(read);
    all.find(|(_, id)| *id == POWER)
        .map(|(at, _)| at + POWER_CONTROL)
}

/// A register of 16 bits after `data` is written to `offset`.
fn written(register: u64, now: u16, offset: u64, data: &[u8]) -> u16 {
    let mut bytes = now.to_le_bytes();
    for (at, byte) in (register..).zip(&mut bytes) {
        let new = at
            .checked_sub(offset)
            .and_then(|at| data.get(usize::try_from(at).ok()?));
        *byte = new.copied().unwrap_or(*byte);
    }
    u16::from_le_bytes(bytes)
}

/// Why `data` at `offset` must not be written: what it would do. `read` gives a register.
pub(crate) fn fatal(
    offset: u64,
    data: &[u8],
    power_control: Option<u64>,
    mut read: impl FnMut(u64) -> Option<u16>,
) -> Option<&'static str> {
    let range = offset..offset.saturating_add(data.len() as u64);
    let meets = |register: u64| -> bool {
        let Range { start, end } = range;
        start < register + 2 && register < end
    };
    let mut after = |register| Some(written(register, read(register)?, offset, data));
    if meets(COMMAND) && after(COMMAND)? & MEMORY == 0 {
        return Some("switching memory decoding off");
    }
    let power = power_control.filter(|register| meets(*register))?;
    (after(power)? & POWER_STATE != 0).then_some("putting the device to sleep")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(offset: u64, data: &[u8]) -> Option<&'static str> {
        let now = |register| Some(if register == COMMAND { 0x0006 } else { 0 });
        fatal(offset, data, Some(0x54), now)
    }

    #[test]
    fn memory_decoding_stays_on() {
        assert!(asks(4, &[4, 0]).is_some());
        assert!(asks(4, &[0]).is_some());
        assert!(asks(2, &[0, 0, 0, 0]).is_some());
        assert_eq!(asks(4, &[6, 4]), None);
        assert_eq!(asks(5, &[0]), None);
        assert_eq!(asks(6, &[0, 0]), None);
    }

    #[test]
    fn the_device_stays_awake() {
        assert!(asks(0x54, &[3, 0]).is_some());
        assert!(asks(0x50, &[0, 0, 0, 0, 3]).is_some());
        assert_eq!(asks(0x54, &[0, 0x81]), None);
        assert_eq!(asks(0x56, &[3]), None);
    }

    #[test]
    fn power_management_is_found_and_lists_without_end_are_left() {
        let mut bytes = [0u8; 256];
        bytes[6] = 0x10;
        bytes[0x34] = 0x40;
        (bytes[0x40], bytes[0x41]) = (5, 0x50);
        bytes[0x50] = 1;
        let find = |bytes: &[u8]| power_control(|at| bytes.get(usize::try_from(at).ok()?).copied());
        assert_eq!(find(&bytes), Some(0x54));
        (bytes[0x50], bytes[0x51]) = (9, 0x40);
        assert_eq!(find(&bytes), None);
    }
}
