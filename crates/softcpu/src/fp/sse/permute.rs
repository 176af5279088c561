//! Packing, interleaving, shuffles, insertion and extraction.

use super::lanes::{join8, join16, join32, join64, split16, split32};
use crate::fp::bits::{low8, low16, low64};

/// The 16 (or with `WIDE`, 8) results of the lanes of `a`, then of `b`.
fn narrow16(a: u128, b: u128, each: impl Fn(u16) -> u8) -> u128 {
    let mut bytes = [0; 16];
    let words = split16(a).into_iter().chain(split16(b));
    for (byte, word) in bytes.iter_mut().zip(words) {
        *byte = each(word);
    }
    join8(bytes)
}

/// PACKSSWB.
pub(super) fn pack_signed16(a: u128, b: u128) -> u128 {
    narrow16(a, b, |word| {
        low8(i64::from(word.cast_signed().clamp(-128, 127)).cast_unsigned())
    })
}

/// PACKUSWB.
pub(super) fn pack_unsigned16(a: u128, b: u128) -> u128 {
    narrow16(a, b, |word| {
        low8(i64::from(word.cast_signed().clamp(0, 255)).cast_unsigned())
    })
}

/// PACKSSDW.
pub(super) fn pack_signed32(a: u128, b: u128) -> u128 {
    let mut words = [0; 8];
    let lanes = split32(a).into_iter().chain(split32(b));
    for (word, lane) in words.iter_mut().zip(lanes) {
        let clamped = lane.cast_signed().clamp(-0x8000, 0x7fff);
        *word = low16(i64::from(clamped).cast_unsigned());
    }
    join16(words)
}

/// The lanes of `width` bits of the low halves, `a` and `b` in turn.
pub(super) fn interleave_low(a: u128, b: u128, width: u32) -> u128 {
    let mask = (1_u128 << width) - 1;
    let mut result = 0;
    let mut at = 0;
    while at < 64 {
        result |= (a >> at & mask) << (2 * at) | (b >> at & mask) << (2 * at + width);
        at += width;
    }
    result
}

/// The lanes of `width` bits of the high halves, `a` and `b` in turn.
pub(super) fn interleave_high(a: u128, b: u128, width: u32) -> u128 {
    interleave_low(a >> 64, b >> 64, width)
}

fn pick<T: Copy + Default, const N: usize>(lanes: &[T; N], selector: u8) -> T {
    lanes
        .get(usize::from(selector) & (N - 1))
        .copied()
        .unwrap_or_default()
}

/// PSHUFD.
pub(super) fn shuffle32(a: u128, order: u8) -> u128 {
    shuffle_two(a, a, order)
}

/// SHUFPS: two lanes of `a`, two of `b`.
pub(super) fn shuffle_two(a: u128, b: u128, order: u8) -> u128 {
    let (a, b) = (split32(a), split32(b));
    join32([
        pick(&a, order & 3),
        pick(&a, order >> 2 & 3),
        pick(&b, order >> 4 & 3),
        pick(&b, order >> 6),
    ])
}

/// SHUFPD.
pub(super) const fn shuffle64(a: u128, b: u128, order: u8) -> u128 {
    let low = if order & 1 == 0 {
        low64(a)
    } else {
        low64(a >> 64)
    };
    let high = if order & 2 == 0 {
        low64(b)
    } else {
        low64(b >> 64)
    };
    (high as u128) << 64 | low as u128
}

/// The four low words in another order (PSHUFLW, PSHUFW); the upper half stays.
pub(super) fn shuffle_low16(a: u128, order: u8) -> u128 {
    let words = split16(a);
    let [w0, w1, w2, w3, w4, w5, w6, w7] = words;
    let low = [w0, w1, w2, w3];
    join16([
        pick(&low, order & 3),
        pick(&low, order >> 2 & 3),
        pick(&low, order >> 4 & 3),
        pick(&low, order >> 6),
        w4,
        w5,
        w6,
        w7,
    ])
}

/// PSHUFHW.
pub(super) fn shuffle_high16(a: u128, order: u8) -> u128 {
    let high = shuffle_low16(a >> 64, order);
    join64([low64(a), low64(high)])
}

/// PINSRW: replaces word `index` of `lanes` words.
pub(super) fn insert16(a: u128, word: u128, index: u8, lanes: u8) -> u128 {
    let at = u32::from(index & (lanes - 1)) * 16;
    a & !(0xffff << at) | (word & 0xffff) << at
}

/// PEXTRW.
pub(super) fn extract16(a: u128, index: u8, lanes: u8) -> u128 {
    a >> (u32::from(index & (lanes - 1)) * 16) & 0xffff
}
