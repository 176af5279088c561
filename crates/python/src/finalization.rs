//! The interpreter's end: a thread that comes back from a call by then does not attach again.
//!
//! CPython before 3.14 ends a daemon thread that attaches while the interpreter finalizes by
//! unwinding its stack, and ours may not be unwound that way. So the gate here is shut before
//! finalization begins, by `atexit`: whoever is not through by then sleeps until the process ends,
//! as CPython 3.14 itself has it.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use pyo3::prelude::*;

use crate::thread_state::{self, Kept};

/// Threads on their way through the gate.
static ATTACHING: AtomicUsize = AtomicUsize::new(0);
/// The thread that ends the interpreter: set when the gate is shut.
static ENDING: OnceLock<ThreadId> = OnceLock::new();
/// A thread attaches as soon as the others let it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A thread that may attach.
struct Passage;

impl Passage {
    /// `None` on other threads once the interpreter is ending.
    fn find() -> Option<Passage> {
        // Either `shut` sees this count or this thread sees the gate shut.
        ATTACHING.fetch_add(1, Ordering::SeqCst);
        let passage = Passage;
        let ending = ENDING.get().is_some_and(|id| *id != thread::current().id());
        (!ending).then_some(passage)
    }

    fn enter() -> Passage {
        Passage::find().unwrap_or_else(|| sleep_on())
    }
}

/// What is left for a thread to do until the process ends.
fn sleep_on() -> ! {
    loop {
        thread::park();
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        ATTACHING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Runs `work` attached to the interpreter, on a thread that is detached from it or unknown to it.
/// Does not return once the interpreter is ending.
pub(crate) fn attach<T>(work: impl FnOnce(Python<'_>) -> T) -> T {
    let _aside = thread_state::aside();
    let passage = Passage::enter();
    Python::attach(|py| {
        drop(passage);
        work(py)
    })
}

/// The same for an access of a guest, which all of this takes as long as its callback: by the state
/// that the thread keeps. PyO3 does not know of it, so a `Py` that `work` drops lives on until
/// something else attaches: `work` drops none but where it fails.
pub(crate) fn attach_for_access<T>(work: impl FnOnce(Python<'_>) -> T) -> T {
    let passage = Passage::enter();
    let attached = thread_state::attach();
    drop(passage);
    match attached {
        Some(attached) => work(attached.python()),
        None => attach(work),
    }
}

/// Starts a thread that keeps its interpreter state as long as it lives: to attach takes a tenth of
/// a microsecond then, not four.
pub(crate) fn start_attached(name: String, body: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
    let life = move || {
        attach(|py| {
            let _kept = Kept::of(py);
            detach(py, body);
        });
    };
    thread::Builder::new().name(name).spawn(life).map(drop)
}

/// Runs `work` detached from the interpreter. Does not return once the interpreter is ending, but
/// on the thread that ends it.
pub(crate) fn detach<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> T {
    let (passage, result) = py.detach(|| {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        (Passage::enter(), result)
    });
    drop(passage);
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs `work`, which runs Python code or may detach, on a thread that is attached: the interpreter
/// does not end in the middle of it. Does not return once the interpreter is ending, but on the
/// thread that ends it.
pub(crate) fn undisturbed<T>(py: Python<'_>, work: impl FnOnce() -> T) -> T {
    let _passage = Passage::find().unwrap_or_else(|| py.detach(|| sleep_on()));
    work()
}

/// Shuts the gate and waits for those within it.
#[pyfunction]
fn shut(py: Python<'_>) {
    let _ = ENDING.set(thread::current().id());
    let deadline = Instant::now() + PATIENCE;
    py.detach(|| {
        while ATTACHING.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    });
}

/// A forked child has one thread, which is in no call.
#[pyfunction]
fn forked() {
    ATTACHING.store(0, Ordering::SeqCst);
}

/// Has the interpreter call this file when it ends and when it forks.
pub(crate) fn install(py: Python<'_>) -> PyResult<()> {
    let shut = wrap_pyfunction!(shut, py)?;
    py.import("atexit")?.call_method1("register", (shut,))?;
    let hooks = pyo3::types::PyDict::new(py);
    hooks.set_item("after_in_child", wrap_pyfunction!(forked, py)?)?;
    py.import("os")?
        .call_method("register_at_fork", (), Some(&hooks))?;
    Ok(())
}
