//! Additions, subtractions, logic, comparisons.

use super::operand::{G, I, M, Place, R, Source, by_form};
use crate::{
    cpu::{Cpu, Exec},
    int::Int,
    op::{Handler, Op},
};

/// A two-operand operation.
pub(crate) trait Alu {
    /// The result goes to the first operand.
    const WRITES: bool = true;
    fn apply<T: Int>(cpu: &mut Cpu, a: T, b: T) -> T;
}

#[inline(always)]
fn sum<T: Int>(cpu: &mut Cpu, a: T, b: T, carry: u64) -> T {
    let (a, b) = (a.u(), b.u());
    let res = T::of(a.wrapping_add(b).wrapping_add(carry));
    cpu.lazy.carries(res, (a & b) | ((a | b) & !res.u()));
    res
}

#[inline(always)]
fn difference<T: Int>(cpu: &mut Cpu, a: T, b: T, borrow: u64) -> T {
    let (a, b) = (a.u(), b.u());
    let res = T::of(a.wrapping_sub(b).wrapping_sub(borrow));
    cpu.lazy.carries(res, (!a & b) | ((!a | b) & res.u()));
    res
}

macro_rules! alu {
    ($name:ident, $writes:expr, |$cpu:ident, $a:ident, $b:ident| $body:expr) => {
        pub(crate) struct $name;
        impl Alu for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply<T: Int>($cpu: &mut Cpu, $a: T, $b: T) -> T {
                $body
            }
        }
    };
}

#[inline(always)]
fn logic<T: Int>(cpu: &mut Cpu, value: u64) -> T {
    let res = T::of(value);
    cpu.lazy.logic(res);
    res
}

alu!(Add, true, |cpu, a, b| sum(cpu, a, b, 0));
alu!(Or, true, |cpu, a, b| logic(cpu, a.u() | b.u()));
alu!(Adc, true, |cpu, a, b| {
    let carry = u64::from(cpu.lazy.cf());
    sum(cpu, a, b, carry)
});
alu!(Sbb, true, |cpu, a, b| {
    let borrow = u64::from(cpu.lazy.cf());
    difference(cpu, a, b, borrow)
});
alu!(And, true, |cpu, a, b| logic(cpu, a.u() & b.u()));
alu!(Sub, true, |cpu, a, b| difference(cpu, a, b, 0));
alu!(Xor, true, |cpu, a, b| logic(cpu, a.u() ^ b.u()));
alu!(Cmp, false, |cpu, a, b| difference(cpu, a, b, 0));
alu!(Test, false, |cpu, a, b| logic(cpu, a.u() & b.u()));

fn binary<A: Alu, T: Int, D: Place, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let b = S::get::<T>(cpu, op)?;
    if A::WRITES {
        D::modify(cpu, op, |cpu, a| A::apply(cpu, a, b))
    } else {
        let a = D::get::<T>(cpu, op)?;
        A::apply(cpu, a, b);
        Ok(())
    }
}

/// As [`binary`] with the operands the other way round: the register is written.
fn reversed<A: Alu, T: Int, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let b = S::get::<T>(cpu, op)?;
    let a = cpu.get::<T>(op.reg);
    let res = A::apply(cpu, a, b);
    if A::WRITES {
        cpu.put(op.reg, res);
    }
    Ok(())
}

/// The operands of a two-operand instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    /// ModRM.rm, ModRM.reg.
    RmReg,
    /// ModRM.reg, ModRM.rm.
    RegRm,
    /// ModRM.rm, immediate.
    RmImm,
}

fn pick<A: Alu>(form: Form, size: u8, mem: bool) -> Handler {
    match form {
        Form::RmReg => by_form!(size, mem, binary::<A>; G),
        Form::RmImm => by_form!(size, mem, binary::<A>; I),
        Form::RegRm => by_form!(size, mem, reversed::<A>;),
    }
}

/// The handler of operation `number` of the eight of opcodes 0 to 0x3f; 8 is `test`.
pub(crate) fn handler(number: u8, form: Form, size: u8, mem: bool) -> Handler {
    match number {
        0 => pick::<Add>(form, size, mem),
        1 => pick::<Or>(form, size, mem),
        2 => pick::<Adc>(form, size, mem),
        3 => pick::<Sbb>(form, size, mem),
        4 => pick::<And>(form, size, mem),
        5 => pick::<Sub>(form, size, mem),
        6 => pick::<Xor>(form, size, mem),
        7 => pick::<Cmp>(form, size, mem),
        _ => pick::<Test>(form, size, mem),
    }
}

fn inc<T: Int, D: Place>(cpu: &mut Cpu, op: &Op) -> Exec {
    D::modify::<T>(cpu, op, |cpu, a| {
        let res = T::of(a.u().wrapping_add(1));
        cpu.lazy.carries_but_cf(res, a.u() & !res.u());
        res
    })
}

fn dec<T: Int, D: Place>(cpu: &mut Cpu, op: &Op) -> Exec {
    D::modify::<T>(cpu, op, |cpu, a| {
        let res = T::of(a.u().wrapping_sub(1));
        cpu.lazy.carries_but_cf(res, !a.u() & res.u());
        res
    })
}

fn neg<T: Int, D: Place>(cpu: &mut Cpu, op: &Op) -> Exec {
    D::modify::<T>(cpu, op, |cpu, a| difference(cpu, T::of(0), a, 0))
}

fn not<T: Int, D: Place>(cpu: &mut Cpu, op: &Op) -> Exec {
    D::modify::<T>(cpu, op, |_, a| T::of(!a.u()))
}

/// One-operand instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unary {
    Inc,
    Dec,
    Neg,
    Not,
}

pub(crate) fn unary(which: Unary, size: u8, mem: bool) -> Handler {
    match which {
        Unary::Inc => by_form!(size, mem, inc;),
        Unary::Dec => by_form!(size, mem, dec;),
        Unary::Neg => by_form!(size, mem, neg;),
        Unary::Not => by_form!(size, mem, not;),
    }
}

/// `xadd`.
pub(crate) fn xadd(cpu: &mut Cpu, op: &Op) -> Exec {
    fn run<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
        let b = cpu.get::<T>(op.reg);
        let mut old = b;
        if op.is_mem() {
            M::modify(cpu, op, |cpu, a| {
                old = a;
                sum(cpu, a, b, 0)
            })?;
            cpu.put(op.reg, old);
        } else {
            let a = cpu.get::<T>(op.rm);
            let res = sum(cpu, a, b, 0);
            cpu.put(op.reg, a);
            cpu.put(op.rm, res);
        }
        Ok(())
    }
    match op.size() {
        0 => run::<u8>(cpu, op),
        1 => run::<u16>(cpu, op),
        2 => run::<u32>(cpu, op),
        _ => run::<u64>(cpu, op),
    }
}

/// `cmpxchg`. Memory is written in either case, with its old value if the comparison fails.
pub(crate) fn cmpxchg(cpu: &mut Cpu, op: &Op) -> Exec {
    fn run<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
        let new = cpu.get::<T>(op.reg);
        let expected = cpu.get::<T>(0);
        if op.is_mem() {
            let mut found = expected;
            M::modify(cpu, op, |cpu, old| {
                found = old;
                difference(cpu, expected, old, 0);
                if old == expected { new } else { old }
            })?;
            if found != expected {
                cpu.put(0, found);
            }
            return Ok(());
        }
        let old = cpu.get::<T>(op.rm);
        difference(cpu, expected, old, 0);
        if old == expected {
            cpu.put(op.rm, new);
        } else {
            cpu.put(0, old);
        }
        Ok(())
    }
    match op.size() {
        0 => run::<u8>(cpu, op),
        1 => run::<u16>(cpu, op),
        2 => run::<u32>(cpu, op),
        _ => run::<u64>(cpu, op),
    }
}

/// `cmpxchg8b` and, with a 64-bit operand, `cmpxchg16b`.
pub(crate) fn cmpxchg_pair(cpu: &mut Cpu, op: &Op) -> Exec {
    use crate::cpu::{RBX, RCX, RDX};
    let half: u8 = if op.size() == 3 { 3 } else { 2 };
    let bytes = 1u64 << half;
    let at = cpu.ea(op, bytes * 2, true)?;
    if half == 3 && at & 15 != 0 {
        return cpu.gp(0);
    }
    cpu.probe_write(at, bytes * 2)?;
    let low = cpu.load_sized(at, half)?;
    let high = cpu.load_sized(at.wrapping_add(bytes), half)?;
    let expected = (cpu.get_sized(0, half), cpu.get_sized(RDX, half));
    let equal = (low, high) == expected;
    let new = if equal {
        (cpu.get_sized(RBX, half), cpu.get_sized(RCX, half))
    } else {
        (low, high)
    };
    cpu.store_sized(at, half, new.0)?;
    cpu.store_sized(at.wrapping_add(bytes), half, new.1)?;
    if !equal {
        cpu.put_sized(0, half, low);
        cpu.put_sized(RDX, half, high);
    }
    let zf = if equal { crate::flags::ZF } else { 0 };
    let rest = cpu.lazy.bits() & !crate::flags::ZF;
    cpu.lazy.load(rest | zf);
    Ok(())
}
