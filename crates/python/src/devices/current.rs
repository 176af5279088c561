//! The callbacks that a thread is in, innermost last.
//!
//! Invariant: a frame's pointer comes from a reference that the frame's guard borrows, and the guard
//! removes the frame when it is dropped; guards are dropped in the order opposite to their making,
//! as they live in this module's callers' scopes only. A frame is seen by its own thread alone.

#![expect(
    unsafe_code,
    reason = "lends the access to the calls that its callback makes"
)]

use std::{cell::RefCell, marker::PhantomData, ptr::NonNull};

use vmlet_bus::AccessContext;
use vmlet_machine::{Regs, registers_at};

struct Frame {
    /// The VM's set of devices.
    set: u64,
    /// The device and the callback, for messages.
    device: &'static str,
    callback: &'static str,
    /// The access that waits for the callback.
    access: Option<NonNull<dyn AccessContext>>,
}

thread_local! {
    static FRAMES: RefCell<Vec<Frame>> = const { RefCell::new(Vec::new()) };
}

/// The thread is in a callback as long as this lives.
pub(super) struct Guard<'a>(PhantomData<&'a dyn AccessContext>);

/// The thread is in `callback` of `device`, one of `set`, which an access waits for or none.
pub(super) fn enter<'a>(
    set: u64,
    device: &'static str,
    callback: &'static str,
    access: Option<&'a dyn AccessContext>,
) -> Guard<'a> {
    let access = access.map(|access| {
        let pointer: NonNull<dyn AccessContext + 'a> = NonNull::from(access);
        // SAFETY: changes the lifetime only; the guard ends the loan before the reference does.
        unsafe {
            std::mem::transmute::<
                NonNull<dyn AccessContext + 'a>,
                NonNull<dyn AccessContext + 'static>,
            >(pointer)
        }
    });
    FRAMES.with_borrow_mut(|frames| {
        frames.push(Frame {
            set,
            device,
            callback,
            access,
        });
    });
    Guard(PhantomData)
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        FRAMES.with_borrow_mut(|frames| {
            frames.pop();
        });
    }
}

/// The innermost callback of a device of `set` that the thread is in: "Device.callback".
pub(super) fn of(set: u64) -> Option<String> {
    FRAMES.with_borrow(|frames| {
        let found = frames.iter().rev().find(|frame| frame.set == set);
        found.map(|frame| format!("{}.{}", frame.device, frame.callback))
    })
}

fn with_access<T>(set: u64, ask: impl FnOnce(&dyn AccessContext) -> T) -> Option<T> {
    let access = FRAMES.with_borrow(|frames| {
        let innermost = frames.iter().rev().find(|frame| frame.set == set);
        innermost.and_then(|frame| frame.access)
    })?;
    // SAFETY: the frame is there, so its guard lives and with it the reference; this thread is the
    // one that the access waits on, and nothing in `ask` leaves the callback.
    Some(ask(unsafe { access.as_ref() }))
}

/// The vCPU whose access waits for the callback that the thread is in.
pub(super) fn vcpu(set: u64) -> Option<u32> {
    with_access(set, |access| access.vcpu())
}

/// That vCPU's general registers.
pub(super) fn regs(set: u64) -> Option<Regs> {
    with_access(set, registers_at).flatten()
}
