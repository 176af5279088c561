//! What interrupts a thread in `KVM_RUN` without a signal.
//!
//! Linux has the thread that gave io_uring a request finish it: once there is something to finish,
//! it makes that thread leave the guest or its wait, as for a signal (`TWA_SIGNAL`). The request
//! here is to wait for an eventfd.
//!
//! Invariant: the request names a descriptor only and points to no memory.

#![expect(unsafe_code, reason = "entries of io_uring")]

use std::{io, os::fd::AsRawFd};

use io_uring::{IoUring, opcode, types};
use vmlet_memory::fork::{ParentOnly, Watch, watch_fd};
use vmm_sys_util::eventfd::EventFd;

/// An eventfd and the request of one thread that waits for it.
pub(super) struct Completion {
    ring: ParentOnly<IoUring>,
    event: ParentOnly<EventFd>,
    _watches: [Option<Watch>; 2],
}

impl std::fmt::Debug for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Completion").finish_non_exhaustive()
    }
}

impl Completion {
    /// One that interrupts the calling thread.
    ///
    /// Errors: what the host answers where io_uring is not permitted (`kernel.io_uring_disabled`,
    /// seccomp), and `Unsupported` before Linux 5.12, which finishes requests on threads of its own.
    pub(super) fn of_this_thread() -> io::Result<Completion> {
        let ring = IoUring::builder().dontfork().build(1)?;
        if !ring.params().is_feature_native_workers() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let mut made = Completion {
            _watches: [watch_fd(ring.as_raw_fd()), watch_fd(event.as_raw_fd())],
            ring: ParentOnly::new(ring),
            event: ParentOnly::new(event),
        };
        made.wait_for_event()?;
        Ok(made)
    }

    /// Interrupts the thread, once until [`Completion::rearm`].
    pub(super) fn interrupt(&self) {
        // It fails only where the event has been signalled 2^64 - 2 times.
        let _ = self.event.write(1);
    }

    /// After an interruption: takes what came by it, so that there can be the next. By the thread
    /// that is interrupted.
    pub(super) fn rearm(&mut self) -> io::Result<()> {
        while self.ring.completion().next().is_none() {
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        self.event.read()?;
        self.wait_for_event()
    }

    fn wait_for_event(&mut self) -> io::Result<()> {
        let event = types::Fd(self.event.as_raw_fd());
        let request = opcode::PollAdd::new(event, libc::POLLIN as u32).build();
        // SAFETY: the request points to no memory.
        unsafe { self.ring.submission().push(&request) }.map_err(io::Error::other)?;
        self.ring.submit().map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use std::{ptr, thread, time::Duration};

    use super::*;

    /// What a wait without end for nothing at all fails with.
    fn wait() -> Option<i32> {
        // SAFETY: no descriptors are waited for, and the one made is closed.
        unsafe {
            let set = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            libc::epoll_wait(set, ptr::from_mut(&mut event), 1, 10_000);
            let error = io::Error::last_os_error();
            libc::close(set);
            error.raw_os_error()
        }
    }

    /// One of this thread; without io_uring `test` is skipped by name.
    fn completion(test: &str) -> Option<Completion> {
        Completion::of_this_thread()
            .inspect_err(|error| println!("SKIPPED {test}: no io_uring: {error}"))
            .ok()
    }

    #[test]
    fn each_interruption_ends_one_wait_of_its_thread() {
        let Some(mut completion) = completion("each_interruption_ends_one_wait_of_its_thread")
        else {
            return;
        };
        for _ in 0..20 {
            thread::scope(|scope| {
                let completion = &completion;
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(2));
                    completion.interrupt();
                });
                assert_eq!(wait(), Some(libc::EINTR));
            });
            completion.rearm().unwrap();
        }
    }

    #[test]
    fn several_interruptions_are_one() {
        let Some(mut completion) = completion("several_interruptions_are_one") else {
            return;
        };
        for _ in 0..5 {
            (0..100).for_each(|_| completion.interrupt());
            completion.rearm().unwrap();
        }
    }
}
