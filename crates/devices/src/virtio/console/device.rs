//! The device.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use vmlet_bus::{DmaView, SavedError, SavedState};

use crate::{
    serial::{INPUT_LIMIT, SerialOut},
    virtio::{Activation, Chain, QueueFault, VirtQueue, VirtioDevice, read_image},
};

const NAME: &str = "virtio-console";
const VERSION: u16 = 1;
const QUEUE_SIZE: u16 = 64;
/// Bytes copied at a time.
const PIECE: usize = 4096;

/// Feature bits (section 5.3.3).
pub(super) const SIZE: u64 = 1 << 0;
pub(super) const EMERG_WRITE: u64 = 1 << 2;

/// Queues of port 0 (section 5.3.2).
pub(super) const RECEIVE: u16 = 0;
pub(super) const TRANSMIT: u16 = 1;

/// The register for emergencies in the configuration (section 5.3.4), behind columns, rows and ports.
pub(super) const EMERGENCY: u64 = 8;

#[derive(Debug)]
struct Inner {
    active: Option<Activation>,
    out: Box<dyn SerialOut>,
    input: VecDeque<u8>,
    /// Columns and rows.
    size: [u16; 2],
}

#[derive(Debug, Serialize, Deserialize)]
struct Fields {
    input: Vec<u8>,
    size: [u16; 2],
}

/// A console with one port.
#[derive(Debug)]
pub struct VirtioConsole {
    inner: Mutex<Inner>,
}

impl VirtioConsole {
    /// A console that sends to `out`.
    pub fn new(out: Box<dyn SerialOut>) -> VirtioConsole {
        VirtioConsole {
            inner: Mutex::new(Inner {
                active: None,
                out,
                input: VecDeque::new(),
                size: [0; 2],
            }),
        }
    }

    /// Gives the guest input. Returns how many bytes were taken: all, unless the guest has left more
    /// than 1 MiB unread.
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        let mut inner = self.lock();
        let room = INPUT_LIMIT.saturating_sub(inner.input.len());
        let taken = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        inner.input.extend(taken);
        inner.feed();
        taken.len()
    }

    /// Bytes of input that wait for the guest.
    pub fn unread(&self) -> usize {
        self.lock().input.len()
    }

    /// Tells the guest how large the window is, in columns and rows; zeros: not known.
    pub fn resize(&self, size: [u16; 2]) {
        let mut inner = self.lock();
        inner.size = size;
        inner.tell_size();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn queue(&self, index: u16) -> Option<(Arc<VirtQueue>, DmaView)> {
        self.active.as_ref()?.queue(index)
    }

    fn tell_size(&self) {
        if let Some(active) = self.active.as_ref().filter(|active| active.has(SIZE)) {
            active.interrupt.config();
        }
    }

    /// Moves input into the driver's buffers, as far as there are any.
    fn feed(&mut self) {
        if self.input.is_empty() {
            return;
        }
        let Some((queue, view)) = self.queue(RECEIVE) else {
            return;
        };
        queue.drain(&view, |chain| {
            match receive(&mut self.input, &chain, &view) {
                Ok(len) => queue.push(&view, chain.head(), len),
                Err(fault) => queue.fail(&fault),
            }
            !self.input.is_empty()
        });
        queue.notify(&view);
    }

    fn transmit(&mut self) {
        let Some((queue, view)) = self.queue(TRANSMIT) else {
            return;
        };
        queue.drain(&view, |chain| {
            match send(self.out.as_mut(), &chain, &view) {
                Ok(()) => queue.push(&view, chain.head(), 0),
                Err(fault) => queue.fail(&fault),
            }
            true
        });
        queue.notify(&view);
    }
}

/// Fills a buffer with waiting input; gives how many bytes.
fn receive(input: &mut VecDeque<u8>, chain: &Chain, view: &DmaView) -> Result<u32, QueueFault> {
    let head = chain.head();
    if chain.readable_len() > 0 || chain.writable_len() == 0 {
        let detail = "a buffer for input is writable, and not empty";
        return Err(QueueFault::Request { head, detail });
    }
    let room = usize::try_from(chain.writable_len()).unwrap_or(usize::MAX);
    let bytes: Vec<u8> = input.iter().take(room).copied().collect();
    let done = chain.write(view, 0, &bytes)?;
    input.drain(..done.min(input.len()));
    Ok(u32::try_from(done).unwrap_or(0))
}

/// Sends a buffer's bytes. Output cannot end a run from here: a guest that gives up says so on its
/// serial port, or by pvpanic.
fn send(out: &mut dyn SerialOut, chain: &Chain, view: &DmaView) -> Result<(), QueueFault> {
    let head = chain.head();
    if chain.writable_len() > 0 {
        let detail = "a buffer of output is readable";
        return Err(QueueFault::Request { head, detail });
    }
    let (mut at, mut piece) = (0, [0; PIECE]);
    while at < chain.readable_len() {
        let count = chain.read(view, at, &mut piece)?;
        let _ = out.send(piece.get(..count).unwrap_or_default());
        at += count.max(1) as u64;
    }
    Ok(())
}

impl VirtioDevice for VirtioConsole {
    fn id(&self) -> u32 {
        3
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> [u8; 3] {
        // Simple communication controller, other.
        [0x07, 0x80, 0]
    }

    fn features(&self) -> u64 {
        SIZE | EMERG_WRITE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let [columns, rows] = self.lock().size.map(u16::to_le_bytes);
        // One port; the register for emergencies behind it reads as zeros.
        let ports = 1u32.to_le_bytes();
        read_image(&[&columns[..], &rows, &ports].concat(), offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (EMERGENCY, Some(byte)) = (offset, data.first()) {
            let _ = self.lock().out.send(&[*byte]);
        }
    }

    /// Linux looks at a size only when it is told of a change.
    fn activate(&self, active: Activation) {
        let mut inner = self.lock();
        inner.active = Some(active);
        if inner.size != [0; 2] {
            inner.tell_size();
        }
    }

    fn queue_ready(&self, index: u16) {
        let mut inner = self.lock();
        match index {
            RECEIVE => inner.feed(),
            TRANSMIT => inner.transmit(),
            _ => {}
        }
    }

    fn input(&self, bytes: &[u8]) {
        self.push_input(bytes);
    }

    /// Input that waits stays: it was typed for whoever reads it.
    fn reset(&self) {
        self.lock().active = None;
    }

    fn pause(&self) {}

    fn resume(&self) {}

    fn save(&self) -> Option<SavedState> {
        let inner = self.lock();
        let fields = Fields {
            input: inner.input.iter().copied().collect(),
            size: inner.size,
        };
        Some(SavedState::new(NAME, VERSION, &fields))
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        let fields: Fields = saved.read(NAME, VERSION)?;
        if fields.input.len() > INPUT_LIMIT {
            return Err(SavedError::Damaged {
                kind: NAME,
                detail: format!("{} bytes of input wait", fields.input.len()),
            });
        }
        let mut inner = self.lock();
        inner.input = fields.input.into();
        inner.size = fields.size;
        Ok(())
    }
}
