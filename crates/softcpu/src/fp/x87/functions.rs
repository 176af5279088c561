//! Series for the transcendental functions.
//!
//! Small results keep their relative precision: each series is a factor next to one that the
//! argument is multiplied with.

use super::wide::{
    divide, enlarge_by, fixed, multiply, multiply_high, normalized, reduce_by, square,
};
use crate::fp::soft::{self, Number};

/// Pi with bit 127 weighing 2, and with 66 bits as processors reduce arguments.
pub(super) const PI: Number = Number {
    negative: false,
    exponent: 1,
    significand: 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1,
};
const PI_66: u128 = 0x3_243f_6a88_85a3_08d3;
const SIXTH_PI: u128 = 0x860a_91c1_6b9b_2c23_2dd9_9707_ab3d_688b;
const ROOT_3: u128 = 0xddb3_d742_c265_539d_92ba_16b8_3c5c_1dc4;
const LN_2: Number = Number {
    negative: false,
    exponent: -1,
    significand: 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af,
};
const TWO_LOG2_E: Number = Number {
    negative: false,
    exponent: 1,
    significand: 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e88,
};
/// The tangent of pi / 12 as a fraction, rounded.
const TAN_TWELFTH_PI: u128 = 0x4498_517a_7b35_58c5_0000_0000_0000_0000;
/// The square root of two, bit 127 weighing one.
const ROOT_2: u128 = 0xb504_f333_f9de_6484_597d_89b3_754a_be9f;
const ONE: Number = Number {
    negative: false,
    exponent: 0,
    significand: 1 << 127,
};

/// Sine and cosine; the sine is none for zero.
pub(super) struct SineCosine {
    pub(super) sine: Number,
    pub(super) cosine: Number,
    /// The tangent where it is small.
    small: Number,
}

/// Sine and cosine of a number below `2^63`, or none.
pub(super) fn sine_cosine(x: &Number) -> Option<SineCosine> {
    if x.exponent >= 63 {
        return None;
    }
    let (quadrant, rest) = reduce_angle(x);
    let small = enlarge_by(&rest, square(&rest) / 3);
    let (sine, cosine) = (sine(&rest), cosine(&rest));
    let (sine, cosine) = if quadrant & 1 == 0 {
        (sine, cosine)
    } else {
        (cosine, sine)
    };
    Some(SineCosine {
        sine: Number {
            negative: x.negative != (sine.negative != (quadrant & 2 != 0)),
            ..sine
        },
        small: Number {
            negative: x.negative != rest.negative,
            ..small
        },
        cosine: Number {
            negative: cosine.negative != ((quadrant + 1) & 2 != 0),
            ..cosine
        },
    })
}

/// Quadrant and the rest, of magnitude up to pi/4, of the magnitude of `x`.
fn reduce_angle(x: &Number) -> (u8, Number) {
    let positive = Number {
        negative: false,
        ..*x
    };
    if x.exponent < -2 {
        return (0, positive);
    }
    // Units of 2^-65: half pi is PI_66, and bit 63 of the significand weighs 2^exponent.
    let mut rest = 0_u128;
    let mut quadrant = 0_u8;
    let bits = x.exponent + 66;
    for bit in 0..bits {
        let next = if bit < 64 {
            u128::from(x.top64()) >> (63 - bit) & 1
        } else {
            0
        };
        rest = rest << 1 | next;
        quadrant = quadrant << 1 & 3;
        if rest >= PI_66 {
            rest -= PI_66;
            quadrant |= 1;
        }
    }
    let negative = rest > PI_66 / 2;
    if negative {
        rest = PI_66 - rest;
        quadrant = (quadrant + 1) & 3;
    }
    // The 66-bit half pi does not divide any number but zero.
    let rest = Number::normalized(negative, 62, rest).unwrap_or(ONE);
    (quadrant, rest)
}

/// `x (1 - z/6 (1 - z/20 (1 - ...)))` with `z = x^2`.
fn sine(x: &Number) -> Number {
    let z = square(x);
    let factor = (1..18_u128).rev().fold(0, |inner, k| {
        multiply_high(z, u128::MAX - inner) / (2 * k * (2 * k + 1))
    });
    reduce_by(x, factor)
}

/// `1 - z/2 (1 - z/12 (1 - ...))`.
fn cosine(x: &Number) -> Number {
    let z = square(x);
    let less = (1..18_u128).rev().fold(0, |inner, k| {
        multiply_high(z, u128::MAX - inner) / (2 * k * (2 * k - 1))
    });
    normalized(false, -1, u128::MAX - less)
}

/// The tangent.
pub(super) fn tangent(of: &SineCosine) -> Number {
    if of.sine.exponent < -40 {
        // The quotient would lose on which side of the argument the tangent lies.
        return of.small;
    }
    let quotient = divide(&of.sine, &of.cosine);
    Number {
        significand: quotient.significand | 1,
        ..quotient
    }
}

/// The reciprocal of `n` as a fraction.
const fn reciprocal(n: u128) -> u128 {
    u128::MAX / n
}

/// `t (1 - z/3 + z^2/5 - ...)` for magnitudes up to tan(pi/12).
fn arctangent_series(t: &Number) -> Number {
    let z = square(t);
    let inner = (1..36_u128).rev().fold(0, |inner, k| {
        reciprocal(2 * k + 1) - multiply_high(z, inner)
    });
    reduce_by(t, multiply_high(z, inner))
}

/// The arctangent of `q`, a positive number up to one.
fn arctangent_below_one(q: &Number) -> Number {
    let small = q.exponent < -2 || (q.exponent < 0 && fixed(q, -1) < TAN_TWELFTH_PI);
    if small {
        return arctangent_series(q);
    }
    // atan q = pi/6 + atan((q sqrt(3) - 1) / (q + sqrt(3))), in units of 2^-126.
    let fixed_q = fixed(q, 1);
    let root = ROOT_3 >> 1;
    let scaled = multiply_high(fixed_q, ROOT_3) << 1;
    let one = 1_u128 << 126;
    let base = normalized(false, -1, SIXTH_PI);
    let Some(numerator) = Number::normalized(scaled < one, 1, scaled.abs_diff(one)) else {
        return base;
    };
    let denominator = normalized(false, 1, fixed_q + root);
    let t = divide(&numerator, &denominator);
    let angle = arctangent_series(&Number {
        negative: false,
        ..t
    });
    let part = fixed(&angle, -1);
    let sum = if t.negative {
        SIXTH_PI - part
    } else {
        SIXTH_PI + part
    };
    normalized(false, -1, sum)
}

/// The angle of the point (`x`, `y`), as FPATAN has it.
pub(super) fn angle(y: &Number, x: &Number) -> Number {
    let (up, right) = (
        Number {
            negative: false,
            ..*y
        },
        Number {
            negative: false,
            ..*x
        },
    );
    let steep = (up.exponent, up.significand) > (right.exponent, right.significand);
    let quotient = if steep {
        divide(&right, &up)
    } else {
        divide(&up, &right)
    };
    let first = arctangent_below_one(&quotient);
    if !steep && !x.negative {
        return Number {
            negative: y.negative,
            ..first
        };
    }
    let part = fixed(&first, 1);
    let angle = match (steep, x.negative) {
        (true, false) => (PI.significand >> 1) - part,
        (true, true) => (PI.significand >> 1) + part,
        _ => PI.significand - part,
    };
    normalized(y.negative, 1, angle)
}

/// `log2((1 + t) / (1 - t))` for a magnitude of `t` up to 0.172: `2/ln 2 t (1 + z/3 + z^2/5...)`.
fn logarithm_series(t: &Number) -> Number {
    let z = square(t);
    let inner = (1..30_u128).rev().fold(0, |inner, k| {
        reciprocal(2 * k + 1) + multiply_high(z, inner)
    });
    multiply(&enlarge_by(t, multiply_high(z, inner)), &TWO_LOG2_E)
}

/// The binary logarithm of a positive number; none for one. An integer comes exact.
pub(super) fn logarithm(x: &Number) -> Option<Number> {
    if x.significand == 1 << 127 {
        return soft::from_integer(x.exponent.into());
    }
    let above = x.significand > ROOT_2;
    let exponent = if above { x.exponent + 1 } else { x.exponent };
    let m = Number {
        negative: false,
        exponent: if above { -1 } else { 0 },
        ..*x
    };
    let minus_one = Number {
        negative: true,
        ..ONE
    };
    let t = divide(&soft::add(&m, &minus_one)?, &soft::add(&m, &ONE)?);
    let part = logarithm_series(&t);
    if exponent == 0 {
        return Some(part);
    }
    let whole = i128::from(exponent) << (127 - 15);
    let fraction = fixed(&part, 15).cast_signed();
    let sum = if part.negative {
        whole - fraction
    } else {
        whole + fraction
    };
    Some(normalized(sum < 0, 15, sum.unsigned_abs()))
}

/// `log2(1 + x)` for a number other than zero above minus one; none beyond.
pub(super) fn logarithm_plus_one(x: &Number) -> Option<Number> {
    // |x| up to 1 - sqrt(2)/2 is what the instruction is made for.
    if x.exponent < -2 || (x.exponent == -2 && x.significand <= 0x95f6_1998_0c43_36f7 << 64) {
        let two = Number { exponent: 1, ..ONE };
        return Some(logarithm_series(&divide(x, &soft::add(&two, x)?)));
    }
    let sum = soft::add(&ONE, x)?;
    if sum.negative { None } else { logarithm(&sum) }
}

/// `2^x - 1` for a magnitude below one.
pub(super) fn power_minus_one(x: &Number) -> Number {
    let y = multiply(x, &LN_2);
    let magnitude = fixed(&y, -1);
    if y.negative {
        // y (1 - |y|/2 (1 - |y|/3 (1 - ...)))
        let less = (2..40_u128).rev().fold(0, |inner, k| {
            multiply_high(magnitude, u128::MAX - inner) / k
        });
        return reduce_by(&y, less);
    }
    // |y|/2 (1 + |y|/3 (1 + ...)) stays below one half.
    let more = (2..40_u128).rev().fold(0, |inner: u128, k| {
        let product = multiply_high(magnitude, inner);
        (magnitude / k).saturating_add(product / k)
    });
    enlarge_by(&y, more)
}

/// The product of an operand and a logarithm, inexact unless the logarithm is an integer.
pub(super) fn scaled_logarithm(y: &Number, logarithm: &Number) -> Number {
    if soft::multiply(logarithm, &ONE) == *logarithm && logarithm.significand << 64 == 0 {
        return soft::multiply(y, logarithm);
    }
    multiply(y, logarithm)
}
