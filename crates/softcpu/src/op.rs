//! A decoded instruction.

use crate::{
    cpu::{Cpu, Exec},
    dispatch::Step,
};

/// Carries an instruction out.
pub(crate) type Handler = fn(&mut Cpu, &Op) -> Exec;

/// How an effective address is made: bits 2-4 of [`Op::ea`].
pub(crate) mod kind {
    /// 64-bit, no segment base.
    pub(crate) const FLAT: u8 = 0;
    /// 64-bit with the base of FS or GS.
    pub(crate) const BASED: u8 = 1;
    /// 64-bit mode with a 32-bit offset.
    pub(crate) const SHORT: u8 = 2;
    /// Segmented, 32-bit offset.
    pub(crate) const LEGACY32: u8 = 3;
    /// Segmented, 16-bit offset.
    pub(crate) const LEGACY16: u8 = 4;
    /// No memory operand: a register.
    pub(crate) const REGISTER: u8 = 7;
}

/// The register number that reads as zero.
pub(crate) const NO_REG: u8 = 16;
/// Numbers from here on are AH, CH, DH, BH in byte operands.
pub(crate) const HIGH: u8 = 20;
/// REP or REPE in [`Op::rep`].
pub(crate) const REP: u8 = 1;
/// REPNE in [`Op::rep`].
pub(crate) const REPNE: u8 = 2;

/// A decoded instruction: what carries it out and its operands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    /// Carries it out and goes on: [`crate::dispatch::plain`], which calls `f`, or one of `quick/`.
    pub(crate) step: Step,
    /// Carries it out.
    pub(crate) f: Handler,
    /// Immediate operand, branch target, or the handler's own use.
    pub(crate) imm: u64,
    /// Displacement; with a RIP-relative operand the whole address.
    pub(crate) disp: u64,
    /// Register operand of ModRM.reg.
    pub(crate) reg: u8,
    /// Register operand of ModRM.rm.
    pub(crate) rm: u8,
    pub(crate) base: u8,
    pub(crate) index: u8,
    /// Bits 0-1 scale, 2-4 kind, 5-7 segment.
    pub(crate) ea: u8,
    /// Bits 0-3 length, 4-5 operand size, 6-7 repeat prefix.
    pub(crate) shape: u8,
    /// From the block's start to the end of the instruction, in bytes.
    pub(crate) end: u16,
}

impl Op {
    #[inline(always)]
    pub(crate) fn kind(&self) -> u8 {
        (self.ea >> 2) & 7
    }

    #[inline(always)]
    pub(crate) fn segment(&self) -> u8 {
        self.ea >> 5
    }

    #[inline(always)]
    pub(crate) fn is_mem(&self) -> bool {
        self.kind() != kind::REGISTER
    }

    /// Operand size: 0 to 3 for 1 to 8 bytes.
    #[inline(always)]
    pub(crate) fn size(&self) -> u8 {
        (self.shape >> 4) & 3
    }

    #[inline(always)]
    pub(crate) fn rep(&self) -> u8 {
        self.shape >> 6
    }

    #[inline(always)]
    pub(crate) fn len(&self) -> u8 {
        self.shape & 15
    }
}
