//! A redirection entry (82093AA data sheet, section 3.2.4).

use vmlet_bus::Msi;

const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;
/// Vector, modes, polarity, trigger, mask; extended destination id and destination.
const STORED: u64 = 0xffff_0000_0001_ffff;

/// Where a pin's interrupt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedirectionEntry(u64);

impl Default for RedirectionEntry {
    /// Masked, as after reset.
    fn default() -> Self {
        RedirectionEntry(MASKED)
    }
}

impl RedirectionEntry {
    /// The register's value.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The entry a saved state has; bits that do not exist are dropped.
    pub fn restored(bits: u64) -> Self {
        let entry = RedirectionEntry(bits & (STORED | REMOTE_IRR));
        if entry.is_level() {
            entry
        } else {
            entry.with_remote_irr(false)
        }
    }

    /// Takes one half as the guest writes it; read-only bits stay.
    #[must_use]
    pub fn with_half(self, high: bool, value: u32) -> Self {
        let (shift, mask) = if high {
            (32, 0xffff_ffff << 32)
        } else {
            (0, 0xffff_ffff)
        };
        let new = (self.0 & !mask) | (u64::from(value) << shift);
        let mut entry = RedirectionEntry((new & STORED & !READ_ONLY) | (self.0 & READ_ONLY));
        if !entry.is_level() {
            entry = entry.with_remote_irr(false);
        }
        entry
    }

    /// The pin sends nothing.
    pub fn is_masked(self) -> bool {
        self.0 & MASKED != 0
    }

    /// The pin is level-triggered.
    pub fn is_level(self) -> bool {
        self.0 & LEVEL != 0
    }

    /// A local APIC has the interrupt and has not ended it.
    pub fn remote_irr(self) -> bool {
        self.0 & REMOTE_IRR != 0
    }

    /// Sets or clears [`Self::remote_irr`].
    #[must_use]
    pub fn with_remote_irr(self, on: bool) -> Self {
        RedirectionEntry(if on {
            self.0 | REMOTE_IRR
        } else {
            self.0 & !REMOTE_IRR
        })
    }

    /// The interrupt vector.
    pub fn vector(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    /// The message the pin sends (Intel SDM volume 3, section 12.11 "Message Signalled
    /// Interrupts"): destination in address bits 19-12, destination mode in bit 2, delivery mode
    /// and trigger in the data. Lowest-priority delivery sets the redirection hint, bit 3.
    pub fn message(self) -> Msi {
        let destination = self.0 >> 56;
        let logical = (self.0 >> 11) & 1;
        let delivery = (self.0 >> 8) & 7;
        let hint = u64::from(delivery == 1);
        let trigger = if self.is_level() {
            1 << 15 | 1 << 14
        } else {
            0
        };
        Msi {
            address: 0xfee0_0000 | destination << 12 | hint << 3 | logical << 2,
            data: u32::from(self.vector()) | (delivery as u32) << 8 | trigger,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_level_entry_becomes_its_message() {
        let entry = RedirectionEntry::default()
            .with_half(true, 0x0300_0000)
            .with_half(false, 0x8031);
        assert_eq!(
            entry.message(),
            Msi {
                address: 0xfee0_3000,
                data: 0xc031
            }
        );
    }

    #[test]
    fn a_logical_lowest_priority_entry_sets_mode_and_hint() {
        let entry = RedirectionEntry::default()
            .with_half(true, 0x0f00_0000)
            .with_half(false, 0x0955);
        assert_eq!(
            entry.message(),
            Msi {
                address: 0xfee0_f00c,
                data: 0x0155
            }
        );
    }

    #[test]
    fn read_only_bits_are_not_written() {
        let entry = RedirectionEntry::default().with_half(false, 0xffff_ffff);
        assert_eq!(entry.bits(), 0x0001_afff);
    }

    #[test]
    fn changing_a_pin_to_edge_clears_remote_irr() {
        let level = RedirectionEntry::default()
            .with_half(false, 0x8031)
            .with_remote_irr(true);
        assert!(level.with_half(false, 0x8031).remote_irr());
        assert!(!level.with_half(false, 0x31).remote_irr());
    }
}
