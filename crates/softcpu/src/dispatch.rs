//! How one instruction leads to the next: steps that end in a call of the next step, and blocks
//! that lead to each other.
//!
//! A step carries one instruction out and calls the step of the next one last of all; the compiler
//! makes that a jump, so that the stack stays flat (`tests.rs` proves it). It does so with
//! optimisation only: with `debug_assertions` each step returns to a loop instead.
//!
//! Most instructions have the step [`plain`], which calls the handler of `exec/`. The frequent ones
//! have one of their own (`quick/`), which does without all that can go wrong: where a page is not
//! in the TLB or a target has no block yet it hands over to `plain`, before any effect.
//!
//! A block begins with its [`Head`]: the step of its first operation, or one of `hot/` in its place.
//!
//! Invariant: a [`Link`] points to a block that the cache of the same vCPU holds; blocks are dropped
//! all at once, in `Cache::clear`, by the caller of [`Cpu::run_blocks`], together with all links. An
//! [`At`] points to an operation of such a block; its last operation is one of [`end`], the only ones
//! that do not ask for the next.

#![expect(unsafe_code, reason = "follows pointers from operation to operation")]

use std::{
    ptr::NonNull,
    sync::{
        Weak,
        atomic::{AtomicPtr, AtomicU32, Ordering},
    },
};

use crate::{
    block::Block,
    cpu::{Cpu, Stop},
    event::rip_mask,
    op::Op,
};

/// Carries an instruction out and goes on with the next.
pub(crate) type Step = extern "C-unwind" fn(&mut Cpu, At) -> Leave;

/// Why no step goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Leave {
    /// The loop calls the step at [`Cpu::at`].
    #[cfg(debug_assertions)]
    Go,
    /// RIP is set; something may want a look.
    Around,
    /// RIP is set; there is no known block.
    Unknown,
    /// The same, at the end of [`Cpu::block`] by the branch not taken.
    Fallen,
    /// The same, by the branch taken.
    Taken,
    /// [`Stop::Fault`].
    Fault,
    /// [`Stop::Lacking`].
    Lacking,
}

/// A place in a block.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct At(*const Op);

// SAFETY: operations are plain data, and places are used within a run only.
unsafe impl Send for At {}

impl At {
    #[cfg(debug_assertions)]
    pub(crate) const NOWHERE: At = At(std::ptr::null());

    /// The first operation of a block.
    #[inline(always)]
    pub(crate) fn start(block: &Block) -> At {
        At(block.ops.as_ptr())
    }

    #[inline(always)]
    pub(crate) fn op<'a>(self) -> &'a Op {
        // SAFETY: the module's invariant; the block outlives the step.
        unsafe { &*self.0 }
    }

    #[inline(always)]
    pub(crate) fn next(self) -> At {
        // SAFETY: the module's invariant: an operation follows, which ends the block.
        At(unsafe { self.0.add(1) })
    }

    /// Operations of `block` before this one.
    fn number(self, block: &Block) -> u32 {
        let bytes = self.0.addr().wrapping_sub(block.ops.as_ptr().addr());
        (bytes / size_of::<Op>()) as u32
    }
}

/// A known block.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Link(NonNull<Block>);

// SAFETY: blocks are shared data (`Sync`), held by the vCPU that holds the link.
unsafe impl Send for Link {}

impl Link {
    pub(crate) fn to(block: &Block) -> Link {
        Link(NonNull::from(block))
    }

    /// Within a block that is being made.
    pub(crate) fn within(block: &Weak<Block>) -> Link {
        // SAFETY: the pointer of a `Weak` made with a value is not null.
        Link(unsafe { NonNull::new_unchecked(block.as_ptr().cast_mut()) })
    }

    #[inline(always)]
    pub(crate) fn block<'a>(self) -> &'a Block {
        // SAFETY: the module's invariant.
        unsafe { self.0.as_ref() }
    }
}

/// Where a link is kept in a block or a table.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct LinkCell(AtomicPtr<Block>);

impl LinkCell {
    pub(crate) fn new(link: Link) -> LinkCell {
        LinkCell(AtomicPtr::new(link.0.as_ptr()))
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> Link {
        let pointer = self.0.load(Ordering::Relaxed);
        // SAFETY: made of a `Link` in every case, so not null.
        Link(unsafe { NonNull::new_unchecked(pointer) })
    }

    pub(crate) fn set(&self, link: Link) {
        self.0.store(link.0.as_ptr(), Ordering::Relaxed);
    }
}

/// How a block begins: the step of its first operation, or one in its place.
#[derive(Debug)]
pub(crate) struct Head(AtomicPtr<()>);

impl Head {
    pub(crate) fn new(step: Step) -> Head {
        Head(AtomicPtr::new(step as *mut ()))
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> Step {
        let pointer = self.0.load(Ordering::Relaxed);
        // SAFETY: made of a `Step` in every case.
        unsafe { std::mem::transmute::<*mut (), Step>(pointer) }
    }

    pub(crate) fn set(&self, step: Step) {
        self.0.store(step as *mut (), Ordering::Relaxed);
    }
}

/// How often a block was entered.
#[derive(Debug, Default)]
pub(crate) struct Heat(AtomicU32);

impl Heat {
    #[inline(always)]
    pub(crate) fn one_more(&self) -> u32 {
        let count = self.0.load(Ordering::Relaxed).saturating_add(1);
        self.0.store(count, Ordering::Relaxed);
        count
    }

    pub(crate) fn cool(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// Goes on with the step at `$at`.
#[cfg(not(debug_assertions))]
macro_rules! go {
    ($cpu:expr, $at:expr) => {{
        let at: $crate::dispatch::At = $at;
        (at.op().step)($cpu, at)
    }};
}
#[cfg(debug_assertions)]
macro_rules! go {
    ($cpu:expr, $at:expr) => {{
        $cpu.at = $at;
        $crate::dispatch::Leave::Go
    }};
}
pub(crate) use go;

/// An instruction without a step of its own: its handler, and what it may leave to be seen to.
pub(crate) extern "C-unwind" fn plain(cpu: &mut Cpu, at: At) -> Leave {
    let op = at.op();
    let block = cpu.block.block();
    let mask = rip_mask(cpu.width);
    cpu.block_rip = block.rip;
    cpu.op_end = op.end;
    cpu.rip = block.rip.wrapping_add(op.end.into()) & mask;
    if let Err(stop) = (op.f)(cpu, op) {
        cpu.name_stack_fault(op);
        cpu.budget += i64::from(block.count - at.number(block));
        cpu.rip = block
            .rip
            .wrapping_add((op.end - u16::from(op.len())).into())
            & mask;
        return match stop {
            Stop::Fault => Leave::Fault,
            Stop::Lacking => Leave::Lacking,
        };
    }
    if cpu.cut {
        cpu.cut = false;
        cpu.budget += i64::from(block.count - at.number(block) - 1);
        return Leave::Around;
    }
    go!(cpu, at.next())
}

/// The last operations of blocks.
pub(crate) mod end {
    use super::{At, Cpu, Leave, follow, jump};

    /// RIP is the next block's: the last instruction was a [`super::plain`] one.
    pub(crate) extern "C-unwind" fn at_rip(cpu: &mut Cpu, _: At) -> Leave {
        if cpu.signal.wanted() {
            return Leave::Around;
        }
        let rip = cpu.rip;
        jump(cpu, rip)
    }

    /// The block ended without a branch.
    pub(crate) extern "C-unwind" fn falls(cpu: &mut Cpu, at: At) -> Leave {
        follow::<false>(cpu, at.op().imm)
    }
}

/// Goes on with `block`, which starts at the new RIP.
#[inline(always)]
fn enter(cpu: &mut Cpu, block: &Block) -> Leave {
    if cpu.budget <= 0 || cpu.look {
        cpu.rip = block.rip;
        return Leave::Around;
    }
    cpu.budget -= i64::from(block.count);
    cpu.block = Link::to(block);
    (block.lead.get())(cpu, At::start(block))
}

/// Leaves the block by its branch, taken or not, to `target`.
#[inline(always)]
pub(crate) fn follow<const TAKEN: bool>(cpu: &mut Cpu, target: u64) -> Leave {
    let block = cpu.block.block();
    let link = if TAKEN { &block.taken } else { &block.fallen };
    let next = link.get().block();
    if next.is_current(cpu) {
        return enter(cpu, next);
    }
    cpu.rip = target;
    if TAKEN { Leave::Taken } else { Leave::Fallen }
}

/// The known block at `rip`.
#[inline(always)]
pub(crate) fn known<'a>(cpu: &Cpu, rip: u64) -> Option<&'a Block> {
    let block = cpu.cache.jump(rip).block();
    (block.rip == rip && block.is_current(cpu)).then_some(block)
}

/// Goes on at `rip` if its block is known.
#[inline(always)]
pub(crate) fn jump(cpu: &mut Cpu, rip: u64) -> Leave {
    match known(cpu, rip) {
        Some(block) => enter(cpu, block),
        None => {
            cpu.rip = rip;
            Leave::Unknown
        }
    }
}

/// Goes on with a known block.
#[inline(always)]
pub(crate) fn into(cpu: &mut Cpu, block: &Block) -> Leave {
    enter(cpu, block)
}

/// Runs `block` and what follows.
pub(crate) fn start(cpu: &mut Cpu, block: Link) -> Leave {
    let block = block.block();
    cpu.budget -= i64::from(block.count);
    cpu.block = Link::to(block);
    let at = At::start(block);
    #[cfg(debug_assertions)]
    {
        let mut leave = (block.lead.get())(cpu, at);
        while leave == Leave::Go {
            let at = cpu.at;
            leave = (at.op().step)(cpu, at);
        }
        leave
    }
    #[cfg(not(debug_assertions))]
    (block.lead.get())(cpu, at)
}

impl Cpu {
    /// Runs blocks from RIP on until something may want a look.
    pub(crate) fn run_blocks(&mut self) -> Result<(), Stop> {
        let mut next = self.block_at_rip()?;
        loop {
            let leave = start(self, next);
            let from = (self.block, self.cache.generation());
            match leave {
                Leave::Around => return Ok(()),
                Leave::Fault => return Err(Stop::Fault),
                Leave::Lacking => return Err(Stop::Lacking),
                _ => {}
            }
            if self.budget <= 0 || self.look {
                return Ok(());
            }
            next = self.block_at_rip()?;
            if from.1 == self.cache.generation() {
                match leave {
                    Leave::Fallen => from.0.block().fallen.set(next),
                    Leave::Taken => from.0.block().taken.set(next),
                    _ => {}
                }
            }
        }
    }

    /// Carries out the only instruction of `block` by its handler.
    pub(crate) fn run_one(&mut self, block: &Block) -> Result<(), Stop> {
        let Some(op) = block.ops.first() else {
            return Ok(());
        };
        self.op_end = op.end;
        self.rip = block.rip.wrapping_add(op.end.into()) & rip_mask(self.width);
        let done = (op.f)(self, op);
        if done.is_ok() {
            self.budget -= 1;
            self.cut = false;
        } else {
            self.name_stack_fault(op);
            self.rip = block.rip;
        }
        done
    }

    /// The block at RIP, decoded if need be.
    pub(crate) fn block_at_rip(&mut self) -> Result<Link, Stop> {
        let rip = self.rip;
        if let Some(block) = known(self, rip) {
            return Ok(Link::to(block));
        }
        self.block_rip = rip;
        self.op_end = 0;
        let found = self.find_block();
        self.cut = false;
        found
    }
}
