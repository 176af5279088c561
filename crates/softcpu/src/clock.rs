//! Guest time.
//!
//! The time-stamp counter runs at 1 GHz, so that its unit is the nanosecond, if nobody asks for
//! another rate. It follows the host's monotonic clock at a pace the guest keeps up with
//! (`pace.rs`), or, counting instructions, the guest's own progress: then idle time is skipped and
//! two runs see the same time.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use vmlet_vcpu::{Position, cpuid::CRYSTAL_HZ};

use crate::pace::Pace;

/// Kilohertz of the time-stamp counter.
pub(crate) const TSC_KHZ: u32 = 1_000_000;
/// Nanoseconds of one period of the local APIC's timer input (CPUID 0x15 ECX).
pub(crate) const CRYSTAL_NS: u64 = 1_000_000_000 / CRYSTAL_HZ as u64;

/// Instructions between two looks at the host's clock for the pace.
const PACED: u64 = 8192;

/// What guest time follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClockMode {
    /// The host's monotonic clock.
    #[default]
    Realtime,
    /// Instructions retired by all vCPUs, one nanosecond each; `hlt` skips to the next event.
    Instructions,
}

/// The clock of a VM.
#[derive(Debug)]
pub(crate) struct Clock {
    mode: ClockMode,
    start: Instant,
    /// Added to the host's clock, or the whole time when counting.
    nanoseconds: AtomicU64,
    /// Counting: instructions of all vCPUs.
    instructions: AtomicU64,
    /// Counting: instructions of the slice that was left in the middle; time moves with slices.
    partial: AtomicU64,
    pace: Pace,
    /// Instructions that the pace does not know of yet.
    unpaced: AtomicU64,
    vcpus: AtomicU64,
}

impl Clock {
    pub(crate) fn new(mode: ClockMode) -> Clock {
        Clock {
            mode,
            start: Instant::now(),
            nanoseconds: AtomicU64::new(0),
            instructions: AtomicU64::new(0),
            partial: AtomicU64::new(0),
            pace: Pace::default(),
            unpaced: AtomicU64::new(0),
            vcpus: AtomicU64::new(0),
        }
    }

    pub(crate) fn counts(&self) -> bool {
        self.mode == ClockMode::Instructions
    }

    /// Nanoseconds since the VM's start.
    pub(crate) fn now(&self) -> u64 {
        let base = self.nanoseconds.load(Ordering::Relaxed);
        if self.counts() {
            return base;
        }
        base.wrapping_add(self.pace.time(self.start.elapsed().as_nanos() as u64))
    }

    /// The VM has another vCPU.
    pub(crate) fn add_vcpu(&self) {
        self.vcpus.fetch_add(1, Ordering::Relaxed);
    }

    /// On the host's clock: the guest has nothing to do.
    pub(crate) fn idle(&self) {
        self.pace.idle();
    }

    /// Instructions were retired.
    pub(crate) fn retired(&self, instructions: u64) {
        if self.counts() {
            self.partial.store(0, Ordering::Relaxed);
            self.nanoseconds.fetch_add(instructions, Ordering::Relaxed);
            self.instructions.fetch_add(instructions, Ordering::Relaxed);
        } else {
            // One thread at a time carries out instructions.
            let all = self.unpaced.load(Ordering::Relaxed) + instructions;
            let looks = all >= PACED;
            self.unpaced
                .store(if looks { 0 } else { all }, Ordering::Relaxed);
            if looks {
                let host = self.start.elapsed().as_nanos() as u64;
                let vcpus = self.vcpus.load(Ordering::Relaxed);
                self.pace.worked(host, all, vcpus);
            }
        }
    }

    /// A slice was left after `instructions`.
    pub(crate) fn left(&self, instructions: u64) {
        self.partial.store(instructions, Ordering::Relaxed);
    }

    /// Instructions of all slices that are over.
    pub(crate) fn instructions(&self) -> u64 {
        self.instructions.load(Ordering::Relaxed)
    }

    /// Where a counted run is; exact while no vCPU runs.
    pub(crate) fn position(&self) -> Position {
        let partial = self.partial.load(Ordering::Relaxed);
        Position {
            instructions: self.instructions() + partial,
            nanoseconds: self.nanoseconds.load(Ordering::Relaxed) + partial,
        }
    }

    /// Counting: nothing happens until `deadline`.
    pub(crate) fn skip_to(&self, deadline: u64) {
        self.nanoseconds.fetch_max(deadline, Ordering::Relaxed);
    }

    /// Host time until `deadline`.
    pub(crate) fn until(&self, deadline: u64) -> Duration {
        Duration::from_nanos(deadline.saturating_sub(self.now()))
    }

    /// Sets the clock.
    pub(crate) fn set(&self, nanoseconds: u64) {
        let passed = if self.counts() {
            0
        } else {
            self.pace.time(self.start.elapsed().as_nanos() as u64)
        };
        self.nanoseconds
            .store(nanoseconds.wrapping_sub(passed), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_time_moves_by_instructions_only() {
        let clock = Clock::new(ClockMode::Instructions);
        clock.retired(7);
        assert_eq!(clock.now(), 7);
        clock.skip_to(100);
        clock.skip_to(50);
        assert_eq!(clock.now(), 100);
    }

    #[test]
    fn the_hosts_clock_can_be_set() {
        let clock = Clock::new(ClockMode::Realtime);
        clock.set(1 << 40);
        assert!((1 << 40..(1 << 40) + 10_000_000_000).contains(&clock.now()));
    }
}
