//! Records of the crates on their way to Python's `logging`.
//!
//! Whoever logs puts a record into a bounded queue and never waits for the interpreter; a thread of
//! Python's (`vmlet/logs.py`) takes them out. Below the level that Python has set, a record costs
//! one comparison.

use std::{
    cell::RefCell,
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use log::{Level, LevelFilter, Log, Metadata};
use pyo3::prelude::*;

use crate::finalization;

/// Records kept until Python has time for them.
const KEPT: usize = 4096;

/// Logger, level by Python's number, seconds since 1970, text.
type Record = (String, u8, f64, String);

#[derive(Default)]
struct Records {
    waiting: VecDeque<Record>,
    dropped: u64,
}

struct Queue {
    records: Mutex<Records>,
    more: Condvar,
}

static QUEUE: Queue = Queue {
    records: Mutex::new(Records {
        waiting: VecDeque::new(),
        dropped: 0,
    }),
    more: Condvar::new(),
};

thread_local! {
    /// Holds the queue while this thread forks, so that no other thread has it in the child.
    static HELD: RefCell<Option<MutexGuard<'static, Records>>> = const { RefCell::new(None) };
}

fn lock() -> MutexGuard<'static, Records> {
    QUEUE.records.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(level: Level) -> u8 {
    match level {
        Level::Error => 40,
        Level::Warn => 30,
        Level::Info => 20,
        Level::Debug | Level::Trace => 10,
    }
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0.0, |time| time.as_secs_f64())
}

impl Log for Queue {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level() && metadata.target().starts_with("vmlet")
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let target = record.target().replace("::", ".");
        let one = (
            target,
            number(record.level()),
            now(),
            record.args().to_string(),
        );
        let mut records = lock();
        if records.waiting.len() == KEPT {
            records.dropped += 1;
        } else {
            records.waiting.push_back(one);
        }
        drop(records);
        self.more.notify_one();
    }

    fn flush(&self) {}
}

/// Records from this level on are kept for Python: 10 debug, 20 info, 30 warnings; above none.
#[pyfunction]
pub(crate) fn log_level(level: u8) {
    log::set_max_level(match level {
        0..=10 => LevelFilter::Debug,
        11..=20 => LevelFilter::Info,
        21..=30 => LevelFilter::Warn,
        _ => LevelFilter::Off,
    });
}

/// Waits until a record is there.
#[pyfunction]
pub(crate) fn wait_for_logs(py: Python<'_>) {
    finalization::detach(py, || {
        let waited = QUEUE.more.wait_while(lock(), |r| r.waiting.is_empty());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    });
}

/// The records that wait, oldest first, and how many were dropped since the last call.
#[pyfunction]
pub(crate) fn take_logs() -> (Vec<Record>, u64) {
    let mut records = lock();
    let dropped = std::mem::take(&mut records.dropped);
    (records.waiting.drain(..).collect(), dropped)
}

#[pyfunction]
fn hold() {
    HELD.set(Some(lock()));
}

#[pyfunction]
fn release() {
    HELD.set(None);
}

/// What was not told before the fork is the parent's to tell.
#[pyfunction]
fn forked() {
    if let Some(mut records) = HELD.take() {
        *records = Records::default();
    }
}

/// Has the crates log here.
pub(crate) fn install(py: Python<'_>) -> PyResult<()> {
    // Another logger in this process can only be one of this module's, loaded again.
    let _ = log::set_logger(&QUEUE);
    let hooks = pyo3::types::PyDict::new(py);
    hooks.set_item("before", wrap_pyfunction!(hold, py)?)?;
    hooks.set_item("after_in_parent", wrap_pyfunction!(release, py)?)?;
    hooks.set_item("after_in_child", wrap_pyfunction!(forked, py)?)?;
    py.import("os")?
        .call_method("register_at_fork", (), Some(&hooks))?;
    Ok(())
}
