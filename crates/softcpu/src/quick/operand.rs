//! Operands of quick steps. `None` stands for what the handlers have to see to: a page that is not
//! in the TLB, an access that leaves its page.

use std::marker::PhantomData;

use crate::{
    cpu::Cpu,
    int::Int,
    op::Op,
    tlb::{self, READ, WRITE},
};

/// An operand that can be read.
pub(super) trait Source {
    fn get<T: Int>(cpu: &Cpu, op: &Op) -> Option<T>;
}

/// An operand that can be written too.
pub(super) trait Place: Source {
    fn put<T: Int>(cpu: &mut Cpu, op: &Op, value: T) -> Option<()>;

    /// Reads, changes, writes; without an effect when there is `None`.
    fn modify<T: Int>(cpu: &mut Cpu, op: &Op, change: impl FnOnce(&mut Cpu, T) -> T) -> Option<()>;
}

/// The register of ModRM.rm.
pub(super) struct Rm;
/// The register of ModRM.reg.
pub(super) struct Reg;
/// The immediate.
pub(super) struct Imm;
/// Memory at an address of form `A`.
pub(super) struct Mem<A>(PhantomData<A>);

/// A form of linear addresses in 64-bit code.
pub(super) trait Address {
    fn of(cpu: &Cpu, op: &Op) -> u64;
}

/// Base and displacement.
pub(super) struct Short;
/// Base, scaled index, displacement.
pub(super) struct Full;
/// The same on top of the base of FS or GS.
pub(super) struct Based;

impl Address for Short {
    #[inline(always)]
    fn of(cpu: &Cpu, op: &Op) -> u64 {
        cpu.reg(op.base).wrapping_add(op.disp)
    }
}

impl Address for Full {
    #[inline(always)]
    fn of(cpu: &Cpu, op: &Op) -> u64 {
        cpu.offset(op)
    }
}

impl Address for Based {
    #[inline(always)]
    fn of(cpu: &Cpu, op: &Op) -> u64 {
        let base = cpu.seg(usize::from(op.segment())).base;
        base.wrapping_add(cpu.offset(op))
    }
}

/// A register as an operand; it is none of AH, CH, DH, BH.
#[inline(always)]
fn put_reg<T: Int>(cpu: &mut Cpu, number: u8, value: T) {
    let value = if T::BITS >= 32 {
        value.u()
    } else {
        cpu.reg(number) & !T::MASK | value.u()
    };
    cpu.set_known(number, value);
}

impl Source for Imm {
    #[inline(always)]
    fn get<T: Int>(_: &Cpu, op: &Op) -> Option<T> {
        Some(T::of(op.imm))
    }
}

macro_rules! register {
    ($name:ident, $field:ident) => {
        impl Source for $name {
            #[inline(always)]
            fn get<T: Int>(cpu: &Cpu, op: &Op) -> Option<T> {
                Some(T::of(cpu.reg(op.$field)))
            }
        }

        impl Place for $name {
            #[inline(always)]
            fn put<T: Int>(cpu: &mut Cpu, op: &Op, value: T) -> Option<()> {
                put_reg(cpu, op.$field, value);
                Some(())
            }

            #[inline(always)]
            fn modify<T: Int>(
                cpu: &mut Cpu,
                op: &Op,
                change: impl FnOnce(&mut Cpu, T) -> T,
            ) -> Option<()> {
                let old = T::of(cpu.reg(op.$field));
                let new = change(cpu, old);
                put_reg(cpu, op.$field, new);
                Some(())
            }
        }
    };
}
register!(Rm, rm);
register!(Reg, reg);

impl Cpu {
    /// The host address for reading, if it is known.
    #[inline(always)]
    pub(super) fn readable<T: Int>(&self, at: u64) -> Option<u64> {
        self.tlb.find(READ + self.tlb_mode, at, T::BYTES)
    }

    /// The host address for writing, if it is known.
    #[inline(always)]
    pub(super) fn writable_at<T: Int>(&self, at: u64) -> Option<u64> {
        self.tlb.find(WRITE + self.tlb_mode, at, T::BYTES)
    }
}

impl<A: Address> Source for Mem<A> {
    #[inline(always)]
    fn get<T: Int>(cpu: &Cpu, op: &Op) -> Option<T> {
        cpu.readable::<T>(A::of(cpu, op)).map(tlb::load)
    }
}

impl<A: Address> Place for Mem<A> {
    #[inline(always)]
    fn put<T: Int>(cpu: &mut Cpu, op: &Op, value: T) -> Option<()> {
        let host = cpu.writable_at::<T>(A::of(cpu, op))?;
        tlb::store(host, value);
        Some(())
    }

    #[inline(always)]
    fn modify<T: Int>(cpu: &mut Cpu, op: &Op, change: impl FnOnce(&mut Cpu, T) -> T) -> Option<()> {
        let host = cpu.writable_at::<T>(A::of(cpu, op))?;
        let value = change(cpu, tlb::load(host));
        tlb::store(host, value);
        Some(())
    }
}

/// What an instruction's memory operand looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Register,
    Short,
    Full,
    Based,
    /// None of those that quick steps know.
    Other,
}

impl Shape {
    pub(super) fn of(op: &Op) -> Shape {
        use crate::op::{NO_REG, kind};
        match op.kind() {
            kind::REGISTER if op.rm < NO_REG => Shape::Register,
            kind::FLAT if op.index == NO_REG => Shape::Short,
            kind::FLAT => Shape::Full,
            kind::BASED => Shape::Based,
            _ => Shape::Other,
        }
    }
}

/// Picks the instance of `$make` for an operand size and an operand of ModRM.rm.
macro_rules! by_shape {
    ($size:expr, $shape:expr, $make:ident $(<$($first:ty),*>)?) => {{
        use $crate::quick::operand::{Rm, Shape};
        match ($size, $shape) {
            (0, Shape::Register) => Some(step::<$make<$($($first,)*)? u8, Rm>> as Step),
            (1, Shape::Register) => Some(step::<$make<$($($first,)*)? u16, Rm>>),
            (2, Shape::Register) => Some(step::<$make<$($($first,)*)? u32, Rm>>),
            (_, Shape::Register) => Some(step::<$make<$($($first,)*)? u64, Rm>>),
            (_, _) => by_shape!(@memory $size, $shape, $make $(<$($first),*>)?),
        }
    }};
    (@memory $size:expr, $shape:expr, $make:ident $(<$($first:ty),*>)?) => {{
        use $crate::quick::operand::{Based, Full, Mem, Shape, Short};
        match ($size, $shape) {
            (0, Shape::Short) => Some(step::<$make<$($($first,)*)? u8, Mem<Short>>> as Step),
            (0, Shape::Full) => Some(step::<$make<$($($first,)*)? u8, Mem<Full>>>),
            (0, Shape::Based) => Some(step::<$make<$($($first,)*)? u8, Mem<Based>>>),
            (1, Shape::Short) => Some(step::<$make<$($($first,)*)? u16, Mem<Short>>>),
            (1, Shape::Full) => Some(step::<$make<$($($first,)*)? u16, Mem<Full>>>),
            (1, Shape::Based) => Some(step::<$make<$($($first,)*)? u16, Mem<Based>>>),
            (2, Shape::Short) => Some(step::<$make<$($($first,)*)? u32, Mem<Short>>>),
            (2, Shape::Full) => Some(step::<$make<$($($first,)*)? u32, Mem<Full>>>),
            (2, Shape::Based) => Some(step::<$make<$($($first,)*)? u32, Mem<Based>>>),
            (3, Shape::Short) => Some(step::<$make<$($($first,)*)? u64, Mem<Short>>>),
            (3, Shape::Full) => Some(step::<$make<$($($first,)*)? u64, Mem<Full>>>),
            (3, Shape::Based) => Some(step::<$make<$($($first,)*)? u64, Mem<Based>>>),
            _ => None,
        }
    }};
}
pub(super) use by_shape;
