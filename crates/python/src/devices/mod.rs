//! Devices written in Python.
//!
//! * `callee.rs`: an object of Python whose methods are called.
//! * `arguments.rs`: calls of methods with numbers.
//! * `device.rs`: such an object as registers at fixed addresses.
//! * `function.rs`: such an object as a PCI function.
//! * `virtio.rs`, `queue.rs`: such an object as a virtio device, and what it gets of its queues.
//! * `turn.rs`: the callbacks of one device never overlap.
//! * `ring.rs`: posted writes, from the vCPUs' threads to the one that delivers them.
//! * `batch.rs`: posted writes as Python gets them, as a sequence and as one array.
//! * `current.rs`: the callback that a thread is in: what it may ask, and what would deadlock.
//! * `set.rs`: the devices of one VM, and the exception that ended its run.
//! * `link.rs`: what a device's object has of its VM: interrupt line, delivery, the end of the run.
//!
//! Locks are taken in this order: a device's turn, then the interpreter's lock, then a ring's. A
//! thread waits for a turn detached only.

mod batch;
mod callee;
mod current;
mod device;
mod function;
mod link;
mod method;
mod queue;
mod ring;
mod set;
mod ticks;
mod turn;
mod virtio;

pub(crate) use batch::WriteBatch;
pub(crate) use function::attach_pci;
pub(crate) use link::{DeviceLink, IrqLine};
pub(crate) use queue::{Chain, Queue};
pub(crate) use set::DeviceSet;
pub(crate) use virtio::attach_virtio;
