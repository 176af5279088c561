//! Arithmetic, comparison and conversion.

use super::{Entry, File, Place, Prefix};
use crate::fp::bits::{low32, low64};
use crate::fp::exceptions::Rounding;
use crate::fp::mxcsr::Mxcsr;
use crate::fp::soft::Format;
use crate::fp::sse::arith::{self, Binary, Flagged};
use crate::fp::sse::float::{Outcome, packed32, packed64, scalar32, scalar64, several, single};
use crate::fp::sse::lanes::{first32, split32, split64, with_low32, with_low64};
use crate::fp::sse::{approx, compare, convert, fast};
use Prefix::{F2, F3, None as NP, P66};

/// A row of four instructions that compute the same on PS, PD, SS and SD.
macro_rules! quartet {
    ($opcode:literal, |$a:ident, $b:ident, $imm:ident, $m:ident| $single:expr, $double:expr) => {
        [
            Entry::xmm(NP, $opcode, |d, s, $imm, m| {
                packed32(d, s, m, |$a, $b, $m| $single)
            }),
            Entry::xmm(P66, $opcode, |d, s, $imm, m| {
                packed64(d, s, m, |$a, $b, $m| $double)
            }),
            Entry::xmm(F3, $opcode, |d, s, $imm, m| {
                scalar32(d, s, m, |$a, $b, $m| $single)
            })
            .memory(4),
            Entry::xmm(F2, $opcode, |d, s, $imm, m| {
                scalar64(d, s, m, |$a, $b, $m| $double)
            })
            .memory(8),
        ]
    };
}

macro_rules! binary {
    ($opcode:literal, $op:expr) => {
        quartet!(
            $opcode,
            |a, b, _imm, m| fast::binary32($op, a, b, m),
            fast::binary64($op, a, b, m)
        )
    };
}

macro_rules! extreme {
    ($opcode:literal, $maximum:literal) => {
        quartet!(
            $opcode,
            |a, b, _imm, m| arith::extreme($maximum, a.into(), b.into(), Format::SINGLE, m),
            arith::extreme($maximum, a, b, Format::DOUBLE, m)
        )
    };
}

const ADD: [Entry; 4] = binary!(0x58, Binary::Add);
const MULTIPLY: [Entry; 4] = binary!(0x59, Binary::Multiply);
const SUBTRACT: [Entry; 4] = binary!(0x5c, Binary::Subtract);
const DIVIDE: [Entry; 4] = binary!(0x5e, Binary::Divide);
const MIN: [Entry; 4] = extreme!(0x5d, false);
const MAX: [Entry; 4] = extreme!(0x5f, true);
const ROOT: [Entry; 4] = quartet!(
    0x51,
    |_a, b, _imm, m| fast::root32(b, m),
    fast::root64(b, m)
);
const COMPARE: [Entry; 4] = quartet!(
    0xc2,
    |a, b, imm, m| mask(compare::holds(imm, a.into(), b.into(), Format::SINGLE, m)),
    mask(compare::holds(imm, a, b, Format::DOUBLE, m))
);

fn mask((held, raised): (bool, crate::fp::exceptions::Exceptions)) -> Flagged {
    (if held { u64::MAX } else { 0 }, raised)
}

const fn flags(entry: Entry, bytes: u8) -> Entry {
    entry
        .between(Place::Flags, Place::Rm(File::Xmm))
        .memory(bytes)
}

fn compare_flags(a: u64, b: u64, quiet: bool, format: Format, m: &mut Mxcsr) -> Outcome {
    let (flags, raised) = compare::flags(a, b, quiet, format, *m);
    m.raise(raised)?;
    Ok(flags)
}

fn approximate(dst: u128, src: u128, scalar: bool, each: fn(u32) -> u32) -> u128 {
    if scalar {
        return with_low32(dst, each(first32(src)));
    }
    crate::fp::sse::lanes::join32(split32(src).map(each))
}

pub(super) const ENTRIES: &[Entry] = {
    let [a0, a1, a2, a3] = ADD;
    let [b0, b1, b2, b3] = MULTIPLY;
    let [c0, c1, c2, c3] = SUBTRACT;
    let [d0, d1, d2, d3] = DIVIDE;
    let [e0, e1, e2, e3] = MIN;
    let [f0, f1, f2, f3] = MAX;
    let [g0, g1, g2, g3] = ROOT;
    let [h0, h1, h2, h3] = COMPARE;
    &[
        a0,
        a1,
        a2,
        a3,
        b0,
        b1,
        b2,
        b3,
        c0,
        c1,
        c2,
        c3,
        d0,
        d1,
        d2,
        d3,
        e0,
        e1,
        e2,
        e3,
        f0,
        f1,
        f2,
        f3,
        g0,
        g1,
        g2,
        g3,
        h0.with_immediate(),
        h1.with_immediate(),
        h2.with_immediate(),
        h3.with_immediate(),
        Entry::xmm(NP, 0x52, |d, s, _, _| {
            Ok(approximate(d, s, false, approx::reciprocal_root))
        }),
        Entry::xmm(F3, 0x52, |d, s, _, _| {
            Ok(approximate(d, s, true, approx::reciprocal_root))
        })
        .memory(4),
        Entry::xmm(NP, 0x53, |d, s, _, _| {
            Ok(approximate(d, s, false, approx::reciprocal))
        }),
        Entry::xmm(F3, 0x53, |d, s, _, _| {
            Ok(approximate(d, s, true, approx::reciprocal))
        })
        .memory(4),
        flags(
            Entry::xmm(NP, 0x2e, |d, s, _, m| {
                compare_flags(
                    first32(d).into(),
                    first32(s).into(),
                    true,
                    Format::SINGLE,
                    m,
                )
            }),
            4,
        ),
        flags(
            Entry::xmm(NP, 0x2f, |d, s, _, m| {
                compare_flags(
                    first32(d).into(),
                    first32(s).into(),
                    false,
                    Format::SINGLE,
                    m,
                )
            }),
            4,
        ),
        flags(
            Entry::xmm(P66, 0x2e, |d, s, _, m| {
                compare_flags(low64(d), low64(s), true, Format::DOUBLE, m)
            }),
            8,
        ),
        flags(
            Entry::xmm(P66, 0x2f, |d, s, _, m| {
                compare_flags(low64(d), low64(s), false, Format::DOUBLE, m)
            }),
            8,
        ),
    ]
};

const fn signed32(value: u32) -> i64 {
    value.cast_signed() as i64
}

fn single_to_int(bits: u32, rounding: Rounding, m: Mxcsr) -> Flagged {
    convert::to_integer(bits.into(), Format::SINGLE, 32, rounding, m)
}

fn double_to_int(bits: u64, rounding: Rounding, m: Mxcsr) -> Flagged {
    convert::to_integer(bits, Format::DOUBLE, 32, rounding, m)
}

fn two_singles_to_int(src: u128, rounding: Rounding, m: &mut Mxcsr) -> Outcome {
    let [a, b, ..] = split32(src);
    let c = *m;
    several(
        m,
        32,
        [single_to_int(a, rounding, c), single_to_int(b, rounding, c)],
    )
}

fn two_doubles_to_int(src: u128, rounding: Rounding, m: &mut Mxcsr) -> Outcome {
    let [a, b] = split64(src);
    let c = *m;
    several(
        m,
        32,
        [double_to_int(a, rounding, c), double_to_int(b, rounding, c)],
    )
}

/// The four instructions of one opcode that convert a scalar to an integer register.
const fn to_register(opcode: u8, operations: [super::Operation; 4]) -> [Entry; 4] {
    const fn row(prefix: Prefix, opcode: u8, operation: super::Operation, bytes: u8) -> Entry {
        Entry::xmm(prefix, opcode, operation).memory(bytes)
    }
    let [s32, s64, d32, d64] = operations;
    let src = Place::Rm(File::Xmm);
    [
        row(F3, opcode, s32, 4)
            .between(Place::Reg(File::Gpr32), src)
            .wide(false),
        row(F3, opcode, s64, 4)
            .between(Place::Reg(File::Gpr64), src)
            .wide(true),
        row(F2, opcode, d32, 8)
            .between(Place::Reg(File::Gpr32), src)
            .wide(false),
        row(F2, opcode, d64, 8)
            .between(Place::Reg(File::Gpr64), src)
            .wide(true),
    ]
}

macro_rules! scalar_to_integer {
    ($opcode:literal, |$m:ident| $rounding:expr) => {
        to_register(
            $opcode,
            [
                |_, s, _, $m| {
                    let value = first32(s).into();
                    single(
                        $m,
                        convert::to_integer(value, Format::SINGLE, 32, $rounding, *$m),
                    )
                },
                |_, s, _, $m| {
                    let value = first32(s).into();
                    single(
                        $m,
                        convert::to_integer(value, Format::SINGLE, 64, $rounding, *$m),
                    )
                },
                |_, s, _, $m| {
                    single(
                        $m,
                        convert::to_integer(low64(s), Format::DOUBLE, 32, $rounding, *$m),
                    )
                },
                |_, s, _, $m| {
                    single(
                        $m,
                        convert::to_integer(low64(s), Format::DOUBLE, 64, $rounding, *$m),
                    )
                },
            ],
        )
    };
}

const TRUNCATE: [Entry; 4] = scalar_to_integer!(0x2c, |m| Rounding::Zero);
const ROUND: [Entry; 4] = scalar_to_integer!(0x2d, |m| m.rounding());

fn integer_to_single(dst: u128, value: i64, m: &mut Mxcsr) -> Outcome {
    let (bits, raised) = convert::from_integer(value, Format::SINGLE, *m);
    m.raise(raised)?;
    Ok(with_low32(dst, low32(bits)))
}

fn integer_to_double(dst: u128, value: i64, m: &mut Mxcsr) -> Outcome {
    let (bits, raised) = convert::from_integer(value, Format::DOUBLE, *m);
    m.raise(raised)?;
    Ok(with_low64(dst, bits))
}

fn two_integers_to_double(src: u128, m: &mut Mxcsr) -> Outcome {
    let [a, b, ..] = split32(src);
    let c = *m;
    let convert = |value| convert::from_integer(signed32(value), Format::DOUBLE, c);
    several(m, 64, [convert(a), convert(b)])
}

const XMM: Place = Place::Reg(File::Xmm);
const MM: Place = Place::Reg(File::Mmx);

pub(super) const CONVERSIONS: &[Entry] = {
    let [a0, a1, a2, a3] = TRUNCATE;
    let [b0, b1, b2, b3] = ROUND;
    &[
        a0,
        a1,
        a2,
        a3,
        b0,
        b1,
        b2,
        b3,
        // CVTSI2SS, CVTSI2SD
        Entry::xmm(F3, 0x2a, |d, s, _, m| {
            integer_to_single(d, signed32(first32(s)), m)
        })
        .between(XMM, Place::Rm(File::Gpr32))
        .memory(4)
        .wide(false),
        Entry::xmm(F3, 0x2a, |d, s, _, m| {
            integer_to_single(d, low64(s).cast_signed(), m)
        })
        .between(XMM, Place::Rm(File::Gpr64))
        .memory(8)
        .wide(true),
        Entry::xmm(F2, 0x2a, |d, s, _, m| {
            integer_to_double(d, signed32(first32(s)), m)
        })
        .between(XMM, Place::Rm(File::Gpr32))
        .memory(4)
        .wide(false),
        Entry::xmm(F2, 0x2a, |d, s, _, m| {
            integer_to_double(d, low64(s).cast_signed(), m)
        })
        .between(XMM, Place::Rm(File::Gpr64))
        .memory(8)
        .wide(true),
        // CVTPI2PS, CVTPI2PD
        Entry::xmm(NP, 0x2a, |d, s, _, m| {
            let [a, b, ..] = split32(s);
            let c = *m;
            let convert = |value| convert::from_integer(signed32(value), Format::SINGLE, c);
            Ok(with_low64(
                d,
                low64(several(m, 32, [convert(a), convert(b)])?),
            ))
        })
        .between(XMM, Place::Rm(File::Mmx))
        .memory(8),
        Entry::xmm(P66, 0x2a, |_, s, _, m| two_integers_to_double(s, m))
            .between(XMM, Place::Rm(File::Mmx))
            .memory(8),
        // CVTTPS2PI, CVTTPD2PI, CVTPS2PI, CVTPD2PI
        Entry::xmm(NP, 0x2c, |_, s, _, m| {
            two_singles_to_int(s, Rounding::Zero, m)
        })
        .between(MM, Place::Rm(File::Xmm))
        .memory(8),
        Entry::xmm(P66, 0x2c, |_, s, _, m| {
            two_doubles_to_int(s, Rounding::Zero, m)
        })
        .between(MM, Place::Rm(File::Xmm)),
        Entry::xmm(NP, 0x2d, |_, s, _, m| {
            two_singles_to_int(s, m.rounding(), m)
        })
        .between(MM, Place::Rm(File::Xmm))
        .memory(8),
        Entry::xmm(P66, 0x2d, |_, s, _, m| {
            two_doubles_to_int(s, m.rounding(), m)
        })
        .between(MM, Place::Rm(File::Xmm)),
        // CVTPS2PD, CVTPD2PS, CVTSS2SD, CVTSD2SS
        Entry::xmm(NP, 0x5a, |_, s, _, m| {
            let [a, b, ..] = split32(s);
            let c = *m;
            let widen =
                |bits: u32| convert::reformat(bits.into(), Format::SINGLE, Format::DOUBLE, c);
            several(m, 64, [widen(a), widen(b)])
        })
        .memory(8),
        Entry::xmm(P66, 0x5a, |_, s, _, m| {
            let [a, b] = split64(s);
            let c = *m;
            let narrow = |bits| convert::reformat(bits, Format::DOUBLE, Format::SINGLE, c);
            several(m, 32, [narrow(a), narrow(b)])
        }),
        Entry::xmm(F3, 0x5a, |d, s, _, m| {
            let value = first32(s).into();
            let widened = convert::reformat(value, Format::SINGLE, Format::DOUBLE, *m);
            Ok(with_low64(d, low64(single(m, widened)?)))
        })
        .memory(4),
        Entry::xmm(F2, 0x5a, |d, s, _, m| {
            let narrowed = convert::reformat(low64(s), Format::DOUBLE, Format::SINGLE, *m);
            Ok(with_low32(d, first32(single(m, narrowed)?)))
        })
        .memory(8),
        // CVTDQ2PS, CVTPS2DQ, CVTTPS2DQ
        Entry::xmm(NP, 0x5b, |_, s, _, m| {
            packed32(s, s, m, |a, _, m| {
                convert::from_integer(signed32(a), Format::SINGLE, m)
            })
        }),
        Entry::xmm(P66, 0x5b, |_, s, _, m| {
            packed32(s, s, m, |a, _, m| single_to_int(a, m.rounding(), m))
        }),
        Entry::xmm(F3, 0x5b, |_, s, _, m| {
            packed32(s, s, m, |a, _, m| single_to_int(a, Rounding::Zero, m))
        }),
        // CVTTPD2DQ, CVTPD2DQ, CVTDQ2PD
        Entry::xmm(P66, 0xe6, |_, s, _, m| {
            two_doubles_to_int(s, Rounding::Zero, m)
        }),
        Entry::xmm(F2, 0xe6, |_, s, _, m| {
            two_doubles_to_int(s, m.rounding(), m)
        }),
        Entry::xmm(F3, 0xe6, |_, s, _, m| two_integers_to_double(s, m)).memory(8),
    ]
};
