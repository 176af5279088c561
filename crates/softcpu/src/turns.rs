//! Whose turn it is: one vCPU of a VM runs guest code at a time, in a fixed order.
//!
//! That makes locked instructions atomic for free and runs repeatable. Every vCPU has a thread, as
//! the engine contract wants it, but one of those threads runs them all: the others lend their
//! vCPUs to it and wait. Handing a turn from thread to thread would cost the host's scheduler tens
//! of microseconds, and guests that wait for each other do it millions of times.
//!
//! A change of the memory map waits until nobody has the turn.
//!
//! Invariant: an [`Entry`] stands in the table while the owner of its vCPU waits in
//! [`Turns::run`], which holds the only reference to it; one thread at a time, the one in
//! [`State::holder`], uses the pointer, and no entry is removed meanwhile but by its owner.

#![expect(unsafe_code, reason = "lends vCPUs to the thread that runs them all")]

use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr::NonNull,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, ThreadId},
};

use vmlet_vcpu::RunEnd;

mod counted;

use counted::{Calls, Order};

use crate::{
    clock::Clock,
    lapic::Apics,
    signal::{Bell, Signal},
    vcpu::SoftVcpu,
};

/// What a turn comes to.
#[derive(Debug)]
pub(crate) enum Turn {
    /// The vCPU's run has ended.
    End(RunEnd),
    /// Others may go first.
    Over,
    /// Something that is not the guest's wants a look; the turn goes on afterwards.
    Cut,
    /// Nothing to do until a request or this time of the guest's clock.
    Idle(Option<u64>),
}

/// How a vCPU's run ended: a panic goes on where the vCPU belongs.
type End = Result<RunEnd, Panic>;
type Panic = Box<dyn Any + Send>;

/// A lent vCPU.
#[derive(Debug)]
struct Entry {
    vcpu: NonNull<SoftVcpu>,
    signal: Arc<Signal>,
    state: Seat,
}

// SAFETY: a `SoftVcpu` may go to another thread, and only one at a time uses the pointer.
unsafe impl Send for Entry {}

#[derive(Debug)]
enum Seat {
    Ready,
    Idle(Option<u64>),
    Ended(End),
}

impl Entry {
    fn is_due(&self, now: u64) -> bool {
        match self.state {
            Seat::Ready => true,
            Seat::Idle(deadline) => self.signal.wanted() || deadline.is_some_and(|at| at <= now),
            Seat::Ended(_) => false,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<u32, Entry>,
    /// Some thread runs the vCPUs of all.
    driven: bool,
    /// The thread that is in guest code.
    holder: Option<ThreadId>,
    last: u32,
    changers: usize,
    order: Order,
}

impl State {
    /// The vCPU after the last one that has something to do, round and round.
    fn next(&self, now: u64) -> Option<u32> {
        let due = |(id, entry): (&u32, &Entry)| entry.is_due(now).then_some(*id);
        let mut after = self.entries.range(self.last.saturating_add(1)..);
        after
            .find_map(due)
            .or_else(|| self.entries.iter().find_map(due))
    }

    fn deadline(&self) -> Option<u64> {
        let deadline = |entry: &Entry| match entry.state {
            Seat::Idle(deadline) => deadline,
            _ => None,
        };
        self.entries.values().filter_map(deadline).min()
    }

    fn has_ended(&self, id: u32) -> bool {
        let entry = self.entries.get(&id);
        entry.is_none_or(|entry| matches!(entry.state, Seat::Ended(_)))
    }

    /// Whether the thread of `id` lends its vCPU.
    fn is_here(&self, id: u32) -> bool {
        !self.has_ended(id)
    }

    fn take_end(&mut self, id: u32) -> Option<End> {
        if !self.has_ended(id) {
            return None;
        }
        match self.entries.remove(&id)?.state {
            Seat::Ended(end) => Some(end),
            _ => None,
        }
    }
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
    clock: Arc<Clock>,
    bell: Arc<Bell>,
    apics: Arc<Apics>,
    calls: Calls,
    /// vCPUs in the table and changers.
    present: AtomicUsize,
}

impl Turns {
    pub(crate) fn new(clock: Arc<Clock>, bell: Arc<Bell>, apics: Arc<Apics>) -> Turns {
        Turns {
            state: Mutex::default(),
            changed: Condvar::new(),
            clock,
            bell,
            apics,
            calls: Calls::default(),
            present: AtomicUsize::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let waited = self.changed.wait(state);
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody else may want the turn.
    pub(crate) fn wanted(&self) -> bool {
        self.present.load(Ordering::Relaxed) > 1
    }

    /// Runs `vcpu` in its turns until its run ends; meanwhile this thread may run the others too.
    pub(crate) fn run(&self, vcpu: &mut SoftVcpu) -> RunEnd {
        let id = vcpu.cpu.id;
        if self.clock.counts() && vcpu.is_single_step() {
            return self.run_alone(vcpu);
        }
        let entry = Entry {
            signal: Arc::clone(&vcpu.cpu.signal),
            vcpu: NonNull::from(vcpu),
            state: Seat::Ready,
        };
        let mut state = self.lock();
        state.entries.insert(id, entry);
        self.present.fetch_add(1, Ordering::SeqCst);
        self.bell.ring();
        let end = loop {
            if let Some(end) = state.take_end(id) {
                break end;
            }
            if state.driven {
                state = self.wait(state);
                continue;
            }
            state.driven = true;
            state = if self.clock.counts() {
                self.drive_counted(state, id)
            } else {
                self.drive(state, id)
            };
            state.driven = false;
            self.changed.notify_all();
        };
        self.present.fetch_sub(1, Ordering::SeqCst);
        drop(state);
        end.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Runs all vCPUs until the run of `id` has ended.
    fn drive<'a>(&'a self, mut state: MutexGuard<'a, State>, id: u32) -> MutexGuard<'a, State> {
        while !state.has_ended(id) {
            if state.changers > 0 {
                state = self.wait(state);
                continue;
            }
            let Some(next) = state.next(self.clock.now()) else {
                state = self.idle(state);
                continue;
            };
            state.last = next;
            let (locked, turn) = self.take_turn(state, next);
            state = locked;
            self.seat(&mut state, next, turn);
        }
        state
    }

    /// Lets `id`, whose vCPU is lent, run for a turn.
    fn take_turn<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        id: u32,
    ) -> (MutexGuard<'a, State>, Result<Turn, Panic>) {
        let Some(entry) = state.entries.get(&id) else {
            return (state, Ok(Turn::Over));
        };
        let mut vcpu = entry.vcpu;
        state.holder = Some(thread::current().id());
        drop(state);
        // SAFETY: the module's invariant.
        let turn = catch_unwind(AssertUnwindSafe(|| unsafe { vcpu.as_mut() }.turn()));
        let mut state = self.lock();
        state.holder = None;
        (state, turn)
    }

    /// Notes what a turn came to.
    fn seat(&self, state: &mut State, id: u32, turn: Result<Turn, Panic>) {
        let ended = matches!(turn, Ok(Turn::End(_)) | Err(_));
        if let Some(entry) = state.entries.get_mut(&id) {
            entry.state = match turn {
                Ok(Turn::Over | Turn::Cut) => Seat::Ready,
                Ok(Turn::Idle(deadline)) => Seat::Idle(deadline),
                Ok(Turn::End(end)) => Seat::Ended(Ok(end)),
                Err(panic) => Seat::Ended(Err(panic)),
            };
        }
        if ended || state.changers > 0 {
            self.changed.notify_all();
        }
    }

    /// No vCPU has anything to do: waits, or lets counted time jump.
    fn idle<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let deadline = state.deadline();
        if self.clock.counts()
            && let Some(at) = deadline
        {
            self.clock.skip_to(at);
            return state;
        }
        self.clock.idle();
        let signals: Vec<_> = state
            .entries
            .values()
            .map(|entry| Arc::clone(&entry.signal))
            .collect();
        drop(state);
        let time = deadline.map(|at| self.clock.until(at));
        self.bell
            .sleep(time, || signals.iter().any(|signal| signal.wanted()));
        self.lock()
    }

    /// Runs `change` while no vCPU runs guest code; within a callback of the vCPU that has the
    /// turn, at once.
    pub(crate) fn still<T>(&self, change: impl FnOnce() -> T) -> T {
        let mut state = self.lock();
        if state.holder == Some(thread::current().id()) {
            drop(state);
            return change();
        }
        state.changers += 1;
        if self.clock.counts() {
            self.call_locked(&state);
        }
        self.present.fetch_add(1, Ordering::SeqCst);
        while state.holder.is_some() {
            state = self.wait(state);
        }
        let result = change();
        state.changers -= 1;
        self.present.fetch_sub(1, Ordering::SeqCst);
        drop(state);
        self.changed.notify_all();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(state: Seat) -> Entry {
        Entry {
            vcpu: NonNull::dangling(),
            signal: Arc::default(),
            state,
        }
    }

    #[test]
    fn turns_go_round_among_those_that_have_something_to_do() {
        let idle = || entry(Seat::Idle(Some(100)));
        let entries = [
            (0, entry(Seat::Ready)),
            (2, idle()),
            (5, entry(Seat::Ready)),
        ];
        let mut state = State {
            entries: BTreeMap::from(entries),
            ..State::default()
        };
        assert_eq!(state.next(0), Some(5));
        state.last = 5;
        assert_eq!(state.next(0), Some(0));
        assert_eq!(state.next(100), Some(0));
        state.last = 0;
        assert_eq!(state.next(100), Some(2));
        assert_eq!(state.deadline(), Some(100));
    }

    #[test]
    fn a_request_makes_an_idle_vcpu_due() {
        let idle = entry(Seat::Idle(None));
        assert!(!idle.is_due(u64::MAX));
        idle.signal.wake();
        assert!(idle.is_due(0));
    }

    #[test]
    fn a_change_without_vcpus_is_carried_out_at_once() {
        let turns = Turns::new(
            Arc::new(Clock::new(Default::default())),
            Arc::default(),
            Arc::default(),
        );
        assert_eq!(turns.still(|| 7), 7);
        assert!(!turns.wanted());
    }
}
