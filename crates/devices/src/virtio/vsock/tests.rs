//! Clauses of virtio 1.2, section 5.10, with a driver of three queues in plain memory.

mod closing;
mod credit;
mod hostile;
mod late;
mod opening;

use std::{
    cell::Cell,
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::{Arc, atomic::Ordering},
};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::{
    Vsock, VsockConfig, VsockError,
    connection::BUFFER,
    muxer::MOST,
    packet::{
        CREDIT_REQUEST, CREDIT_UPDATE, HOST, Header, NO_RECEIVE, NO_SEND, REQUEST, RESPONSE, RST,
        RW, SHUTDOWN, STREAM,
    },
};
use crate::virtio::{
    Activation, VirtioDevice, features,
    testing::{BUFFERS, Driver, Heard, dma, readable, writable},
};

const CID: u64 = 3;
/// The guest's port, and the host's.
const GUEST: u32 = 1000;
const PORT: u32 = 52;
/// One buffer of the receive queue: a header and 4 KiB.
const ROOM: u32 = 44 + 4096;
const STEP: u64 = 0x2000;
/// Where packets of the guest lie.
const SENT: u64 = 3 << 20;
/// What the guest has room for.
const WINDOW: u32 = 64 << 10;

struct Rig {
    device: Arc<Vsock>,
    rx: Driver,
    tx: Driver,
    events: Driver,
    heard: Arc<Heard>,
    seen: Cell<u16>,
}

impl Rig {
    fn of(device: Arc<Vsock>, buffers: usize) -> Rig {
        let dma = dma();
        let driver = |at| Driver::new(&dma, at, 256);
        let rig = Rig {
            device,
            rx: driver(0x1000),
            tx: driver(0x11000),
            events: driver(0x21000),
            heard: Arc::default(),
            seen: Cell::new(0),
        };
        let queues = [&rig.rx, &rig.tx, &rig.events];
        rig.device.activate(Activation {
            features: features::VERSION_1 | 1,
            queues: queues.map(|driver| driver.queue(&rig.heard)).to_vec(),
            interrupt: Arc::<Heard>::clone(&rig.heard),
            dma,
        });
        rig.lend(buffers);
        rig
    }

    fn with(buffers: usize) -> Rig {
        let cid = CID;
        let config = VsockConfig { cid, path: None };
        Rig::of(Vsock::new(&config, None).unwrap(), buffers)
    }

    fn new() -> Rig {
        Rig::with(200)
    }

    /// Lends buffers of the receive queue; single descriptors, so that the head says which.
    fn lend(&self, buffers: usize) {
        for _ in 0..buffers {
            let head = self.rx.send(&[writable(BUFFERS, ROOM)]);
            let lent = writable(BUFFERS + u64::from(head) * STEP, ROOM);
            self.rx.describe(self.rx.state.desc, head, lent, 0);
        }
        self.device.queue_ready(0);
    }

    fn header(op: u16, len: usize) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST,
            src_port: GUEST,
            dst_port: PORT,
            len: u32::try_from(len).unwrap(),
            kind: STREAM,
            op,
            buf_alloc: WINDOW,
            ..Header::default()
        }
    }

    /// The guest sends `header` with `bytes`.
    fn send(&self, header: &Header, bytes: &[u8]) {
        let packet = [&header.bytes()[..], bytes].concat();
        self.tx.write(SENT, &packet);
        let len = u32::try_from(packet.len()).unwrap();
        self.tx.send(&[readable(SENT, len)]);
        self.device.queue_ready(1);
    }

    fn op(&self, op: u16) {
        self.send(&Rig::header(op, 0), b"");
    }

    fn write(&self, bytes: &[u8]) {
        self.send(&Rig::header(RW, bytes.len()), bytes);
    }

    fn shut(&self, flags: u32) {
        let header = Header {
            flags,
            ..Rig::header(SHUTDOWN, 0)
        };
        self.send(&header, b"");
    }

    /// The next packet that the guest receives.
    fn next(&self) -> Option<(Header, Vec<u8>)> {
        if self.seen.get() == self.rx.used_index() {
            return None;
        }
        let (head, len) = self.rx.used(self.seen.get());
        self.seen.set(self.seen.get().wrapping_add(1));
        let at = BUFFERS + u64::from(head) * STEP;
        let header = Header::parse(&self.rx.read(at));
        let bytes = self.rx.read::<4096>(at + 44);
        let count = usize::try_from(len).unwrap() - 44;
        assert_eq!(count, usize::try_from(header.len).unwrap());
        Some((header, bytes[..count].to_vec()))
    }

    /// The operations that the guest receives until there is none.
    fn ops(&self) -> Vec<u16> {
        std::iter::from_fn(|| self.next())
            .map(|(h, _)| h.op)
            .collect()
    }

    /// A connection of the guest to this process; gives the host's end.
    fn connected(&self) -> UnixStream {
        let inbox = self.device.listen(PORT).unwrap();
        self.op(REQUEST);
        assert_eq!(self.next().unwrap().0.op, RESPONSE);
        accept(&inbox).1
    }

    fn broken(&self) -> bool {
        self.heard.reset.load(Ordering::SeqCst) > 0
    }
}

/// The next connection in `inbox`: the guest's port and the host's end.
fn accept(inbox: &UnixStream) -> (u32, UnixStream) {
    let mut port = [0; 4];
    let (count, file) = inbox.recv_with_fd(&mut port).unwrap();
    assert_eq!(count, 4);
    let stream = UnixStream::from(OwnedFd::from(file.unwrap()));
    (u32::from_le_bytes(port), stream)
}

fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Whether there is nothing to read, and no end either.
fn is_quiet(stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let result = (&*stream).read(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    result.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}
