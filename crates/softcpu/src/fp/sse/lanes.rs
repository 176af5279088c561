//! A vector as lanes and back.

use crate::fp::bits::low64;

macro_rules! lanes {
    ($split:ident, $join:ident, $map:ident, $element:ty, $count:literal, $bytes:literal) => {
        /// The lanes, lowest first.
        #[inline]
        pub(super) fn $split(vector: u128) -> [$element; $count] {
            let bytes = vector.to_le_bytes();
            let mut lanes = [0; $count];
            for (lane, chunk) in lanes.iter_mut().zip(bytes.as_chunks::<$bytes>().0) {
                *lane = <$element>::from_le_bytes(*chunk);
            }
            lanes
        }

        /// The vector of these lanes, lowest first.
        #[inline]
        pub(super) fn $join(lanes: [$element; $count]) -> u128 {
            let mut bytes = [0; 16];
            for (lane, chunk) in lanes.iter().zip(bytes.as_chunks_mut::<$bytes>().0) {
                *chunk = lane.to_le_bytes();
            }
            u128::from_le_bytes(bytes)
        }

        /// Computes each lane from the two lanes at its place.
        #[inline]
        pub(super) fn $map(
            a: u128,
            b: u128,
            mut each: impl FnMut($element, $element) -> $element,
        ) -> u128 {
            let mut lanes = $split(a);
            for (lane, other) in lanes.iter_mut().zip($split(b)) {
                *lane = each(*lane, other);
            }
            $join(lanes)
        }
    };
}

lanes!(split8, join8, map8, u8, 16, 1);
lanes!(split16, join16, map16, u16, 8, 2);
lanes!(split32, join32, map32, u32, 4, 4);
lanes!(split64, join64, map64, u64, 2, 8);

/// Replaces the low 32 bits.
#[inline]
pub(super) const fn with_low32(vector: u128, low: u32) -> u128 {
    vector & !0xffff_ffff | low as u128
}

/// Replaces the low 64 bits.
#[inline]
pub(super) const fn with_low64(vector: u128, low: u64) -> u128 {
    vector & !(u64::MAX as u128) | low as u128
}

/// The low lane of 32 bits.
#[inline]
pub(super) const fn first32(vector: u128) -> u32 {
    crate::fp::bits::low32(low64(vector))
}
