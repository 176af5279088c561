//! Requests that are under way.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::spec::Status;

/// A request that the image has.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) queue: u16,
    pub(super) head: u16,
    /// Where the status byte goes.
    pub(super) status_at: u64,
    /// Bytes written before the status.
    pub(super) written: u32,
    /// Steps that are not done.
    pub(super) left: usize,
    pub(super) status: Status,
    pub(super) what: &'static str,
}

#[derive(Debug, Default)]
struct Table {
    requests: Vec<Option<Pending>>,
    free: Vec<usize>,
    /// Threads that wait until nothing is under way.
    waiting: usize,
}

impl Table {
    fn is_busy(&self) -> bool {
        self.free.len() < self.requests.len()
    }
}

/// All of them, by number.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    table: Mutex<Table>,
    none: Condvar,
}

impl UnderWay {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, request: Pending) -> u64 {
        let mut table = self.lock();
        let number = table.free.pop().unwrap_or_else(|| {
            table.requests.push(None);
            table.requests.len() - 1
        });
        if let Some(place) = table.requests.get_mut(number) {
            *place = Some(request);
        }
        number as u64
    }

    /// A step of request `token` is done: gives the request after the last one. It counts as under
    /// way until [`UnderWay::finish`].
    pub(super) fn step_done(&self, token: u64, failed: bool) -> Option<Pending> {
        let mut table = self.lock();
        let place = table.requests.get_mut(usize::try_from(token).ok()?)?;
        let request = place.as_mut()?;
        if failed {
            request.status = Status::IoErr;
            request.written = 0;
        }
        request.left = request.left.saturating_sub(1);
        if request.left == 0 {
            place.take()
        } else {
            None
        }
    }

    /// The driver has the answers to the requests `tokens`.
    pub(super) fn finish(&self, tokens: impl Iterator<Item = u64>) {
        let mut table = self.lock();
        let tokens = tokens.map(|token| usize::try_from(token).unwrap_or(0));
        table.free.extend(tokens);
        let told = table.waiting > 0 && !table.is_busy();
        drop(table);
        // A system call, even where nobody waits.
        if told {
            self.none.notify_all();
        }
    }

    /// Whether anything is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.lock().is_busy()
    }

    /// Waits until nothing is under way.
    pub(super) fn wait(&self) {
        let mut table = self.lock();
        table.waiting += 1;
        while table.is_busy() {
            table = self
                .none
                .wait(table)
                .unwrap_or_else(PoisonError::into_inner);
        }
        table.waiting -= 1;
    }
}
