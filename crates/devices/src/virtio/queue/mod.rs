//! A split virtqueue (virtio 1.2, section 2.7).
//!
//! The ring itself is virtio-queue's. Around it: a configuration that is frozen when it is made,
//! chains that are looked at as a whole before a device sees them, and a queue that ends when its
//! driver breaks the rules: the device then needs a reset (section 2.1.2).

mod chain;
mod fault;
mod state;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmlet_bus::DmaView;
use vmm_sys_util::eventfd::EventFd;

pub use chain::{Buffer, Chain};
pub use fault::QueueFault;
pub use state::QueueState;

use super::VirtioInterrupt;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (section 2.7.6).
const NO_INTERRUPT: u16 = 1;

#[derive(Debug)]
struct Ring {
    queue: Queue,
    /// Chains that the device has and has not used yet.
    out: u16,
    /// Chains were used since the driver was last told.
    news: bool,
}

/// A virtqueue whose driver is ready. Calls may come from any thread.
#[derive(Debug)]
pub struct VirtQueue {
    index: u16,
    size: u16,
    enabled: bool,
    ring: Mutex<Ring>,
    broken: AtomicBool,
    interrupt: Arc<dyn VirtioInterrupt>,
    doorbell: Option<Arc<EventFd>>,
}

impl VirtQueue {
    /// Queue `index` as its driver configured it; `doorbell` is what the driver's notifications
    /// signal, if anything.
    pub fn new(
        index: u16,
        state: &QueueState,
        interrupt: Arc<dyn VirtioInterrupt>,
        doorbell: Option<Arc<EventFd>>,
    ) -> Result<VirtQueue, QueueFault> {
        Ok(VirtQueue {
            index,
            size: state.size,
            enabled: state.enabled,
            ring: Mutex::new(Ring {
                queue: state.queue()?,
                out: 0,
                news: false,
            }),
            broken: AtomicBool::new(false),
            interrupt,
            doorbell,
        })
    }

    /// Which queue of its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The driver uses it.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Its driver broke the rules; nothing more comes.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// What the driver's notifications signal, for who waits by itself (vhost).
    pub fn doorbell(&self) -> Option<&Arc<EventFd>> {
        self.doorbell.as_ref()
    }

    /// Whether all three parts of the ring lie in memory.
    pub fn is_valid(&self, view: &DmaView) -> bool {
        self.lock().queue.is_valid(view)
    }

    /// The next available chain, whole and within the rules. `None` when there is none, and once the
    /// queue is broken.
    pub fn pop(&self, view: &DmaView) -> Option<Chain> {
        if self.is_broken() || !self.enabled {
            return None;
        }
        let mut ring = self.lock();
        let popped = ring.pop(view);
        drop(ring);
        popped.unwrap_or_else(|fault| {
            self.fail(&fault);
            None
        })
    }

    /// Gives the chain at `head` back, with `len` bytes written to it from its first writable byte
    /// on. The driver hears of it by [`VirtQueue::notify`].
    pub fn push(&self, view: &DmaView, head: u16, len: u32) {
        if self.is_broken() {
            return;
        }
        let mut ring = self.lock();
        ring.out = ring.out.saturating_sub(1);
        ring.news = true;
        let added = ring.queue.add_used(view, head, len);
        drop(ring);
        if let Err(error) = added {
            self.fail(&QueueFault::from(error));
        }
    }

    /// Puts a chain back that [`VirtQueue::pop`] gave last: the next call gives it again.
    pub fn undo_pop(&self) {
        let mut ring = self.lock();
        ring.queue.go_to_previous_position();
        ring.out = ring.out.saturating_sub(1);
    }

    /// Interrupts the driver, if it asks for that since chains were last pushed.
    pub fn notify(&self, view: &DmaView) {
        if self.is_broken() {
            return;
        }
        let wanted = self.lock().wants_interrupt(view);
        match wanted {
            Ok(true) => self.interrupt.queue(self.index),
            Ok(false) => {}
            Err(fault) => self.fail(&fault),
        }
    }

    /// Asks for notifications again. True if chains came meanwhile, for which none may come.
    pub fn enable_notifications(&self, view: &DmaView) -> bool {
        if self.is_broken() || !self.enabled {
            return false;
        }
        let more = self.lock().queue.enable_notification(view);
        more.unwrap_or_else(|error| {
            self.fail(&QueueFault::from(error));
            false
        })
    }

    /// Asks for no notifications while chains are taken anyway (section 2.7.10).
    pub fn disable_notifications(&self, view: &DmaView) {
        if self.is_broken() || !self.enabled {
            return;
        }
        let done = self.lock().queue.disable_notification(view);
        if let Err(error) = done {
            self.fail(&QueueFault::from(error));
        }
    }

    /// Hands every available chain to `each`, with notifications off meanwhile, until there is none
    /// or `each` has enough (false). A driver that keeps adding does not keep the thread for good:
    /// after as many chains as the queue has entries, the doorbell is rung and the rest comes with
    /// it.
    pub fn drain(&self, view: &DmaView, mut each: impl FnMut(Chain) -> bool) {
        let mut left = self.size;
        self.disable_notifications(view);
        loop {
            while let Some(chain) = self.pop(view) {
                left = left.saturating_sub(1);
                if !each(chain) {
                    return;
                }
                if left == 0 && self.ring_again() {
                    return;
                }
            }
            if !self.enable_notifications(view) {
                return;
            }
        }
    }

    /// Signals the queue's own doorbell; false where it has none.
    fn ring_again(&self) -> bool {
        let doorbell = self.doorbell.as_ref();
        doorbell.is_some_and(|doorbell| doorbell.write(1).is_ok())
    }

    /// Ends the queue: its driver did what no driver may. The device needs a reset.
    pub fn fail(&self, fault: &QueueFault) {
        if !self.broken.swap(true, Ordering::AcqRel) {
            log::warn!(target: "vmlet.virtio", "queue {} is broken: {fault}", self.index);
            self.interrupt.needs_reset();
        }
    }

    /// The state, with nothing under way.
    pub fn save(&self) -> QueueState {
        QueueState::of(&self.lock().queue, self.enabled)
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn pop(&mut self, view: &DmaView) -> Result<Option<Chain>, QueueFault> {
        let Some(found) = self.queue.iter(view)?.next() else {
            return Ok(None);
        };
        // A driver cannot have more chains under way than the ring has room for.
        if self.out >= self.queue.size() {
            return Err(QueueFault::TooManyChains {
                size: self.queue.size(),
            });
        }
        let chain = Chain::collect(found, self.queue.max_size())?;
        self.out += 1;
        Ok(Some(chain))
    }

    fn wants_interrupt(&mut self, view: &DmaView) -> Result<bool, QueueFault> {
        if !std::mem::take(&mut self.news) {
            return Ok(false);
        }
        let wanted = self.queue.needs_notification(view)?;
        if self.queue.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags = view.load(GuestAddress(self.queue.avail_ring()), Ordering::Acquire);
        let flags: u16 = flags.map_err(|_| QueueFault::Memory)?;
        Ok(u16::from_le(flags) & NO_INTERRUPT == 0)
    }
}

#[cfg(test)]
mod tests;
