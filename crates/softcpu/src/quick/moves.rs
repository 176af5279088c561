//! Copies between registers and memory.

use std::marker::PhantomData;

use super::{
    Quick,
    operand::{Address, Full, Imm, Place, Reg, Rm, Shape, Short, Source, by_shape},
    step,
};
use crate::{
    cpu::{Cpu, RAX, RDX},
    dispatch::Step,
    int::Int,
    op::{NO_REG, Op},
};

struct Copy<S, T, D>(PhantomData<(S, T, D)>);

impl<S: Source, T: Int, D: Place> Quick for Copy<S, T, D> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, op: &Op) -> Option<()> {
        let value = S::get::<T>(cpu, op)?;
        D::put(cpu, op, value)
    }
}

struct Load<T, S>(PhantomData<(T, S)>);

impl<T: Int, S: Source> Quick for Load<T, S> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, op: &Op) -> Option<()> {
        Copy::<S, T, Reg>::run(cpu, op)
    }
}

/// `mov` rm, reg.
pub(crate) fn store(size: u8, op: &Op) -> Option<Step> {
    let shape = Shape::of(op);
    if op.reg >= NO_REG {
        return None;
    }
    by_shape!(size, shape, Copy<Reg>)
}

/// `mov` reg, rm.
pub(crate) fn load(size: u8, op: &Op) -> Option<Step> {
    let shape = Shape::of(op);
    if op.reg >= NO_REG {
        return None;
    }
    by_shape!(size, shape, Load)
}

/// `mov` rm, immediate.
pub(crate) fn immediate(size: u8, op: &Op) -> Option<Step> {
    by_shape!(size, Shape::of(op), Copy<Imm>)
}

struct Extend<const SIGNED: bool, To, From, S>(PhantomData<(To, From, S)>);

impl<const SIGNED: bool, To: Int, From: Int, S: Source> Quick for Extend<SIGNED, To, From, S> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, op: &Op) -> Option<()> {
        let value = S::get::<From>(cpu, op)?;
        let value = if SIGNED { value.s() } else { value.u() };
        Reg::put(cpu, op, To::of(value))
    }
}

type Zero<From, S> = Extend<false, u64, From, S>;
type Sign32<From, S> = Extend<true, u32, From, S>;
type Sign64<From, S> = Extend<true, u64, From, S>;

/// `movzx`, `movsx`, `movsxd` from size `from` to size `to`.
pub(crate) fn extension(signed: bool, from: u8, to: u8, op: &Op) -> Option<Step> {
    let shape = Shape::of(op);
    match (signed, to) {
        (_, 0 | 1) => None,
        (false, _) => by_shape!(from, shape, Zero),
        (true, 2) => by_shape!(from, shape, Sign32),
        (true, _) => by_shape!(from, shape, Sign64),
    }
}

struct Lea<T, A>(PhantomData<(T, A)>);

impl<T: Int, A: Address> Quick for Lea<T, A> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, op: &Op) -> Option<()> {
        let value = T::of(A::of(cpu, op));
        Reg::put(cpu, op, value)
    }
}

/// `lea`.
pub(crate) fn lea(size: u8, op: &Op) -> Option<Step> {
    match (size, Shape::of(op)) {
        (2, Shape::Short) => Some(step::<Lea<u32, Short>>),
        (2, Shape::Full) => Some(step::<Lea<u32, Full>>),
        (3, Shape::Short) => Some(step::<Lea<u64, Short>>),
        (3, Shape::Full) => Some(step::<Lea<u64, Full>>),
        _ => None,
    }
}

struct MoveIf<const CODE: u8, T, S>(PhantomData<(T, S)>);

impl<const CODE: u8, T: Int, S: Source> Quick for MoveIf<CODE, T, S> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, op: &Op) -> Option<()> {
        let new = S::get::<T>(cpu, op)?;
        let old = Reg::get::<T>(cpu, op)?;
        let value = if cpu.lazy.condition(CODE) { new } else { old };
        Reg::put(cpu, op, value)
    }
}

struct SetIf<const CODE: u8>;

impl<const CODE: u8> Quick for SetIf<CODE> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, op: &Op) -> Option<()> {
        let value = u8::from(cpu.lazy.condition(CODE));
        Rm::put(cpu, op, value)
    }
}

/// `$make` for each of the sixteen conditions.
macro_rules! by_condition {
    ($code:expr, |$n:ident| $make:expr) => {
        by_condition!(@each $code, $n, $make, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    };
    (@each $code:expr, $n:ident, $make:expr, $($literal:literal)*) => {
        match $code & 15 {
            $($literal => { const $n: u8 = $literal; $make })*
            _ => { const $n: u8 = 15; $make }
        }
    };
}
pub(super) use by_condition;

/// `cmovcc`.
pub(crate) fn move_if(code: u8, size: u8, op: &Op) -> Option<Step> {
    use super::operand::{Full, Mem, Short};
    by_condition!(code, |N| match (size, Shape::of(op)) {
        (2, Shape::Register) => Some(step::<MoveIf<N, u32, Rm>> as Step),
        (3, Shape::Register) => Some(step::<MoveIf<N, u64, Rm>>),
        (2, Shape::Short) => Some(step::<MoveIf<N, u32, Mem<Short>>>),
        (3, Shape::Short) => Some(step::<MoveIf<N, u64, Mem<Short>>>),
        (3, Shape::Full) => Some(step::<MoveIf<N, u64, Mem<Full>>>),
        _ => None,
    })
}

/// `setcc` of a register.
pub(crate) fn set_if(code: u8, op: &Op) -> Option<Step> {
    (Shape::of(op) == Shape::Register).then(|| by_condition!(code, |N| step::<SetIf<N>> as Step))
}

struct Widen<From, To>(PhantomData<(From, To)>);

impl<From: Int, To: Int> Quick for Widen<From, To> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, _: &Op) -> Option<()> {
        let value = From::of(cpu.reg(RAX)).s();
        cpu.set_known(RAX, To::of(value).u());
        Some(())
    }
}

struct Spread<T>(PhantomData<T>);

impl<T: Int> Quick for Spread<T> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, _: &Op) -> Option<()> {
        let sign = T::of(cpu.reg(RAX)).s().cast_signed() >> 63;
        cpu.set_known(RDX, T::of(sign.cast_unsigned()).u());
        Some(())
    }
}

/// `cwde`, `cdqe`; `to_rdx`: `cdq`, `cqo`.
pub(crate) fn widen(to_rdx: bool, size: u8) -> Option<Step> {
    match (to_rdx, size) {
        (false, 2) => Some(step::<Widen<u16, u32>>),
        (false, 3) => Some(step::<Widen<u32, u64>>),
        (true, 2) => Some(step::<Spread<u32>>),
        (true, 3) => Some(step::<Spread<u64>>),
        _ => None,
    }
}

struct Nop;

impl Quick for Nop {
    #[inline(always)]
    fn run(_: &mut Cpu, _: &Op) -> Option<()> {
        Some(())
    }
}

/// Nothing to do.
pub(crate) fn nop() -> Step {
    step::<Nop>
}
