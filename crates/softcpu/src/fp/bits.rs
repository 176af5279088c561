//! Truncations that are meant: the low part of a wider integer.

/// The low 64 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low part is what is asked for"
)]
pub(crate) const fn low64(value: u128) -> u64 {
    value as u64
}

/// The low 32 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low part is what is asked for"
)]
pub(crate) const fn low32(value: u64) -> u32 {
    value as u32
}

/// The low 16 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low part is what is asked for"
)]
pub(crate) const fn low16(value: u64) -> u16 {
    value as u16
}

/// The low 8 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low part is what is asked for"
)]
pub(crate) const fn low8(value: u64) -> u8 {
    value as u8
}

/// Shifts right; what falls out leaves a one in the lowest bit.
pub(crate) const fn shift_right_jam(value: u128, count: u32) -> u128 {
    if count == 0 {
        return value;
    }
    if count > 127 {
        return (value != 0) as u128;
    }
    let lost = value << (128 - count) != 0;
    (value >> count) | lost as u128
}
