//! A queue as plain data: what its driver configured, and how far it is.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};

use super::QueueFault;

/// What a driver configures of a queue, and positions in it. Untrusted until a queue is made of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// The most entries the device offers, a power of two.
    pub max_size: u16,
    /// Entries, a power of two.
    pub size: u16,
    /// The driver uses the queue.
    pub enabled: bool,
    /// Where the descriptor table is.
    pub desc: u64,
    /// Where the available ring is.
    pub avail: u64,
    /// Where the used ring is.
    pub used: u64,
    /// Notifications are asked for by index.
    pub event_idx: bool,
    /// Position in the available ring.
    pub next_avail: u16,
    /// Position in the used ring.
    pub next_used: u16,
}

impl QueueState {
    /// A queue after reset.
    pub fn new(max_size: u16) -> QueueState {
        QueueState {
            max_size,
            size: max_size,
            ..QueueState::default()
        }
    }

    pub(super) fn of(queue: &Queue, enabled: bool) -> QueueState {
        QueueState {
            max_size: queue.max_size(),
            size: queue.size(),
            enabled,
            desc: queue.desc_table(),
            avail: queue.avail_ring(),
            used: queue.used_ring(),
            event_idx: queue.event_idx_enabled(),
            next_avail: queue.next_avail(),
            next_used: queue.next_used(),
        }
    }

    /// Refuses what no queue can be.
    pub(in crate::virtio) fn check(&self) -> Result<(), QueueFault> {
        self.queue().map(drop)
    }

    /// virtio-queue's queue; refuses sizes and alignments that cannot be.
    pub(super) fn queue(&self) -> Result<Queue, QueueFault> {
        let state = virtio_queue::QueueState {
            max_size: self.max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: self.event_idx,
            size: self.size,
            ready: self.enabled,
            desc_table: self.desc,
            avail_ring: self.avail,
            used_ring: self.used,
        };
        Ok(Queue::try_from(state)?)
    }
}
