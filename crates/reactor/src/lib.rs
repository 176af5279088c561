//! Event loops: threads that wait for descriptors and call who asked for them.
//!
//! * `reactor.rs`: [`Reactor`], one thread with level-triggered epoll; [`Handler`].
//! * `registration.rs`: [`Registration`], a descriptor that is waited for; its end is final.
//! * `timer.rs`: [`Timer`], and the timerfd that wakes the thread for the earliest.
//! * `error.rs`: [`ReactorError`].
//!
//! A reactor's thread is started by its user's function, as vCPU threads are. Many VMs can share
//! one reactor: a handler must not block. In a forked child nothing is live: there is no thread,
//! descriptors are closed and every call is refused.

mod error;
mod reactor;
mod registration;
mod timer;

pub use error::ReactorError;
pub use reactor::{Handler, Interest, Reactor, Ready, Source, Spawner};
pub use registration::Registration;
pub use timer::Timer;
