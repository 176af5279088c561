//! A hostile driver of a virtio device: queues and memory are what the input says.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use vmlet_bus::{Dma, RequesterId};
use vmlet_devices::virtio::{
    Activation, QueueState, VirtQueue, VirtioDevice, VirtioInterrupt, features,
};
use vmlet_memory::{AddressSpace, Backing, Gpa, Iova, Mapping, Ram};

use crate::Input;

/// Memory at address 0; rings below `BUFFERS`, and nothing behind.
const MEMORY: u64 = 128 << 10;
const BUFFERS: u64 = 64 << 10;
/// Entries of every queue, and where the parts of its ring are from its start on.
const ENTRIES: u16 = 16;
const RING: u64 = 0x1000;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x800;
/// Operations on one device: more tell nothing new.
const MOST: usize = 400;

/// Counts what a device says.
#[derive(Debug, Default)]
struct Heard {
    queue: AtomicUsize,
    reset: AtomicUsize,
}

impl VirtioInterrupt for Heard {
    fn queue(&self, _: u16) {
        self.queue.fetch_add(1, Ordering::Relaxed);
    }

    fn config(&self) {}

    fn needs_reset(&self) {
        self.reset.fetch_add(1, Ordering::Relaxed);
    }
}

/// The driver's side.
struct Driver<'a> {
    device: &'a dyn VirtioDevice,
    dma: Dma,
    heard: Arc<Heard>,
    queues: Vec<Arc<VirtQueue>>,
    /// Chains offered so far, by queue.
    offered: Vec<u16>,
}

/// Drives `device` as the input says; `host` is what its host may do meanwhile, given a byte.
///
/// No panic, and never more chains used than were offered.
pub fn drive(device: &dyn VirtioDevice, input: &mut Input<'_>, mut host: impl FnMut(u8, &[u8])) {
    let mut driver = Driver::new(device);
    driver.activate(input);
    for _ in 0..MOST {
        if input.is_empty() {
            break;
        }
        match input.byte() % 16 {
            0..4 => driver.describe(input),
            4..7 => driver.offer(input),
            7..10 => driver.notify(input.byte()),
            10 => driver.scribble(input),
            11 => driver.configure(input),
            12 => {
                let (kind, count) = (input.byte(), usize::from(input.byte() % 64));
                host(kind, input.bytes(count));
            }
            13 => driver.pause(),
            14 => driver.save(),
            _ => driver.restart(input),
        }
    }
    driver.check();
    device.reset();
}

impl<'a> Driver<'a> {
    fn new(device: &'a dyn VirtioDevice) -> Driver<'a> {
        let space = AddressSpace::new(4);
        let ram = Ram::new(MEMORY, Backing::Anon).expect("memory");
        let mapping = vec![Mapping::ram(Gpa(0), ram)];
        space.map(mapping).expect("an empty space");
        Driver {
            device,
            dma: Dma::new(Arc::new(space), RequesterId(8)),
            heard: Arc::default(),
            queues: Vec::new(),
            offered: Vec::new(),
        }
    }

    fn ring(queue: usize) -> u64 {
        RING * queue as u64
    }

    fn activate(&mut self, input: &mut Input<'_>) {
        let bits = input.byte();
        let sizes = self.device.queue_sizes();
        let event_idx = bits & 1 != 0;
        let make = |(index, most): (usize, &u16)| {
            let at = Self::ring(index);
            let state = QueueState {
                size: ENTRIES.min(*most),
                enabled: true,
                desc: at,
                avail: at + AVAIL,
                used: at + USED,
                event_idx,
                ..QueueState::new(*most)
            };
            let interrupt: Arc<dyn VirtioInterrupt> = Arc::<Heard>::clone(&self.heard);
            let index = u16::try_from(index).expect("few queues");
            Arc::new(VirtQueue::new(index, &state, interrupt, None).expect("a whole ring"))
        };
        self.queues = sizes.iter().enumerate().map(make).collect();
        self.offered = vec![0; sizes.len()];
        let zeros = vec![0; usize::try_from(BUFFERS).expect("small")];
        self.dma.write(Iova(0), &zeros).expect("memory");
        // Each of the device's bits by the next of the input.
        let chosen = u64::from(input.half()) | u64::from(input.half()) << 16;
        self.device.activate(Activation {
            features: self.device.features() & chosen | features::VERSION_1,
            queues: self.queues.clone(),
            interrupt: Arc::<Heard>::clone(&self.heard),
            dma: self.dma.clone(),
        });
    }

    fn choose(&self, byte: u8) -> usize {
        usize::from(byte) % self.queues.len().max(1)
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let _ = self.dma.write(Iova(at), bytes);
    }

    /// A descriptor: mostly of memory, and of few bytes.
    fn describe(&self, input: &mut Input<'_>) {
        let (queue, shape) = (self.choose(input.byte()), input.byte());
        let index = u64::from(input.byte() % 16);
        let addr = match shape & 3 {
            0 => input.word(),
            1 => MEMORY - u64::from(input.byte()),
            _ => BUFFERS + u64::from(input.half()),
        };
        let len = match shape >> 2 & 3 {
            0 => u32::from(input.half()) << 16 | u32::from(input.half()),
            1 => u32::from(input.half()),
            _ => u32::from(input.byte()),
        };
        let flags = u16::from(shape >> 4 & 7);
        let next = u16::from(input.byte()) % (ENTRIES + 2);
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(Self::ring(queue) + index * 16, &bytes);
    }

    /// Makes a chain available, whose head may be no descriptor.
    fn offer(&mut self, input: &mut Input<'_>) {
        let queue = self.choose(input.byte());
        let head = u16::from(input.byte()) % (ENTRIES + 1);
        let avail = Self::ring(queue) + AVAIL;
        let Some(index) = self.offered.get_mut(queue) else {
            return;
        };
        let at = avail + 4 + u64::from(*index % ENTRIES) * 2;
        *index = index.wrapping_add(1);
        let index = *index;
        self.write(at, &head.to_le_bytes());
        self.write(avail + 2, &index.to_le_bytes());
    }

    fn notify(&self, byte: u8) {
        self.device.queue_ready(u16::from(byte % 8));
    }

    /// Bytes anywhere but in the rings' indexes.
    fn scribble(&self, input: &mut Input<'_>) {
        let at = BUFFERS + u64::from(input.half());
        let count = usize::from(input.byte());
        self.write(at, input.bytes(count));
    }

    fn configure(&self, input: &mut Input<'_>) {
        let (offset, len) = (u64::from(input.byte()), usize::from(input.byte() % 9));
        let mut data = vec![0xff; len];
        self.device.read_config(offset, &mut data);
        self.device.write_config(offset, input.bytes(len));
    }

    fn pause(&self) {
        self.device.pause();
        self.device.resume();
        (0..self.queues.len()).for_each(|queue| self.notify(queue as u8));
    }

    /// A device takes over its own state.
    fn save(&self) {
        self.device.pause();
        if let Some(saved) = self.device.save() {
            self.device.restore(&saved).expect("its own state");
        }
        self.device.resume();
    }

    fn restart(&mut self, input: &mut Input<'_>) {
        self.check();
        self.device.reset();
        self.activate(input);
    }

    fn check(&self) {
        for (queue, offered) in self.offered.iter().enumerate() {
            let mut used = [0; 2];
            let at = Iova(Self::ring(queue) + USED + 2);
            self.dma.read(at, &mut used).expect("memory");
            let used = u16::from_le_bytes(used);
            // Devices may have written to the ring where a descriptor told them to.
            assert!(used <= *offered || self.lent(at.0), "{used} of {offered}");
        }
    }

    /// Whether some descriptor of any queue may have lent the device `at`: those of today, in tables
    /// that can be anywhere, so that any address near it counts.
    fn lent(&self, at: u64) -> bool {
        let lent = |entry: [u8; 16]| {
            let (addr, rest) = entry.split_first_chunk().expect("sixteen bytes");
            let len = rest.first_chunk().expect("eight bytes");
            let (addr, len) = (u64::from_le_bytes(*addr), u32::from_le_bytes(*len));
            addr <= at && at - addr <= u64::from(len)
        };
        (0..MEMORY / 16).any(|index| {
            let mut entry = [0; 16];
            self.dma.read(Iova(index * 16), &mut entry).expect("memory");
            lent(entry)
        })
    }
}
