//! The network device: any queues, frames from the host in between.
#![no_main]

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, LazyLock, Mutex},
    thread,
};

use libfuzzer_sys::fuzz_target;
use vmlet_devices::{
    backend::net::{NetBackend, Piece, gather, scatter},
    virtio::{
        Place, VirtioDevice,
        net::{MacAddress, Net, NetConfig, features},
    },
};
use vmlet_fuzz::{Input, MemoryCap, seeds, virtio};
use vmlet_reactor::{Reactor, Source};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

static REACTOR: LazyLock<Arc<Reactor>> = LazyLock::new(|| {
    let spawn = |name, body: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().name(name).spawn(body).map(drop)
    };
    Reactor::start("fuzz", &spawn).expect("a thread")
});

/// Takes some frames, and gives those of the input.
#[derive(Debug, Default)]
struct Cable {
    header: bool,
    sent: Mutex<u64>,
    coming: Mutex<VecDeque<Vec<u8>>>,
}

impl NetBackend for Cable {
    fn has_header(&self) -> bool {
        self.header
    }

    fn offloads(&self) -> u64 {
        if self.header {
            features::GUEST_OFFLOADS | features::CSUM
        } else {
            0
        }
    }

    fn source(&self) -> Option<Arc<dyn Source>> {
        None
    }

    fn send(&self, frame: &[Piece<'_>]) -> io::Result<()> {
        let mut sent = self.sent.lock().expect("one thread");
        *sent += gather(frame).len() as u64;
        if *sent % 7 == 3 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }

    fn receive(&self, room: &[Piece<'_>], tail: &mut [u8]) -> io::Result<usize> {
        let frame = self.coming.lock().expect("one thread").pop_front();
        let frame = frame.ok_or(io::ErrorKind::WouldBlock)?;
        Ok(scatter(&frame, room, tail))
    }
}

fuzz_target!(init: seeds::plant("virtio_net"), |data: &[u8]| {
    let mut input = Input::new(data);
    let shape = input.byte();
    let cable = Arc::new(Cable {
        header: shape & 1 != 0,
        ..Cable::default()
    });
    let place = if shape & 2 != 0 {
        Place::Guest
    } else {
        Place::Reactor(Arc::clone(&REACTOR))
    };
    let config = NetConfig {
        mac: MacAddress([2, 0, 0, 0, 0, 1]),
        mtu: (shape & 4 != 0).then_some(1500),
    };
    let backend: Arc<dyn NetBackend> = Arc::<Cable>::clone(&cable);
    let net = Net::new(config, backend, place, None);
    virtio::drive(&net, &mut input, |kind, bytes| match kind % 4 {
        0 => net.set_link(kind & 4 != 0),
        1 => net.input(bytes),
        _ => {
            let mut frame = vec![kind; usize::from(kind) * 16];
            frame.splice(0..0, bytes.iter().copied());
            cable.coming.lock().expect("one thread").push_back(frame);
            net.queue_ready(0);
        }
    });
});
