//! Flags as translated code leaves them: the operation that set them and its operands, from which
//! [`Cpu::settle`] makes the lazy form (`flags.rs`) when the code is left.
//!
//! A second operation may come on top, one that keeps CF.

use crate::{
    cpu::Cpu,
    exec::alu::{Add, Alu, Sub, Test},
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
    pub(super) set: u32,
    /// 4 plus size for `inc`, 8 plus size for `dec`, or zero.
    pub(super) over: u32,
    pub(super) a: u64,
    pub(super) b: u64,
    /// The result of `over`.
    pub(super) c: u64,
}

fn base<T: Int>(cpu: &mut Cpu, set: u32, a: u64, b: u64) {
    let (x, y) = (T::of(a), T::of(b));
    let is = |kind: Set| set >> 2 == kind as u32;
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

impl Cpu {
    /// Makes the lazy form hold again.
    pub(super) fn settle(&mut self) {
        let Late {
            set,
            over: on_top,
            a,
            b,
            c,
        } = self.late;
        (self.late.set, self.late.over) = (0, 0);
        if set != 0 {
            match set & 3 {
                0 => base::<u8>(self, set, a, b),
                1 => base::<u16>(self, set, a, b),
                2 => base::<u32>(self, set, a, b),
                _ => base::<u64>(self, set, a, b),
            }
        }
        if on_top != 0 {
            let down = on_top >= 8;
            match on_top & 3 {
                0 => over::<u8>(self, down, c),
                1 => over::<u16>(self, down, c),
                2 => over::<u32>(self, down, c),
                _ => over::<u64>(self, down, c),
            }
        }
    }
}
