//! An object of Python as a device of the board.

use std::{
    cell::Cell,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::PyBytes,
};
use vmlet_bus::{AccessContext, Device, Flow, SavedError, SavedState, StopRequest};
use vmlet_machine::{AttachedDevice, Link};

use super::{
    WriteBatch, current,
    ring::{Record, Ring},
    set::{Failure, Failures},
    turn::{Held, Turn},
};
use crate::{finalization, interpreter};

/// Bytes that one call of Python gets.
const WORD: usize = 8;
/// Saved state of devices written in Python.
const KIND: &str = "python";
const VERSION: u16 = 1;

/// The methods of the object, looked up once.
#[derive(Debug)]
pub(super) struct Methods {
    pub(super) object: Py<PyAny>,
    read: Py<PyAny>,
    write: Py<PyAny>,
    writes: Py<PyAny>,
    reset: Py<PyAny>,
    save: Py<PyAny>,
    restore: Py<PyAny>,
}

impl Methods {
    pub(super) fn of(object: &Bound<'_, PyAny>) -> PyResult<Methods> {
        let method = |name: &str| object.getattr(name).map(Bound::unbind);
        Ok(Methods {
            object: object.clone().unbind(),
            read: method("read")?,
            write: method("write")?,
            writes: method("writes")?,
            reset: method("reset")?,
            save: method("save")?,
            restore: method("restore")?,
        })
    }
}

/// What Python has cost. One thread at a time writes, the one with the turn.
#[derive(Debug, Default)]
pub(super) struct Costs {
    /// Accesses that a vCPU waited for, and how long.
    pub(super) calls: Cost,
    /// Batches of posted writes, and what they took.
    pub(super) batches: Cost,
    /// Posted writes that were in them.
    pub(super) writes: AtomicU64,
}

/// How often, and nanoseconds in all.
#[derive(Debug, Default)]
pub(super) struct Cost {
    pub(super) count: AtomicU64,
    pub(super) nanoseconds: AtomicU64,
}

fn add(counter: &AtomicU64, more: u64) {
    let now = counter.load(Ordering::Relaxed).wrapping_add(more);
    counter.store(now, Ordering::Relaxed);
}

impl Cost {
    fn add(&self, begun: Instant) {
        let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        add(&self.count, 1);
        add(&self.nanoseconds, took);
    }
}

/// A device written in Python.
#[derive(Debug)]
pub(crate) struct PythonDevice {
    name: &'static str,
    pub(super) methods: Methods,
    pub(super) failures: Arc<Failures>,
    pub(super) turn: Turn,
    /// Where writes are posted.
    pub(super) ring: Option<Arc<Ring>>,
    pub(super) link: OnceLock<Link>,
    /// The clock counts: nothing happens off the guest's thread.
    counted: AtomicBool,
    pub(super) costs: Costs,
    /// The number of the thread that is in a callback, 0 for none.
    caller: AtomicU64,
    itself: Weak<PythonDevice>,
}

impl PythonDevice {
    pub(super) fn new(
        name: &'static str,
        methods: Methods,
        failures: Arc<Failures>,
        posted: Option<(usize, Duration)>,
    ) -> Arc<PythonDevice> {
        Arc::new_cyclic(|itself| PythonDevice {
            name,
            methods,
            failures,
            turn: Turn::default(),
            ring: posted.map(|(room, delay)| Arc::new(Ring::new(room, delay))),
            link: OnceLock::new(),
            counted: AtomicBool::new(false),
            costs: Costs::default(),
            caller: AtomicU64::new(0),
            itself: Weak::clone(itself),
        })
    }

    /// Raises `SystemExit` in the callback that runs.
    pub(super) fn interrupt(&self, py: Python<'_>) {
        let caller = self.caller.load(Ordering::Relaxed);
        if caller != 0 {
            interpreter::end_thread(py, caller);
        }
    }

    /// No callback is made any more.
    pub(super) fn close(&self) {
        self.turn.close();
        if let Some(ring) = &self.ring {
            ring.close();
        }
    }

    /// Calls `call` as the callback of that name; `cx` is the access that waits for it. An exception
    /// is kept, and given as the end of the run.
    fn callback(
        &self,
        py: Python<'_>,
        callback: &'static str,
        cx: Option<&dyn AccessContext>,
        call: impl FnOnce() -> PyResult<()>,
    ) -> Flow {
        if self.failures.is_failed() {
            return Flow::Continue;
        }
        let guard = current::enter(self.failures.set, self.name, callback, cx);
        self.caller.store(thread_id(py), Ordering::Relaxed);
        let result = call();
        self.caller.store(0, Ordering::Relaxed);
        drop(guard);
        match result {
            Ok(()) => Flow::Continue,
            Err(error) => {
                let detail = format!("{}.{callback}: {error}", self.name);
                let failure = Failure {
                    device: self.methods.object.clone_ref(py),
                    callback,
                    error,
                };
                if matches!(callback, "save" | "restore") {
                    self.failures.keep_of_hook(failure);
                } else {
                    self.failures.keep(failure);
                }
                Flow::Stop(StopRequest::Fault { detail })
            }
        }
    }

    /// Delivers what is posted. With the turn.
    fn deliver(&self, py: Python<'_>, ring: &Ring) -> Flow {
        let begun = Instant::now();
        let records = ring.take();
        let count = records.len();
        if count == 0 {
            return Flow::Continue;
        }
        let flow = self.callback(py, "writes", None, || {
            let batch = Bound::new(py, WriteBatch::new(records))?;
            self.methods.writes.call1(py, (batch,)).map(drop)
        });
        self.costs.batches.add(begun);
        add(&self.costs.writes, count as u64);
        ring.finished(count);
        flow
    }

    /// The life of the thread that delivers.
    fn deliver_all(ring: &Ring, device: &Weak<PythonDevice>) {
        let mut quiet = u32::MAX;
        while ring.wait_for_work(&mut quiet) {
            let Some(device) = device.upgrade() else {
                return;
            };
            let Some(_turn) = device.turn.take() else {
                return;
            };
            if let Flow::Stop(StopRequest::Fault { detail }) =
                finalization::attach(|py| device.deliver(py, ring))
                && let Some(link) = device.link.get()
            {
                link.run.fail(detail);
            }
        }
    }

    fn post(&self, ring: &Ring, records: impl Iterator<Item = Record>) -> Flow {
        let full = ring.push(records);
        if !full && !self.counted.load(Ordering::Relaxed) {
            return Flow::Continue;
        }
        match self.turn.take() {
            Some(_turn) => finalization::attach(|py| self.deliver(py, ring)),
            None => Flow::Continue,
        }
    }

    fn write_each(
        &self,
        _turn: &Held<'_>,
        cx: &dyn AccessContext,
        begun: Instant,
        pieces: impl Iterator<Item = (u64, u64, usize)>,
    ) -> Flow {
        let flow = finalization::attach(|py| {
            self.callback(py, "write", Some(cx), || {
                for (offset, value, size) in pieces {
                    self.methods.write.call1(py, (offset, size, value))?;
                }
                Ok(())
            })
        });
        self.costs.calls.add(begun);
        flow
    }

    /// A hook of the object outside of an access: `None` when the device is closed.
    fn hook<T>(
        &self,
        callback: &'static str,
        call: impl FnOnce(Python<'_>) -> PyResult<T>,
    ) -> Option<T> {
        let _turn = self.turn.take()?;
        finalization::attach(|py| {
            let mut found = None;
            self.callback(py, callback, None, || {
                found = Some(call(py)?);
                Ok(())
            });
            found
        })
    }
}

/// The calling thread's number, asked for once a thread.
fn thread_id(py: Python<'_>) -> u64 {
    thread_local! {
        static ID: Cell<u64> = const { Cell::new(0) };
    }
    if ID.get() == 0 {
        ID.set(interpreter::thread_id(py).unwrap_or(0));
    }
    ID.get()
}

/// The number in `bytes`, little-endian.
fn number(bytes: &[u8]) -> u64 {
    let first = bytes.iter().take(WORD).rev();
    first.fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The words of `data`, each with its offset and its number of bytes.
fn words(offset: u64, data: &[u8]) -> impl Iterator<Item = (u64, u64, usize)> {
    let offsets = (0u64..).map(move |index| offset + index * WORD as u64);
    offsets
        .zip(data.chunks(WORD))
        .map(|(offset, word)| (offset, number(word), word.len()))
}

fn record(cx: &dyn AccessContext, (offset, value, size): (u64, u64, usize)) -> Record {
    Record {
        offset,
        value,
        size: u32::try_from(size).unwrap_or(0),
        vcpu: cx.vcpu(),
    }
}

/// Puts what a read gave into `data`.
fn store(value: &Bound<'_, PyAny>, data: &mut [u8]) -> PyResult<()> {
    let size = data.len();
    let most = u64::MAX >> (64 - 8 * size.clamp(1, WORD));
    let number = match value.extract::<u64>() {
        Ok(number) if number <= most => number,
        Err(error) if error.is_instance_of::<PyTypeError>(value.py()) => {
            let kind = value.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "a read gives an int, and this one gave {kind}"
            )));
        }
        _ => {
            return Err(PyValueError::new_err(format!(
                "a read of {size} bytes gives 0 to {most:#x}, and this one gave {}",
                value.repr()?
            )));
        }
    };
    data.iter_mut()
        .zip(number.to_le_bytes())
        .for_each(|(to, from)| *to = from);
    Ok(())
}

impl Device for PythonDevice {
    fn name(&self) -> &'static str {
        self.name
    }

    fn read(&self, cx: &dyn AccessContext, offset: u64, data: &mut [u8]) -> Flow {
        data.fill(0xff);
        let begun = Instant::now();
        let Some(_turn) = self.turn.take() else {
            return Flow::Continue;
        };
        let flow = finalization::attach(|py| {
            if let Some(ring) = &self.ring
                && let Flow::Stop(request) = self.deliver(py, ring)
            {
                return Flow::Stop(request);
            }
            self.callback(py, "read", Some(cx), || {
                for (index, word) in (0u64..).zip(data.chunks_mut(WORD)) {
                    let at = offset + index * WORD as u64;
                    let value = self.methods.read.call1(py, (at, word.len()))?;
                    store(value.bind(py), word)?;
                }
                Ok(())
            })
        });
        self.costs.calls.add(begun);
        flow
    }

    fn write(&self, cx: &dyn AccessContext, offset: u64, data: &[u8]) -> Flow {
        if let Some(ring) = &self.ring {
            return self.post(ring, words(offset, data).map(|word| record(cx, word)));
        }
        let begun = Instant::now();
        match self.turn.take() {
            Some(turn) => self.write_each(&turn, cx, begun, words(offset, data)),
            None => Flow::Continue,
        }
    }

    fn write_string(&self, cx: &dyn AccessContext, offset: u64, size: usize, data: &[u8]) -> Flow {
        let elements = data
            .chunks(size.max(1))
            .flat_map(|element| words(offset, element));
        if let Some(ring) = &self.ring {
            return self.post(ring, elements.map(|word| record(cx, word)));
        }
        let begun = Instant::now();
        match self.turn.take() {
            Some(turn) => self.write_each(&turn, cx, begun, elements),
            None => Flow::Continue,
        }
    }

    fn reset(&self) {
        self.hook("reset", |py| self.methods.reset.call0(py).map(drop));
    }

    fn save(&self) -> Option<SavedState> {
        let state = self.hook("save", |py| {
            let given = self.methods.save.call0(py)?;
            let given = given.bind(py);
            let bytes = given.cast::<PyBytes>().map_err(|_| {
                PyTypeError::new_err(format!("save gives bytes, and this one gave {given:?}"))
            })?;
            Ok(bytes.as_bytes().to_vec())
        })?;
        Some(SavedState::new(KIND, VERSION, &(self.name, state)))
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        let (name, state): (String, Vec<u8>) = saved.read(KIND, VERSION)?;
        let damaged = |detail| SavedError::Damaged { kind: KIND, detail };
        if name != self.name {
            let detail = format!("it is of {name}, and {} is there", self.name);
            return Err(damaged(detail));
        }
        let done = self.hook("restore", |py| {
            let bytes = PyBytes::new(py, &state);
            self.methods.restore.call1(py, (bytes,)).map(drop)
        });
        done.ok_or_else(|| damaged(format!("{}.restore raised", self.name)))
    }
}

impl AttachedDevice for PythonDevice {
    fn connect(&self, link: Link) {
        self.counted.store(link.counted, Ordering::Relaxed);
        let counted = link.counted;
        let _ = self.link.set(link);
        let Some(ring) = self.ring.as_ref().filter(|_| !counted) else {
            return;
        };
        let (ring, device) = (Arc::clone(ring), Weak::clone(&self.itself));
        let life = Box::new(move || PythonDevice::deliver_all(&ring, &device));
        if finalization::start_attached("vmlet-posted".to_owned(), life).is_err() {
            // Without the thread every write is delivered where it is made.
            self.counted.store(true, Ordering::Relaxed);
        }
    }
}
