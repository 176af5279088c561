//! Additions, subtractions, logic, comparisons.

use std::marker::PhantomData;

use super::{
    Quick,
    operand::{Imm, Place, Reg, Shape, Source, by_shape},
    step,
};
use crate::{
    cpu::Cpu,
    dispatch::Step,
    exec::alu::{Adc, Add, Alu, And, Cmp, Form, Or, Sbb, Sub, Test, Unary, Xor},
    int::Int,
    op::{NO_REG, Op},
};

/// `D` is read and, unless it is a comparison, written; `S` is read.
pub(super) struct Binary<A, S, T, D>(PhantomData<(A, S, T, D)>);

impl<A: Alu, S: Source, T: Int, D: Place> Quick for Binary<A, S, T, D> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, op: &Op) -> Option<()> {
        let b = S::get::<T>(cpu, op)?;
        if A::WRITES {
            D::modify(cpu, op, |cpu, a| A::apply(cpu, a, b))
        } else {
            let a = D::get::<T>(cpu, op)?;
            A::apply(cpu, a, b);
            Some(())
        }
    }
}

/// ModRM.reg is read and written, `S` is read.
pub(super) struct Reversed<A, T, S>(PhantomData<(A, T, S)>);

impl<A: Alu, T: Int, S: Source> Quick for Reversed<A, T, S> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, op: &Op) -> Option<()> {
        Binary::<A, S, T, Reg>::run(cpu, op)
    }
}

fn pick<A: Alu>(form: Form, size: u8, op: &Op) -> Option<Step> {
    let shape = Shape::of(op);
    match form {
        Form::RmReg | Form::RegRm if op.reg >= NO_REG => None,
        Form::RmReg => by_shape!(size, shape, Binary<A, Reg>),
        Form::RmImm => by_shape!(size, shape, Binary<A, Imm>),
        Form::RegRm => by_shape!(size, shape, Reversed<A>),
    }
}

/// The step of operation `number` of the eight of opcodes 0 to 0x3f; 8 is `test`.
pub(crate) fn binary(number: u8, form: Form, size: u8, op: &Op) -> Option<Step> {
    match number {
        0 => pick::<Add>(form, size, op),
        1 => pick::<Or>(form, size, op),
        2 => pick::<Adc>(form, size, op),
        3 => pick::<Sbb>(form, size, op),
        4 => pick::<And>(form, size, op),
        5 => pick::<Sub>(form, size, op),
        6 => pick::<Xor>(form, size, op),
        7 => pick::<Cmp>(form, size, op),
        _ => pick::<Test>(form, size, op),
    }
}

macro_rules! unary {
    ($name:ident, |$cpu:ident, $a:ident: $int:ident| $change:expr) => {
        struct $name<T, D>(PhantomData<(T, D)>);

        impl<$int: Int, D: Place> Quick for $name<$int, D> {
            #[inline(always)]
            fn run(cpu: &mut Cpu, op: &Op) -> Option<()> {
                D::modify::<$int>(cpu, op, |$cpu, $a| $change)
            }
        }
    };
}
unary!(Inc, |cpu, a: T| {
    let res = T::of(a.u().wrapping_add(1));
    cpu.lazy.carries_but_cf(res, a.u() & !res.u());
    res
});
unary!(Dec, |cpu, a: T| {
    let res = T::of(a.u().wrapping_sub(1));
    cpu.lazy.carries_but_cf(res, !a.u() & res.u());
    res
});
unary!(Neg, |cpu, a: T| Sub::apply(cpu, T::of(0), a));
unary!(Not, |_cpu, a: T| T::of(!a.u()));

/// The step of a one-operand instruction.
pub(crate) fn unary(which: Unary, size: u8, op: &Op) -> Option<Step> {
    let shape = Shape::of(op);
    match which {
        Unary::Inc => by_shape!(size, shape, Inc),
        Unary::Dec => by_shape!(size, shape, Dec),
        Unary::Neg => by_shape!(size, shape, Neg),
        Unary::Not => by_shape!(size, shape, Not),
    }
}
