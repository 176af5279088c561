//! Kicks by a signal that has no handler (`vmlet_vcpu`'s `kick.rs` has the proof).
//!
//! Invariant: the signal is blocked in every bound vCPU thread except inside `KVM_RUN`, so its
//! disposition, whatever the process made of it, never applies to our kicks.

#![expect(unsafe_code, reason = "signal masks and tgkill")]

use std::{
    io,
    mem::MaybeUninit,
    ptr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use libc::{c_int, pid_t, sigset_t};
use vmlet_vcpu::Kicker;

/// The kick is signal `SIGRTMIN` plus this. Other users of the signal in the process are not
/// disturbed: kicks go to vCPU threads only.
pub const KICK_SIGNAL_OFFSET: c_int = 5;

/// Pause between two attempts to queue a signal.
const RETRY: Duration = Duration::from_millis(1);

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
    /// The thread that runs the vCPU.
    thread: Mutex<Option<pid_t>>,
    /// A kick that no run has ended for yet. While it waits, its signal is pending in the thread,
    /// about to be sent, or waits for a thread, and stands for all later kicks: so a vCPU queues
    /// at most one signal, however often it is kicked while it does not run, and the user's
    /// allowance of queued signals (`RLIMIT_SIGPENDING`) is not used up.
    waits: AtomicBool,
}

impl Kicker for SignalKicker {
    fn kick(&self) {
        if self.waits.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Some(tid) = *self.thread() {
            send(tid);
        }
    }
}

impl SignalKicker {
    fn thread(&self) -> MutexGuard<'_, Option<pid_t>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the kick that ended a run of the calling thread, if one did.
    ///
    /// A kick between the two steps sends nothing and needs to send nothing: this run has ended,
    /// and the exchange makes what the kicker published before visible to who reads it next. A
    /// kick after the exchange sends a new signal.
    pub(crate) fn consume(&self) -> bool {
        drain();
        self.waits.swap(false, Ordering::SeqCst)
    }

    /// Kicks go to the calling thread from now on.
    pub(crate) fn bind(&self) -> Bound {
        let old = block_all();
        // SAFETY: plain system call.
        let tid = unsafe { libc::gettid() };
        let mut thread = self.thread();
        *thread = Some(tid);
        if self.waits.load(Ordering::SeqCst) {
            send(tid);
        }
        Bound { old }
    }

    /// The thread is on its way out and its vCPU is dropped elsewhere: kicks go nowhere.
    pub(crate) fn forget_thread(&self) {
        *self.thread() = None;
    }

    /// Kicks go nowhere from now on: the lock makes sure that none is under way.
    pub(crate) fn unbind(&self, bound: &Bound) {
        *self.thread() = None;
        if self.waits.load(Ordering::SeqCst) {
            self.consume();
        }
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

/// Queues the signal. The kernel refuses it only when the user's allowance of queued signals is
/// used up by others; then there is nothing to do but to wait, since a lost kick would hang who
/// waits for the vCPU.
fn send(tid: pid_t) {
    let refused = || {
        // SAFETY: the thread is alive: it unbinds, under the lock held by the caller, before it
        // ends.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, kick_signal()) };
        sent == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN)
    };
    while refused() {
        thread::sleep(RETRY);
    }
}

/// Takes the pending kick signals of the calling thread.
fn drain() {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Kick signals pending in the calling thread.
    fn pending() -> usize {
        let mut count = 0;
        let mut set = MaybeUninit::<sigset_t>::uninit();
        let now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: as in `drain`.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), kick_signal());
            while libc::sigtimedwait(set.as_ptr(), ptr::null_mut(), &raw const now) > 0 {
                count += 1;
            }
        }
        count
    }

    #[test]
    fn kicks_of_a_vcpu_that_does_not_run_queue_one_signal() {
        let kicker = SignalKicker::default();
        let bound = kicker.bind();
        (0..100_000).for_each(|_| kicker.kick());
        assert_eq!(pending(), 1);
        kicker.unbind(&bound);
    }

    #[test]
    fn a_kick_before_there_is_a_thread_reaches_it() {
        let kicker = SignalKicker::default();
        kicker.kick();
        let bound = kicker.bind();
        assert_eq!(pending(), 1);
        kicker.unbind(&bound);
    }

    #[test]
    fn a_kick_after_one_was_taken_sends_again() {
        let kicker = SignalKicker::default();
        let bound = kicker.bind();
        kicker.kick();
        assert!(kicker.consume() && !kicker.consume());
        assert_eq!(pending(), 0);
        kicker.kick();
        assert_eq!(pending(), 1);
        kicker.unbind(&bound);
    }

    #[test]
    fn unbinding_leaves_no_signal_and_the_old_mask() {
        let kicker = SignalKicker::default();
        let bound = kicker.bind();
        kicker.kick();
        kicker.unbind(&bound);
        assert_eq!(pending(), 0);
        let mut mask = MaybeUninit::<sigset_t>::uninit();
        // SAFETY: reads the mask.
        let blocked = unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr());
            libc::sigismember(mask.as_ptr(), kick_signal())
        };
        assert_eq!(blocked, 0);
    }
}
