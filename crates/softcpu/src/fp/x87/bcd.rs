//! Packed decimal: 18 digits and a sign.

use super::register::F80;
use crate::fp::bits::low8;

/// The value stored where a number does not fit.
pub(super) const INDEFINITE: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff];
/// The largest magnitude.
pub(super) const LIMIT: u64 = 999_999_999_999_999_999;

/// Reads; a digit above nine counts with its value, as processors have it.
pub(super) fn decode(bytes: [u8; 10]) -> F80 {
    let [digits @ .., sign] = bytes;
    let magnitude = digits.iter().rev().fold(0_i64, |value, byte| {
        value * 100 + i64::from(byte >> 4) * 10 + i64::from(byte & 15)
    });
    F80::from_integer(magnitude).with_sign(sign & 0x80 != 0)
}

/// Writes a magnitude up to [`LIMIT`].
pub(super) fn encode(magnitude: u64, negative: bool) -> [u8; 10] {
    let mut bytes = [0; 10];
    let mut rest = magnitude;
    for byte in bytes.iter_mut().take(9) {
        let pair = low8(rest % 100);
        *byte = ((pair / 10) << 4) | (pair % 10);
        rest /= 100;
    }
    if let Some(sign) = bytes.last_mut() {
        *sign = if negative { 0x80 } else { 0 };
    }
    bytes
}
