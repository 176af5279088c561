//! Loads, constants, exchange and conditional moves.

use super::bcd;
use super::control::condition;
use super::register::{Computed, F80};
use super::state::X87;
use crate::fp::exceptions::Exceptions;
use crate::fp::soft::{Format, Number};

/// The constants of FLD1 to FLDZ to 128 bits, by the low three bits of ModRM: exponent and
/// significand.
const CONSTANTS: [(i32, u128); 6] = [
    (0, 1 << 127),
    (1, 0xd49a_784b_cd1b_8afe_492b_f6ff_4daf_db4d),
    (0, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e89),
    (1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1),
    (-2, 0x9a20_9a84_fbcf_f798_8f89_59ac_0b7c_9178),
    (-1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af),
];

impl X87 {
    /// FLD of a single or double.
    pub(super) fn load_packed(&mut self, bits: u64, format: Format) {
        let value = F80::from_packed(bits, format);
        let mut computed = Computed::exact(value);
        if value.is_nan() {
            computed.value = value.quieted();
            computed
                .raised
                .set(Exceptions::INVALID, value.is_signaling());
        }
        let computed = computed.with_denormal(format.is_denormal(bits));
        self.load(&computed);
    }

    /// A load from memory: an unmasked denormal exception does not keep it from being pushed.
    fn load(&mut self, computed: &Computed) {
        let full = !self.is_empty(7);
        if full || !computed.raised.contains(Exceptions::DENORMAL) {
            self.push(computed);
            return;
        }
        self.push(&Computed::exact(computed.value));
        self.raise(Exceptions::DENORMAL, Exceptions::empty());
    }

    /// FLD of an 80-bit number and FILD: nothing but a stack fault.
    pub(super) fn load_exact(&mut self, value: F80) {
        self.push(&Computed::exact(value));
    }

    /// FBLD.
    pub(super) fn load_decimal(&mut self, bytes: [u8; 10]) {
        self.load_exact(bcd::decode(bytes));
    }

    /// FLD ST(index).
    pub(super) fn load_register(&mut self, index: u8) {
        if !self.is_empty(index) {
            self.load_exact(self.st(index));
        } else if !self.stack_fault(false) {
            self.rotate(7);
            self.set_st(0, F80::DEFAULT_NAN);
        }
    }

    /// FLD1, FLDL2T, FLDL2E, FLDPI, FLDLG2, FLDLN2 (0 to 5) and FLDZ (6): rounded by RC, without
    /// PE.
    pub(super) fn load_constant(&mut self, index: u8) {
        let value = CONSTANTS
            .get(usize::from(index))
            .map_or(F80::zero(false), |constant| {
                let (exponent, significand) = *constant;
                let number = Number {
                    negative: false,
                    exponent,
                    significand,
                };
                F80::rounded(&number, self.control, 64).value
            });
        self.load_exact(value);
    }

    /// FXCH.
    pub(super) fn exchange(&mut self, index: u8) {
        if self.is_empty(0) || self.is_empty(index) {
            if self.stack_fault(false) {
                return;
            }
            for index in [0, index] {
                if self.is_empty(index) {
                    self.set_st(index, F80::DEFAULT_NAN);
                }
            }
        }
        self.set_condition(condition::C1, 0);
        let (a, b) = (self.st(0), self.st(index));
        self.set_st(0, b);
        self.set_st(index, a);
    }

    /// FCMOVcc, the condition already told.
    pub(super) fn move_if(&mut self, index: u8, holds: bool) {
        if self.is_empty(0) || self.is_empty(index) {
            self.underflow_into(0);
        } else if holds {
            self.set_st(0, self.st(index));
        }
    }
}
