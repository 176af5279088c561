//! Kicks: making a vCPU that runs guest code return to its thread.
//!
//! # Why no kick is lost
//!
//! A requester does two things in this order: it publishes its request (a message in the vCPU
//! thread's queue), then it kicks. The thread does, in a loop: (1) take every queued request;
//! (2) run. A request published before (1) is seen by (1). One published after (1) is followed by
//! a kick that happens after (1) too. The engine promises for such a kick that it is *sticky*: a
//! kick that arrives while the vCPU is not running makes the next `run` return at once.
//!
//! A thread that waits for requests needs no kick, which would cost the next run an empty entry:
//! so it says that it may be in guest code before (1), and a requester that does not find that
//! said kicks nothing. Of the two, one sees what the other did (`Sign` in `run.rs`).
//!
//! * `kvm`: the kick is a signal that is blocked in the vCPU's thread except inside `KVM_RUN`
//!   (`KVM_SET_SIGNAL_MASK`). Arriving outside it stays pending, and `KVM_RUN` returns `EINTR`
//!   before it enters the guest. No handler exists, so nothing process-wide is touched. Kicks that
//!   come while one is pending send nothing. The thread takes the signal first and then allows the
//!   next one, by an exchange between a run's return and (1): a kick before the exchange has its
//!   request seen by that (1), a kick after it sends.
//!   To a vCPU that exits often the kick is a completion of io_uring, which makes its thread leave
//!   `KVM_RUN` and needs no mask. One that comes outside is over before the next `KVM_RUN`; so the
//!   kicker sets the page's `immediate_exit` first, which makes that one return at once. Both are
//!   used and reset under one lock, and the exchange follows as above.
//! * `softcpu`: the kick is a flag that `run` looks at before each block and clears on its way
//!   out.
//!
//! So (2) returns in either case and (1) sees the request. A kick whose request an earlier (1)
//! has served makes one `run` return early; the loop then finds nothing to do and runs again.

use std::fmt::Debug;

/// Makes one vCPU return from `run`, from any thread.
pub trait Kicker: Send + Sync + Debug {
    /// Makes the running `run` return [`crate::RunEnd::Kicked`], or the next one if none runs.
    /// Does nothing once the vCPU's thread has ended.
    fn kick(&self);
}
