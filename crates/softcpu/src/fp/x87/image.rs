//! The x87 part of the FXSAVE image (SDM vol. 1, 10.5.1).

use super::control::ControlWord;
use super::register::F80;
use super::state::X87;
use crate::fp::bits::{low8, low16, low64};

/// Bytes of the image up to the XMM registers.
pub(in crate::fp) const LEGACY_BYTES: usize = 160;
const REGISTERS: usize = 32;

/// Puts a field of up to 128 bits.
pub(in crate::fp) fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(field) = image.get_mut(at..at + bytes.len()) {
        field.copy_from_slice(bytes);
    }
}

/// A field of `bytes` bytes as an integer.
pub(in crate::fp) fn get(image: &[u8], at: usize, bytes: usize) -> u128 {
    let field = image.get(at..at + bytes).unwrap_or_default();
    field
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u128::from(*byte))
}

impl X87 {
    /// Writes control, status, tags, pointers and registers; `wide` is the REX.W form, whose
    /// pointers have 64 bits and no segments.
    pub(in crate::fp) fn write_fx(&self, image: &mut [u8], wide: bool) {
        put(image, 0, &self.control.bits().to_le_bytes());
        put(image, 2, &self.status_word().to_le_bytes());
        put(image, 4, &[self.used, 0]);
        put(image, 6, &self.pointers.opcode.to_le_bytes());
        put(image, 8, &self.pointers.instruction.to_le_bytes());
        put(image, 16, &self.pointers.data.to_le_bytes());
        if !wide {
            put(
                image,
                12,
                &u32::from(self.pointers.code_segment).to_le_bytes(),
            );
            put(
                image,
                20,
                &u32::from(self.pointers.data_segment).to_le_bytes(),
            );
        }
        for index in 0..8 {
            let at = REGISTERS + 16 * usize::from(index);
            put(image, at, &self.st(index).to_bytes());
            put(image, at + 10, &[0; 6]);
        }
    }

    /// Reads what [`X87::write_fx`] writes.
    pub(in crate::fp) fn read_fx(&mut self, image: &[u8], wide: bool) {
        let word = |at| low16(low64(get(image, at, 2)));
        self.control = ControlWord::new(word(0));
        self.set_status_word(word(2));
        self.pointers.opcode = word(6) & 0x7ff;
        let bytes = if wide { 8 } else { 4 };
        self.pointers.instruction = low64(get(image, 8, bytes));
        self.pointers.data = low64(get(image, 16, bytes));
        self.pointers.code_segment = if wide { 0 } else { word(12) };
        self.pointers.data_segment = if wide { 0 } else { word(20) };
        for index in 0..8 {
            let at = REGISTERS + 16 * usize::from(index);
            let value = get(image, at, 10);
            let sign_exponent = low16(low64(value >> 64));
            self.set_st(
                index,
                F80 {
                    significand: low64(value),
                    sign_exponent,
                },
            );
        }
        self.used = low8(low64(get(image, 4, 1)));
    }
}
