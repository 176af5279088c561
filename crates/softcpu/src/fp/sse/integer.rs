//! Packed integer arithmetic and comparison. The 64-bit MMX forms are the low half of these.

use super::lanes::{join16, join32, join64, map8, map16, map32, map64, split8, split16, split32};
use crate::fp::bits::{low16, low32};

macro_rules! each {
    ($($name:ident, $map:ident, $doc:literal, |$a:ident, $b:ident| $body:expr;)*) => {$(
        #[doc = $doc]
        pub(super) fn $name(a: u128, b: u128) -> u128 {
            $map(a, b, |$a, $b| $body)
        }
    )*};
}

each! {
    add8, map8, "PADDB.", |a, b| a.wrapping_add(b);
    add16, map16, "PADDW.", |a, b| a.wrapping_add(b);
    add32, map32, "PADDD.", |a, b| a.wrapping_add(b);
    add64, map64, "PADDQ.", |a, b| a.wrapping_add(b);
    sub8, map8, "PSUBB.", |a, b| a.wrapping_sub(b);
    sub16, map16, "PSUBW.", |a, b| a.wrapping_sub(b);
    sub32, map32, "PSUBD.", |a, b| a.wrapping_sub(b);
    sub64, map64, "PSUBQ.", |a, b| a.wrapping_sub(b);
    add_signed8, map8, "PADDSB.", |a, b| {
        a.cast_signed().saturating_add(b.cast_signed()).cast_unsigned()
    };
    add_signed16, map16, "PADDSW.", |a, b| {
        a.cast_signed().saturating_add(b.cast_signed()).cast_unsigned()
    };
    add_unsigned8, map8, "PADDUSB.", |a, b| a.saturating_add(b);
    add_unsigned16, map16, "PADDUSW.", |a, b| a.saturating_add(b);
    sub_signed8, map8, "PSUBSB.", |a, b| {
        a.cast_signed().saturating_sub(b.cast_signed()).cast_unsigned()
    };
    sub_signed16, map16, "PSUBSW.", |a, b| {
        a.cast_signed().saturating_sub(b.cast_signed()).cast_unsigned()
    };
    sub_unsigned8, map8, "PSUBUSB.", |a, b| a.saturating_sub(b);
    sub_unsigned16, map16, "PSUBUSW.", |a, b| a.saturating_sub(b);
    average8, map8, "PAVGB.", |a, b| a.midpoint(b) + ((a ^ b) & 1);
    average16, map16, "PAVGW.", |a, b| a.midpoint(b) + ((a ^ b) & 1);
    min_unsigned8, map8, "PMINUB.", |a, b| a.min(b);
    max_unsigned8, map8, "PMAXUB.", |a, b| a.max(b);
    min_signed16, map16, "PMINSW.", |a, b| a.cast_signed().min(b.cast_signed()).cast_unsigned();
    max_signed16, map16, "PMAXSW.", |a, b| a.cast_signed().max(b.cast_signed()).cast_unsigned();
    equal8, map8, "PCMPEQB.", |a, b| if a == b { u8::MAX } else { 0 };
    equal16, map16, "PCMPEQW.", |a, b| if a == b { u16::MAX } else { 0 };
    equal32, map32, "PCMPEQD.", |a, b| if a == b { u32::MAX } else { 0 };
    greater8, map8, "PCMPGTB.", |a, b| if a.cast_signed() > b.cast_signed() { u8::MAX } else { 0 };
    greater16, map16, "PCMPGTW.", |a, b| {
        if a.cast_signed() > b.cast_signed() { u16::MAX } else { 0 }
    };
    greater32, map32, "PCMPGTD.", |a, b| {
        if a.cast_signed() > b.cast_signed() { u32::MAX } else { 0 }
    };
    multiply_low, map16, "PMULLW.", |a, b| a.wrapping_mul(b);
    multiply_high_unsigned, map16, "PMULHUW.", |a, b| {
        low16(u64::from((u32::from(a) * u32::from(b)) >> 16))
    };
    multiply_high, map16, "PMULHW.", |a, b| {
        let product = i32::from(a.cast_signed()) * i32::from(b.cast_signed());
        low16(u64::from(product.cast_unsigned() >> 16))
    };
    multiply_even, map64, "PMULUDQ.", |a, b| (a & 0xffff_ffff) * (b & 0xffff_ffff);
}

/// PMADDWD: the sums of neighbouring signed products.
pub(super) fn multiply_add(a: u128, b: u128) -> u128 {
    let (a, b) = (split16(a), split16(b));
    let mut sums = [0_u32; 4];
    let pairs = a.as_chunks::<2>().0.iter().zip(b.as_chunks::<2>().0);
    for (sum, (x, y)) in sums.iter_mut().zip(pairs) {
        let product = |x: u16, y: u16| i32::from(x.cast_signed()) * i32::from(y.cast_signed());
        let ([x0, x1], [y0, y1]) = (*x, *y);
        *sum = product(x0, y0)
            .wrapping_add(product(x1, y1))
            .cast_unsigned();
    }
    join32(sums)
}

/// PSADBW: the sum of absolute differences of each eight bytes.
pub(super) fn sum_of_differences(a: u128, b: u128) -> u128 {
    let (a, b) = (split8(a), split8(b));
    let mut sums = [0_u64; 2];
    let halves = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0);
    for (sum, (x, y)) in sums.iter_mut().zip(halves) {
        *sum = x
            .iter()
            .zip(y)
            .map(|(x, y)| u64::from(x.abs_diff(*y)))
            .sum();
    }
    join64(sums)
}

/// The sign bits of the sixteen bytes (PMOVMSKB).
pub(super) fn sign_bits8(a: u128) -> u128 {
    split8(a)
        .iter()
        .rev()
        .fold(0, |bits, byte| bits << 1 | u128::from(byte >> 7))
}

/// The sign bits of the four words of 32 bits (MOVMSKPS).
pub(super) fn sign_bits32(a: u128) -> u128 {
    split32(a)
        .iter()
        .rev()
        .fold(0, |bits, lane| bits << 1 | u128::from(lane >> 31))
}

/// The sign bits of both halves (MOVMSKPD).
pub(super) const fn sign_bits64(a: u128) -> u128 {
    a >> 126 & 2 | a >> 63 & 1
}

fn shift_count(count: u128, width: u32) -> Option<u32> {
    let count = crate::fp::bits::low64(count);
    (count < u64::from(width)).then(|| low32(count))
}

/// PSLLW: a count of the width or more clears.
pub(super) fn shift_left16(a: u128, count: u128) -> u128 {
    shift_count(count, 16).map_or(0, |n| map16(a, 0, |lane, _| lane << n))
}

/// PSLLD.
pub(super) fn shift_left32(a: u128, count: u128) -> u128 {
    shift_count(count, 32).map_or(0, |n| map32(a, 0, |lane, _| lane << n))
}

/// PSLLQ.
pub(super) fn shift_left64(a: u128, count: u128) -> u128 {
    shift_count(count, 64).map_or(0, |n| map64(a, 0, |lane, _| lane << n))
}

/// PSRLW.
pub(super) fn shift_right16(a: u128, count: u128) -> u128 {
    shift_count(count, 16).map_or(0, |n| map16(a, 0, |lane, _| lane >> n))
}

/// PSRLD.
pub(super) fn shift_right32(a: u128, count: u128) -> u128 {
    shift_count(count, 32).map_or(0, |n| map32(a, 0, |lane, _| lane >> n))
}

/// PSRLQ.
pub(super) fn shift_right64(a: u128, count: u128) -> u128 {
    shift_count(count, 64).map_or(0, |n| map64(a, 0, |lane, _| lane >> n))
}

/// PSRAW: a count of the width or more leaves only the sign.
pub(super) fn shift_arithmetic16(a: u128, count: u128) -> u128 {
    let n = shift_count(count, 16).unwrap_or(15);
    join16(split16(a).map(|lane| (lane.cast_signed() >> n).cast_unsigned()))
}

/// PSRAD.
pub(super) fn shift_arithmetic32(a: u128, count: u128) -> u128 {
    let n = shift_count(count, 32).unwrap_or(31);
    join32(split32(a).map(|lane| (lane.cast_signed() >> n).cast_unsigned()))
}

/// PSLLDQ, the count in bytes.
pub(super) fn shift_left_bytes(a: u128, count: u8) -> u128 {
    a.checked_shl(u32::from(count) * 8).unwrap_or(0)
}

/// PSRLDQ, the count in bytes.
pub(super) fn shift_right_bytes(a: u128, count: u8) -> u128 {
    a.checked_shr(u32::from(count) * 8).unwrap_or(0)
}
