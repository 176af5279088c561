//! How connections begin.

use super::*;

#[test]
fn virtio_5_10_4_the_configuration_is_the_guests_cid_and_the_upper_half_is_zero() {
    let rig = Rig::new();
    let mut bytes = [0xff; 10];
    rig.device.read_config(0, &mut bytes);
    assert_eq!(bytes, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    rig.device.read_config(4, &mut bytes[..4]);
    assert_eq!(bytes[..4], [0; 4]);
}

#[test]
fn virtio_5_10_4_reserved_context_ids_are_refused() {
    for cid in [0, 1, 2, u64::from(u32::MAX), 1 << 32] {
        let error = Vsock::new(&VsockConfig { cid, path: None }, None).unwrap_err();
        assert!(matches!(error, VsockError::Cid { .. }), "{cid}");
    }
}

#[test]
fn virtio_5_10_6_5_a_request_to_a_listening_port_is_answered_by_a_response() {
    let rig = Rig::new();
    let inbox = rig.device.listen(PORT).unwrap();
    rig.op(REQUEST);
    let (answer, _) = rig.next().unwrap();
    let expected = Header {
        src_cid: HOST,
        dst_cid: CID,
        src_port: PORT,
        dst_port: GUEST,
        kind: STREAM,
        op: RESPONSE,
        buf_alloc: BUFFER,
        ..Header::default()
    };
    assert_eq!(answer, expected);
    let (port, mut stream) = accept(&inbox);
    assert_eq!(port, GUEST);
    rig.write(b"question");
    assert_eq!(read(&mut stream, 8), b"question");
    stream.write_all(b"answer").unwrap();
    rig.device.look();
    let (header, bytes) = rig.next().unwrap();
    assert_eq!(
        (header.op, &bytes[..], header.fwd_cnt),
        (RW, &b"answer"[..], 8)
    );
}

#[test]
fn virtio_5_10_6_5_a_request_to_a_silent_port_is_answered_by_a_reset() {
    let rig = Rig::new();
    rig.op(REQUEST);
    let (answer, _) = rig.next().unwrap();
    assert_eq!(
        (answer.op, answer.dst_port, answer.src_port),
        (RST, GUEST, PORT)
    );
}

#[test]
fn a_port_has_one_listener_and_is_free_when_that_is_closed() {
    let rig = Rig::new();
    let inbox = rig.device.listen(PORT).unwrap();
    let error = rig.device.listen(PORT).unwrap_err();
    assert!(matches!(error, VsockError::PortTaken { port: PORT }));
    drop(inbox);
    rig.op(REQUEST);
    assert_eq!(rig.ops(), [RST]);
    rig.device.listen(PORT).unwrap();
}

#[test]
fn a_stream_to_the_guest_says_which_port_and_hears_when_the_guest_accepts() {
    let rig = Rig::new();
    let mut stream = rig.device.connect().unwrap();
    stream.write_all(b"CONNECT 7\nearly").unwrap();
    rig.device.look();
    let (request, _) = rig.next().unwrap();
    assert_eq!((request.op, request.dst_port), (REQUEST, 7));
    assert!(is_quiet(&stream));
    let answer = Header {
        src_port: 7,
        dst_port: request.src_port,
        ..Rig::header(RESPONSE, 0)
    };
    rig.send(&answer, b"");
    let line = format!("OK {}\n", request.src_port);
    assert_eq!(read(&mut stream, line.len()), line.as_bytes());
    rig.device.look();
    assert_eq!(rig.next().unwrap().1, b"early");
}

#[test]
fn a_stream_whose_port_the_guest_refuses_ends() {
    let rig = Rig::new();
    let mut stream = rig.device.connect().unwrap();
    stream.write_all(b"CONNECT 7\n").unwrap();
    rig.device.look();
    let (request, _) = rig.next().unwrap();
    let answer = Header {
        src_port: 7,
        dst_port: request.src_port,
        ..Rig::header(RST, 0)
    };
    rig.send(&answer, b"");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert!(rig.next().is_none());
}

#[test]
fn a_stream_that_begins_with_something_else_ends() {
    let rig = Rig::new();
    for line in ["GET / HTTP/1.1\n", "CONNECT 4294967296\n", &"x".repeat(100)] {
        let mut stream = rig.device.connect().unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        rig.device.look();
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "{line}");
    }
    assert!(rig.next().is_none());
}

#[test]
fn host_programs_connect_at_the_path_and_serve_ports_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let config = VsockConfig {
        cid: CID,
        path: Some(path.clone()),
    };
    let rig = Rig::of(Vsock::new(&config, None).unwrap(), 16);
    let error = Vsock::new(&config, None).unwrap_err();
    assert!(matches!(error, VsockError::PathTaken { .. }));
    let mut caller = UnixStream::connect(&path).unwrap();
    caller.write_all(b"CONNECT 9\n").unwrap();
    // Taken, then heard.
    rig.device.look();
    rig.device.look();
    assert_eq!(rig.next().unwrap().0.op, REQUEST);
    let server = UnixListener::bind(folder.path().join("vm_52")).unwrap();
    rig.op(REQUEST);
    assert_eq!(rig.ops(), [RESPONSE]);
    rig.write(b"hello");
    assert_eq!(read(&mut server.accept().unwrap().0, 5), b"hello");
    rig.device.close();
    assert!(!path.exists(), "the path goes with the device");
}

#[test]
fn connections_are_bounded_and_those_that_linger_make_room() {
    let rig = Rig::new();
    let inbox = rig.device.listen(PORT).unwrap();
    let mut ends = Vec::new();
    let request = |port: u32| {
        let header = Header {
            src_port: port,
            ..Rig::header(REQUEST, 0)
        };
        rig.send(&header, b"");
        rig.lend(1);
        rig.next().unwrap().0.op
    };
    for port in 0..u32::try_from(MOST).unwrap() {
        assert_eq!(request(port), RESPONSE);
        ends.push(accept(&inbox).1);
    }
    assert_eq!(request(5000), RST);
    assert!(rig.device.connect().is_err());
    ends.pop();
    rig.device.shared.lock().look(true);
    while rig.next().is_some() {
        rig.lend(1);
    }
    assert_eq!(request(5001), RST, "of the one that lingered");
}
