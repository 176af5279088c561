//! Where devices have their time from.

use std::{
    fmt,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The time that clocks and timers of a board show.
pub trait TimeSource: Send + Sync + fmt::Debug {
    /// Time since the board's start.
    fn elapsed(&self) -> Duration;

    /// Time since 1970-01-01 00:00:00 UTC.
    fn civil(&self) -> Duration;
}

/// The host's time.
#[derive(Debug)]
pub struct HostTime {
    start: Instant,
}

impl Default for HostTime {
    fn default() -> Self {
        HostTime {
            start: Instant::now(),
        }
    }
}

impl TimeSource for HostTime {
    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn civil(&self) -> Duration {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
    }
}
