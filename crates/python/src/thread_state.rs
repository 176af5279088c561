//! Interpreter states that threads keep while they are detached: to attach by one's own takes half
//! as long as to have the interpreter look for it.
//!
//! Invariant: the state that a thread finds in `KEPT` is its own and not the current one, so that it
//! can be restored; it is there only while the state lives ([`Kept`]) and this thread is detached.

#![expect(unsafe_code, reason = "PyO3 attaches by PyGILState_Ensure only")]

use std::{cell::Cell, marker::PhantomData, ptr};

use pyo3::{ffi, prelude::*};

thread_local! {
    static KEPT: Cell<*mut ffi::PyThreadState> = const { Cell::new(ptr::null_mut()) };
}

/// Lends the calling thread's state to [`attach`] as long as this lives. From its making to its end
/// the thread detaches, and attaches by [`attach`] or with the state set [`aside`] only.
pub(crate) struct Kept(PhantomData<*mut ffi::PyThreadState>);

impl Kept {
    /// The state by which `py` is attached.
    pub(crate) fn of(_py: Python<'_>) -> Kept {
        // SAFETY: the thread is attached, so it has a state.
        KEPT.set(unsafe { ffi::PyThreadState_Get() });
        Kept(PhantomData)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        KEPT.set(ptr::null_mut());
    }
}

/// Keeps the thread's state from [`attach`] as long as this lives.
pub(crate) struct Aside(*mut ffi::PyThreadState);

/// The thread is about to attach in another way.
pub(crate) fn aside() -> Aside {
    Aside(KEPT.replace(ptr::null_mut()))
}

impl Drop for Aside {
    fn drop(&mut self) {
        KEPT.set(self.0);
    }
}

/// The thread is attached as long as this lives.
pub(crate) struct Attached(*mut ffi::PyThreadState);

/// Attaches by the state that the thread has kept; `None` if it has none, or is
/// within this or [`aside`].
pub(crate) fn attach() -> Option<Attached> {
    let state = KEPT.replace(ptr::null_mut());
    if state.is_null() {
        return None;
    }
    // SAFETY: the state is this thread's, lives, and is not the current one.
    unsafe { ffi::PyEval_RestoreThread(state) };
    Some(Attached(state))
}

impl Attached {
    /// The token of it.
    pub(crate) fn python(&self) -> Python<'_> {
        // SAFETY: the thread is attached, and stays so as long as `self` is borrowed.
        unsafe { Python::assume_attached() }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: the thread is attached, as whoever has detached it since has attached it again.
        unsafe { ffi::PyEval_SaveThread() };
        KEPT.set(self.0);
    }
}
