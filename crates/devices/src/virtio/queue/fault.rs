//! What a driver did to its queue that no driver may do.

use thiserror::Error;

/// Why a queue is broken.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum QueueFault {
    /// A chain that loops, leaves its table, or is not all in memory.
    #[error("the chain at {head} does not end: it loops, leaves its table or is not in memory")]
    Endless {
        /// First descriptor.
        head: u16,
    },
    /// More descriptors than a chain can have.
    #[error("the chain at {head} has more than {most} descriptors")]
    TooLong {
        /// First descriptor.
        head: u16,
        /// The most there can be.
        most: u16,
    },
    /// More than 4 GiB in one chain.
    #[error("the buffers of the chain at {head} are longer than 4 GiB in all")]
    TooManyBytes {
        /// First descriptor.
        head: u16,
    },
    /// A readable buffer after a writable one.
    #[error("the chain at {head} has readable buffers after writable ones")]
    Order {
        /// First descriptor.
        head: u16,
    },
    /// More chains under way than the queue has entries.
    #[error("more than {size} chains are under way")]
    TooManyChains {
        /// Entries.
        size: u16,
    },
    /// A ring, or a buffer that must be there, is not in memory.
    #[error("a part of the ring or of a header is not in memory")]
    Memory,
    /// A chain that the device cannot even answer.
    #[error("the chain at {head} is no request: {detail}")]
    Request {
        /// First descriptor.
        head: u16,
        /// What is wrong.
        detail: &'static str,
    },
    /// What virtio-queue refuses.
    #[error("the ring is damaged: {0}")]
    Ring(virtio_queue::Error),
}

impl From<virtio_queue::Error> for QueueFault {
    fn from(error: virtio_queue::Error) -> QueueFault {
        QueueFault::Ring(error)
    }
}
