//! A function as its bus sees it, and a bus as a function does.

use std::{fmt::Debug, ops::Range, sync::Arc};

use vmlet_bus::{AccessContext, Dma, Doorbells, Flow, IrqLine, SavedError, SavedState};

use crate::{Bdf, MsiVector, Msix, PciError};

/// The smallest BAR (PCIe 6.0, section 7.5.1.2.1).
pub const SMALLEST_BAR: u64 = 128;
/// BARs of a type 0 header.
const BARS: u8 = 6;
/// The most vectors of MSI-X (PCIe 6.0, section 7.7.2.2).
const MAX_VECTORS: u16 = 2048;
/// Bytes that capabilities of its own, and MSI, can take beside the other ones.
const VENDOR_BYTES: usize = 0x100 - 0x90;
/// Bytes of MSI's capability.
const MSI_BYTES: usize = 0x18;

/// Which addresses a BAR takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Below 4 GiB.
    Memory32,
    /// Anywhere; takes two BAR registers. Behind a root port addresses above 4 GiB are for
    /// prefetchable BARs alone.
    Memory64,
    /// Anywhere, and reads have no effects; takes two BAR registers.
    Prefetchable64,
}

impl BarKind {
    /// The BAR takes two registers.
    pub fn is_64(self) -> bool {
        self != BarKind::Memory32
    }
}

/// A range of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarLayout {
    /// Which BAR register, 0 to 5.
    pub index: u8,
    /// Bytes: a power of two, 128 at least.
    pub size: u64,
    /// Which addresses.
    pub kind: BarKind,
}

/// Vectors of MSI-X.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixLayout {
    /// Vectors, 1 to 2048.
    pub vectors: u16,
    /// The BAR register that table and pending bits get to themselves; the function has no BAR
    /// there. With `inside`, the function's own BAR that the table lies in.
    pub bar: u8,
    /// Where they lie among the function's own registers, which then serves them by
    /// [`Msix::read_table`] and the like.
    pub inside: Option<MsixInside>,
}

/// Table and pending bits of MSI-X among a function's other registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixInside {
    /// Offset of the table in its BAR, a multiple of 8.
    pub table: u32,
    /// The BAR of the pending bits.
    pub pending_bar: u8,
    /// Their offset, a multiple of 8.
    pub pending: u32,
}

impl MsixLayout {
    /// The BAR that table and pending bits have to themselves.
    pub(crate) fn table(self) -> Option<BarLayout> {
        self.inside.is_none().then(|| BarLayout {
            index: self.bar,
            size: Msix::bar_bytes(self.vectors),
            kind: BarKind::Memory32,
        })
    }

    /// Bar and offset of the table, and of the pending bits.
    pub(crate) fn places(self) -> [(u8, u32); 2] {
        let behind = u32::try_from(Msix::table_bytes(self.vectors)).unwrap_or(u32::MAX);
        match self.inside {
            None => [(self.bar, 0), (self.bar, behind)],
            Some(inside) => [
                (self.bar, inside.table),
                (inside.pending_bar, inside.pending),
            ],
        }
    }

    /// The same with all their bytes.
    pub fn ranges(self) -> [(u8, Range<u64>); 2] {
        let [(bar, table), (pending_bar, pending)] = self.places();
        let range = |start: u32, len| u64::from(start)..u64::from(start) + len;
        [
            (bar, range(table, Msix::table_bytes(self.vectors))),
            (
                pending_bar,
                range(pending, Msix::pending_bytes(self.vectors)),
            ),
        ]
    }
}

/// A vendor-specific capability (PCIe 6.0, section 7.9.4), or any other of which the bus knows
/// nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VendorCapability {
    /// The capability's id; 9 is vendor-specific.
    pub id: u8,
    /// What follows id and link, as the guest reads it at first.
    pub body: Vec<u8>,
    /// Which bits of the body the guest can write; a mask that is shorter goes on with zeros.
    pub writable: Vec<u8>,
}

/// What a function is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionLayout {
    /// Who made it.
    pub vendor: u16,
    /// Which of the vendor's devices.
    pub device: u16,
    /// Who made the board it is on.
    pub subsystem_vendor: u16,
    /// Which of that vendor's boards.
    pub subsystem: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, sub-class and programming interface.
    pub class: [u8; 3],
    /// Ranges of registers.
    pub bars: Vec<BarLayout>,
    /// Vectors of MSI-X, if it has any.
    pub msix: Option<MsixLayout>,
    /// It has MSI, with one vector.
    pub msi: bool,
    /// It has the interrupt line INTA.
    pub intx: bool,
    /// Capabilities of its own, in this order.
    pub capabilities: Vec<VendorCapability>,
}

impl FunctionLayout {
    /// All BARs, that of MSI-X among them.
    pub(crate) fn all_bars(&self) -> Vec<BarLayout> {
        let table = self.msix.and_then(MsixLayout::table);
        self.bars.iter().copied().chain(table).collect()
    }

    /// Refuses what no function can be; `device` names it in the error.
    pub fn check(&self, device: &'static str) -> Result<(), PciError> {
        let refuse = |detail| Err(PciError::Layout { device, detail });
        let mut taken = [false; BARS as usize];
        for bar in self.all_bars() {
            let (index, last) = (bar.index, bar.index.saturating_add(bar.kind.is_64().into()));
            if last >= BARS {
                return refuse(format!("there is no BAR {last}"));
            }
            if !bar.size.is_power_of_two() || bar.size < SMALLEST_BAR {
                let size = bar.size;
                return refuse(format!(
                    "BAR {index} of {size} bytes: a size is a power of two of {SMALLEST_BAR} at least"
                ));
            }
            if !bar.kind.is_64() && bar.size > 1 << 31 {
                return refuse(format!("BAR {index} is too large for 32 bits"));
            }
            for taken in taken
                .iter_mut()
                .skip(index.into())
                .take((last - index + 1).into())
            {
                if std::mem::replace(taken, true) {
                    return refuse(format!("BAR {index} overlaps another"));
                }
            }
        }
        if let Some(MsixLayout { vectors, .. }) = self.msix
            && !(1..=MAX_VECTORS).contains(&vectors)
        {
            return refuse(format!(
                "{vectors} vectors: MSI-X has 1 to {MAX_VECTORS} of them"
            ));
        }
        let capabilities = self.capabilities.iter();
        let bytes = capabilities.map(|c| (c.body.len() + 2).next_multiple_of(4));
        let (bytes, room): (usize, usize) = (bytes.sum(), self.room());
        if bytes > room {
            return refuse(format!(
                "{bytes} bytes of capabilities: there is room for {room}"
            ));
        }
        Ok(())
    }

    /// Bytes that its own capabilities can take.
    pub fn room(&self) -> usize {
        VENDOR_BYTES - if self.msi { MSI_BYTES } else { 0 }
    }
}

/// What a function gets when it is put on a bus.
#[derive(Clone, Debug)]
pub struct Links {
    /// Where it is.
    pub bdf: Bdf,
    /// Its way to guest memory.
    pub dma: Dma,
    /// Its vectors; of a function without MSI-X there are none.
    pub msix: Arc<Msix>,
    /// Its vector of MSI; of a function without MSI one that is never on.
    pub msi: Arc<MsiVector>,
    /// Its interrupt line; leads nowhere for a function without one. Masked by the guest's bit and
    /// while MSI or MSI-X is on.
    pub intx: Arc<dyn IrqLine>,
    /// Where it hangs up doorbells.
    pub doorbells: Arc<dyn Doorbells>,
    /// Where in config space its own capabilities begin, in their order.
    pub capabilities: Vec<u16>,
}

/// What the guest has switched on of a function, beside what [`Links`] tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// Bus Master Enable: it may do DMA and send messages.
    pub bus_master: bool,
    /// Its line may interrupt: neither Interrupt Disable nor messages are on.
    pub line: bool,
}

/// One function of a device: registers and effects only.
///
/// Calls come from any thread, with locks of the bus held where that is said: a function calls
/// nothing of the bus but its [`Links`] then.
pub trait Function: Send + Sync + Debug {
    /// The function's name in messages.
    fn name(&self) -> &'static str;

    /// What it is; the same at every call.
    fn layout(&self) -> FunctionLayout;

    /// Put on a bus; called once, before anything else.
    fn connect(&self, links: Links);

    /// The guest reads `data` from `offset` of `bar` on. Any width and offset in the BAR may come;
    /// what is not there reads as all ones.
    fn read_bar(&self, cx: &dyn AccessContext, bar: u8, offset: u64, data: &mut [u8]) -> Flow;

    /// The guest writes `data` to `offset` of `bar`.
    fn write_bar(&self, cx: &dyn AccessContext, bar: u8, offset: u64, data: &[u8]) -> Flow;

    /// The guest reads `data` from `offset` of config space: `true` if the function has answered,
    /// for windows in its own capabilities. `data` holds what the bus would answer.
    fn read_config(&self, offset: u16, data: &mut [u8]) -> bool {
        let _ = (offset, data);
        false
    }

    /// The guest has written `data` to `offset` of config space; the capability's registers have
    /// their new values. `data` lies wholly in one of the function's own capabilities.
    fn write_config(&self, offset: u16, data: &[u8]) -> bool {
        let _ = (offset, data);
        false
    }

    /// A BAR has a new place, `None` while it is not decoded. Doorbells follow. Called with locks
    /// of the bus held.
    fn bar_moved(&self, bar: u8, at: Option<u64>) {
        let _ = (bar, at);
    }

    /// The guest has written config space, and this is how it stands now; MSI and MSI-X are as
    /// [`Links`] say. Called with locks of the bus held, before the line follows.
    fn switched(&self, now: Switches) {
        let _ = now;
    }

    /// Why nobody can save the function's state; `None`: it can be.
    fn unsaveable(&self) -> Option<&'static str> {
        None
    }

    /// Guest code stands still: no work is in flight once this returns, and none begins. A function
    /// may be plugged in while guest code stands still, and is not told.
    fn pause(&self) {}

    /// Guest code goes on; may come without a pause before.
    fn resume(&self) {}

    /// Back to the state after power-on, where the place of BARs and the links stay as they are.
    fn reset(&self);

    /// The state; `None` where there is no more than after power-on.
    fn save(&self) -> Option<SavedState>;

    /// Takes over a state, which nobody has looked at: a refused one changes nothing.
    fn restore(&self, saved: &SavedState) -> Result<(), SavedError>;

    /// Taken off the bus, for good: no calls follow but reads and writes that are under way.
    fn unplug(&self) {}
}
