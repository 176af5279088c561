//! A vCPU of a counted run: what does not depend on the guest must not show in it.
//!
//! Time, timers and interrupts are looked at where a slice ends and where the guest itself asks for
//! a look. Requests of the host come in between, at any block's end, and leave all that as it is:
//! the slice and the turn go on afterwards where they were.
//!
//! A run can be made to stop at an instruction, the *fence*. Near it blocks are carried out one
//! instruction at a time; one that the fence cuts is finished before anything else is looked at, so
//! that the guest cannot tell whether there was a fence.

use vmlet_vcpu::RunEnd;

use crate::{block, cpu::Stop, event::rip_mask, run::SLICE, turns::Turn, vcpu::SoftVcpu};

/// More instructions than a block has.
const NEAR: i64 = 64;

/// The next instruction to stop at, as a vCPU sees it.
#[derive(Debug, Default)]
pub(crate) struct Fence {
    /// Taken from the slice's budget, so that it is used up at the fence.
    bias: i64,
    /// The fence is so near that instructions are counted one by one.
    near: bool,
    /// Instructions left of a block that a fence has cut.
    rest: u32,
    /// The fence that was reached last: it is met once.
    met: Option<u64>,
    /// The turn was left in its middle.
    resumes: bool,
}

impl SoftVcpu {
    /// Whether this turn is the rest of one.
    pub(crate) fn resumes(&mut self) -> bool {
        std::mem::take(&mut self.fence.resumes)
    }

    /// Notes how the turn ended: in its middle or not.
    pub(crate) fn leave_turn(&mut self, turn: &Turn) {
        if !self.cpu.clock.counts() {
            return;
        }
        self.unbias();
        self.fence.resumes = matches!(turn, Turn::Cut | Turn::End(RunEnd::Kicked));
        self.cpu.clock.left(self.retired());
    }

    /// Instructions of this slice so far.
    fn retired(&self) -> u64 {
        let left = self.cpu.budget.saturating_add(self.fence.bias);
        (SLICE - left).unsigned_abs()
    }

    /// Instructions of all vCPUs so far: the others' slices are over.
    fn position(&self) -> u64 {
        self.cpu.clock.instructions() + self.retired()
    }

    fn unbias(&mut self) {
        self.cpu.budget += std::mem::take(&mut self.fence.bias);
        self.fence.near = false;
    }

    /// Between two blocks of a counted run: requests of the host first, then what is the guest's.
    pub(crate) fn boundary(&mut self) -> Option<Turn> {
        self.unbias();
        if self.fence.rest == 0 {
            self.cpu.signal.take_call();
        }
        if self.cpu.signal.take_kick() {
            return Some(Turn::End(RunEnd::Kicked));
        }
        // A run that has ended by itself does not end by a fence.
        if self.cpu.ending.is_none() && (self.turns.is_called() || self.meets_fence()) {
            return Some(Turn::Cut);
        }
        if self.cpu.signal.take_input() {
            self.cpu.look = true;
        }
        // What the guest brings about itself sets `look` where it does.
        let looks = self.cpu.look || self.cpu.budget <= 0;
        if self.fence.rest == 0
            && looks
            && let Some(turn) = self.service()
        {
            return Some(turn);
        }
        self.see_fence();
        None
    }

    fn meets_fence(&mut self) -> bool {
        let met = self.turns.fence() == Some(self.position());
        let first = met && self.fence.met != self.turns.fence();
        if first {
            self.fence.met = self.turns.fence();
        }
        first
    }

    /// Instructions up to the fence, if one is ahead.
    fn to_fence(&self) -> Option<i64> {
        let left = self.turns.fence()?.checked_sub(self.position())?;
        i64::try_from(left).ok().filter(|left| *left > 0)
    }

    /// Makes the budget end at the fence, or just before.
    fn see_fence(&mut self) {
        let Some(left) = self
            .to_fence()
            .filter(|left| *left <= self.cpu.budget + NEAR)
        else {
            self.fence.near = self.fence.rest > 0;
            return;
        };
        self.fence.near = left <= NEAR || self.fence.rest > 0;
        let until = if self.fence.near { left } else { left - NEAR };
        self.fence.bias = (self.cpu.budget - until).max(0);
        self.cpu.budget -= self.fence.bias;
    }

    pub(crate) fn is_near_fence(&self) -> bool {
        self.fence.near
    }

    /// Carries out a block, or what is left of one, up to the fence.
    pub(crate) fn fenced_block(&mut self) -> Result<(), Stop> {
        if self.fence.rest == 0 {
            self.fence.rest = self.cpu.block_at_rip()?.block().count;
        }
        let mut left = self.to_fence().unwrap_or(NEAR);
        let mut rest = std::mem::take(&mut self.fence.rest);
        while rest > 0 && left > 0 {
            rest -= 1;
            left -= 1;
            if self.step_inside()? {
                return Ok(());
            }
        }
        self.fence.rest = rest;
        Ok(())
    }

    /// Carries out one instruction of a block; whether the block ends with it before its time.
    fn step_inside(&mut self) -> Result<bool, Stop> {
        let cpu = &mut self.cpu;
        cpu.block_rip = cpu.rip;
        cpu.op_end = 0;
        let linear = cpu.code_address(cpu.rip)?;
        let gpa = cpu.fetch_address(linear)?;
        let block = block::translate(cpu, linear, gpa, 1)?;
        let Some(op) = block.ops.first() else {
            return Ok(true);
        };
        cpu.op_end = op.end;
        cpu.rip = block.rip.wrapping_add(op.end.into()) & rip_mask(cpu.width);
        if let Err(stop) = (op.f)(cpu, op) {
            cpu.rip = block.rip;
            return Err(stop);
        }
        self.cpu.budget -= 1;
        Ok(std::mem::take(&mut self.cpu.cut))
    }
}
