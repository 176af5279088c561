//! Flow control (section 5.10.6.3).

use super::*;

#[test]
fn virtio_5_10_6_3_2_no_more_is_sent_than_the_guest_has_room_for() {
    let rig = Rig::new();
    let mut stream = rig.connected();
    stream.write_all(&vec![7; 100 << 10]).unwrap();
    rig.device.look();
    rig.device.look();
    let packets: Vec<_> = std::iter::from_fn(|| rig.next()).collect();
    let bytes: usize = packets.iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(bytes, 64 << 10);
    assert_eq!(packets.last().unwrap().0.op, CREDIT_REQUEST);
    let update = Header {
        fwd_cnt: WINDOW,
        ..Rig::header(CREDIT_UPDATE, 0)
    };
    rig.send(&update, b"");
    let more: usize = std::iter::from_fn(|| rig.next())
        .map(|(_, b)| b.len())
        .sum();
    assert_eq!(more, 36 << 10, "it goes on with the guest's credit");
}

#[test]
fn virtio_5_10_6_3_a_guest_that_asks_is_told_its_credit() {
    let rig = Rig::new();
    let mut stream = rig.connected();
    rig.write(b"abc");
    read(&mut stream, 3);
    rig.op(CREDIT_REQUEST);
    let (update, _) = rig.next().unwrap();
    let found = (update.op, update.buf_alloc, update.fwd_cnt);
    assert_eq!(found, (CREDIT_UPDATE, BUFFER, 3));
}

#[test]
fn virtio_5_10_6_3_a_guest_hears_that_its_bytes_were_taken() {
    let rig = Rig::new();
    let mut stream = rig.connected();
    for _ in 0..4 {
        rig.write(&[5; 64 << 10]);
        assert_eq!(read(&mut stream, 64 << 10), [5; 64 << 10]);
    }
    let updates: Vec<_> = std::iter::from_fn(|| rig.next()).collect();
    assert!(updates.iter().all(|(header, _)| header.op == CREDIT_UPDATE));
    assert_eq!(updates.last().unwrap().0.fwd_cnt, 256 << 10);
}

#[test]
fn virtio_5_10_6_3_1_a_guest_that_sends_beyond_its_credit_is_cut_off() {
    let rig = Rig::new();
    let stream = rig.connected();
    let packet = vec![1; 64 << 10];
    // What the socket holds, and then what the device holds.
    for _ in 0..32 {
        rig.write(&packet);
        if rig.ops().contains(&RST) {
            drop(stream);
            return;
        }
    }
    panic!("the device takes everything");
}

#[test]
fn bytes_that_the_host_reads_late_come_whole_and_in_order() {
    let rig = Rig::new();
    let mut stream = rig.connected();
    let sent: Vec<u8> = (0..448u32 << 10)
        .map(|n| (n.wrapping_mul(n) / 251).to_le_bytes()[0])
        .collect();
    let mut got = Vec::new();
    for (index, piece) in sent.chunks(56 << 10).enumerate() {
        rig.write(piece);
        if index % 2 == 1 {
            got.extend(read(&mut stream, 100 << 10));
            rig.device.look();
        }
    }
    while got.len() < sent.len() {
        got.extend(read(&mut stream, 1 << 10));
        rig.device.look();
    }
    assert!(got == sent);
}

#[test]
fn what_finds_no_buffer_waits_for_one() {
    let rig = Rig::with(1);
    let mut stream = rig.connected();
    stream.write_all(&[9; 6000]).unwrap();
    rig.device.look();
    assert!(rig.next().is_none());
    rig.lend(1);
    assert_eq!(rig.next().unwrap().1.len(), 4096);
    rig.lend(1);
    assert_eq!(rig.next().unwrap().1.len(), 6000 - 4096);
}

#[test]
fn virtio_5_10_6_1_2_packets_are_taken_while_the_guest_reads_no_answers() {
    let rig = Rig::with(0);
    for _ in 0..300 {
        rig.op(CREDIT_REQUEST);
    }
    let taken = rig.tx.used_index();
    assert!(
        (200..300).contains(&taken),
        "{taken}: until answers fill a bound"
    );
    for _ in 0..300 {
        rig.lend(1);
    }
    assert_eq!(rig.tx.used_index(), 300, "and then the rest");
    assert_eq!(rig.ops(), vec![RST; 300]);
}
