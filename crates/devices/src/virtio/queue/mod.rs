//! A split virtqueue (virtio 1.2, section 2.7).
//!
//! The ring itself is virtio-queue's. Around it: a configuration that is frozen when it is made,
//! chains that are looked at as a whole before a device sees them, and a queue that ends when its
//! driver breaks the rules: the device then needs a reset (section 2.1.2).

mod batches;
mod chain;
mod fault;
mod pace;
mod state;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering, fence},
};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmlet_bus::DmaView;
use vmm_sys_util::eventfd::EventFd;

pub use batches::Batches;
pub use chain::{Buffer, Chain};
pub use fault::QueueFault;
pub use state::QueueState;

use self::pace::Pace;
use super::VirtioInterrupt;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (section 2.7.6).
const NO_INTERRUPT: u16 = 1;
/// Bytes before the entries of the rings, and of one used entry (sections 2.7.6 and 2.7.8).
const AVAIL_HEAD: u64 = 4;
const USED_HEAD: u64 = 4;
const USED_ENTRY: u64 = 8;

#[derive(Debug)]
struct Ring {
    queue: Queue,
    /// Chains that the device has and has not used yet.
    out: u16,
    /// Chains given back since the driver was last asked whether it wants an interrupt.
    added: u16,
}

/// A virtqueue whose driver is ready. Calls may come from any thread.
#[derive(Debug)]
pub struct VirtQueue {
    index: u16,
    size: u16,
    enabled: bool,
    ring: Mutex<Ring>,
    broken: AtomicBool,
    /// Interrupts are kept back; who sets this interrupts the driver afterwards.
    holds: AtomicBool,
    pace: Mutex<Pace>,
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
                added: 0,
            }),
            broken: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            pace: Mutex::new(Pace::new()),
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
        let added = self.lock().push(view, &[(head, len)]);
        if let Err(fault) = added {
            self.fail(&fault);
        }
    }

    /// Gives chains back that belong together, each with its head and the bytes written to it: the
    /// driver sees all of them used or none.
    pub fn push_together(&self, view: &DmaView, used: &[(u16, u32)]) {
        if self.is_broken() {
            return;
        }
        let added = self.lock().push(view, used);
        if let Err(fault) = added {
            self.fail(&fault);
        }
    }

    /// Goes on elsewhere in the rings, after somebody else (vhost) has worked on them.
    pub fn set_position(&self, next_avail: u16, next_used: u16) {
        let mut ring = self.lock();
        ring.queue.set_next_avail(next_avail);
        ring.queue.set_next_used(next_used);
    }

    /// Puts a chain back that [`VirtQueue::pop`] gave last: the next call gives it again.
    pub fn undo_pop(&self) {
        let mut ring = self.lock();
        ring.queue.go_to_previous_position();
        ring.out = ring.out.saturating_sub(1);
    }

    /// Interrupts the driver, if it asks for that since chains were last pushed. While
    /// [`VirtQueue::drain_batches`] keeps interrupts back, one comes at the end of that.
    pub fn notify(&self, view: &DmaView) {
        if self.is_broken() || self.holds.load(Ordering::SeqCst) {
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
            let Some(chain) = self.pop(view) else {
                if !self.enable_notifications(view) {
                    return;
                }
                continue;
            };
            left = left.saturating_sub(1);
            if !each(chain) || left == 0 && self.ring_again() {
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

    fn push(&mut self, view: &DmaView, used: &[(u16, u32)]) -> Result<(), QueueFault> {
        let Some((last, before)) = used.split_last() else {
            return Ok(());
        };
        let first = self.queue.next_used();
        for (index, (head, len)) in (0..).zip(before) {
            let entry = u64::from(first.wrapping_add(index) % self.queue.size());
            let at = GuestAddress(self.queue.used_ring() + USED_HEAD + entry * USED_ENTRY);
            let words = [u32::from(*head).to_le_bytes(), len.to_le_bytes()];
            view.write_slice(words.as_flattened(), at)
                .map_err(|_| QueueFault::Memory)?;
        }
        let count = u16::try_from(used.len()).unwrap_or(u16::MAX);
        self.queue.set_next_used(first.wrapping_add(count - 1));
        self.queue.add_used(view, last.0, last.1)?;
        self.out = self.out.saturating_sub(count);
        self.added = self.added.saturating_add(count);
        Ok(())
    }

    /// Whether the driver asks for an interrupt for what was added since the last call (section
    /// 2.7.7.2).
    fn wants_interrupt(&mut self, view: &DmaView) -> Result<bool, QueueFault> {
        let added = std::mem::take(&mut self.added);
        if added == 0 {
            return Ok(false);
        }
        // What was added is seen by a driver whose wish is read here.
        fence(Ordering::SeqCst);
        let avail = self.queue.avail_ring();
        let by_index = self.queue.event_idx_enabled();
        let at = if by_index {
            AVAIL_HEAD + 2 * u64::from(self.queue.size())
        } else {
            0
        };
        let word = view.load(GuestAddress(avail + at), Ordering::Acquire);
        let word = u16::from_le(word.map_err(|_| QueueFault::Memory)?);
        if !by_index {
            return Ok(word & NO_INTERRUPT == 0);
        }
        let since = self.queue.next_used().wrapping_sub(word).wrapping_sub(1);
        Ok(since < added)
    }
}

#[cfg(test)]
mod tests;
