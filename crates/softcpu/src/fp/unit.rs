//! All floating-point and SIMD registers, and their FXSAVE image.

use super::bits::{low32, low64};
use super::mxcsr::{Mxcsr, ReservedBits};
use super::x87::{LEGACY_BYTES, X87, get, put};

/// Bytes of the image.
pub const IMAGE_BYTES: usize = 512;
/// Bytes that FXSAVE writes in 64-bit mode; the rest of the image is left as it is.
pub const WRITTEN_BYTES: usize = LEGACY_BYTES + 16 * 16;
/// Bytes that FXSAVE writes outside 64-bit mode: eight XMM registers.
pub const WRITTEN_BYTES_32: usize = LEGACY_BYTES + 8 * 16;

/// The registers of a processor with x87, MMX, SSE and SSE2.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fpu {
    /// The x87 unit; the MMX registers are part of it.
    pub x87: X87,
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// Control and status of SSE.
    pub mxcsr: Mxcsr,
}

impl Fpu {
    /// An XMM register.
    #[must_use]
    pub fn xmm(&self, number: u8) -> u128 {
        self.xmm
            .get(usize::from(number & 15))
            .copied()
            .unwrap_or_default()
    }

    /// Writes an XMM register.
    pub fn set_xmm(&mut self, number: u8, value: u128) {
        if let Some(register) = self.xmm.get_mut(usize::from(number & 15)) {
            *register = value;
        }
    }

    /// The image FXSAVE stores; `wide` is the REX.W form. How much of it is written:
    /// [`WRITTEN_BYTES`].
    #[must_use]
    pub fn save(&self, wide: bool) -> [u8; IMAGE_BYTES] {
        let mut image = [0; IMAGE_BYTES];
        self.x87.write_fx(&mut image, wide);
        put(&mut image, 24, &self.mxcsr.bits().to_le_bytes());
        put(&mut image, 28, &Mxcsr::MASK.to_le_bytes());
        for (index, value) in self.xmm.iter().enumerate() {
            put(&mut image, LEGACY_BYTES + 16 * index, &value.to_le_bytes());
        }
        image
    }

    /// Takes an image as FXRSTOR does; the first `vectors` XMM registers are loaded (8 or 16).
    ///
    /// # Errors
    /// [`ReservedBits`] (#GP) for a bad MXCSR; nothing has changed then.
    pub fn restore(
        &mut self,
        image: &[u8; IMAGE_BYTES],
        wide: bool,
        vectors: usize,
    ) -> Result<(), ReservedBits> {
        self.mxcsr = Mxcsr::new(low32(low64(get(image, 24, 4))))?;
        self.x87.read_fx(image, wide);
        for (index, register) in self.xmm.iter_mut().take(vectors).enumerate() {
            *register = get(image, LEGACY_BYTES + 16 * index, 16);
        }
        Ok(())
    }
}
