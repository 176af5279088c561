//! Virtio devices over queue memory that is an input's bytes.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use vmlet_bus::{Dma, RequesterId};
use vmlet_devices::virtio::{Activation, QueueState, VirtQueue, VirtioDevice, VirtioInterrupt};
use vmlet_memory::{AddressSpace, Backing, Gpa, Iova, Mapping, Ram};

/// Guest memory: rings at the start, buffers where descriptors say.
const MEMORY: u64 = 64 << 10;
const ENTRIES: u16 = 16;
/// Memory of one queue: descriptors, available ring, used ring.
const QUEUE: u64 = 0x400;
const AVAIL: u64 = 0x100;
const USED: u64 = 0x200;

/// Hears what a device says.
#[derive(Debug, Default)]
struct Heard {
    reset: AtomicBool,
}

impl VirtioInterrupt for Heard {
    fn queue(&self, _: u16) {}

    fn config(&self) {}

    fn needs_reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }
}

fn memory() -> &'static Dma {
    static MADE: OnceLock<Dma> = OnceLock::new();
    MADE.get_or_init(|| {
        let space = AddressSpace::new(4);
        let ram = Ram::new(MEMORY, Backing::Anon).expect("64 KiB of memory");
        space
            .map(vec![Mapping::ram(Gpa(0), ram)])
            .expect("an empty space");
        Dma::new(Arc::new(space), RequesterId(8))
    })
}

/// The input's bytes from address 0 on, zeros behind.
fn fill(dma: &Dma, bytes: &[u8]) {
    let mut image = vec![0; MEMORY as usize];
    image
        .iter_mut()
        .zip(bytes)
        .for_each(|(to, from)| *to = *from);
    dma.write(Iova(0), &image).expect("it lies in memory");
}

fn queue(index: u16, event_idx: bool, heard: &Arc<Heard>) -> Arc<VirtQueue> {
    let at = u64::from(index) * QUEUE;
    let state = QueueState {
        size: ENTRIES,
        enabled: true,
        desc: at,
        avail: at + AVAIL,
        used: at + USED,
        event_idx,
        ..QueueState::new(ENTRIES)
    };
    let interrupt: Arc<dyn VirtioInterrupt> = Arc::<Heard>::clone(heard);
    Arc::new(VirtQueue::new(index, &state, interrupt, None).expect("a sound configuration"))
}

/// Requests of block devices of every kind, each in a chain of three, on two queues.
pub fn seeds() -> Vec<Vec<u8>> {
    [0, 1, 2, 3, 0x82]
        .map(|options| {
            let mut image = vec![0; 0x1000];
            for queue in 0..2 {
                let at = queue * QUEUE;
                for request in 0..5u64 {
                    let header = 0x800 + (queue * 8 + request) * 32;
                    for step in 0..3 {
                        let (addr, len, flags) = match step {
                            0 => (header, 16u32, 1u16),
                            1 if request % 2 == 0 => (0xc00 + request * 16, 16, 1 | 2),
                            1 => (0xc00 + request * 512, 512, 1),
                            _ => (header + 16, 1, 2),
                        };
                        let index = request * 3 + step;
                        let place = at + index * 16;
                        put(&mut image, place, &addr.to_le_bytes());
                        put(&mut image, place + 8, &len.to_le_bytes());
                        put(&mut image, place + 12, &flags.to_le_bytes());
                        put(&mut image, place + 14, &((index + 1) as u16).to_le_bytes());
                    }
                    let kind = [0u32, 1, 4, 11, 13][request as usize];
                    put(&mut image, header, &kind.to_le_bytes());
                    put(&mut image, header + 8, &request.to_le_bytes());
                    put(
                        &mut image,
                        at + AVAIL + 4 + request * 2,
                        &(request as u16 * 3).to_le_bytes(),
                    );
                }
                put(&mut image, at + AVAIL + 2, &5u16.to_le_bytes());
            }
            [vec![options], image].concat()
        })
        .into()
}

fn put(image: &mut [u8], at: u64, bytes: &[u8]) {
    let place = image.iter_mut().skip(at as usize);
    place.zip(bytes).for_each(|(to, from)| *to = *from);
}

/// Has `device`, which works where it is called, look at its queues over memory that holds `data`,
/// in two halves one after the other; the first byte says which features are on. A broken queue
/// stays broken, and a reset ends everything.
pub fn drive(device: &dyn VirtioDevice, data: &[u8]) {
    let Some((options, rest)) = data.split_first() else {
        return;
    };
    let dma = memory();
    let heard = Arc::<Heard>::default();
    let count = u16::try_from(device.queue_sizes().len())
        .unwrap_or(1)
        .min(8);
    let queues: Vec<_> = (0..count)
        .map(|index| queue(index, options & 1 != 0, &heard))
        .collect();
    let (first, second) = rest.split_at(rest.len() / 2);
    fill(dma, rest);
    device.activate(Activation {
        features: if options & 2 != 0 {
            device.features() | 1 << 32
        } else {
            1 << 32
        },
        queues: queues.clone(),
        interrupt: Arc::<Heard>::clone(&heard),
        dma: dma.clone(),
    });
    for bytes in [rest, second, first] {
        fill(dma, bytes);
        for index in 0..count {
            device.queue_ready(index);
        }
    }
    let broken = queues.iter().any(|queue| queue.is_broken());
    assert!(!broken || heard.reset.load(Ordering::Relaxed));
    device.pause();
    device.save();
    device.reset();
}
