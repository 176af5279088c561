//! Applies a computation of one lane to a whole or a scalar operand and raises its exceptions.

use super::arith::Flagged;
use super::lanes::{first32, map32, map64, with_low32, with_low64};
use crate::fp::bits::{low32, low64};
use crate::fp::exceptions::Exceptions;
use crate::fp::mxcsr::{Mxcsr, SimdException};

/// The result of an SSE operation.
pub type Outcome = Result<u128, SimdException>;

/// All four single lanes.
#[inline]
pub(super) fn packed32(
    dst: u128,
    src: u128,
    mxcsr: &mut Mxcsr,
    each: impl Fn(u32, u32, Mxcsr) -> Flagged,
) -> Outcome {
    let mut raised = Exceptions::empty();
    let result = map32(dst, src, |a, b| {
        let (bits, more) = each(a, b, *mxcsr);
        raised |= more;
        low32(bits)
    });
    mxcsr.raise(raised)?;
    Ok(result)
}

/// Both double lanes.
#[inline]
pub(super) fn packed64(
    dst: u128,
    src: u128,
    mxcsr: &mut Mxcsr,
    each: impl Fn(u64, u64, Mxcsr) -> Flagged,
) -> Outcome {
    let mut raised = Exceptions::empty();
    let result = map64(dst, src, |a, b| {
        let (bits, more) = each(a, b, *mxcsr);
        raised |= more;
        bits
    });
    mxcsr.raise(raised)?;
    Ok(result)
}

/// The low single lane; the others stay as in `dst`.
#[inline]
pub(super) fn scalar32(
    dst: u128,
    src: u128,
    mxcsr: &mut Mxcsr,
    each: impl Fn(u32, u32, Mxcsr) -> Flagged,
) -> Outcome {
    let (bits, raised) = each(first32(dst), first32(src), *mxcsr);
    mxcsr.raise(raised)?;
    Ok(with_low32(dst, low32(bits)))
}

/// The low double lane; the other stays as in `dst`.
#[inline]
pub(super) fn scalar64(
    dst: u128,
    src: u128,
    mxcsr: &mut Mxcsr,
    each: impl Fn(u64, u64, Mxcsr) -> Flagged,
) -> Outcome {
    let (bits, raised) = each(low64(dst), low64(src), *mxcsr);
    mxcsr.raise(raised)?;
    Ok(with_low64(dst, bits))
}

/// A single value computed from the low lane or lanes.
#[inline]
pub(super) fn single(mxcsr: &mut Mxcsr, (bits, raised): Flagged) -> Outcome {
    mxcsr.raise(raised)?;
    Ok(u128::from(bits))
}

/// Several values of `width` bits, lowest first.
pub(super) fn several<const N: usize>(
    mxcsr: &mut Mxcsr,
    width: u32,
    values: [Flagged; N],
) -> Outcome {
    let (mut result, mut raised) = (0_u128, Exceptions::empty());
    for (bits, more) in values.into_iter().rev() {
        result = result << width | u128::from(bits);
        raised |= more;
    }
    mxcsr.raise(raised)?;
    Ok(result)
}
