//! Steps of the frequent instructions (`dispatch.rs`), without what can go wrong.
//!
//! A quick step does the same as the instruction's handler in `exec/` where every byte of memory it
//! wants is in the TLB; else it has no effect and leaves the instruction to the handler. It neither
//! faults nor calls devices. The decoder asks here for the step of an instruction; `None` is the
//! handler's. `tests.rs` compares each with its handler.

mod alu;
mod branch;
mod fused;
mod moves;
mod operand;
mod shift;
mod silent;
mod stack;

pub(crate) use alu::{binary, unary};
pub(crate) use branch::{call, call_rm, jcc, jmp, jmp_rm, ret};
pub(crate) use fused::{Setter, fused};
pub(crate) use moves::{extension, immediate, lea, load, move_if, nop, set_if, store, widen};
pub(crate) use shift::{Multiply, multiply, product, shift, turned};
pub(crate) use silent::{Flow, binary_flow, multiply_flow, shift_flow, silence};
pub(crate) use stack::{leave, pop, push, push_imm};

use crate::{
    cpu::Cpu,
    dispatch::{At, Leave, go, plain},
    op::Op,
};

/// An instruction that does not branch.
trait Quick {
    /// Carries it out; `None` without any effect.
    fn run(cpu: &mut Cpu, op: &Op) -> Option<()>;
}

extern "C-unwind" fn step<Q: Quick>(cpu: &mut Cpu, at: At) -> Leave {
    match Q::run(cpu, at.op()) {
        Some(()) => go!(cpu, at.next()),
        None => plain(cpu, at),
    }
}

#[cfg(test)]
pub(crate) mod tests;
