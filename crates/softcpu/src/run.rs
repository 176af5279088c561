//! The loop that runs guest code.

use vmlet_memory::ForeignNews;
use vmlet_vcpu::{FatalExit, RunEnd, x86_64::MpState};

use crate::{
    block,
    cpu::{CS, Cpu, Ending, Fault, NMI, Stop},
    decode::LONGEST,
    event::Event,
    flags,
    lapic::Startup,
    tlb,
    turns::Turn,
    vcpu::SoftVcpu,
};

/// Instructions between two looks at clock, turn and requests.
pub(crate) const SLICE: i64 = 16_384;
/// Slices of one turn when others wait.
const SLICES_A_TURN: u32 = 8;
/// The interrupt shadow of `mov ss`, which delays debug traps too.
const SHADOW_STACK: u8 = 1;

impl SoftVcpu {
    /// Runs guest code until others may go first, nothing is left to do or the run ends.
    pub(crate) fn turn(&mut self) -> Turn {
        let turn = self.run_turn();
        self.leave_turn(&turn);
        turn
    }

    fn run_turn(&mut self) -> Turn {
        let mut first = true;
        if !self.resumes() {
            self.cpu.look = true;
            self.slices = 0;
        }
        loop {
            if (first || self.cpu.look || self.cpu.budget <= 0 || self.cpu.signal.wanted())
                && let Some(turn) = self.look()
            {
                return turn;
            }
            // Near a fence every block's end is looked at.
            first = self.is_near_fence();
            if self.stepping() {
                if let Some(end) = self.step() {
                    return Turn::End(end);
                }
                continue;
            }
            let done = if self.is_near_fence() {
                self.fenced_block()
            } else {
                self.cpu.run_blocks()
            };
            if let Err(stop) = done
                && let Some(end) = self.stopped(stop)
            {
                return Turn::End(end);
            }
        }
    }

    /// Runs one instruction.
    pub(crate) fn one(&mut self) -> Result<(), Stop> {
        let cpu = &mut self.cpu;
        cpu.block_rip = cpu.rip;
        cpu.op_end = 0;
        let linear = cpu.code_address(cpu.rip)?;
        let gpa = cpu.fetch_address(linear)?;
        let block = block::translate(cpu, linear, gpa, 1)?;
        self.cpu.run_one(&block)
    }

    /// An instruction was not completed.
    #[cold]
    pub(crate) fn stopped(&mut self, stop: Stop) -> Option<RunEnd> {
        self.cpu.cut = false;
        self.cpu.watch.forget();
        // Faults take time, or a guest that does nothing else would stand still.
        self.cpu.budget -= 1;
        match stop {
            Stop::Fault => {
                let fault = self.cpu.fault;
                self.raise(fault)
            }
            Stop::Lacking => Some(self.lacking()),
        }
    }

    pub(crate) fn raise(&mut self, fault: Fault) -> Option<RunEnd> {
        match self.cpu.deliver_fault(fault) {
            Ok(true) => None,
            Ok(false) => {
                self.shut_down();
                Some(RunEnd::Shutdown)
            }
            Err(_) => Some(self.lacking()),
        }
    }

    fn shut_down(&mut self) {
        self.cpu.ending = None;
    }

    /// The report of an instruction the engine lacks.
    fn lacking(&mut self) -> RunEnd {
        if let Some(Ending::Fatal(exit)) = self.cpu.ending.take() {
            return RunEnd::Fatal(exit);
        }
        let rip = self.cpu.rip;
        let linear = self.cpu.code_address(rip).unwrap_or(rip);
        let mut bytes = Vec::new();
        for at in 0..LONGEST as u64 {
            let Some(gpa) = self.cpu.look_up(linear.wrapping_add(at)) else {
                break;
            };
            let Some(host) = self.cpu.host(gpa) else {
                break;
            };
            bytes.push(tlb::load::<u8>(host));
        }
        let name = self.cpu.lacking.take();
        RunEnd::Fatal(FatalExit::Instruction { rip, bytes, name })
    }

    pub(crate) fn ended(&mut self) -> Option<RunEnd> {
        Some(match self.cpu.ending.take()? {
            Ending::Stopped(reason) => RunEnd::Stopped(reason),
            Ending::Fatal(exit) => RunEnd::Fatal(exit),
        })
    }

    /// Between two blocks, when something may want a look. `Some` ends the turn.
    #[cold]
    #[inline(never)]
    fn look(&mut self) -> Option<Turn> {
        if self.cpu.clock.counts() {
            self.boundary()
        } else {
            self.service()
        }
    }

    /// Requests, time, interrupts. `Some` ends the turn.
    pub(crate) fn service(&mut self) -> Option<Turn> {
        self.settle_time();
        self.cpu.signal.take_attention();
        self.start_up();
        if let Some(end) = self.ended() {
            return Some(Turn::End(end));
        }
        if !self.cpu.clock.counts() && self.cpu.signal.take_kick() {
            return Some(Turn::End(RunEnd::Kicked));
        }
        if self.is_over() {
            return Some(Turn::Over);
        }
        self.cpu.renew();
        if self.waits_for_start() {
            return Some(Turn::Idle(None));
        }
        let shadow = std::mem::take(&mut self.cpu.shadow);
        let shadowed = shadow != 0;
        self.cpu.look = shadowed;
        if shadow & SHADOW_STACK == 0
            && let Some(end) = self.traps()
        {
            return Some(Turn::End(end));
        }
        if !shadowed && let Some(end) = self.interrupts() {
            return Some(Turn::End(end));
        }
        if !self.cpu.halted {
            if !self.stepping() {
                // It counts for the next instruction only, and there is nothing to suppress.
                self.cpu.rflags &= !flags::RF;
            }
            return None;
        }
        let Some(lapic) = &self.cpu.lapic else {
            self.cpu.halted = false;
            return Some(Turn::End(RunEnd::Halt));
        };
        Some(Turn::Idle(lapic.deadline()))
    }

    fn settle_time(&mut self) {
        let ran = SLICE - self.cpu.budget;
        self.cpu.budget = SLICE;
        self.cpu.instructions += ran.unsigned_abs();
        self.cpu.clock.retired(ran.unsigned_abs());
        if let Some(lapic) = &self.cpu.lapic
            && lapic.deadline().is_some()
        {
            lapic.expire(self.cpu.clock.now());
        }
    }

    /// Whether others may have the turn: it is time, or this one waits for them.
    fn is_over(&mut self) -> bool {
        let yields = std::mem::take(&mut self.cpu.yields);
        self.slices += 1;
        (yields || self.slices > SLICES_A_TURN) && self.turns.is_shared()
    }

    fn waits_for_start(&self) -> bool {
        matches!(self.mp, MpState::Uninitialized | MpState::InitReceived)
    }

    /// INIT and start-up messages (Intel SDM volume 3, section 10.4).
    pub(crate) fn start_up(&mut self) {
        let Some(lapic) = self.cpu.lapic.clone() else {
            return;
        };
        let Startup { init, vector } = lapic.take_startup();
        if init {
            self.cpu.reset();
            lapic.reset();
            self.mp = if self.cpu.id == 0 {
                MpState::Runnable
            } else {
                MpState::InitReceived
            };
        }
        if let Some(vector) = vector
            && self.waits_for_start()
        {
            let cs = self.cpu.seg_mut(CS);
            cs.selector = u16::from(vector) << 8;
            cs.base = u64::from(vector) << 12;
            self.cpu.rip = 0;
            self.cpu.mode_changed();
            self.mp = MpState::Runnable;
        }
    }

    /// Delivers what waits; `Some` when the run ends by it.
    fn interrupts(&mut self) -> Option<RunEnd> {
        if let Some(fault) = self.cpu.pending.take() {
            return self.raise(fault);
        }
        if self.cpu.signal.nmi_waits() && !self.cpu.nmi_masked {
            self.cpu.signal.set_nmi(false);
            self.cpu.nmi_masked = true;
            return self.inject(NMI);
        }
        if self.cpu.rflags & flags::IF == 0 {
            return None;
        }
        if let Some(vector) = self.cpu.injected.take() {
            return self.inject(vector);
        }
        let Some(lapic) = self.cpu.lapic.clone() else {
            return self.interrupt_window.then_some(RunEnd::InterruptWindow);
        };
        let vector = lapic.next()?;
        lapic.take(vector);
        self.inject(vector)
    }

    fn inject(&mut self, vector: u8) -> Option<RunEnd> {
        self.cpu.look = true;
        match self.cpu.deliver(Event::External(vector)) {
            Ok(()) => None,
            Err(Stop::Lacking) => Some(self.lacking()),
            Err(Stop::Fault) => {
                let fault = self.cpu.fault;
                self.raise(fault)
            }
        }
    }
}

impl Cpu {
    /// Takes up what changed in the shared memory.
    pub(crate) fn renew(&mut self) {
        let version = self.memory.version();
        if version != self.map_version {
            self.map_version = version;
            self.map = self.memory.map();
            self.flush_all();
        }
        let epoch = self.memory.code_epoch();
        if epoch != self.code_epoch {
            self.code_epoch = epoch;
            self.tlb.protect_all();
        }
        let hit = match self.foreign_writes.news() {
            None => false,
            Some(ForeignNews::Anything) => true,
            Some(ForeignNews::Ranges(ranges)) => {
                ranges.iter().any(|range| self.map.holds_code(range))
            }
        };
        let writes = self.memory.code_writes();
        if hit || writes != self.code_writes {
            self.foreign += u64::from(hit);
            self.code_writes = writes;
            self.forget_fetched(true);
        }
    }
}
