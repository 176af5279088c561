//! A driver for tests: rings in plain memory, and interrupts that are counted.

use std::sync::{
    Arc,
    atomic::{AtomicU16, AtomicUsize, Ordering},
};

use vmlet_bus::{Dma, DmaView, RequesterId};
use vmlet_memory::{AddressSpace, Backing, Gpa, Iova, Mapping, Ram};
use vmlet_reactor::Reactor;

use super::{Activation, QueueState, VirtQueue, VirtioDevice, VirtioInterrupt, features};

/// Guest memory of a test.
pub(crate) const MEMORY: u64 = 4 << 20;
/// Where buffers may lie: what is below belongs to rings.
pub(crate) const BUFFERS: u64 = 1 << 20;

/// Flags of a descriptor (section 2.7.5).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Counts what a device says.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) queue: AtomicUsize,
    pub(crate) config: AtomicUsize,
    pub(crate) reset: AtomicUsize,
}

impl VirtioInterrupt for Heard {
    fn queue(&self, _: u16) {
        self.queue.fetch_add(1, Ordering::SeqCst);
    }

    fn config(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }

    fn needs_reset(&self) {
        self.reset.fetch_add(1, Ordering::SeqCst);
    }
}

/// A way to memory of [`MEMORY`] bytes at address 0.
pub(crate) fn dma() -> Dma {
    let space = AddressSpace::new(4);
    let ram = Ram::new(MEMORY, Backing::Anon).unwrap();
    space.map(vec![Mapping::ram(Gpa(0), ram)]).unwrap();
    Dma::new(Arc::new(space), RequesterId(8))
}

/// A buffer that a test lends to the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lent {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
}

pub(crate) fn readable(addr: u64, len: u32) -> Lent {
    Lent {
        addr,
        len,
        flags: 0,
    }
}

pub(crate) fn writable(addr: u64, len: u32) -> Lent {
    let flags = WRITE;
    Lent { addr, len, flags }
}

/// The driver's side of one queue.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) dma: Dma,
    pub(crate) state: QueueState,
    avail: AtomicU16,
    next: AtomicU16,
}

impl Driver {
    /// A queue of `size` entries whose rings begin at `at`.
    pub(crate) fn new(dma: &Dma, at: u64, size: u16) -> Driver {
        Driver {
            dma: dma.clone(),
            state: QueueState {
                enabled: true,
                desc: at,
                avail: at + 0x8000,
                used: at + 0xc000,
                ..QueueState::new(size)
            },
            avail: AtomicU16::new(0),
            next: AtomicU16::new(0),
        }
    }

    pub(crate) fn queue(&self, heard: &Arc<Heard>) -> Arc<VirtQueue> {
        let interrupt: Arc<dyn VirtioInterrupt> = Arc::<Heard>::clone(heard);
        Arc::new(VirtQueue::new(0, &self.state, interrupt, None).unwrap())
    }

    pub(crate) fn view(&self) -> DmaView {
        self.dma.view()
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.dma.write(Iova(at), bytes).unwrap();
    }

    pub(crate) fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.dma.read(Iova(at), &mut bytes).unwrap();
        bytes
    }

    /// Writes descriptor `index` of the table at `table`.
    pub(crate) fn describe(&self, table: u64, index: u16, lent: Lent, next: u16) {
        let mut bytes = lent.addr.to_le_bytes().to_vec();
        bytes.extend(lent.len.to_le_bytes());
        bytes.extend(lent.flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(table + u64::from(index) * 16, &bytes);
    }

    /// Makes the chain at `head` available.
    pub(crate) fn offer(&self, head: u16) {
        let index = self.avail.fetch_add(1, Ordering::SeqCst);
        let at = self.state.avail + 4 + u64::from(index % self.state.size) * 2;
        self.write(at, &head.to_le_bytes());
        self.write(self.state.avail + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// Sets the index of the available ring to what it should not be.
    pub(crate) fn claim(&self, index: u16) {
        self.write(self.state.avail + 2, &index.to_le_bytes());
    }

    /// Offers a chain of `buffers` in the next free descriptors; gives its head.
    pub(crate) fn send(&self, buffers: &[Lent]) -> u16 {
        let count = u16::try_from(buffers.len()).unwrap();
        let head = self.next.fetch_add(count, Ordering::SeqCst) % self.state.size;
        for (index, lent) in (0..).zip(buffers) {
            let at = (head + index) % self.state.size;
            let more = index + 1 < count;
            let mut lent = *lent;
            lent.flags |= if more { NEXT } else { 0 };
            self.describe(self.state.desc, at, lent, (at + 1) % self.state.size);
        }
        self.offer(head);
        head
    }

    pub(crate) fn used_index(&self) -> u16 {
        u16::from_le_bytes(self.read(self.state.used + 2))
    }

    /// Entry `index` of the used ring: head and length.
    pub(crate) fn used(&self, index: u16) -> (u32, u32) {
        let at = self.state.used + 4 + u64::from(index % self.state.size) * 8;
        let (head, len) = (self.read(at), self.read(at + 4));
        (u32::from_le_bytes(head), u32::from_le_bytes(len))
    }
}

/// Activates `device` with one queue.
pub(crate) fn activate(device: &dyn VirtioDevice, driver: &Driver, bits: u64) -> Arc<Heard> {
    let heard = Arc::<Heard>::default();
    device.activate(Activation {
        features: bits | features::VERSION_1,
        queues: vec![driver.queue(&heard)],
        interrupt: Arc::<Heard>::clone(&heard),
        dma: driver.dma.clone(),
    });
    heard
}

/// A reactor with a thread.
pub(crate) fn running() -> Arc<Reactor> {
    let spawn = |name, body: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name).spawn(body).map(drop)
    };
    Reactor::start("test", &spawn).unwrap()
}

/// A reactor whose timers never run out: it has no thread. Its end, which waits for the thread, does
/// not come either.
pub(crate) fn stuck() -> Arc<Reactor> {
    let spawn = |_: String, body: Box<dyn FnOnce() + Send>| {
        std::mem::forget(body);
        Ok(())
    };
    let reactor = Reactor::start("test", &spawn).unwrap();
    std::mem::forget(Arc::clone(&reactor));
    reactor
}
