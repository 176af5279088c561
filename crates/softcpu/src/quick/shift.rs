//! Shifts, rotations and multiplications of 32 and 64 bits in registers. What the flags become where
//! the architecture leaves that open is said in `exec/shift.rs`.

use std::marker::PhantomData;

use super::{
    Quick,
    operand::{Imm, Mem, Place, Reg, Rm, Shape, Short, Source},
    step,
};
use crate::{
    cpu::{Cpu, RAX, RCX, RDX},
    dispatch::Step,
    int::Int,
    op::Op,
};

/// Where the count comes from.
trait Count {
    fn of(cpu: &Cpu, op: &Op) -> u32;
}

/// The immediate.
struct Constant;
/// CL.
struct Register;

impl Count for Constant {
    #[inline(always)]
    fn of(_: &Cpu, op: &Op) -> u32 {
        op.imm as u32
    }
}

impl Count for Register {
    #[inline(always)]
    fn of(cpu: &Cpu, _: &Op) -> u32 {
        cpu.reg(RCX) as u32
    }
}

/// The operation of ModRM.reg `WHICH`.
struct Turn<const WHICH: u8, T, C>(PhantomData<(T, C)>);

#[inline(always)]
fn top<T: Int>(value: u64) -> bool {
    value >> (T::BITS - 1) & 1 != 0
}

/// The result alone.
#[inline(always)]
pub(super) fn rotated<const WHICH: u8, T: Int>(value: T, count: u32) -> T {
    let (v, back) = (value.u(), (T::BITS - count) & (T::BITS - 1));
    T::of(match WHICH {
        0 => v << count | v >> back,
        1 => v >> count | v << back,
        5 => v >> count,
        7 => (value.s().cast_signed() >> count).cast_unsigned(),
        _ => v << count,
    })
}

/// `count` is from 1 to one less than the operand's bits.
#[inline(always)]
pub(crate) fn turned<const WHICH: u8, T: Int>(cpu: &mut Cpu, value: T, count: u32) -> T {
    let (v, back) = (value.u(), T::BITS - count);
    match WHICH {
        0 => {
            let res = T::of(v << count | v >> back);
            let cf = res.u() & 1 != 0;
            cpu.lazy.set_co(cf, top::<T>(res.u()) != cf);
            res
        }
        1 => {
            let res = T::of(v >> count | v << back);
            let cf = top::<T>(res.u());
            cpu.lazy.set_co(cf, cf != top::<T>(res.u() << 1));
            res
        }
        5 => {
            let res = T::of(v >> count);
            let of = res.u() >> (T::BITS - 2) & 1 != 0;
            cpu.lazy.result(res.s(), v >> (count - 1) & 1 != 0, of);
            res
        }
        7 => {
            let signed = value.s().cast_signed();
            let res = T::of((signed >> count).cast_unsigned());
            cpu.lazy
                .result(res.s(), signed >> (count - 1) & 1 != 0, false);
            res
        }
        _ => {
            let res = T::of(v << count);
            let cf = v >> back & 1 != 0;
            cpu.lazy.result(res.s(), cf, top::<T>(res.u()) != cf);
            res
        }
    }
}

impl<const WHICH: u8, T: Int, C: Count> Quick for Turn<WHICH, T, C> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, op: &Op) -> Option<()> {
        let count = C::of(cpu, op) & (T::BITS - 1);
        Rm::modify::<T>(cpu, op, |cpu, value| {
            if count == 0 {
                return value;
            }
            turned::<WHICH, T>(cpu, value, count)
        })
    }
}

fn by_count<const WHICH: u8, C: Count>(size: u8) -> Option<Step> {
    match size {
        2 => Some(step::<Turn<WHICH, u32, C>>),
        3 => Some(step::<Turn<WHICH, u64, C>>),
        _ => None,
    }
}

fn by_operation<C: Count>(which: u8, size: u8) -> Option<Step> {
    match which {
        0 => by_count::<0, C>(size),
        1 => by_count::<1, C>(size),
        4 | 6 => by_count::<4, C>(size),
        5 => by_count::<5, C>(size),
        7 => by_count::<7, C>(size),
        _ => None,
    }
}

/// The step of one of the eight operations of opcode 0xc1 and its kin, the count as in
/// `exec/shift.rs`.
pub(crate) fn shift(which: u8, size: u8, op: &Op) -> Option<Step> {
    if Shape::of(op) != Shape::Register {
        return None;
    }
    if op.imm & 0x100 != 0 {
        by_operation::<Register>(which, size)
    } else {
        by_operation::<Constant>(which, size)
    }
}

/// The low half of a signed product; sets the flags.
#[inline(always)]
pub(crate) fn product<T: Int>(cpu: &mut Cpu, a: T, b: T) -> T {
    let (a, b) = (a.s().cast_signed(), b.s().cast_signed());
    let (res, over) = if T::BITS == 64 {
        let (res, over) = a.overflowing_mul(b);
        (res.cast_unsigned(), over)
    } else {
        let full = a.wrapping_mul(b).cast_unsigned();
        (full, T::of(full).s() != full)
    };
    let res = T::of(res);
    cpu.lazy.result(res.s(), over, over);
    res
}

struct Times<T, A, B>(PhantomData<(T, A, B)>);

impl<T: Int, A: Source, B: Source> Quick for Times<T, A, B> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, op: &Op) -> Option<()> {
        let (a, b) = (A::get::<T>(cpu, op)?, B::get::<T>(cpu, op)?);
        let res = product(cpu, a, b);
        Reg::put(cpu, op, res)
    }
}

struct Wide<S>(PhantomData<S>);

impl<S: Source> Quick for Wide<S> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, op: &Op) -> Option<()> {
        let factor = S::get::<u64>(cpu, op)?;
        let full = u128::from(cpu.reg(RAX)) * u128::from(factor);
        let (low, high) = (full as u64, (full >> 64) as u64);
        cpu.set_known(RAX, low);
        cpu.set_known(RDX, high);
        cpu.lazy.result(low, high != 0, high != 0);
        Some(())
    }
}

/// Multiplications by their operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Multiply {
    /// `imul` reg, rm.
    RegRm,
    /// `imul` reg, rm, immediate.
    RmImm,
    /// `mul` rm.
    Wide,
}

/// The step of a multiplication.
pub(crate) fn multiply(which: Multiply, size: u8, op: &Op) -> Option<Step> {
    match (which, size, Shape::of(op)) {
        (Multiply::RegRm, 2, Shape::Register) => Some(step::<Times<u32, Reg, Rm>>),
        (Multiply::RegRm, 3, Shape::Register) => Some(step::<Times<u64, Reg, Rm>>),
        (Multiply::RegRm, 2, Shape::Short) => Some(step::<Times<u32, Reg, Mem<Short>>>),
        (Multiply::RegRm, 3, Shape::Short) => Some(step::<Times<u64, Reg, Mem<Short>>>),
        (Multiply::RmImm, 2, Shape::Register) => Some(step::<Times<u32, Rm, Imm>>),
        (Multiply::RmImm, 3, Shape::Register) => Some(step::<Times<u64, Rm, Imm>>),
        (Multiply::Wide, 3, Shape::Register) => Some(step::<Wide<Rm>>),
        (Multiply::Wide, 3, Shape::Short) => Some(step::<Wide<Mem<Short>>>),
        _ => None,
    }
}
