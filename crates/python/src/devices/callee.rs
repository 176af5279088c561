//! An object of Python whose methods are called for a guest.

use std::{
    cell::Cell,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::PyBytes,
};
use vmlet_bus::{AccessContext, Flow, SavedError, SavedState, StopRequest};
use vmlet_machine::RunHandle;

use super::{
    current,
    method::plain_number,
    set::{Failure, Failures},
    ticks::{self, Ticks},
    turn::Turn,
};
use crate::{finalization, interpreter};

/// Bytes that one call of Python gets.
pub(super) const WORD: usize = 8;
/// Saved state of devices written in Python.
const KIND: &str = "python";
const VERSION: u16 = 1;

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

/// How often, and how long in all.
#[derive(Debug, Default)]
pub(super) struct Cost {
    pub(super) count: AtomicU64,
    pub(super) ticks: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, more: u64) {
    let now = counter.load(Ordering::Relaxed).wrapping_add(more);
    counter.store(now, Ordering::Relaxed);
}

impl Cost {
    pub(super) fn add(&self, begun: Ticks) {
        add(&self.count, 1);
        add(&self.ticks, begun.elapsed());
    }
}

/// The object, and how it is called.
#[derive(Debug)]
pub(super) struct Callee {
    pub(super) name: &'static str,
    pub(super) object: Py<PyAny>,
    pub(super) failures: Arc<Failures>,
    pub(super) turn: Turn,
    pub(super) costs: Costs,
    /// The run of guest code, once it is on a board.
    pub(super) run: OnceLock<RunHandle>,
    /// The number of the thread that is in a callback, 0 for none.
    caller: AtomicU64,
}

impl Callee {
    pub(super) fn new(
        name: &'static str,
        object: &Bound<'_, PyAny>,
        failures: &Arc<Failures>,
    ) -> Callee {
        ticks::begin();
        Callee {
            name,
            object: object.clone().unbind(),
            failures: Arc::clone(failures),
            turn: Turn::default(),
            costs: Costs::default(),
            run: OnceLock::new(),
            caller: AtomicU64::new(0),
        }
    }

    /// Raises `SystemExit` in the callback that runs.
    pub(super) fn interrupt(&self, py: Python<'_>) {
        let caller = self.caller.load(Ordering::Relaxed);
        if caller != 0 {
            interpreter::end_thread(py, caller);
        }
    }

    /// Calls `call` as the callback of that name; `cx` is the access that waits for it. An exception
    /// is kept, and given as the end of the run.
    pub(super) fn callback(
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
                    device: self.object.clone_ref(py),
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

    /// Ends the run, where what `flow` says has no access to say it.
    pub(super) fn end_by(&self, flow: Flow) {
        if let (Flow::Stop(StopRequest::Fault { detail }), Some(run)) = (flow, self.run.get()) {
            run.fail(detail);
        }
    }

    /// Answers a read by calls of `call` with offset and number of bytes.
    pub(super) fn read<'py>(
        &self,
        py: Python<'py>,
        cx: &dyn AccessContext,
        offset: u64,
        data: &mut [u8],
        call: impl Fn(u64, u64) -> PyResult<Bound<'py, PyAny>>,
    ) -> Flow {
        self.callback(py, "read", Some(cx), || {
            for (index, word) in (0u64..).zip(data.chunks_mut(WORD)) {
                let value = call(offset + index * WORD as u64, word.len() as u64)?;
                store(&value, word)?;
            }
            Ok(())
        })
    }

    /// The object's state.
    pub(super) fn save(&self, save: &Py<PyAny>) -> Option<SavedState> {
        let state = self.hook("save", |py| {
            let given = save.call0(py)?;
            let given = given.bind(py);
            let bytes = given.cast::<PyBytes>().map_err(|_| {
                PyTypeError::new_err(format!("save gives bytes, and this one gave {given:?}"))
            })?;
            Ok(bytes.as_bytes().to_vec())
        })?;
        Some(SavedState::new(KIND, VERSION, &(self.name, state)))
    }

    /// Gives the object a state.
    pub(super) fn restore(
        &self,
        restore: &Py<PyAny>,
        saved: &SavedState,
    ) -> Result<(), SavedError> {
        let (name, state): (String, Vec<u8>) = saved.read(KIND, VERSION)?;
        let damaged = |detail| SavedError::Damaged { kind: KIND, detail };
        if name != self.name {
            let detail = format!("it is of {name}, and {} is there", self.name);
            return Err(damaged(detail));
        }
        let done = self.hook("restore", |py| {
            restore.call1(py, (PyBytes::new(py, &state),)).map(drop)
        });
        done.ok_or_else(|| damaged(format!("{}.restore raised", self.name)))
    }

    /// A hook of the object outside of an access: `None` when the device is closed.
    pub(super) fn hook<T>(
        &self,
        callback: &'static str,
        call: impl FnOnce(Python<'_>) -> PyResult<T>,
    ) -> Option<T> {
        let _turn = self.turn.take()?;
        finalization::attach(|py| {
            let mut found = None;
            let flow = self.callback(py, callback, None, || {
                found = Some(call(py)?);
                Ok(())
            });
            if found.is_none() && !matches!(callback, "save" | "restore") {
                self.end_by(flow);
            }
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
pub(super) fn number(bytes: &[u8]) -> u64 {
    let first = bytes.iter().take(WORD).rev();
    first.fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The words of `data`, each with its offset and its number of bytes.
pub(super) fn words(offset: u64, data: &[u8]) -> impl Iterator<Item = (u64, u64, usize)> {
    let offsets = (0u64..).map(move |index| offset + index * WORD as u64);
    offsets
        .zip(data.chunks(WORD))
        .map(|(offset, word)| (offset, number(word), word.len()))
}

/// What a read gives that nobody answers. Not by `fill`, which is a call of the C library, where the
/// page that it is on has to be looked up again after each exit.
pub(super) fn float(data: &mut [u8]) {
    for word in data.chunks_mut(WORD) {
        let ones = [0xff; WORD];
        match word.len() {
            1 => word.copy_from_slice(&ones[..1]),
            2 => word.copy_from_slice(&ones[..2]),
            4 => word.copy_from_slice(&ones[..4]),
            _ => word.fill(0xff),
        }
    }
}

/// Puts what a read gave into `data`.
pub(super) fn store(value: &Bound<'_, PyAny>, data: &mut [u8]) -> PyResult<()> {
    let size = data.len();
    let most = u64::MAX >> (64 - 8 * size.clamp(1, WORD));
    let given = plain_number(value).map_or_else(|| value.extract::<u64>(), Ok);
    let number = match given {
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
