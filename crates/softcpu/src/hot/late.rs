//! Flags as translated code leaves them: the operation that set them and its operands, from which
//! [`Cpu::settle`] makes the lazy form (`flags.rs`) when the code is left.
//!
//! Operations that keep some flags may come on top: one that keeps CF, and a rotation, which sets CF
//! and OF alone.

use crate::{
    cpu::Cpu,
    exec::alu::{Adc, Add, Alu, Sbb, Sub, Test},
    int::Int,
    quick::{product, turned},
};

/// What set the flags, with the meaning of the two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Set {
    /// Result and second operand of an addition.
    Add = 1,
    /// Result and second operand of a subtraction.
    Sub,
    /// Both operands of a comparison.
    Cmp,
    /// The result.
    Logic,
    /// Both operands.
    Test,
    /// The value and the count, from 1 to one less than its bits.
    Shl,
    /// See [`Set::Shl`].
    Shr,
    /// See [`Set::Shl`].
    Sar,
    /// Both factors of a signed product.
    Product,
    /// Low and high half of an unsigned product of 64 bits.
    Wide,
    /// The result.
    Neg,
    /// Both operands; the result is in a word of its own.
    Adc,
    /// See [`Set::Adc`].
    Sbb,
}

impl Set {
    /// As a number in [`Late`].
    pub(super) fn code(self, size: u8) -> u8 {
        (self as u8) << 2 | size & 3
    }
}

/// See the module's text. Translated code writes it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Late {
    /// [`Set::code`], or zero for the lazy form.
    pub(super) set: u8,
    /// 4 plus size for `inc`, 8 plus size for `dec`, or zero.
    pub(super) over: u8,
    /// 4 plus size for a rotation to the left, 8 plus size for one to the right, or zero.
    pub(super) turn: u8,
    /// 1 if the rotation came after `over`.
    pub(super) last: u8,
    pub(super) a: u64,
    pub(super) b: u64,
    /// The result of `over`.
    pub(super) c: u64,
    /// The result of `turn`.
    pub(super) d: u64,
    /// The result of [`Set::Adc`].
    pub(super) e: u64,
}

fn base<T: Int>(cpu: &mut Cpu, late: Late) {
    let Late { set, a, b, e, .. } = late;
    let (x, y) = (T::of(a), T::of(b));
    let is = |kind: Set| set >> 2 == kind as u8;
    if is(Set::Add) {
        Add::apply(cpu, T::of(a.wrapping_sub(b)), y);
    } else if is(Set::Sub) {
        Sub::apply(cpu, T::of(a.wrapping_add(b)), y);
    } else if is(Set::Cmp) {
        Sub::apply(cpu, x, y);
    } else if is(Set::Logic) {
        cpu.lazy.logic(x);
    } else if is(Set::Test) {
        Test::apply(cpu, x, y);
    } else if is(Set::Shl) {
        turned::<4, T>(cpu, x, b as u32 & (T::BITS - 1));
    } else if is(Set::Shr) {
        turned::<5, T>(cpu, x, b as u32 & (T::BITS - 1));
    } else if is(Set::Sar) {
        turned::<7, T>(cpu, x, b as u32 & (T::BITS - 1));
    } else if is(Set::Product) {
        product(cpu, x, y);
    } else if is(Set::Wide) {
        cpu.lazy.result(a, b != 0, b != 0);
    } else if is(Set::Neg) {
        Sub::apply(cpu, T::of(0), T::of(a.wrapping_neg()));
    } else if is(Set::Adc) {
        let carry = e.wrapping_sub(a).wrapping_sub(b);
        cpu.lazy.set_cf(carry & 1 != 0);
        Adc::apply(cpu, x, y);
    } else if is(Set::Sbb) {
        let borrow = a.wrapping_sub(b).wrapping_sub(e);
        cpu.lazy.set_cf(borrow & 1 != 0);
        Sbb::apply(cpu, x, y);
    }
}

fn over<T: Int>(cpu: &mut Cpu, down: bool, result: u64) {
    let res = T::of(result).u();
    if down {
        let a = T::of(res.wrapping_add(1)).u();
        cpu.lazy.carries_but_cf(T::of(res), !a & res);
    } else {
        let a = T::of(res.wrapping_sub(1)).u();
        cpu.lazy.carries_but_cf(T::of(res), a & !res);
    }
}

fn turn<T: Int>(cpu: &mut Cpu, right: bool, result: u64) {
    let top = |value: u64| value >> (T::BITS - 1) & 1 != 0;
    if right {
        let cf = top(result);
        cpu.lazy.set_co(cf, cf != top(result << 1));
    } else {
        let cf = result & 1 != 0;
        cpu.lazy.set_co(cf, top(result) != cf);
    }
}

/// Calls a function for an operand size.
macro_rules! sized {
    ($size:expr, $function:ident $arguments:tt) => {
        match $size & 3 {
            0 => $function::<u8> $arguments,
            1 => $function::<u16> $arguments,
            2 => $function::<u32> $arguments,
            _ => $function::<u64> $arguments,
        }
    };
}

impl Cpu {
    /// Makes the lazy form hold again.
    pub(super) fn settle(&mut self) {
        let late = self.late;
        (self.late.set, self.late.over, self.late.turn) = (0, 0, 0);
        if late.set != 0 {
            sized!(late.set, base(self, late));
        }
        if late.last == 0 {
            self.settle_turn(late);
        }
        if late.over != 0 {
            sized!(late.over, over(self, late.over >= 8, late.c));
        }
        if late.last != 0 {
            self.settle_turn(late);
        }
    }

    fn settle_turn(&mut self, late: Late) {
        if late.turn != 0 {
            sized!(late.turn, turn(self, late.turn >= 8, late.d));
        }
    }
}
