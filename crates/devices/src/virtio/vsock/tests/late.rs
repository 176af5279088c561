//! When the driver hears that its packets were taken.

use std::time::{Duration, Instant};

use vmlet_reactor::Reactor;

use super::*;
use crate::virtio::testing::{running, stuck};

impl Rig {
    /// A device on `reactor` with a connection of the guest, and the host's end of that.
    fn on(reactor: Option<Arc<Reactor>>) -> (Rig, UnixStream) {
        let (cid, path) = (CID, None);
        let device = Vsock::new(&VsockConfig { cid, path }, reactor).unwrap();
        let rig = Rig::of(device, 200);
        let stream = rig.connected();
        (rig, stream)
    }

    fn interrupts(&self) -> usize {
        self.heard.queue.load(Ordering::SeqCst)
    }
}

#[test]
fn short_packets_are_told_of_after_a_while() {
    let (rig, _stream) = Rig::on(Some(running()));
    let (begun, before) = (Instant::now(), rig.interrupts());
    rig.op(CREDIT_UPDATE);
    rig.write(b"abc");
    assert_eq!(rig.tx.used_index(), 3, "they are taken at once");
    let at_once = rig.interrupts();
    // The timer itself may come before this thread goes on.
    assert!(at_once == before || begun.elapsed() >= Duration::from_millis(50));
    while rig.interrupts() == before {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
    assert_eq!(rig.interrupts(), before + 1);
}

#[test]
fn any_other_packet_ends_the_wait() {
    let (rig, _stream) = Rig::on(Some(stuck()));
    let before = rig.interrupts();
    rig.op(CREDIT_UPDATE);
    assert_eq!(rig.interrupts(), before);
    rig.write(&[7; 2000]);
    assert_eq!(rig.interrupts(), before + 1);
}

#[test]
fn half_of_the_queue_is_told_of_at_once() {
    let (rig, _stream) = Rig::on(Some(stuck()));
    let before = rig.interrupts();
    (0..128).for_each(|_| rig.op(CREDIT_UPDATE));
    assert_eq!(rig.interrupts(), before);
    rig.op(CREDIT_UPDATE);
    assert_eq!(rig.interrupts(), before + 1);
}

#[test]
fn a_pause_tells_of_every_packet_that_was_taken() {
    let (rig, _stream) = Rig::on(Some(stuck()));
    let before = rig.interrupts();
    rig.op(CREDIT_UPDATE);
    rig.device.pause();
    assert_eq!(rig.interrupts(), before + 1);
}

#[test]
fn without_a_reactor_each_packet_is_told_of_at_once() {
    let (rig, _stream) = Rig::on(None);
    let before = rig.interrupts();
    rig.op(CREDIT_UPDATE);
    assert_eq!(rig.interrupts(), before + 1);
}

#[test]
fn the_guest_hears_of_the_first_of_many_bytes_before_the_last_are_read() {
    let (rig, mut stream) = Rig::on(None);
    let update = Header {
        buf_alloc: 512 << 10,
        ..Rig::header(CREDIT_UPDATE, 0)
    };
    rig.send(&update, b"");
    stream.write_all(&vec![7; 150 << 10]).unwrap();
    let before = rig.interrupts();
    rig.device.look();
    // Buffers by 1, 4, 16 and the 17 that are left.
    assert_eq!(rig.interrupts(), before + 2);
}
