//! MSI-X: table, pending bits, and the ways of vectors (PCIe 6.0, sections 6.1.4 and 7.7.2).
//!
//! A vector sends while MSI-X is on, the function may send requests and neither function nor vector
//! is masked. Masked, it is pending and goes out when unmasked. With MSI-X off nothing is sent or
//! kept.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use serde::{Deserialize, Serialize};
use vmlet_bus::{Msi, MsiRoute, MsiSink, RequesterId};

use crate::vector::{Sender, Vector};

/// Bytes of a table entry.
const ENTRY: u64 = 16;
/// Bit 0 of Vector Control.
const MASKED: u32 = 1;

/// What config space says of the whole function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Gate {
    /// MSI-X is off.
    #[default]
    Off,
    /// On, and nothing may be sent: function mask, or no bus mastering.
    Masked,
    /// On.
    Open,
}

/// A row of the table, and its vector.
#[derive(Debug)]
struct Row {
    address: u64,
    data: u32,
    masked: bool,
    gate: Gate,
    vector: Vector,
}

impl Default for Row {
    /// As after reset: masked (section 7.7.2.7).
    fn default() -> Row {
        Row {
            address: 0,
            data: 0,
            masked: true,
            gate: Gate::Off,
            vector: Vector::default(),
        }
    }
}

impl Row {
    fn refresh(&mut self, sender: &Sender) {
        if self.gate == Gate::Off {
            self.vector.pending = false;
        }
        let open = self.gate == Gate::Open && !self.masked;
        let message = Msi {
            address: self.address,
            data: self.data,
        };
        self.vector.set(open.then_some(message), sender);
    }

    fn trigger(&mut self, sender: &Sender) {
        if self.gate != Gate::Off {
            self.vector.trigger(sender);
        }
    }

    fn bytes(&self) -> [u8; 16] {
        let control = u128::from(self.masked) << 96;
        (u128::from(self.address) | u128::from(self.data) << 64 | control).to_le_bytes()
    }

    fn set_bytes(&mut self, bytes: [u8; 16]) {
        let value = u128::from_le_bytes(bytes);
        let half = |at: u32| (value >> at & 0xffff_ffff) as u32;
        // The two lowest address bits are always clear (section 7.7.2.5).
        self.address = u64::from(half(0) & !3) | u64::from(half(32)) << 32;
        (self.data, self.masked) = (half(64), half(96) & MASKED != 0);
    }
}

/// A row as it is saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedRow {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
}

/// A function's vectors.
#[derive(Debug)]
pub struct Msix {
    rows: Box<[Mutex<Row>]>,
    sender: Sender,
    enabled: AtomicBool,
}

impl Msix {
    /// `count` vectors of `requester`, off.
    pub fn new(count: u16, sink: Arc<dyn MsiSink>, requester: RequesterId) -> Msix {
        Msix {
            rows: (0..count).map(|_| Mutex::default()).collect(),
            sender: Sender { sink, requester },
            enabled: AtomicBool::new(false),
        }
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        u16::try_from(self.rows.len()).unwrap_or(u16::MAX)
    }

    /// MSI-X is on, masked or not: the function's line is silent.
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Sends vector number `vector`, from any thread: at once, or when it is unmasked. Nothing
    /// happens while MSI-X is off, and for a vector that does not exist.
    pub fn trigger(&self, vector: u16) {
        if let Some(mut row) = self.row(vector) {
            row.trigger(&self.sender);
        }
    }

    /// A vector's way to the local APICs, for who sends without this process; the guest's masks
    /// hold for it too. `None` for a vector that does not exist.
    pub fn route(&self, vector: u16) -> Option<Arc<dyn MsiRoute>> {
        let mut row = self.row(vector)?;
        Some(Arc::clone(row.vector.route(&self.sender)))
    }

    /// Bytes of the table, and where the pending bits begin.
    pub(crate) fn table_bytes(vectors: u16) -> u64 {
        u64::from(vectors) * ENTRY
    }

    /// Bytes of the pending bits.
    pub(crate) fn pending_bytes(vectors: u16) -> u64 {
        u64::from(vectors).div_ceil(64) * 8
    }

    /// Bytes of the BAR that holds table and pending bits.
    pub(crate) fn bar_bytes(vectors: u16) -> u64 {
        let bytes = Msix::table_bytes(vectors) + Msix::pending_bytes(vectors);
        bytes.next_power_of_two().max(0x1000)
    }

    /// The guest reads from the BAR.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.byte(at);
        }
    }

    fn byte(&self, at: u64) -> u8 {
        let table = Msix::table_bytes(self.vectors());
        if at >= table {
            return self.pending_byte(at - table);
        }
        let row = self.row_at(at);
        row.and_then(|row| row.bytes().get(within(at)).copied())
            .unwrap_or(0)
    }

    /// The guest reads the table from `offset` on, in a BAR that the function serves itself.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let table = Msix::table_bytes(self.vectors());
        for (number, byte) in (0..).zip(data) {
            let at = offset.saturating_add(number);
            *byte = if at < table { self.byte(at) } else { 0 };
        }
    }

    /// The same for pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (number, byte) in (0..).zip(data) {
            *byte = self.pending_byte(offset.saturating_add(number));
        }
    }

    /// The guest writes to the table.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        self.write(offset, data);
    }

    /// Whether `vector` sends now: MSI-X is on and nothing masks it.
    pub fn is_open(&self, vector: u16) -> bool {
        let row = self.row(vector);
        row.is_some_and(|row| row.vector.message.is_some())
    }

    fn pending_byte(&self, at: u64) -> u8 {
        let first = at.saturating_mul(8);
        (0..8).fold(0, |byte, bit| {
            let vector = u16::try_from(first.saturating_add(bit)).unwrap_or(u16::MAX);
            let pending = self.row(vector).is_some_and(|row| row.vector.pending);
            byte | u8::from(pending) << bit
        })
    }

    /// The guest writes to the BAR. An entry takes effect once an access is complete; pending bits
    /// are read-only.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() && at < Msix::table_bytes(self.vectors()) {
            let room = usize::try_from(ENTRY).unwrap_or(16) - within(at);
            let (part, later) = rest.split_at(room.min(rest.len()));
            if let Some(mut row) = self.row_at(at) {
                let mut bytes = row.bytes();
                let place = bytes.iter_mut().skip(within(at));
                place.zip(part).for_each(|(to, from)| *to = *from);
                row.set_bytes(bytes);
                row.refresh(&self.sender);
            }
            at += part.len() as u64;
            rest = later;
        }
    }

    /// Message Control or the Command register has changed.
    pub(crate) fn set_gate(&self, gate: Gate) {
        self.enabled.store(gate != Gate::Off, Ordering::Release);
        for row in &self.rows {
            let mut row = lock(row);
            if row.gate != gate {
                row.gate = gate;
                row.refresh(&self.sender);
            }
        }
    }

    pub(crate) fn reset(&self) {
        self.enabled.store(false, Ordering::Release);
        for row in &self.rows {
            let mut row = lock(row);
            (row.address, row.data, row.masked, row.gate) = (0, 0, true, Gate::Off);
            row.refresh(&self.sender);
        }
    }

    pub(crate) fn save(&self) -> Vec<SavedRow> {
        let rows = self.rows.iter().map(lock);
        rows.map(|row| SavedRow {
            address: row.address,
            data: row.data,
            masked: row.masked,
            pending: row.vector.pending,
        })
        .collect()
    }

    /// Takes over what was saved of as many vectors, while MSI-X is off; the gate follows.
    pub(crate) fn restore(&self, saved: &[SavedRow], gate: Gate) {
        for (row, saved) in self.rows.iter().zip(saved) {
            let mut row = lock(row);
            (row.address, row.data) = (saved.address & !3, saved.data);
            (row.masked, row.gate) = (saved.masked, gate);
            row.vector.pending = saved.pending;
            row.refresh(&self.sender);
        }
        self.enabled.store(gate != Gate::Off, Ordering::Release);
    }

    fn row(&self, vector: u16) -> Option<MutexGuard<'_, Row>> {
        self.rows.get(usize::from(vector)).map(lock)
    }

    fn row_at(&self, offset: u64) -> Option<MutexGuard<'_, Row>> {
        self.row(u16::try_from(offset / ENTRY).ok()?)
    }
}

/// Where in its entry a byte of the table lies.
fn within(offset: u64) -> usize {
    usize::try_from(offset % ENTRY).unwrap_or(0)
}

fn lock(row: &Mutex<Row>) -> MutexGuard<'_, Row> {
    row.lock().unwrap_or_else(PoisonError::into_inner)
}
