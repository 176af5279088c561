//! What a virtio device is to its transport.

use std::{fmt::Debug, sync::Arc};

use vmlet_bus::{Dma, DmaView, MsiRoute, SavedError, SavedState};
use vmlet_reactor::Reactor;

use super::VirtQueue;

/// Where a device does its work.
#[derive(Clone, Debug)]
pub enum Place {
    /// On this reactor's thread: doorbells wake it, back ends complete on it.
    Reactor(Arc<Reactor>),
    /// On the guest's thread, in the very access that rings the doorbell: a request is complete when
    /// the access is, so that a counted run is a function of its inputs.
    Guest,
}

/// How a device gets the driver's attention. Every call can come from any thread.
pub trait VirtioInterrupt: Send + Sync + Debug {
    /// Buffers of queue `index` were used. [`VirtQueue::notify`] calls it where the driver asks for
    /// that.
    fn queue(&self, index: u16);

    /// The device's configuration has changed.
    fn config(&self);

    /// The device cannot go on before it is reset (section 2.1.2).
    fn needs_reset(&self);

    /// The way of queue `index`'s interrupts, for who uses buffers without this process (vhost);
    /// `None` where the driver gave the queue no vector.
    fn route(&self, index: u16) -> Option<Arc<dyn MsiRoute>> {
        let _ = index;
        None
    }
}

/// What a device gets when its driver is ready.
#[derive(Clone, Debug)]
pub struct Activation {
    /// The bits that were negotiated.
    pub features: u64,
    /// The device's queues by index; the driver may have left some out ([`VirtQueue::is_enabled`]).
    pub queues: Vec<Arc<VirtQueue>>,
    /// How to get the driver's attention.
    pub interrupt: Arc<dyn VirtioInterrupt>,
    /// The way to guest memory.
    pub dma: Dma,
}

impl Activation {
    /// Queue `index` and memory as it is mapped now.
    pub fn queue(&self, index: u16) -> Option<(Arc<VirtQueue>, DmaView)> {
        let queue = self.queues.get(usize::from(index))?;
        Some((Arc::clone(queue), self.dma.view()))
    }

    /// Whether all bits of `mask` were negotiated.
    pub fn has(&self, mask: u64) -> bool {
        self.features & mask == mask
    }
}

/// Answers a read at `offset` of a configuration that is laid out as `image`; what is behind it reads
/// as zeros.
pub(super) fn read_image(image: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    data.fill(0);
    data.iter_mut()
        .zip(image.iter().skip(from))
        .for_each(|(to, from)| *to = *from);
}

/// A virtio device without its transport.
///
/// The transport calls `activate`, `reset`, `pause`, `resume`, `save` and `restore` one at a time,
/// and `queue_ready` between `activate` and the next `reset` only, one call at a time, never while
/// paused. Register reads and writes come from any vCPU's thread.
pub trait VirtioDevice: Send + Sync + Debug {
    /// The device type (section 5).
    fn id(&self) -> u32;

    /// The device's name in messages.
    fn name(&self) -> &'static str;

    /// Base class, sub-class and programming interface of a PCI function that carries it.
    fn class(&self) -> [u8; 3] {
        [0xff, 0, 0]
    }

    /// The bits of the device type; the transport adds those that belong to no type.
    fn features(&self) -> u64;

    /// Whether the device works with these bits, of those it offers (section 3.1.1, step 5).
    fn accepts(&self, features: u64) -> bool {
        let _ = features;
        true
    }

    /// The most entries of each queue, powers of two.
    fn queue_sizes(&self) -> Vec<u16>;

    /// The driver reads `data` from `offset` of the device's configuration; what is not there reads
    /// as zeros.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver writes `data` to `offset` of the device's configuration.
    fn write_config(&self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready (`DRIVER_OK`).
    fn activate(&self, active: Activation);

    /// The driver's notification: queue `index` may have buffers. There may be none.
    fn queue_ready(&self, index: u16);

    /// The device serves the doorbells by itself (vhost): the transport does not wait for them.
    fn owns_doorbells(&self) -> bool {
        false
    }

    /// Bytes from outside in a counted run, on the guest's thread.
    fn input(&self, bytes: &[u8]) {
        let _ = bytes;
    }

    /// Back to the state after power-on. No queue is used any more and no request is under way when
    /// this returns.
    fn reset(&self);

    /// Gone for good, after a reset: what stands behind the device on the host is let go of. May come
    /// twice.
    fn unplug(&self) {}

    /// No request is under way when this returns, and none begins before `resume`.
    fn pause(&self);

    /// Goes on; the transport then calls `queue_ready` for every queue.
    fn resume(&self);

    /// The state beyond features and queues, of a paused device; `None` if there is none.
    fn save(&self) -> Option<SavedState> {
        None
    }

    /// Takes over a state, before `activate`. A refused one changes nothing.
    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        Err(SavedError::Kind {
            expected: self.name(),
            found: saved.kind.clone(),
        })
    }
}
