//! What all translated code shares: how it is entered and left, and where guest registers are.
//!
//! Eleven guest registers stay in host registers, ten of them in those of the same name; the others
//! stay in [`Cpu`]. No frame but that of [`Stubs::enter`] is on the stack, and it is gone before
//! anything else is called.

use std::mem::offset_of;

use vmlet_vcpu::x86_64::Segment;

use super::{
    asm::{Assembler, EQUAL, Mem, Rm, alu, at},
    exit,
};
use crate::{
    block::Block,
    cpu::Cpu,
    op::{NO_REG, Op},
};

/// The host register that holds the [`Cpu`].
pub(super) const CPU: u8 = 14;
/// Addresses, then loaded values; the exit or the block where code is left.
pub(super) const S0: u8 = 15;
/// Scratch.
pub(super) const S1: u8 = 13;
/// Scratch.
pub(super) const T: u8 = 12;
/// RSP of the guest.
pub(super) const STACK: u8 = 11;
/// RSP and RDI of the host.
const HOST_STACK: u8 = 4;
const FIRST_ARGUMENT: u8 = 7;
const SECOND_ARGUMENT: u8 = 6;

/// The host register of a guest register, if it has one.
pub(super) fn pinned(guest: u8) -> Option<u8> {
    match guest {
        4 => Some(STACK),
        0..=10 => Some(guest),
        _ => None,
    }
}

/// Where a guest register is kept in [`Cpu`].
pub(super) fn slot(guest: u8) -> Mem {
    field(offset_of!(Cpu, regs) + 8 * usize::from(guest.min(NO_REG)))
}

/// A field of [`Cpu`].
pub(super) fn field(offset: usize) -> Mem {
    at(CPU, offset as i32)
}

/// The base of a segment.
pub(super) fn segment_base(number: u8) -> Mem {
    let segment = size_of::<Segment>() * usize::from(number & 7);
    field(offset_of!(Cpu, segs) + segment + offset_of!(Segment, base))
}

/// Addresses of the shared pieces.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stubs {
    /// A step: enters the translation of [`Cpu::block`]. Where something wants a look at the end of
    /// this block, it is interpreted: translated code, which cannot bring that about, does not ask.
    pub(super) enter: u64,
    /// Leaves by the [`exit::Exit`] in [`S0`].
    pub(super) leave: u64,
    /// Goes on with the untranslated block in [`S0`].
    pub(super) begin: u64,
    /// The end of them all.
    pub(super) end: u64,
}

impl Stubs {
    /// Their code for the assembler's address.
    pub(super) fn make(asm: &mut Assembler) -> Stubs {
        let enter = asm.here();
        let look = at(FIRST_ARGUMENT, offset_of!(Cpu, look) as i32);
        asm.alu_imm(alu::CMP, 0, Rm::Mem(look), 0);
        let calm = asm.jump_if(EQUAL);
        asm.jump_through(at(SECOND_ARGUMENT, offset_of!(Op, step) as i32));
        asm.land(calm);
        // push rbx, rbp, r12 to r15; sub rsp, 8
        asm.raw(&[0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57]);
        asm.alu_imm(alu::SUB, 3, Rm::Reg(HOST_STACK), 8);
        asm.copy(CPU, FIRST_ARGUMENT);
        asm.load(3, S0, field(offset_of!(Cpu, block)));
        for guest in 0..NO_REG {
            if let Some(host) = pinned(guest) {
                asm.load(3, host, slot(guest));
            }
        }
        asm.jump_through(at(S0, offset_of!(Block, hot) as i32));
        let leave = asm.here();
        finish(asm, exit::leave as *const () as u64);
        let begin = asm.here();
        finish(asm, exit::begin as *const () as u64);
        Stubs {
            enter,
            leave,
            begin,
            end: asm.here().next_multiple_of(64),
        }
    }
}

/// Writes the registers back and goes to the function at `target` with [`S0`] as its second
/// argument.
fn finish(asm: &mut Assembler, target: u64) {
    for guest in 0..NO_REG {
        if let Some(host) = pinned(guest) {
            asm.store(3, slot(guest), host);
        }
    }
    asm.copy(FIRST_ARGUMENT, CPU);
    asm.copy(SECOND_ARGUMENT, S0);
    asm.alu_imm(alu::ADD, 3, Rm::Reg(HOST_STACK), 8);
    // pop r15 to r12, rbp, rbx
    asm.raw(&[0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b]);
    asm.constant(0, target);
    // jmp rax
    asm.raw(&[0xff, 0xe0]);
}
