//! Keeps guest time from running away from a guest.
//!
//! On the host's clock a guest gets its timer ticks as time passes, however few instructions it
//! carried out meanwhile. An interpreter that gets a small share of a busy host may then do nothing
//! but handle ticks. So the clock of a guest that has work goes on by at most [`MOST`] nanoseconds
//! an instruction, beyond a reserve that covers the usual turns of the host's scheduler. What it
//! falls behind it stays behind: to a guest, a jump is a processor that stood still for so long.

use std::sync::atomic::{AtomicU64, Ordering};

/// Nanoseconds an instruction of one vCPU: ten times slower than the interpreter on a slow host. A
/// tick of Linux takes some fifteen thousand instructions, 250 times a second: a quarter of that.
const MOST: u64 = 64;
/// How far the clock may go on at once.
const RESERVE: u64 = 20_000_000;

/// How far the clock is behind the host's, and how far it may go.
#[derive(Debug)]
pub(crate) struct Pace {
    behind: AtomicU64,
    ceiling: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            behind: AtomicU64::new(0),
            ceiling: AtomicU64::new(u64::MAX),
        }
    }
}

impl Pace {
    /// The guest's time when the host's is `host`.
    pub(crate) fn time(&self, host: u64) -> u64 {
        let behind = self.behind.load(Ordering::Relaxed);
        let ceiling = self.ceiling.load(Ordering::Relaxed);
        host.wrapping_sub(behind).min(ceiling)
    }

    /// `instructions` were carried out; `vcpus` share them.
    pub(crate) fn worked(&self, host: u64, instructions: u64, vcpus: u64) {
        let now = self.time(host);
        self.behind.store(host.wrapping_sub(now), Ordering::Relaxed);
        let ceiling = self.ceiling.load(Ordering::Relaxed);
        let earned = instructions.saturating_mul(MOST) / vcpus.max(1);
        let ceiling = ceiling
            .saturating_add(earned)
            .clamp(now, now.saturating_add(RESERVE));
        self.ceiling.store(ceiling, Ordering::Relaxed);
    }

    /// The guest has nothing to do: its clock goes as the host's does.
    pub(crate) fn idle(&self) {
        self.ceiling.store(u64::MAX, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_works_has_the_hosts_time() {
        let pace = Pace::default();
        for host in (0..1_000_000_000).step_by(100_000) {
            pace.worked(host, 16_384, 1);
            assert_eq!(pace.time(host), host);
        }
    }

    #[test]
    fn a_starved_guest_falls_behind_and_never_back() {
        let pace = Pace::default();
        let mut last = 0;
        for host in (0..10_000_000_000).step_by(10_000_000) {
            pace.worked(host, 16_384, 1);
            let now = pace.time(host);
            assert!(now >= last);
            last = now;
        }
        let earned = 1_000 * 16_384 * MOST;
        assert!((earned..earned + 2 * RESERVE).contains(&last), "{last}");
    }

    #[test]
    fn the_clock_of_an_idle_guest_goes_on_from_where_it_is() {
        let pace = Pace::default();
        pace.worked(0, 1, 1);
        pace.worked(1_000_000_000, 1, 1);
        let now = pace.time(1_000_000_000);
        assert!(now < 100_000_000);
        pace.idle();
        assert_eq!(pace.time(1_000_000_000), now);
        assert_eq!(pace.time(6_000_000_000), now + 5_000_000_000);
    }

    #[test]
    fn vcpus_share_what_instructions_earn() {
        let four = Pace::default();
        four.worked(0, 0, 4);
        four.worked(1_000_000_000, 4_000_000, 4);
        let reserve = four.time(u64::MAX / 2);
        assert!(reserve <= 2 * RESERVE + 4_000_000 * MOST / 4);
    }
}
