//! A board that records what the guest does and answers as a test scripts it.

use std::{collections::BTreeMap, fmt};

use vmlet_vcpu::{AccessContext, Flow, GuestBus, SpaceId, StopReason, x86_64::Regs};

use super::memory::STOP;

/// An access to this port ends the run.
const STOP_PORT: u64 = 0xf4;
/// The exception entry points end here.
const EXCEPTION_PORT: u64 = 0xf5;
/// What ends a run on the guest's own wish.
pub(crate) const DONE: StopReason = StopReason::PowerOff { source: "guest" };
/// What ends a run by an exception.
pub(crate) const EXCEPTION: StopReason = StopReason::Reset {
    source: "exception",
};

/// One access of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Read(SpaceId, u64, Vec<u8>),
    Write(SpaceId, u64, Vec<u8>),
    /// Address, element size and elements of a string write.
    Outs(u64, usize, Vec<u8>),
}

type Hook = Box<dyn FnMut(&Seen) -> Option<Vec<u8>> + Send>;

/// The board.
#[derive(Default)]
pub(crate) struct Recorder {
    /// Accesses other than those that end the run.
    pub(crate) seen: Vec<Seen>,
    /// Bytes behind addresses; others read as all ones.
    pub(crate) bytes: BTreeMap<(SpaceId, u64), u8>,
    /// Vectors whose end an APIC reported.
    pub(crate) ended: Vec<u8>,
    /// Registers at the last access.
    pub(crate) regs: Regs,
    /// Sees an access before it counts; gives the answer of a read it serves.
    pub(crate) hook: Option<Hook>,
    /// Sees the end of interrupts.
    pub(crate) on_end: Option<Box<dyn FnMut(u8) + Send>>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

impl Recorder {
    /// Puts bytes behind `addr` of the MMIO space.
    pub(crate) fn put(&mut self, addr: u64, bytes: &[u8]) {
        self.bytes.extend(
            (addr..)
                .zip(bytes)
                .map(|(at, byte)| ((SpaceId::MMIO, at), *byte)),
        );
    }

    /// `len` bytes behind `addr` of the MMIO space.
    pub(crate) fn get(&self, addr: u64, len: u64) -> Vec<u8> {
        (addr..addr + len)
            .map(|at| self.byte(SpaceId::MMIO, at))
            .collect()
    }

    /// The MMIO writes in order.
    pub(crate) fn writes(&self) -> Vec<(u64, Vec<u8>)> {
        let write = |seen: &Seen| match seen {
            Seen::Write(SpaceId::MMIO, addr, data) => Some((*addr, data.clone())),
            _ => None,
        };
        self.seen.iter().filter_map(write).collect()
    }

    /// The MMIO reads in order: address and width.
    pub(crate) fn reads(&self) -> Vec<(u64, usize)> {
        let read = |seen: &Seen| match seen {
            Seen::Read(SpaceId::MMIO, addr, data) => Some((*addr, data.len())),
            _ => None,
        };
        self.seen.iter().filter_map(read).collect()
    }

    fn byte(&self, space: SpaceId, at: u64) -> u8 {
        self.bytes.get(&(space, at)).copied().unwrap_or(0xff)
    }
}

impl GuestBus for Recorder {
    fn read(&mut self, cx: &dyn AccessContext, space: SpaceId, addr: u64, data: &mut [u8]) -> Flow {
        self.regs = cx.regs();
        for (at, byte) in (addr..).zip(data.iter_mut()) {
            *byte = self.byte(space, at);
        }
        let seen = Seen::Read(space, addr, data.to_vec());
        if let Some(answer) = self.hook.as_mut().and_then(|hook| hook(&seen)) {
            data.copy_from_slice(&answer);
        }
        self.seen.push(seen);
        if (space, addr) == (SpaceId::PORT, STOP_PORT) {
            return Flow::Stop(DONE);
        }
        Flow::Continue
    }

    fn write(&mut self, cx: &dyn AccessContext, space: SpaceId, addr: u64, data: &[u8]) -> Flow {
        self.regs = cx.regs();
        match (space, addr) {
            (SpaceId::PORT, STOP_PORT) | (SpaceId::MMIO, STOP) => return Flow::Stop(DONE),
            (SpaceId::PORT, EXCEPTION_PORT) => return Flow::Stop(EXCEPTION),
            _ => {}
        }
        let seen = Seen::Write(space, addr, data.to_vec());
        if let Some(hook) = &mut self.hook {
            hook(&seen);
        }
        for (at, byte) in (addr..).zip(data) {
            self.bytes.entry((space, at)).and_modify(|old| *old = *byte);
        }
        self.seen.push(seen);
        Flow::Continue
    }

    fn write_string(
        &mut self,
        cx: &dyn AccessContext,
        _: SpaceId,
        addr: u64,
        size: usize,
        data: &[u8],
    ) -> Flow {
        self.regs = cx.regs();
        self.seen.push(Seen::Outs(addr, size, data.to_vec()));
        Flow::Continue
    }

    fn end_of_interrupt(&mut self, vector: u8) {
        self.ended.push(vector);
        if let Some(hook) = &mut self.on_end {
            hook(vector);
        }
    }
}
