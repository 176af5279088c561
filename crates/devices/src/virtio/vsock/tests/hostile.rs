//! What no guest may do.

use super::*;

#[test]
fn virtio_5_10_6_4_an_unknown_type_is_answered_by_a_reset() {
    let rig = Rig::new();
    let header = Header {
        kind: 7,
        ..Rig::header(REQUEST, 0)
    };
    rig.send(&header, b"");
    assert_eq!(rig.next().unwrap().0.op, RST);
    let reset = Header {
        kind: 7,
        ..Rig::header(RST, 0)
    };
    rig.send(&reset, b"");
    assert!(rig.next().is_none(), "a reset is not answered");
}

#[test]
fn unknown_operations_and_strangers_are_answered_by_resets() {
    let rig = Rig::new();
    let _stream = rig.connected();
    rig.op(99);
    assert_eq!(rig.ops(), [RST]);
    for op in [RW, SHUTDOWN, CREDIT_UPDATE, RESPONSE, 0, 99] {
        rig.op(op);
        assert_eq!(rig.ops(), [RST], "{op}");
    }
    let elsewhere = Header {
        dst_cid: 17,
        ..Rig::header(REQUEST, 0)
    };
    rig.send(&elsewhere, b"");
    assert_eq!(rig.next().unwrap().0.src_cid, 17);
}

#[test]
fn virtio_5_10_6_packets_of_somebody_else_are_dropped() {
    let rig = Rig::new();
    let _inbox = rig.device.listen(PORT).unwrap();
    let header = Header {
        src_cid: 4,
        ..Rig::header(REQUEST, 0)
    };
    rig.send(&header, b"");
    assert!(rig.next().is_none());
}

#[test]
fn a_second_request_ends_the_connection() {
    let rig = Rig::new();
    let mut stream = rig.connected();
    rig.op(REQUEST);
    assert_eq!(rig.ops(), [RST]);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_packet_shorter_than_its_header_breaks_the_queue() {
    let rig = Rig::new();
    rig.tx.send(&[readable(SENT, 43)]);
    rig.device.queue_ready(1);
    assert!(rig.broken());
}

#[test]
fn a_packet_longer_than_its_buffers_breaks_the_queue() {
    let rig = Rig::new();
    let _stream = rig.connected();
    rig.send(&Rig::header(RW, 10), b"short");
    assert!(rig.broken());
}

#[test]
fn a_receive_buffer_without_room_breaks_the_queue() {
    let rig = Rig::with(0);
    rig.op(REQUEST);
    rig.rx.send(&[writable(BUFFERS, 43)]);
    rig.device.queue_ready(0);
    assert!(rig.broken());
    let rig = Rig::with(1);
    let mut stream = rig.connected();
    stream.write_all(b"x").unwrap();
    rig.rx.send(&[writable(BUFFERS, 44)]);
    rig.device.look();
    assert!(rig.broken());
}

#[test]
fn buffers_outside_memory_break_the_queue() {
    let rig = Rig::with(1);
    let mut stream = rig.connected();
    stream.write_all(b"x").unwrap();
    rig.rx.send(&[writable(1 << 40, 4096)]);
    rig.device.look();
    assert!(rig.broken());
    let rig = Rig::new();
    let _stream = rig.connected();
    rig.tx.write(SENT, &Rig::header(RW, 8).bytes());
    rig.tx.send(&[readable(SENT, 44), readable(1 << 40, 8)]);
    rig.device.queue_ready(1);
    assert!(rig.broken());
}

#[test]
fn a_packet_in_many_pieces_is_one() {
    let rig = Rig::new();
    let mut stream = rig.connected();
    let packet = [&Rig::header(RW, 6).bytes()[..], b"pieces"].concat();
    rig.tx.write(SENT, &packet);
    let pieces: Vec<_> = (0..10).map(|n| readable(SENT + n * 5, 5)).collect();
    rig.tx.send(&pieces);
    rig.device.queue_ready(1);
    assert_eq!(read(&mut stream, 6), b"pieces");
}
