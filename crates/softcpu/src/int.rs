//! The operand sizes of general instructions.

/// An operand of 1, 2, 4 or 8 bytes.
pub(crate) trait Int: Copy + Eq + Send + Sync + 'static {
    /// Bytes.
    const BYTES: u64;
    /// Bits.
    const BITS: u32 = Self::BYTES as u32 * 8;
    /// All ones.
    const MASK: u64 = u64::MAX >> (64 - Self::BITS);

    /// Cuts `value` to the size.
    fn of(value: u64) -> Self;
    /// Zero-extends.
    fn u(self) -> u64;
    /// Sign-extends.
    fn s(self) -> u64;
}

macro_rules! int {
    ($unsigned:ty, $signed:ty, $bytes:expr) => {
        impl Int for $unsigned {
            const BYTES: u64 = $bytes;

            #[inline(always)]
            fn of(value: u64) -> Self {
                value as $unsigned
            }

            #[inline(always)]
            fn u(self) -> u64 {
                u64::from(self)
            }

            #[inline(always)]
            fn s(self) -> u64 {
                i64::from(self as $signed) as u64
            }
        }
    };
}

int!(u8, i8, 1);
int!(u16, i16, 2);
int!(u32, i32, 4);
int!(u64, i64, 8);

/// The mask of an operand of `1 << size` bytes.
pub(crate) fn mask(size: u8) -> u64 {
    u64::MAX >> (64 - bits(size))
}

/// Bits of an operand of `1 << size` bytes.
pub(crate) fn bits(size: u8) -> u32 {
    8 << (size & 3)
}

/// Sign-extends an operand of `1 << size` bytes.
pub(crate) fn sext(size: u8, value: u64) -> u64 {
    let shift = 64 - bits(size);
    ((value << shift).cast_signed() >> shift).cast_unsigned()
}
