//! How long accesses take, counted by the processor: the kernel's clock is two pages more to be
//! looked up after each exit, twice an access.

#![expect(unsafe_code, reason = "the intrinsic for RDTSC is not a safe function")]

use std::{
    arch::x86_64,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

/// What the processor's counter says (Intel SDM volume 3, "Time-Stamp Counter"). Its rate is one
/// and constant wherever KVM runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticks(u64);

impl Ticks {
    pub(super) fn now() -> Ticks {
        // SAFETY: Linux lets every program read the counter that does not ask to be kept from it.
        Ticks(unsafe { x86_64::_rdtsc() })
    }

    /// Ticks since; none if this thread has come to a processor whose counter is behind.
    pub(super) fn elapsed(self) -> u64 {
        Ticks::now().0.saturating_sub(self.0)
    }
}

/// Both clocks, read together when the first device was made.
static BEGUN: OnceLock<(Instant, Ticks)> = OnceLock::new();
/// Nanoseconds, and the ticks that they are; found once, so that no sum ever goes back.
static RATE: OnceLock<(u128, u128)> = OnceLock::new();
/// Long enough for the clocks to agree to a hundred-thousandth.
const LEAST: Duration = Duration::from_millis(10);

/// Ticks are going to be counted: both clocks are read.
pub(super) fn begin() -> (Instant, Ticks) {
    *BEGUN.get_or_init(|| (Instant::now(), Ticks::now()))
}

/// Nanoseconds that `ticks` are. Waits [`LEAST`] at most, once.
pub(super) fn nanoseconds(ticks: u64) -> u64 {
    let (nanoseconds, of) = *RATE.get_or_init(|| {
        let (instant, begun) = begin();
        thread::sleep(LEAST.saturating_sub(instant.elapsed()));
        (instant.elapsed().as_nanos(), begun.elapsed().max(1).into())
    });
    u64::try_from(u128::from(ticks) * nanoseconds / of).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_the_nanoseconds_that_the_kernel_counts() {
        begin();
        let (instant, ticks) = (Instant::now(), Ticks::now());
        thread::sleep(Duration::from_millis(50));
        let ours = Duration::from_nanos(nanoseconds(ticks.elapsed()));
        let kernel = instant.elapsed();
        assert!(ours <= kernel + kernel / 100, "{ours:?} of {kernel:?}");
        assert!(ours >= Duration::from_millis(49), "{ours:?} of {kernel:?}");
    }
}
