//! How frames are cut into the driver's buffers, and when it hears of them.

use super::*;

#[test]
fn the_driver_hears_of_long_frames_while_others_are_read() {
    let rig = Rig::new(bit::MRG_RXBUF | bit::GUEST_TSO4);
    // Both frames lie in the same buffers, which is the driver's own affair.
    (0..4).for_each(|_| rig.lend(BUFFERS, 0x9000));
    (0..2).for_each(|_| drop(rig.come(65_536)));
    rig.net.queue_ready(RX);
    assert_eq!(rig.rx.used_index(), 4);
    assert_eq!(rig.heard.queue.load(Ordering::SeqCst), 2);
}

#[test]
fn after_a_frame_that_came_alone_the_driver_hears_of_the_next_before_there_is_a_look_for_more() {
    let rig = Rig::new(bit::MRG_RXBUF);
    for at in 0..5 {
        rig.lend(BUFFERS + at * 0x1000, 100);
    }
    for (frames, heard) in [(1, 1), (2, 3), (2, 4)] {
        (0..frames).for_each(|_| drop(rig.come(60)));
        rig.net.queue_ready(RX);
        assert_eq!(rig.heard.queue.load(Ordering::SeqCst), heard);
    }
}

#[test]
fn frames_come_all_at_one_wake() {
    let rig = Rig::new(bit::MRG_RXBUF);
    for at in 0..16 {
        rig.lend(BUFFERS + at * 0x1000, 100);
    }
    (0..20).for_each(|_| drop(rig.come(60)));
    rig.net.queue_ready(RX);
    assert_eq!(rig.rx.used_index(), 16);
    assert_eq!(rig.heard.queue.load(Ordering::SeqCst), 1);
    assert_eq!(rig.cable.coming.lock().unwrap().len(), 4);
}

#[test]
fn a_long_frame_after_short_ones_comes_whole_and_in_its_turn() {
    let rig = Rig::new(bit::MRG_RXBUF | bit::GUEST_TSO4);
    for at in 0..12 {
        rig.lend(BUFFERS + at * 0x1000, 1000);
    }
    for _ in 0..2 {
        rig.come(60);
        rig.net.queue_ready(RX);
    }
    assert_eq!(rig.rx.used_index(), 2);
    let (long, short) = (rig.come(4000), rig.come(61));
    rig.net.queue_ready(RX);
    assert_eq!(rig.rx.used_index(), 8);
    let mut whole = rig.received(BUFFERS + 0x2000 + 12, 988);
    for at in 3..7 {
        whole.extend(rig.received(BUFFERS + at * 0x1000, 1000));
    }
    assert!(whole.starts_with(&long));
    assert_eq!(rig.received(BUFFERS + 0x7000 + 12, short.len()), short);
}

#[test]
fn virtio_5_1_6_4_1_merged_buffers_are_full_but_for_the_last_and_used_together() {
    let rig = Rig::new(bit::MRG_RXBUF);
    for at in 0..4 {
        rig.lend(BUFFERS + at * 0x1000, 100);
    }
    let frame = rig.come(200);
    rig.net.queue_ready(RX);
    assert_eq!(rig.received(BUFFERS + 10, 2), [3, 0]);
    assert_eq!(rig.rx.used_index(), 3);
    let used: Vec<_> = (0..3).map(|index| rig.rx.used(index)).collect();
    assert_eq!(used, [(0, 100), (1, 100), (2, 12)]);
    let whole = [
        rig.received(BUFFERS + 12, 88),
        rig.received(BUFFERS + 0x1000, 100),
        rig.received(BUFFERS + 0x2000, 12),
    ];
    assert_eq!(whole.concat(), frame);
    assert_eq!(rig.heard.queue.load(Ordering::SeqCst), 1);
}
