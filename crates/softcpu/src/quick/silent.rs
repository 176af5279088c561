//! Steps without flags, for where nothing sees them: the next instructions of the block set them
//! anew before anything reads them, can fault or can leave the block.

use std::marker::PhantomData;

use super::{
    Quick, Setter,
    moves::nop,
    operand::{Imm, Place, Reg, Rm, Shape, Source},
    shift::{Multiply, rotated},
    step,
};
use crate::{
    cpu::Cpu,
    dispatch::Step,
    exec::alu::Form,
    int::Int,
    op::{NO_REG, Op},
};

/// What an instruction does to the flags, if it has a step of its own and no memory operand.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Flow {
    /// It may read them, fault or leave the block.
    #[default]
    Other,
    /// Nothing.
    Neutral,
    /// It sets some of them; the step that does not.
    Partly(Step),
    /// It sets all of them; the step that does not.
    Sets(Step),
}

impl Flow {
    fn sets(step: Option<Step>) -> Flow {
        step.map_or(Flow::Other, Flow::Sets)
    }
}

/// Gives each of `ops` whose flags nobody sees its step without them.
pub(crate) fn silence(ops: &mut [Op], flows: &[Flow]) {
    let mut seen = true;
    for (op, flow) in ops.iter_mut().zip(flows).rev() {
        match flow {
            Flow::Other => seen = true,
            Flow::Neutral => {}
            Flow::Partly(step) | Flow::Sets(step) if !seen => op.step = *step,
            Flow::Partly(_) => {}
            Flow::Sets(_) => seen = false,
        }
    }
}

trait Operation {
    fn result<T: Int>(a: T, b: T) -> u64;
}

macro_rules! operation {
    ($name:ident, |$a:ident, $b:ident| $result:expr) => {
        struct $name;
        impl Operation for $name {
            #[inline(always)]
            fn result<T: Int>(a: T, b: T) -> u64 {
                let ($a, $b) = (a.u(), b.u());
                $result
            }
        }
    };
}
operation!(Add, |a, b| a.wrapping_add(b));
operation!(Or, |a, b| a | b);
operation!(And, |a, b| a & b);
operation!(Sub, |a, b| a.wrapping_sub(b));
operation!(Xor, |a, b| a ^ b);
operation!(Times, |a, b| a.wrapping_mul(b));

/// `D` = `A` with `O` applied to `B`.
struct Silent<O, T, D, A, B>(PhantomData<(O, T, D, A, B)>);

impl<O: Operation, T: Int, D: Place, A: Source, B: Source> Quick for Silent<O, T, D, A, B> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, op: &Op) -> Option<()> {
        let (a, b) = (A::get::<T>(cpu, op)?, B::get::<T>(cpu, op)?);
        D::put(cpu, op, T::of(O::result(a, b)))
    }
}

/// 32 and 64 bits only: others are rare.
macro_rules! wide {
    ($size:expr, |$int:ident| $quick:ty) => {
        match $size {
            2 => {
                type $int = u32;
                Some(step::<$quick> as Step)
            }
            3 => {
                type $int = u64;
                Some(step::<$quick> as Step)
            }
            _ => None,
        }
    };
}

fn by_form<O: Operation>(form: Form, size: u8) -> Option<Step> {
    match form {
        Form::RmReg => wide!(size, |T| Silent<O, T, Rm, Rm, Reg>),
        Form::RmImm => wide!(size, |T| Silent<O, T, Rm, Rm, Imm>),
        Form::RegRm => wide!(size, |T| Silent<O, T, Reg, Reg, Rm>),
    }
}

/// The flow of an operation of [`super::binary`].
pub(crate) fn binary_flow(setter: Setter, op: &Op) -> Flow {
    let Setter { number, form, size } = setter;
    if Shape::of(op) != Shape::Register || op.reg >= NO_REG && !matches!(form, Form::RmImm) {
        return Flow::Other;
    }
    Flow::sets(match number {
        0 => by_form::<Add>(form, size),
        1 => by_form::<Or>(form, size),
        4 => by_form::<And>(form, size),
        5 => by_form::<Sub>(form, size),
        6 => by_form::<Xor>(form, size),
        7 | 8 => Some(nop()),
        _ => None,
    })
}

/// The operation of ModRM.reg `WHICH` by a constant.
struct Turned<const WHICH: u8, T>(PhantomData<T>);

impl<const WHICH: u8, T: Int> Quick for Turned<WHICH, T> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, op: &Op) -> Option<()> {
        let value = Rm::get::<T>(cpu, op)?;
        let count = op.imm as u32 & (T::BITS - 1);
        Rm::put(cpu, op, rotated::<WHICH, T>(value, count))
    }
}

/// The flow of a shift of a register by a constant.
pub(crate) fn shift_flow(which: u8, size: u8, op: &Op) -> Flow {
    let shown = op.imm & if size == 3 { 63 } else { 31 };
    if Shape::of(op) != Shape::Register || op.imm & 0x100 != 0 || shown == 0 {
        return Flow::Other;
    }
    let rotation = match which {
        0 => wide!(size, |T| Turned<0, T>),
        1 => wide!(size, |T| Turned<1, T>),
        _ => None,
    };
    if let Some(step) = rotation {
        return Flow::Partly(step);
    }
    Flow::sets(match which {
        4 | 6 => wide!(size, |T| Turned<4, T>),
        5 => wide!(size, |T| Turned<5, T>),
        7 => wide!(size, |T| Turned<7, T>),
        _ => None,
    })
}

/// The flow of a multiplication.
pub(crate) fn multiply_flow(which: Multiply, size: u8, op: &Op) -> Flow {
    if Shape::of(op) != Shape::Register {
        return Flow::Other;
    }
    Flow::sets(match which {
        Multiply::RegRm => wide!(size, |T| Silent<Times, T, Reg, Reg, Rm>),
        Multiply::RmImm => wide!(size, |T| Silent<Times, T, Reg, Rm, Imm>),
        Multiply::Wide => None,
    })
}
