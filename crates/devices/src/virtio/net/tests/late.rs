//! When the driver hears of frames that are sent.

use std::time::{Duration, Instant};

use super::*;
use crate::virtio::testing::stuck;

impl Rig {
    /// The driver sends frames of `len` bytes at once.
    fn sends(&self, frames: usize, len: u32) {
        for _ in 0..frames {
            self.tx.send(&[readable(BUFFERS, len)]);
        }
        self.net.queue_ready(TX);
    }

    fn interrupts(&self) -> usize {
        self.heard.queue.load(Ordering::SeqCst)
    }

    fn hears(&self, interrupts: usize) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.interrupts() < interrupts && Instant::now() < end {
            std::thread::yield_now();
        }
        assert_eq!(self.interrupts(), interrupts);
    }
}

#[test]
fn a_short_frame_that_is_sent_alone_is_told_of_after_a_while() {
    let rig = Rig::new(0);
    let begun = Instant::now();
    rig.sends(1, 72);
    let at_once = rig.interrupts();
    // The timer itself may come before this thread goes on.
    assert!(at_once == 0 || begun.elapsed() >= Duration::from_millis(4));
    assert_eq!(rig.tx.used_index(), 1);
    rig.hears(1);
}

#[test]
fn a_driver_that_took_the_frame_back_meanwhile_hears_nothing() {
    let rig = Rig::new(features::EVENT_IDX);
    // Nothing but the second frame is asked for: the first has been seen.
    rig.tx.write(rig.tx.state.avail + 4 + 2 * 16, &[1, 0]);
    rig.sends(1, 72);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.interrupts(), 0);
    rig.sends(1, 72);
    rig.hears(1);
}

#[test]
fn the_next_frame_ends_the_wait() {
    let rig = Rig::with(Cable::default(), 0, Place::Reactor(stuck()));
    rig.sends(1, 72);
    assert_eq!(rig.interrupts(), 0);
    rig.sends(1, 72);
    assert_eq!(rig.interrupts(), 1);
}

#[test]
fn several_frames_and_long_ones_are_told_of_at_once() {
    for (frames, len) in [(2, 72), (1, 4000)] {
        let rig = Rig::with(Cable::default(), 0, Place::Reactor(stuck()));
        rig.sends(frames, len);
        assert_eq!(rig.interrupts(), 1, "{frames} of {len}");
    }
}

#[test]
fn a_pause_tells_of_every_frame_that_is_sent() {
    let rig = Rig::with(Cable::default(), 0, Place::Reactor(stuck()));
    rig.sends(1, 72);
    rig.net.pause();
    assert_eq!(rig.interrupts(), 1);
}

#[test]
fn on_the_guests_thread_each_frame_is_told_of_at_once() {
    let rig = Rig::with(Cable::default(), 0, Place::Guest);
    rig.sends(1, 72);
    assert_eq!(rig.interrupts(), 1);
}
