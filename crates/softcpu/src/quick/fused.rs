//! A comparison and the conditional jump behind it in one step.
//!
//! The step stands at the comparison; where that is left to its handler, the jump's own step
//! follows.

use super::{
    Quick,
    alu::{Binary, Reversed},
    branch::conditional,
    operand::{Full, Imm, Mem, Reg, Rm, Shape, Short},
};
use crate::{
    cpu::Cpu,
    dispatch::{At, Leave, Step, plain},
    exec::alu::{Add, And, Cmp, Form, Sub, Test},
    op::{NO_REG, Op},
};

/// The number of `test` among the operations of [`super::binary`].
const TEST: u8 = 8;

/// A two-operand instruction before a conditional jump.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setter {
    /// As [`super::binary`] has it.
    pub(crate) number: u8,
    pub(crate) form: Form,
    pub(crate) size: u8,
}

extern "C-unwind" fn both<const CODE: u8, Q: Quick>(cpu: &mut Cpu, at: At) -> Leave {
    match Q::run(cpu, at.op()) {
        Some(()) => conditional::<CODE>(cpu, at.next()),
        None => plain(cpu, at),
    }
}

/// Picks the operand size; there are no 16-bit ones.
macro_rules! sized {
    ($size:expr, $code:ident, |$int:ident| $quick:ty) => {
        match $size {
            0 => {
                type $int = u8;
                Some(both::<$code, $quick> as Step)
            }
            2 => {
                type $int = u32;
                Some(both::<$code, $quick>)
            }
            3 => {
                type $int = u64;
                Some(both::<$code, $quick>)
            }
            _ => None,
        }
    };
}

fn compare<const N: u8>(form: Form, size: u8, shape: Shape) -> Option<Step> {
    match (form, shape) {
        (Form::RmReg, Shape::Register) => sized!(size, N, |T| Binary<Cmp, Reg, T, Rm>),
        (Form::RmReg, Shape::Short) => sized!(size, N, |T| Binary<Cmp, Reg, T, Mem<Short>>),
        (Form::RmImm, Shape::Register) => sized!(size, N, |T| Binary<Cmp, Imm, T, Rm>),
        (Form::RmImm, Shape::Short) => sized!(size, N, |T| Binary<Cmp, Imm, T, Mem<Short>>),
        (Form::RmImm, Shape::Full) => sized!(size, N, |T| Binary<Cmp, Imm, T, Mem<Full>>),
        (Form::RegRm, Shape::Register) => sized!(size, N, |T| Reversed<Cmp, T, Rm>),
        (Form::RegRm, Shape::Short) => sized!(size, N, |T| Reversed<Cmp, T, Mem<Short>>),
        (Form::RegRm, Shape::Full) => sized!(size, N, |T| Reversed<Cmp, T, Mem<Full>>),
        _ => None,
    }
}

fn test<const N: u8>(form: Form, size: u8, shape: Shape) -> Option<Step> {
    match (form, shape) {
        (Form::RmReg, Shape::Register) => sized!(size, N, |T| Binary<Test, Reg, T, Rm>),
        (Form::RmImm, Shape::Register) => sized!(size, N, |T| Binary<Test, Imm, T, Rm>),
        (Form::RmImm, Shape::Short) => sized!(size, N, |T| Binary<Test, Imm, T, Mem<Short>>),
        _ => None,
    }
}

fn count<const N: u8>(number: u8, form: Form, size: u8, shape: Shape) -> Option<Step> {
    match (number, form, shape) {
        (0, Form::RmImm, Shape::Register) => sized!(size, N, |T| Binary<Add, Imm, T, Rm>),
        (4, Form::RmImm, Shape::Register) => sized!(size, N, |T| Binary<And, Imm, T, Rm>),
        (5, Form::RmImm, Shape::Register) => sized!(size, N, |T| Binary<Sub, Imm, T, Rm>),
        (4, Form::RmReg, Shape::Register) => sized!(size, N, |T| Binary<And, Reg, T, Rm>),
        (5, Form::RmReg, Shape::Register) => sized!(size, N, |T| Binary<Sub, Reg, T, Rm>),
        _ => None,
    }
}

/// The common step of `op`, which `setter` describes, and `jcc` of condition `code`, if there is
/// one.
pub(crate) fn fused(setter: Setter, op: &Op, code: u8) -> Option<Step> {
    let Setter { number, form, size } = setter;
    let shape = Shape::of(op);
    if !matches!(form, Form::RmImm) && op.reg >= NO_REG {
        return None;
    }
    macro_rules! pick {
        ($function:ident $arguments:tt, $($code:literal)*) => {
            match code & 15 {
                $($code => $function::<$code> $arguments,)*
                _ => None,
            }
        };
    }
    match number {
        7 => pick!(compare(form, size, shape), 2 3 4 5 6 7 8 9 12 13 14 15),
        TEST => pick!(test(form, size, shape), 4 5 8 9 14 15),
        _ => pick!(count(number, form, size, shape), 2 3 4 5 8 9),
    }
}
