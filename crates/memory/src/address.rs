//! Addresses, one type a space.

use std::fmt;

/// Bytes of the smallest page of x86 and of every memory slot's granularity.
pub const PAGE_SIZE: u64 = 4096;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The address `bytes` further on; `None` past the end of the space.
            pub fn checked_add(self, bytes: u64) -> Option<Self> {
                self.0.checked_add(bytes).map(Self)
            }

            /// The next lower multiple of `align`, a power of two.
            pub fn align_down(self, align: u64) -> Self {
                Self(self.0 & !(align.wrapping_sub(1)))
            }

            /// The next higher multiple of `align`, a power of two; `None` past the end.
            pub fn align_up(self, align: u64) -> Option<Self> {
                self.checked_add(align.wrapping_sub(1)).map(|a| a.align_down(align))
            }

            /// Whether the address is a multiple of `align`, a power of two.
            pub fn is_aligned(self, align: u64) -> bool {
                self.0 & align.wrapping_sub(1) == 0
            }

            /// Bytes from `base` to here; `None` when `base` lies above.
            pub fn offset_from(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address!(
    /// A guest-physical address.
    Gpa
);
address!(
    /// A host-physical address: what second-stage tables (EPT, NPT) lead to and lie at.
    Hpa
);
address!(
    /// A host-virtual address of this process.
    Hva
);
address!(
    /// An address as a device uses it for DMA, before translation by an IOMMU.
    Iova
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligning_up_past_the_end_is_none() {
        assert_eq!(Gpa(u64::MAX).align_up(4096), None);
        assert_eq!(Gpa(1).align_up(4096), Some(Gpa(4096)));
    }

    #[test]
    fn addresses_print_in_hexadecimal() {
        assert_eq!(Gpa(0x1000).to_string(), "0x1000");
    }
}
