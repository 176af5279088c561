//! MXCSR: control and status of SSE arithmetic (SDM vol. 1, 10.2.3).

use super::bits::low8;
use super::exceptions::{Exceptions, Rounding};

/// An unmasked SIMD floating-point exception: the instruction gives #XM and changes no register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("SIMD floating-point exception, flags {:#04x}", .0.bits())]
pub struct SimdException(
    /// The unmasked exceptions among those the instruction raised.
    pub Exceptions,
);

/// A value for MXCSR has a reserved bit set: LDMXCSR and FXRSTOR give #GP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("MXCSR value {0:#x} has reserved bits set")]
pub struct ReservedBits(
    /// The refused value.
    pub u32,
);

/// The register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mxcsr(u32);

impl Default for Mxcsr {
    fn default() -> Self {
        Self(Self::RESET)
    }
}

impl Mxcsr {
    /// The value after reset: every exception masked, rounding to nearest.
    pub const RESET: u32 = 0x1f80;
    /// The writable bits (MXCSR_MASK of an FXSAVE image): DAZ is supported.
    pub const MASK: u32 = 0xffff;
    const DAZ: u32 = 1 << 6;
    const FTZ: u32 = 1 << 15;

    /// Takes a value as LDMXCSR does.
    ///
    /// # Errors
    /// [`ReservedBits`] when a bit outside [`Mxcsr::MASK`] is set.
    pub const fn new(value: u32) -> Result<Self, ReservedBits> {
        if value & !Self::MASK != 0 {
            return Err(ReservedBits(value));
        }
        Ok(Self(value))
    }

    /// The value as STMXCSR stores it.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The sticky flags.
    #[must_use]
    pub fn flags(self) -> Exceptions {
        Exceptions::from_bits_truncate(low8(u64::from(self.0)))
    }

    /// The exceptions that are masked.
    #[must_use]
    pub fn masked(self) -> Exceptions {
        Exceptions::from_bits_truncate(low8(u64::from(self.0 >> 7)))
    }

    /// The rounding direction.
    #[must_use]
    pub const fn rounding(self) -> Rounding {
        Rounding::from_field(self.0 >> 13)
    }

    /// Whether denormal operands count as zeros.
    #[must_use]
    pub const fn denormals_are_zeros(self) -> bool {
        self.0 & Self::DAZ != 0
    }

    /// Whether tiny results become zeros: FTZ, which acts only where underflow is masked.
    #[must_use]
    pub fn flushes_to_zero(self) -> bool {
        self.0 & Self::FTZ != 0 && self.masked().contains(Exceptions::UNDERFLOW)
    }

    /// Whether the host's default arithmetic gives the same result and flags for operands and
    /// result that are normal: rounding to nearest, everything masked, PE already set.
    #[inline]
    #[must_use]
    pub const fn is_plain(self) -> bool {
        self.0 & 0x7fa0 == 0x1fa0
    }

    /// As [`Mxcsr::is_plain`] with PE not regarded: for results known to be exact.
    #[inline]
    #[must_use]
    pub const fn is_plain_if_exact(self) -> bool {
        self.0 & 0x7f80 == 0x1f80
    }

    /// Raises `found`, the exceptions of all lanes of one instruction.
    ///
    /// Where an unmasked exception is found before the computation, those found after it are
    /// not recorded (SDM vol. 1, 11.5.2).
    ///
    /// # Errors
    /// [`SimdException`] when one of them is unmasked; the flags are set all the same.
    pub fn raise(&mut self, found: Exceptions) -> Result<(), SimdException> {
        let unmasked = found - self.masked();
        if unmasked.intersects(Exceptions::BEFORE) {
            let before = found & Exceptions::BEFORE;
            self.0 |= u32::from(before.bits());
            return Err(SimdException(unmasked & Exceptions::BEFORE));
        }
        self.0 |= u32::from(found.bits());
        if unmasked.is_empty() {
            Ok(())
        } else {
            Err(SimdException(unmasked))
        }
    }
}
