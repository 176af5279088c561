//! What the board gives its PCI bus.

use std::{fmt::Debug, ops::Range, sync::Arc};

use vmlet_bus::{Dma, Doorbells, IoSpace, IrqLine, MsiSink, RequesterId};
use vmlet_memory::AddressSpace;

/// Addresses for BARs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Below 4 GiB.
    pub low: Range<u64>,
    /// Above; empty where the processor's addresses leave no room.
    pub high: Range<u64>,
}

/// Hears of what happens in slots; called without locks of the bus.
pub trait SlotEvents: Send + Sync + Debug {
    /// The function in `port` has gone on the host's request: the guest has let go of it.
    fn ejected(&self, port: u8);
}

/// What the board gives its PCI bus.
#[derive(Clone, Debug)]
pub struct Wiring {
    /// Where BARs come and go.
    pub mmio: Arc<IoSpace>,
    /// Guest memory, for DMA.
    pub memory: Arc<AddressSpace>,
    /// Where messages go.
    pub sink: Arc<dyn MsiSink>,
    /// Where doorbells are hung up.
    pub doorbells: Arc<dyn Doorbells>,
    /// Inputs of the interrupt controller: INTA of device N of bus 0 drives number N modulo their
    /// count, its INTB the next, and so on.
    pub lines: Vec<Arc<dyn IrqLine>>,
    /// Addresses for BARs.
    pub windows: Windows,
    /// Who hears of slots.
    pub events: Arc<dyn SlotEvents>,
}

impl Wiring {
    pub(crate) fn dma(&self, requester: RequesterId) -> Dma {
        Dma::new(Arc::clone(&self.memory), requester)
    }
}
