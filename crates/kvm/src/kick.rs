//! Kicks by a signal that has no handler, or by a completion of io_uring (`vmlet_vcpu`'s `kick.rs`
//! has the proof).
//!
//! Invariant: the signal is blocked in every bound vCPU thread except inside `KVM_RUN`, so its
//! disposition, whatever the process made of it, never applies to our kicks. A kicker knows a vCPU's
//! `kvm_run` page only while the vCPU is bound; who drops the vCPU unbinds it first.

#![expect(
    unsafe_code,
    reason = "signal masks, tgkill, and a byte of the kvm_run page"
)]

mod completion;

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

use crate::ext::{ImmediateExit, RunPage};
use completion::Completion;

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
pub(crate) struct VcpuKicker {
    target: Mutex<Target>,
    /// A kick that no run has ended for yet. While it waits, it has been sent, is about to be, or
    /// waits for a thread, and stands for all later kicks: so a vCPU queues at most one signal,
    /// however often it is kicked while it does not run, and the user's allowance of queued signals
    /// (`RLIMIT_SIGPENDING`) is not used up.
    waits: AtomicBool,
}

/// What makes the thread that runs the vCPU return.
#[derive(Debug, Default)]
enum Target {
    #[default]
    Nobody,
    /// A signal to this thread, which takes it inside `KVM_RUN` only.
    Signal(pid_t),
    Completion(Box<Interruption>),
}

/// For a thread that no signal interrupts. An interruption ends the `KVM_RUN` that it comes in; one
/// that comes outside is over before the next, which `exit` is for.
#[derive(Debug)]
struct Interruption {
    completion: Completion,
    exit: ImmediateExit,
    /// Both have been used and not been reset.
    sent: bool,
}

impl Interruption {
    fn send(&mut self) {
        if !self.sent {
            self.sent = true;
            self.exit.set(true);
            self.completion.interrupt();
        }
    }

    fn reset(&mut self) -> io::Result<()> {
        if self.sent {
            self.sent = false;
            self.exit.set(false);
            self.completion.rearm()?;
        }
        Ok(())
    }
}

impl Kicker for VcpuKicker {
    fn kick(&self) {
        if self.waits.swap(true, Ordering::SeqCst) {
            return;
        }
        self.target().send();
    }
}

impl Target {
    fn send(&mut self) {
        match self {
            Target::Nobody => {}
            Target::Signal(tid) => send(*tid),
            Target::Completion(interruption) => interruption.send(),
        }
    }
}

/// No kick can interrupt `KVM_RUN` by a completion any more: the vCPU needs the mask for signals.
#[derive(Debug)]
pub(crate) struct NeedsMask;

impl VcpuKicker {
    fn target(&self) -> MutexGuard<'_, Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes ready for the next kick, on the thread that runs the vCPU and after what a run ended
    /// by; [`VcpuKicker::consume`] follows.
    pub(crate) fn settle(&self) -> Result<(), NeedsMask> {
        let mut target = self.target();
        match &mut *target {
            Target::Completion(interruption) => interruption.reset().map_err(|error| {
                log_fallback(&error);
                *target = Target::Signal(this_thread());
                NeedsMask
            }),
            Target::Signal(_) | Target::Nobody => {
                drain();
                Ok(())
            }
        }
    }

    /// Takes the kick that ended a run of the calling thread, if one did.
    ///
    /// A kick between `settle` and this sends nothing and needs to send nothing: this run has ended,
    /// and the exchange makes what the kicker published before visible to who reads it next. A
    /// kick after the exchange sends anew.
    pub(crate) fn consume(&self) -> bool {
        self.waits.swap(false, Ordering::SeqCst)
    }

    /// Kicks go to the calling thread from now on, by signals.
    pub(crate) fn bind(&self) -> Bound {
        let old = block_all();
        let mut target = self.target();
        *target = Target::Signal(this_thread());
        if self.waits.load(Ordering::SeqCst) {
            target.send();
        }
        Bound { old }
    }

    /// Kicks of the vCPU with this page come by completions from now on, where the host permits it,
    /// and it needs no mask for signals. On the thread that it is bound to.
    pub(crate) fn by_completion(&self, page: &RunPage) -> bool {
        let Ok(completion) = Completion::of_this_thread().inspect_err(log_fallback) else {
            return false;
        };
        let mut target = self.target();
        drain();
        *target = Target::Completion(Box::new(Interruption {
            completion,
            // SAFETY: the vCPU is unbound before its descriptor is dropped.
            exit: unsafe { page.immediate_exit() },
            sent: false,
        }));
        if self.waits.load(Ordering::SeqCst) {
            target.send();
        }
        true
    }

    /// Sets the page's `immediate_exit`, by which the calling thread has had an access completed, to
    /// what kicks need.
    pub(crate) fn restore_exit(&self, page: &RunPage) {
        let target = self.target();
        let sent = matches!(&*target, Target::Completion(interruption) if interruption.sent);
        page.set_immediate_exit(sent);
    }

    /// The thread is on its way out and its vCPU is dropped elsewhere: kicks go nowhere.
    pub(crate) fn forget_thread(&self) {
        *self.target() = Target::Nobody;
    }

    /// Kicks go nowhere from now on: the lock makes sure that none is under way.
    pub(crate) fn unbind(&self, bound: &Bound) {
        *self.target() = Target::Nobody;
        if self.waits.load(Ordering::SeqCst) {
            drain();
            self.consume();
        }
        // SAFETY: restores a mask that the kernel gave.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const bound.old, ptr::null_mut()) };
    }
}

fn log_fallback(error: &io::Error) {
    log::info!(target: "vmlet.kvm", "no io_uring ({error}): an exit costs two changes of the signal mask more");
}

fn this_thread() -> pid_t {
    // SAFETY: plain system call.
    unsafe { libc::gettid() }
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
        let kicker = VcpuKicker::default();
        let bound = kicker.bind();
        (0..100_000).for_each(|_| kicker.kick());
        assert_eq!(pending(), 1);
        kicker.unbind(&bound);
    }

    #[test]
    fn a_kick_before_there_is_a_thread_reaches_it() {
        let kicker = VcpuKicker::default();
        kicker.kick();
        let bound = kicker.bind();
        assert_eq!(pending(), 1);
        kicker.unbind(&bound);
    }

    #[test]
    fn a_kick_after_one_was_taken_sends_again() {
        let kicker = VcpuKicker::default();
        let bound = kicker.bind();
        kicker.kick();
        kicker.settle().unwrap();
        assert!(kicker.consume() && !kicker.consume());
        assert_eq!(pending(), 0);
        kicker.kick();
        assert_eq!(pending(), 1);
        kicker.unbind(&bound);
    }

    #[test]
    fn unbinding_leaves_no_signal_and_the_old_mask() {
        let kicker = VcpuKicker::default();
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
