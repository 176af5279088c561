//! The stack of 64-bit code.

use std::marker::PhantomData;

use super::{
    Quick,
    operand::{Imm, Rm, Source},
    step,
};
use crate::{
    cpu::{Cpu, RBP, RSP},
    dispatch::Step,
    op::Op,
    tlb,
};

impl Cpu {
    /// Pushes if the page is known.
    #[inline(always)]
    pub(super) fn push_quick(&mut self, value: u64) -> Option<()> {
        let top = self.reg(RSP).wrapping_sub(8);
        tlb::store(self.writable_at::<u64>(top)?, value);
        self.set_known(RSP, top);
        Some(())
    }

    /// The top of the stack if the page is known.
    #[inline(always)]
    pub(super) fn top_quick(&self) -> Option<u64> {
        self.readable::<u64>(self.reg(RSP)).map(tlb::load)
    }
}

struct Push<S>(PhantomData<S>);

impl<S: Source> Quick for Push<S> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, op: &Op) -> Option<()> {
        let value = S::get::<u64>(cpu, op)?;
        cpu.push_quick(value)
    }
}

struct Pop;

impl Quick for Pop {
    #[inline(always)]
    fn run(cpu: &mut Cpu, op: &Op) -> Option<()> {
        let value = cpu.top_quick()?;
        let top = cpu.reg(RSP).wrapping_add(8);
        cpu.set_known(RSP, top);
        cpu.set_known(op.rm, value);
        Some(())
    }
}

struct Exit;

impl Quick for Exit {
    #[inline(always)]
    fn run(cpu: &mut Cpu, _: &Op) -> Option<()> {
        let frame = cpu.reg(RBP);
        let value = cpu.readable::<u64>(frame).map(tlb::load)?;
        cpu.set_known(RSP, frame.wrapping_add(8));
        cpu.set_known(RBP, value);
        Some(())
    }
}

/// `push` of a 64-bit register.
pub(crate) fn push() -> Step {
    step::<Push<Rm>>
}

/// `push` of an immediate, 64 bits wide.
pub(crate) fn push_imm() -> Step {
    step::<Push<Imm>>
}

/// `pop` of a 64-bit register.
pub(crate) fn pop() -> Step {
    step::<Pop>
}

/// `leave` of 64 bits.
pub(crate) fn leave() -> Step {
    step::<Exit>
}
