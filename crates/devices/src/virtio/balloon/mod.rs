//! The memory balloon (virtio 1.2, section 5.5): pages that the guest gives up go back to the host.
//!
//! * `device.rs`: [`Balloon`], its queues and its target.
//! * `pages.rs`: which pages are given back, and which cannot be.
//! * `statistics.rs`: what the guest says about its memory.
//!
//! Offered: `STATS_VQ`, `DEFLATE_ON_OOM`, `PAGE_REPORTING`, and `FREE_PAGE_HINT`, which is never asked
//! for: with it the queues have the same numbers whether a driver counts those it lacks or not.
//! Not supported: `MUST_TELL_HOST` (a page that is used again is there without asking),
//! `PAGE_POISON` (drivers that poison pages then report none).

mod device;
mod pages;
mod statistics;

#[cfg(test)]
mod tests;

pub use device::{Balloon, BalloonOptions, BalloonState};
pub use statistics::{Statistic, Statistics};
