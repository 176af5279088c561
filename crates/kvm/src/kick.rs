//! Kicks by a signal that has no handler (`vmlet_vcpu`'s `kick.rs` has the proof).
//!
//! Invariant: the signal is blocked in every bound vCPU thread except inside `KVM_RUN`, so its
//! disposition, whatever the process made of it, never applies to our kicks.

#![expect(unsafe_code, reason = "signal masks and tgkill")]

use std::{
    mem::MaybeUninit,
    ptr,
    sync::{Mutex, PoisonError},
};

use libc::{c_int, pid_t, sigset_t};
use vmlet_vcpu::Kicker;

/// The kick is signal `SIGRTMIN` plus this. Other users of the signal in the process are not
/// disturbed: kicks go to vCPU threads only.
pub const KICK_SIGNAL_OFFSET: c_int = 5;

fn kick_signal() -> c_int {
    libc::SIGRTMIN() + KICK_SIGNAL_OFFSET
}

/// The signals blocked inside `KVM_RUN`: all but the kick.
pub(crate) fn mask_while_running() -> u64 {
    !(1u64 << (kick_signal() - 1))
}

/// Where kicks of one vCPU go.
#[derive(Debug, Default)]
pub(crate) struct SignalKicker {
    thread: Mutex<Target>,
}

#[derive(Debug, Default)]
struct Target {
    tid: Option<pid_t>,
    /// A kick that came before there was a thread.
    early: bool,
}

impl Kicker for SignalKicker {
    fn kick(&self) {
        let mut target = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        match target.tid {
            Some(tid) => send(tid),
            None => target.early = true,
        }
    }
}

impl SignalKicker {
    /// Kicks go to the calling thread from now on.
    pub(crate) fn bind(&self) -> Bound {
        let old = block_all();
        // SAFETY: plain system call.
        let tid = unsafe { libc::gettid() };
        let mut target = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        target.tid = Some(tid);
        if std::mem::take(&mut target.early) {
            send(tid);
        }
        Bound { old }
    }

    /// Kicks go nowhere from now on: the lock makes sure that none is under way.
    pub(crate) fn unbind(&self, bound: &Bound) {
        self.thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .tid = None;
        consume();
        // SAFETY: restores a mask that the kernel gave.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const bound.old, ptr::null_mut()) };
    }
}

/// The signal mask a thread had before it was bound.
pub(crate) struct Bound {
    old: sigset_t,
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bound")
    }
}

fn send(tid: pid_t) {
    // SAFETY: the thread is alive: it unbinds, under the lock held here, before it ends.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, kick_signal()) };
}

/// Takes the pending kicks of the calling thread.
pub(crate) fn consume() {
    let mut set = MaybeUninit::<sigset_t>::uninit();
    let now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the set is initialised by sigemptyset; the signal is blocked in this thread.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), kick_signal());
        while libc::sigtimedwait(set.as_ptr(), ptr::null_mut(), &raw const now) > 0 {}
    }
}

fn block_all() -> sigset_t {
    let (mut all, mut old) = (
        MaybeUninit::<sigset_t>::uninit(),
        MaybeUninit::<sigset_t>::uninit(),
    );
    // SAFETY: both sets are written before they are read.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::sigemptyset(old.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), old.as_mut_ptr());
        old.assume_init()
    }
}
