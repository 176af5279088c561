//! What tests of a bus and its functions need: a board that records, and a function that does
//! everything a function can.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use vmlet_bus::{
    AccessContext, Doorbell, Doorbells, Flow, IoSpace, IrqLine, Msi, MsiRoute, MsiSink,
    RequesterId, SavedError, SavedState,
};
use vmlet_memory::{AddressSpace, Iova};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{
    BarKind, BarLayout, Function, FunctionLayout, Links, MsixLayout, SlotEvents, Switches,
    VendorCapability, Windows, Wiring,
};

/// An access that nobody in particular makes.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl AccessContext for Nobody {
    fn vcpu(&self) -> u32 {
        0
    }

    fn rip(&self) -> u64 {
        0
    }
}

/// A line that counts its edges.
#[derive(Debug, Default)]
pub struct Line {
    high: AtomicBool,
    edges: AtomicUsize,
}

impl Line {
    /// Its level.
    pub fn is_high(&self) -> bool {
        self.high.load(Ordering::Relaxed)
    }

    /// Changes from low to high.
    pub fn edges(&self) -> usize {
        self.edges.load(Ordering::Relaxed)
    }
}

impl IrqLine for Line {
    fn set(&self, high: bool) {
        if high && !self.high.swap(high, Ordering::Relaxed) {
            self.edges.fetch_add(1, Ordering::Relaxed);
        }
        self.high.store(high, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes messages and keeps them.
#[derive(Clone, Debug, Default)]
pub struct Messages {
    sent: Arc<Mutex<Vec<(RequesterId, Msi)>>>,
    routes: Arc<AtomicUsize>,
}

impl Messages {
    /// What came since the last call.
    pub fn take(&self) -> Vec<(RequesterId, Msi)> {
        std::mem::take(&mut lock(&self.sent))
    }

    /// How many routes were made.
    pub fn routes(&self) -> usize {
        self.routes.load(Ordering::Relaxed)
    }
}

impl MsiSink for Messages {
    fn send(&self, requester: RequesterId, msi: Msi) {
        lock(&self.sent).push((requester, msi));
    }

    fn level_pins(&self, _: RequesterId, _: &[Option<Msi>]) {}

    fn route(&self, requester: RequesterId) -> Arc<dyn MsiRoute> {
        self.routes.fetch_add(1, Ordering::Relaxed);
        Arc::new(Way {
            to: self.clone(),
            requester,
            msi: Mutex::default(),
        })
    }
}

#[derive(Debug)]
struct Way {
    to: Messages,
    requester: RequesterId,
    msi: Mutex<Option<Msi>>,
}

impl MsiRoute for Way {
    fn set(&self, msi: Option<Msi>) {
        *lock(&self.msi) = msi;
    }

    fn trigger(&self) {
        if let Some(msi) = *lock(&self.msi) {
            self.to.send(self.requester, msi);
        }
    }

    fn eventfd(&self) -> io::Result<EventFd> {
        EventFd::new(EFD_NONBLOCK)
    }
}

/// Doorbells that hang and do not ring.
#[derive(Debug, Default)]
pub struct Bells(Mutex<Vec<Doorbell>>);

impl Bells {
    /// Those that hang.
    pub fn hanging(&self) -> Vec<Doorbell> {
        lock(&self.0).clone()
    }
}

impl Doorbells for Bells {
    fn attach(&self, bell: &Doorbell, _: &EventFd) -> io::Result<()> {
        lock(&self.0).push(*bell);
        Ok(())
    }

    fn detach(&self, bell: &Doorbell, _: &EventFd) {
        lock(&self.0).retain(|other| other != bell);
    }
}

/// Ports whose functions were given back.
#[derive(Debug, Default)]
pub struct Ejected(Mutex<Vec<u8>>);

impl Ejected {
    /// Those since the last call.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl SlotEvents for Ejected {
    fn ejected(&self, port: u8) {
        lock(&self.0).push(port);
    }
}

/// A board that records.
#[derive(Clone, Debug)]
pub struct Board {
    /// Where BARs come and go.
    pub mmio: Arc<IoSpace>,
    /// Messages sent.
    pub messages: Messages,
    /// Eight interrupt lines.
    pub lines: Vec<Arc<Line>>,
    /// Doorbells.
    pub bells: Arc<Bells>,
    /// What left its slot.
    pub ejected: Arc<Ejected>,
    /// Guest memory.
    pub memory: Arc<AddressSpace>,
}

impl Board {
    /// Addresses for BARs below 4 GiB.
    pub const LOW: std::ops::Range<u64> = 0xc000_0000..0xe000_0000;
    /// And above.
    pub const HIGH: std::ops::Range<u64> = 0x10_0000_0000..0x20_0000_0000;

    /// A board with `memory`.
    pub fn new(memory: Arc<AddressSpace>) -> Board {
        Board {
            mmio: Arc::default(),
            messages: Messages::default(),
            lines: (0..8).map(|_| Arc::default()).collect(),
            bells: Arc::default(),
            ejected: Arc::default(),
            memory,
        }
    }

    /// What a bus needs of it.
    pub fn wiring(&self) -> Wiring {
        let lines = self.lines.iter();
        Wiring {
            mmio: Arc::clone(&self.mmio),
            memory: Arc::clone(&self.memory),
            sink: Arc::new(self.messages.clone()),
            doorbells: Arc::clone(&self.bells) as Arc<dyn Doorbells>,
            lines: lines
                .map(|line| Arc::clone(line) as Arc<dyn IrqLine>)
                .collect(),
            windows: Windows {
                low: Self::LOW,
                high: Self::HIGH,
            },
            events: Arc::clone(&self.ejected) as Arc<dyn SlotEvents>,
        }
    }
}

/// Registers of [`Probe`]: a constant, any value, which vector to send, the level of INTA.
pub const REG_ID: u64 = 0;
/// Holds any value.
pub const REG_SCRATCH: u64 = 4;
/// A write sends this vector.
pub const REG_VECTOR: u64 = 8;
/// The level of INTA.
pub const REG_LINE: u64 = 0xc;
/// Where DMA goes: two words.
pub const REG_ADDRESS: u64 = 0x10;
/// A write copies: 1 from memory to the buffer, 2 back. Reads as 0 once done, or 3 for a fault.
pub const REG_DMA: u64 = 0x18;
/// Bytes that DMA copies.
pub const BUFFER: u64 = 0x100;
/// What [`REG_ID`] reads as.
pub const ID: u32 = 0x7465_6c76;

/// Bytes of the register BAR, number 0.
const BAR_BYTES: u64 = 0x1000;
/// Bytes of memory behind BAR 2.
const MEMORY_BYTES: usize = 0x4000;
const BUFFER_BYTES: usize = 0x100;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    scratch: u32,
    line: bool,
    address: u64,
    dma: u32,
    buffer: Vec<u8>,
}

impl Default for State {
    fn default() -> State {
        State {
            scratch: 0,
            line: false,
            address: 0,
            dma: 0,
            buffer: vec![0; BUFFER_BYTES],
        }
    }
}

/// A function with registers, memory, MSI-X, INTx, DMA and a window in config space.
#[derive(Debug)]
pub struct Probe {
    links: OnceLock<Links>,
    state: Mutex<State>,
    memory: Mutex<Vec<u8>>,
    places: Mutex<Vec<(u8, Option<u64>)>>,
    switches: Mutex<Switches>,
    unplugged: AtomicBool,
}

impl Default for Probe {
    fn default() -> Probe {
        Probe {
            links: OnceLock::new(),
            state: Mutex::default(),
            memory: Mutex::new(vec![0; MEMORY_BYTES]),
            places: Mutex::default(),
            switches: Mutex::default(),
            unplugged: AtomicBool::new(false),
        }
    }
}

impl Probe {
    /// Where BARs went since the last call.
    pub fn places(&self) -> Vec<(u8, Option<u64>)> {
        std::mem::take(&mut lock(&self.places))
    }

    /// What the guest has switched on.
    pub fn switches(&self) -> Switches {
        *lock(&self.switches)
    }

    /// Whether it has left its bus.
    pub fn is_unplugged(&self) -> bool {
        self.unplugged.load(Ordering::Relaxed)
    }

    /// What the guest wrote to [`REG_SCRATCH`] last.
    pub fn scratch(&self) -> u32 {
        lock(&self.state).scratch
    }

    /// What it got from its bus.
    pub fn links(&self) -> Option<&Links> {
        self.links.get()
    }

    fn copy(&self, state: &mut State, command: u32) {
        let Some(links) = self.links.get() else {
            return;
        };
        let address = Iova(state.address);
        let done = match command {
            1 => links.dma.read(address, &mut state.buffer),
            2 => links.dma.write(address, &state.buffer),
            _ => Ok(()),
        };
        state.dma = if done.is_ok() { 0 } else { 3 };
        if links.msix.enabled() {
            links.msix.trigger(0);
        } else {
            state.line = true;
            links.intx.set(true);
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        let state = lock(&self.state);
        match offset {
            REG_ID => ID,
            REG_SCRATCH => state.scratch,
            REG_LINE => state.line.into(),
            REG_ADDRESS => (state.address & 0xffff_ffff) as u32,
            0x14 => (state.address >> 32) as u32,
            REG_DMA => state.dma,
            _ => u32::MAX,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        let mut state = lock(&self.state);
        let links = self.links.get();
        match offset {
            REG_SCRATCH => state.scratch = value,
            REG_VECTOR => {
                if let Some(links) = links {
                    links.msix.trigger((value & 0xffff) as u16);
                }
            }
            REG_LINE => {
                state.line = value != 0;
                if let Some(links) = links {
                    links.intx.set(value != 0);
                }
            }
            REG_ADDRESS => state.address = state.address >> 32 << 32 | u64::from(value),
            0x14 => state.address = state.address & 0xffff_ffff | u64::from(value) << 32,
            REG_DMA => self.copy(&mut state, value),
            _ => {}
        }
    }

    /// The window's register in its capability: what it reads and writes is the scratch register.
    fn window(&self) -> Option<u16> {
        let links = self.links.get()?;
        Some(links.capabilities.first()? + 4)
    }
}

fn within(bytes: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0xff);
    let at = usize::try_from(offset).unwrap_or(usize::MAX);
    let from = bytes.iter().skip(at);
    data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}

fn store(bytes: &mut [u8], offset: u64, data: &[u8]) {
    let at = usize::try_from(offset).unwrap_or(usize::MAX);
    let to = bytes.iter_mut().skip(at);
    to.zip(data).for_each(|(to, from)| *to = *from);
}

impl Function for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }

    fn layout(&self) -> FunctionLayout {
        FunctionLayout {
            vendor: 0x1234,
            device: 0x0bed,
            class: [0xff, 0, 0],
            bars: vec![
                BarLayout {
                    index: 0,
                    size: BAR_BYTES,
                    kind: BarKind::Memory32,
                },
                BarLayout {
                    index: 2,
                    size: MEMORY_BYTES as u64,
                    kind: BarKind::Prefetchable64,
                },
            ],
            msix: Some(MsixLayout {
                vectors: 4,
                bar: 4,
                inside: None,
            }),
            intx: true,
            capabilities: vec![VendorCapability {
                id: 9,
                body: vec![8, 0, 0, 0, 0, 0],
                writable: vec![0, 0xff],
            }],
            ..FunctionLayout::default()
        }
    }

    fn connect(&self, links: Links) {
        let _ = self.links.set(links);
    }

    fn read_bar(&self, _: &dyn AccessContext, bar: u8, offset: u64, data: &mut [u8]) -> Flow {
        match bar {
            0 if offset >= BUFFER => within(&lock(&self.state).buffer, offset - BUFFER, data),
            0 if data.len() == 4 => {
                data.copy_from_slice(&self.read_register(offset).to_le_bytes());
            }
            2 => within(&lock(&self.memory), offset, data),
            _ => data.fill(0xff),
        }
        Flow::Continue
    }

    fn write_bar(&self, _: &dyn AccessContext, bar: u8, offset: u64, data: &[u8]) -> Flow {
        match bar {
            0 if offset >= BUFFER => store(&mut lock(&self.state).buffer, offset - BUFFER, data),
            0 => {
                if let Ok(word) = <[u8; 4]>::try_from(data) {
                    self.write_register(offset, u32::from_le_bytes(word));
                }
            }
            2 => store(&mut lock(&self.memory), offset, data),
            _ => {}
        }
        Flow::Continue
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) -> bool {
        let hit = self.window() == Some(offset) && data.len() == 4;
        if hit {
            data.copy_from_slice(&self.read_register(REG_SCRATCH).to_le_bytes());
        }
        hit
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> bool {
        let word = <[u8; 4]>::try_from(data).ok();
        let word = word.filter(|_| self.window() == Some(offset));
        if let Some(word) = word {
            self.write_register(REG_SCRATCH, u32::from_le_bytes(word));
        }
        word.is_some()
    }

    fn switched(&self, now: Switches) {
        *lock(&self.switches) = now;
    }

    fn bar_moved(&self, bar: u8, at: Option<u64>) {
        lock(&self.places).push((bar, at));
    }

    fn reset(&self) {
        *lock(&self.state) = State::default();
    }

    fn save(&self) -> Option<SavedState> {
        let state = lock(&self.state).clone();
        let memory = lock(&self.memory).clone();
        Some(SavedState::new("probe", 1, &(state, memory)))
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        let (state, memory): (State, Vec<u8>) = saved.read("probe", 1)?;
        if state.buffer.len() != BUFFER_BYTES || memory.len() != MEMORY_BYTES {
            return Err(SavedError::Damaged {
                kind: "probe",
                detail: format!("{} bytes of memory", memory.len()),
            });
        }
        *lock(&self.state) = state;
        *lock(&self.memory) = memory;
        Ok(())
    }

    fn unplug(&self) {
        self.unplugged.store(true, Ordering::Relaxed);
    }
}
