//! Where translated code goes on in the interpreter.

use std::sync::atomic::Ordering;

use crate::{
    block::Block,
    cpu::Cpu,
    dispatch::{At, Leave, Link, follow, go, into, plain},
};

/// How.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// By the instruction's handler: it is unusual.
    Plain,
    /// By its step: the translator lacks it.
    Step,
    /// By the block's branch.
    Taken,
    /// By what follows the block.
    Fallen,
    /// To the block in [`Cpu::spare`].
    Into,
}

/// One way out of translated code.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exit {
    pub(super) block: Link,
    /// The instruction, the last one for branches.
    pub(super) at: At,
    pub(super) way: Way,
}

/// Translated code ends in a jump to here, with its registers written back.
pub(super) extern "C-unwind" fn leave(cpu: &mut Cpu, exit: &Exit) -> Leave {
    cpu.settle();
    cpu.block = exit.block;
    match exit.way {
        Way::Plain => plain(cpu, exit.at),
        Way::Step => go!(cpu, exit.at),
        Way::Taken => follow::<true>(cpu, exit.at.op().imm),
        Way::Fallen => follow::<false>(cpu, exit.at.next().op().imm),
        Way::Into => {
            let block = cpu.spare.get().block();
            into(cpu, block)
        }
    }
}

/// The same where the next block, already paid for, is not translated.
pub(super) extern "C-unwind" fn begin(cpu: &mut Cpu, block: &Block) -> Leave {
    cpu.settle();
    cpu.block = Link::to(block);
    let at = At::start(block);
    (block.lead.get())(cpu, at)
}

/// Has other translated code come to `block` at `address`.
pub(super) fn set_entry(block: &Block, address: u64) {
    block.hot.store(address, Ordering::Relaxed);
}
