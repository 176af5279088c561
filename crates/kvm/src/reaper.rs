//! Closes VMs off the caller's thread.
//!
//! The kernel frees a VM when its last descriptor closes, and waits for grace periods on the way:
//! up to 20 ms. Callers hand their descriptors over instead. A bounded queue slows down whoever
//! makes VMs faster than the kernel can free them.

use std::{
    any::Any,
    sync::mpsc::{SyncSender, sync_channel},
};

use vmlet_memory::fork::PerProcess;

/// VMs that may wait for their end before a caller has to.
const QUEUE: usize = 512;

enum Work {
    Drop(Box<dyn Any + Send>),
    Report(SyncSender<()>),
}

/// A child has no thread behind the parent's queue, and must not wait for a lock that one of the
/// parent's threads held.
static REAPER: PerProcess<SyncSender<Work>> = PerProcess::new();

/// Drops `what` on the reaper's thread; in place if no thread can be had.
pub(crate) fn bury(what: Box<dyn Any + Send>) {
    if let Some(queue) = queue() {
        // A failed send gives `what` back and drops it here.
        let _ = queue.send(Work::Drop(what));
    }
}

/// Returns when everything handed over so far is gone from the kernel.
pub fn drain() {
    let (done, gone) = sync_channel(1);
    if queue().is_some_and(|queue| queue.send(Work::Report(done)).is_ok()) {
        let _ = gone.recv();
    }
}

fn queue() -> Option<SyncSender<Work>> {
    REAPER.get_or_make(start).cloned()
}

fn start() -> Option<SyncSender<Work>> {
    let (sender, receiver) = sync_channel::<Work>(QUEUE);
    let body = move || {
        for work in receiver {
            match work {
                Work::Drop(what) => drop(what),
                Work::Report(done) => drop(done.send(())),
            }
        }
    };
    std::thread::Builder::new()
        .name("vmlet-reaper".into())
        .spawn(body)
        .ok()?;
    Some(sender)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    struct Counted(Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn after_a_drain_all_that_was_handed_over_is_gone() {
        let gone = Arc::new(AtomicUsize::new(0));
        // More than the queue holds.
        (0..2 * QUEUE).for_each(|_| bury(Box::new(Counted(Arc::clone(&gone)))));
        drain();
        assert_eq!(gone.load(Ordering::SeqCst), 2 * QUEUE);
    }

    #[test]
    fn the_callers_thread_drops_nothing() {
        struct Where(std::sync::mpsc::Sender<std::thread::ThreadId>);
        impl Drop for Where {
            fn drop(&mut self) {
                let _ = self.0.send(std::thread::current().id());
            }
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        bury(Box::new(Where(sender)));
        assert_ne!(receiver.recv().unwrap(), std::thread::current().id());
    }
}
