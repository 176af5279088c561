//! What an instruction is, for the translator: what the decoder knows when it picks a quick step.

use crate::{
    exec::alu::Unary,
    op::{NO_REG, Op, kind},
    quick::{Multiply, Setter},
};

/// An instruction of 64-bit code that the translator knows; sizes are 0 to 3 for 1 to 8 bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Kind {
    /// None of them.
    #[default]
    Other,
    Nop,
    /// An operation of [`crate::quick::binary`].
    Binary(Setter),
    Unary(Unary, u8),
    /// `mov` rm, reg.
    Store(u8),
    /// `mov` reg, rm.
    Load(u8),
    /// `mov` rm, immediate.
    Immediate(u8),
    /// `movzx`, `movsx`, `movsxd`.
    Extend {
        signed: bool,
        from: u8,
        to: u8,
    },
    Lea(u8),
    MoveIf(u8, u8),
    SetIf(u8),
    /// `cwde`, `cdqe`; `cdq`, `cqo`.
    Widen {
        to_rdx: bool,
        size: u8,
    },
    /// The operation of ModRM.reg; the count as in `exec/shift.rs`.
    Shift(u8, u8),
    Multiply(Multiply, u8),
    Push,
    PushImmediate,
    Pop,
    Leave,
    /// `jcc`.
    Branch(u8),
    Jump,
    Call,
    Return,
    JumpRm,
    CallRm,
}

/// What an instruction does to the flags and to the order of things.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Effect {
    /// It may be left to its handler.
    pub(super) exits: bool,
    pub(super) reads: bool,
    /// It sets all arithmetic flags.
    pub(super) sets: bool,
}

fn is_low(register: u8) -> bool {
    register < NO_REG
}

/// The operand of ModRM.rm is a register that is not AH, CH, DH, BH.
pub(super) fn is_register(op: &Op) -> bool {
    op.kind() == kind::REGISTER && is_low(op.rm)
}

/// The operand of ModRM.rm is in memory at an address the translator can make.
pub(super) fn is_memory(op: &Op) -> bool {
    matches!(op.kind(), kind::FLAT | kind::BASED)
}

fn is_operand(op: &Op) -> bool {
    is_register(op) || is_memory(op)
}

impl Kind {
    /// Whether the translator has code for it with these operands.
    pub(super) fn fits(self, op: &Op) -> bool {
        use crate::exec::alu::Form;
        match self {
            Kind::Other => false,
            Kind::Binary(setter) => {
                let register = matches!(setter.form, Form::RmImm) || is_low(op.reg);
                register && is_operand(op)
            }
            Kind::Store(_) | Kind::Load(_) => is_low(op.reg) && is_operand(op),
            Kind::Unary(..) | Kind::Immediate(_) | Kind::JumpRm | Kind::CallRm => is_operand(op),
            Kind::Extend { to, .. } => to >= 2 && is_operand(op),
            Kind::Lea(size) => size >= 2 && op.kind() == kind::FLAT,
            Kind::MoveIf(_, size) => size >= 2 && is_operand(op),
            Kind::SetIf(_) => is_register(op),
            Kind::Widen { size, .. } => size >= 2,
            Kind::Shift(which, size) => size >= 2 && is_register(op) && which != 2 && which != 3,
            Kind::Multiply(Multiply::Wide, size) => size == 3 && is_operand(op),
            Kind::Multiply(_, size) => size >= 2 && is_operand(op),
            _ => true,
        }
    }

    /// What it does, if it fits.
    pub(super) fn effect(self, op: &Op) -> Effect {
        let memory = is_memory(op);
        let plain = Effect {
            exits: memory,
            ..Effect::default()
        };
        let setting = Effect {
            sets: true,
            ..plain
        };
        let leaving = Effect {
            exits: true,
            ..Effect::default()
        };
        match self {
            _ if !self.fits(op) => leaving,
            Kind::Binary(setter) => Effect {
                reads: matches!(setter.number, 2 | 3),
                ..setting
            },
            Kind::Multiply(..) => setting,
            Kind::Unary(Unary::Neg, _) => setting,
            Kind::Shift(which, size) => Effect {
                sets: which >= 4 && !by_register(op) && shift_count(op, size) != 0,
                ..plain
            },
            Kind::MoveIf(..) => Effect {
                reads: true,
                ..plain
            },
            Kind::SetIf(_) => Effect {
                reads: true,
                ..Effect::default()
            },
            Kind::Nop | Kind::Lea(_) | Kind::Widen { .. } => Effect::default(),
            Kind::Unary(..)
            | Kind::Store(_)
            | Kind::Load(_)
            | Kind::Immediate(_)
            | Kind::Extend { .. } => plain,
            _ => leaving,
        }
    }
}

/// The count of a shift by a constant.
pub(super) fn shift_count(op: &Op, size: u8) -> u8 {
    op.imm as u8 & if size == 3 { 63 } else { 31 }
}

/// The count of a shift is in CL.
pub(super) fn by_register(op: &Op) -> bool {
    op.imm & 0x100 != 0
}
