//! Frees VMs off the caller's thread.
//!
//! The kernel frees a VM when its last descriptor closes, and waits for grace periods on the way:
//! up to 20 ms. Callers hand over what holds descriptors instead. A bounded queue slows down whoever
//! makes VMs faster than the kernel can free them: the caller sees to one then.
//!
//! To wake a thread takes as long as all else in a close. So for a while after each VM the reaper
//! looks for the next by itself, and who closes one VM after the other wakes nobody.

use std::{
    any::Any,
    cell::Cell,
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use vmlet_memory::fork::PerProcess;

/// VMs that may wait for their end before a caller has to see to one.
const QUEUE: usize = 512;

/// How often the reaper looks for the next VM by itself, and how many times: 20 ms in all.
const LOOK: Duration = Duration::from_millis(1);
const LOOKS: u32 = 20;

type Remains = Box<dyn Any + Send>;

/// A child has no thread behind the parent's queue, and must not wait for a lock that one of the
/// parent's threads held.
static REAPER: PerProcess<Handle> = PerProcess::new();

thread_local! {
    /// What this thread buries goes in place.
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Remains>,
    /// Threads that drop something now.
    at_work: usize,
    /// Threads that wait for those.
    drains: usize,
    /// The reaper's thread sleeps until it is woken.
    asleep: bool,
    /// Nobody will bury anything any more.
    closed: bool,
}

#[derive(Debug, Default)]
struct Reaper {
    queue: Mutex<Queue>,
    buried: Condvar,
    done: Condvar,
}

/// The process' reaper; its thread ends when this is dropped.
#[derive(Debug)]
struct Handle(Arc<Reaper>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.buried.notify_one();
    }
}

impl Reaper {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the oldest remains on this thread; false when there are none.
    fn work(&self, mut queue: MutexGuard<'_, Queue>) -> bool {
        let Some(remains) = queue.waiting.pop_front() else {
            return false;
        };
        queue.at_work += 1;
        drop(queue);
        AT_WORK.set(true);
        drop(remains);
        AT_WORK.set(false);
        let mut queue = self.lock();
        queue.at_work -= 1;
        if queue.drains > 0 {
            self.done.notify_all();
        }
        true
    }

    fn bury(&self, what: Remains) {
        let mut queue = self.lock();
        queue.waiting.push_back(what);
        if queue.waiting.len() > QUEUE {
            self.work(queue);
        } else if queue.asleep {
            drop(queue);
            self.buried.notify_one();
        }
    }

    fn drain(&self) {
        let mut queue = self.lock();
        queue.drains += 1;
        if !queue.waiting.is_empty() {
            self.buried.notify_one();
        }
        while queue.at_work > 0 || !queue.waiting.is_empty() {
            queue = self
                .done
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        queue.drains -= 1;
    }

    /// What the reaper's thread does.
    fn live(&self) {
        while let Some(queue) = self.next() {
            self.work(queue);
        }
    }

    /// Waits until something is there; none when nothing will come.
    fn next(&self) -> Option<MutexGuard<'_, Queue>> {
        let mut queue = self.lock();
        let mut looks = 0;
        while queue.waiting.is_empty() {
            if queue.closed {
                return None;
            }
            queue.asleep = looks == LOOKS;
            queue = if queue.asleep {
                let woken = self.buried.wait(queue);
                woken.unwrap_or_else(PoisonError::into_inner)
            } else {
                looks += 1;
                let looked = self.buried.wait_timeout(queue, LOOK);
                looked.unwrap_or_else(PoisonError::into_inner).0
            };
        }
        queue.asleep = false;
        Some(queue)
    }
}

/// Drops `what` on the reaper's thread; in place if no thread can be had.
pub fn bury(what: Remains) {
    match reaper() {
        Some(reaper) if !AT_WORK.get() => reaper.bury(what),
        _ => drop(what),
    }
}

/// Drops `what` on the calling thread, with all that it buries, and returns when that and everything
/// handed over so far is gone from the kernel: who waits anyway is spared two changes of threads.
pub fn bury_here(what: Remains) {
    let before = AT_WORK.replace(true);
    drop(what);
    AT_WORK.set(before);
    drain();
}

/// Returns when everything handed over so far is gone from the kernel.
pub fn drain() {
    if let Some(reaper) = reaper().filter(|_| !AT_WORK.get()) {
        reaper.drain();
    }
}

fn reaper() -> Option<&'static Reaper> {
    REAPER.get_or_make(start).map(|handle| &*handle.0)
}

fn start() -> Option<Handle> {
    let reaper = Arc::<Reaper>::default();
    let worker = Arc::clone(&reaper);
    std::thread::Builder::new()
        .name("vmlet-reaper".into())
        .spawn(move || worker.live())
        .ok()?;
    Some(Handle(reaper))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            atomic::{AtomicUsize, Ordering},
            mpsc::{Receiver, Sender, channel},
        },
        thread::{self, ThreadId},
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
        let (reaper, gone) = (start().unwrap(), Arc::new(AtomicUsize::new(0)));
        // More than the queue holds.
        (0..2 * QUEUE).for_each(|_| reaper.0.bury(Box::new(Counted(Arc::clone(&gone)))));
        reaper.0.drain();
        assert_eq!(gone.load(Ordering::SeqCst), 2 * QUEUE);
    }

    #[test]
    fn whether_it_sleeps_or_looks_by_itself_all_is_gone_soon() {
        let (reaper, (sender, receiver)) = (start().unwrap(), channel());
        for pause in [0, 5, 100, 0, 40].map(Duration::from_millis) {
            thread::sleep(pause);
            reaper.0.bury(Box::new(Where(sender.clone())));
            receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        while !reaper.0.lock().asleep {
            thread::yield_now();
        }
    }

    struct Where(Sender<ThreadId>);

    impl Drop for Where {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().id());
        }
    }

    #[test]
    fn the_callers_thread_drops_nothing() {
        let (sender, receiver) = channel();
        start().unwrap().0.bury(Box::new(Where(sender)));
        assert_ne!(receiver.recv().unwrap(), thread::current().id());
    }

    #[test]
    fn what_remains_bury_goes_with_them() {
        struct Outer(Sender<ThreadId>);
        impl Drop for Outer {
            fn drop(&mut self) {
                bury(Box::new(Where(self.0.clone())));
                let _ = self.0.send(thread::current().id());
                // Does not wait for itself.
                drain();
            }
        }
        let (sender, receiver) = channel();
        let reaper = start().unwrap();
        reaper.0.bury(Box::new(Outer(sender)));
        reaper.0.drain();
        let (inner, outer) = (receiver.recv().unwrap(), receiver.recv().unwrap());
        assert_eq!(inner, outer);
    }

    #[test]
    fn a_drain_waits_for_what_another_thread_drops() {
        struct Slow(Receiver<()>, Arc<AtomicUsize>);
        impl Drop for Slow {
            fn drop(&mut self) {
                let _ = self.0.recv();
                self.1.fetch_add(1, Ordering::SeqCst);
            }
        }
        let (reaper, gone) = (start().unwrap(), Arc::new(AtomicUsize::new(0)));
        let (go, waits) = channel();
        reaper.0.bury(Box::new(Slow(waits, Arc::clone(&gone))));
        while reaper.0.lock().at_work == 0 {
            thread::yield_now();
        }
        let freer = thread::spawn(move || go.send(()));
        reaper.0.drain();
        assert_eq!(gone.load(Ordering::SeqCst), 1);
        freer.join().unwrap().unwrap();
    }
}
