//! How connections end.

use super::*;

#[test]
fn virtio_5_10_6_5_a_guest_that_sends_no_more_can_still_receive() {
    let rig = Rig::new();
    let mut stream = rig.connected();
    rig.write(b"all");
    rig.shut(NO_SEND);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"all");
    stream.write_all(b"still").unwrap();
    rig.device.look();
    assert_eq!(rig.next().unwrap().1, b"still");
    rig.write(b"more");
    assert_eq!(rig.ops(), [RST], "but it must not send");
}

#[test]
fn the_end_of_what_a_guest_sends_comes_after_what_it_sent() {
    let rig = Rig::new();
    let mut stream = rig.connected();
    for _ in 0..5 {
        rig.write(&[3; 64 << 10]);
    }
    rig.shut(NO_SEND);
    let mut got = 0;
    loop {
        let count = stream.read(&mut [0; 8192]).unwrap();
        if count == 0 {
            break;
        }
        got += count;
        rig.device.look();
    }
    assert_eq!(got, 320 << 10);
}

#[test]
fn virtio_5_10_6_5_a_guest_that_does_both_no_more_is_answered_by_a_reset() {
    let rig = Rig::new();
    let mut stream = rig.connected();
    rig.shut(NO_SEND);
    rig.shut(NO_RECEIVE);
    assert_eq!(rig.ops(), [RST]);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    rig.op(RST);
    assert!(rig.next().is_none());
}

#[test]
fn bytes_of_a_guest_that_has_closed_still_arrive() {
    let rig = Rig::new();
    let mut stream = rig.connected();
    for _ in 0..5 {
        rig.write(&[3; 64 << 10]);
    }
    rig.shut(NO_SEND | NO_RECEIVE);
    assert!(rig.ops().contains(&RST));
    let mut got = 0;
    while got < 320 << 10 {
        got += stream.read(&mut [0; 8192]).unwrap();
        rig.device.look();
    }
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_host_that_sends_no_more_is_a_hint_and_one_that_is_gone_is_both() {
    let rig = Rig::new();
    let mut stream = rig.connected();
    stream.write_all(b"last").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    rig.device.look();
    rig.device.look();
    assert_eq!(rig.next().unwrap().1, b"last");
    let (hint, _) = rig.next().unwrap();
    assert_eq!((hint.op, hint.flags), (SHUTDOWN, NO_SEND));
    rig.write(b"heard");
    assert_eq!(read(&mut stream, 5), b"heard");
    drop(stream);
    rig.device.shared.lock().look(true);
    let (hint, _) = rig.next().unwrap();
    assert_eq!((hint.op, hint.flags), (SHUTDOWN, NO_SEND | NO_RECEIVE));
    rig.op(RST);
    assert!(rig.next().is_none());
}

#[test]
fn what_a_host_sent_before_it_closed_is_received_however_late() {
    let rig = Rig::with(1);
    let mut stream = rig.connected();
    stream.write_all(&[1; 10_000]).unwrap();
    drop(stream);
    rig.device.shared.lock().look(true);
    let mut got = 0;
    loop {
        rig.lend(1);
        match rig.next().unwrap() {
            (header, bytes) if header.op == RW => got += bytes.len(),
            (header, _) if header.flags == NO_SEND | NO_RECEIVE => break,
            (header, _) => assert_eq!((header.op, header.flags), (SHUTDOWN, NO_RECEIVE)),
        }
    }
    assert_eq!(got, 10_000);
}

#[test]
fn a_reset_of_the_device_ends_every_connection() {
    let rig = Rig::new();
    let mut stream = rig.connected();
    rig.device.reset();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    rig.device.look();
    assert!(rig.next().is_none());
}

#[test]
fn nothing_moves_while_the_device_is_paused() {
    let rig = Rig::new();
    let mut stream = rig.connected();
    rig.device.pause();
    stream.write_all(b"later").unwrap();
    rig.device.look();
    assert!(rig.next().is_none());
    rig.device.resume();
    rig.device.look();
    assert_eq!(rig.next().unwrap().1, b"later");
}

#[test]
fn virtio_5_10_6_7_a_restored_guest_hears_that_its_connections_are_gone() {
    let saved = Rig::new().device.save().unwrap();
    let cid = CID;
    let config = VsockConfig { cid, path: None };
    let device = Vsock::new(&config, None).unwrap();
    device.restore(&saved).unwrap();
    let rig = Rig::of(device, 8);
    rig.events.send(&[writable(BUFFERS, 4)]);
    rig.device.queue_ready(2);
    assert_eq!(rig.events.used(0), (0, 4));
    assert_eq!(rig.events.read::<4>(BUFFERS), [0; 4]);
    rig.events.send(&[writable(BUFFERS, 4)]);
    rig.device.queue_ready(2);
    assert_eq!(rig.events.used_index(), 1, "once");
    rig.write(b"old");
    assert_eq!(rig.ops(), [RST]);
    let other = VsockConfig {
        cid: 4,
        ..VsockConfig::default()
    };
    let other = Vsock::new(&other, None).unwrap();
    assert!(other.restore(&saved).is_err());
}
