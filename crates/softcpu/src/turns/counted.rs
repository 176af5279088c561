//! Turns of a counted run: the same in every run, whatever the host asks meanwhile.
//!
//! Whose turn it is follows from the guest alone. A vCPU whose thread is away, to serve a request
//! of the host, keeps its turn, and the others wait for it. Between turns, and where a vCPU was
//! called out of one, inputs enter.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use vmlet_vcpu::{Entered, FatalExit, Inputs, MsiMessage, Position, RunEnd};

use super::{Seat, State, Turn, Turns};
use crate::{signal::Signal, vcpu::SoftVcpu};

/// Interrupts from outside that may wait; more are lost, as on a bus that nobody serves.
const MESSAGES: usize = 4096;
const NEVER: u64 = u64::MAX;

/// What a vCPU did last, wherever its thread is.
#[derive(Debug)]
struct Place {
    signal: Arc<Signal>,
    waits: bool,
    deadline: Option<u64>,
}

impl Place {
    fn is_due(&self, now: u64) -> bool {
        !self.waits || self.signal.event() || self.deadline.is_some_and(|at| at <= now)
    }
}

/// The order of a counted run.
#[derive(Debug, Default)]
pub(super) struct Order {
    places: BTreeMap<u32, Place>,
    /// Whose turn is not over.
    current: Option<u32>,
    last: Option<u32>,
    /// The run has stopped where it had to.
    stopped: bool,
}

impl Order {
    fn next(&self, now: u64) -> Option<u32> {
        if self.current.is_some() {
            return self.current;
        }
        let due = |(id, place): (&u32, &Place)| place.is_due(now).then_some(*id);
        let after = self.last.map_or(0, |last| last.saturating_add(1));
        let mut later = self.places.range(after..);
        later
            .find_map(due)
            .or_else(|| self.places.iter().find_map(due))
    }

    fn deadline(&self) -> Option<u64> {
        self.places
            .values()
            .filter_map(|place| place.deadline.filter(|_| place.waits))
            .min()
    }

    /// vCPUs with nothing new to see.
    fn quiet(&self) -> Vec<Arc<Signal>> {
        let signals = self.places.values().map(|place| &place.signal);
        signals.filter(|signal| !signal.event()).cloned().collect()
    }

    fn over(&mut self, id: u32, idle: Option<Option<u64>>) {
        self.current = None;
        self.last = Some(id);
        if let Some(place) = self.places.get_mut(&id) {
            place.waits = idle.is_some();
            place.deadline = idle.flatten();
        }
    }
}

/// What other threads ask of a counted run.
#[derive(Debug)]
pub(super) struct Calls {
    /// Guest code is to be left.
    called: AtomicBool,
    stop_at: AtomicU64,
    /// Where guest code is to be left next, at the latest.
    fence: AtomicU64,
    vcpus: AtomicUsize,
    messages: Mutex<Vec<MsiMessage>>,
    inputs: Mutex<Option<Arc<dyn Inputs>>>,
}

impl Default for Calls {
    fn default() -> Calls {
        Calls {
            called: AtomicBool::new(false),
            stop_at: AtomicU64::new(NEVER),
            fence: AtomicU64::new(NEVER),
            vcpus: AtomicUsize::new(0),
            messages: Mutex::default(),
            inputs: Mutex::default(),
        }
    }
}

impl Calls {
    fn inputs(&self) -> Option<Arc<dyn Inputs>> {
        let inputs = self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
        inputs.clone()
    }

    fn take_messages(&self) -> Vec<MsiMessage> {
        let messages = self.messages.lock();
        std::mem::take(&mut *messages.unwrap_or_else(PoisonError::into_inner))
    }
}

impl Turns {
    /// A vCPU is made: it takes part from now on.
    pub(crate) fn register(&self, id: u32, signal: &Arc<Signal>) {
        self.calls.vcpus.fetch_add(1, Ordering::SeqCst);
        let place = Place {
            signal: Arc::clone(signal),
            waits: false,
            deadline: None,
        };
        self.lock().order.places.insert(id, place);
    }

    /// The state of a vCPU was set from outside: it may have something to do again.
    pub(crate) fn was_set(&self, id: u32) {
        if let Some(place) = self.lock().order.places.get_mut(&id) {
            place.waits = false;
        }
    }

    /// Whether guest code is to be left for something that is not the guest's.
    pub(crate) fn is_called(&self) -> bool {
        self.calls.called.load(Ordering::SeqCst)
    }

    /// The instruction at which guest code is to be left next.
    pub(crate) fn fence(&self) -> Option<u64> {
        let fence = self.calls.fence.load(Ordering::SeqCst);
        (fence != NEVER).then_some(fence)
    }

    /// Whether a vCPU's turn ends for the sake of others.
    pub(crate) fn is_shared(&self) -> bool {
        if self.clock.counts() {
            return self.calls.vcpus.load(Ordering::Relaxed) > 1;
        }
        self.wanted()
    }

    pub(crate) fn set_inputs(&self, inputs: Arc<dyn Inputs>) {
        let mut place = self
            .calls
            .inputs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *place = Some(inputs);
    }

    /// Runs stop at this instruction; they may go on if they had stopped.
    pub(crate) fn stop_at(&self, instructions: Option<u64>) {
        let at = instructions.unwrap_or(NEVER);
        self.calls.stop_at.store(at, Ordering::SeqCst);
        self.lock().order.stopped = false;
        self.call();
    }

    /// Makes the thread that runs guest code look at what waits.
    pub(crate) fn call(&self) {
        let state = self.lock();
        self.call_locked(&state);
    }

    pub(super) fn call_locked(&self, state: &State) {
        self.calls.called.store(true, Ordering::SeqCst);
        state.entries.values().for_each(|entry| entry.signal.call());
        self.bell.ring();
    }

    /// An interrupt from outside the guest: `false` where it can be delivered at once.
    pub(crate) fn defer(&self, message: MsiMessage) -> bool {
        if !self.clock.counts() || self.lock().holder == Some(thread::current().id()) {
            return false;
        }
        let messages = self.calls.messages.lock();
        let mut messages = messages.unwrap_or_else(PoisonError::into_inner);
        if messages.len() < MESSAGES {
            messages.push(message);
        }
        drop(messages);
        self.call();
        true
    }

    /// Runs all vCPUs in their order until the run of `id` has ended.
    pub(super) fn drive_counted<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        id: u32,
    ) -> MutexGuard<'a, State> {
        while !state.has_ended(id) {
            self.calls.called.store(false, Ordering::SeqCst);
            if state.changers > 0 {
                state = self.wait(state);
                continue;
            }
            self.release_kicked(&mut state);
            if !state.order.stopped {
                state = self.let_enter(state, id);
            }
            if state.has_ended(id) {
                break;
            }
            if state.order.stopped {
                state = self.rest(state);
                continue;
            }
            state = match (state.order.next(self.clock.now()), state.order.deadline()) {
                (Some(next), _) if state.is_here(next) => self.one_turn(state, next),
                (None, Some(deadline)) => {
                    self.clock.skip_to(deadline);
                    state
                }
                _ => self.rest(state),
            };
        }
        state
    }

    fn one_turn<'a>(&'a self, state: MutexGuard<'a, State>, next: u32) -> MutexGuard<'a, State> {
        let (mut state, turn) = self.take_turn(state, next);
        match &turn {
            Ok(Turn::Over) => state.order.over(next, None),
            Ok(Turn::Idle(deadline)) => state.order.over(next, Some(*deadline)),
            _ => state.order.current = Some(next),
        }
        self.seat(&mut state, next, turn);
        state
    }

    /// vCPUs whose turn it is not leave at once when their threads are asked for.
    fn release_kicked(&self, state: &mut State) {
        let current = state.order.current.filter(|_| !state.order.stopped);
        let mut released = false;
        for (id, entry) in &mut state.entries {
            let waits = !matches!(entry.state, Seat::Ended(_)) && Some(*id) != current;
            if waits && entry.signal.kicked() {
                entry.signal.take_kick();
                entry.state = Seat::Ended(Ok(RunEnd::Kicked));
                released = true;
            }
        }
        if released {
            self.changed.notify_all();
        }
    }

    /// Lets inputs enter, and stops the run where that is due: then the run of `id` ends.
    fn let_enter<'a>(&'a self, mut state: MutexGuard<'a, State>, id: u32) -> MutexGuard<'a, State> {
        if state.has_ended(id) {
            return state;
        }
        let order = &state.order;
        let idle = order.next(self.clock.now()).is_none() && order.deadline().is_none();
        let quiet = order.quiet();
        state.holder = Some(thread::current().id());
        drop(state);
        let entered = self.enter(self.clock.position(), idle);
        let woken = quiet.iter().filter(|signal| signal.event());
        woken.for_each(|signal| signal.set_input());
        let mut state = self.lock();
        state.holder = None;
        let end = match entered {
            Ok(Entered::GoOn) => return state,
            Ok(Entered::Stop) => RunEnd::Budget,
            Err(detail) => RunEnd::Fatal(FatalExit::Other { detail }),
        };
        state.order.stopped = true;
        if let Some(entry) = state.entries.get_mut(&id) {
            entry.state = Seat::Ended(Ok(end));
        }
        state
    }

    fn enter(&self, at: Position, idle: bool) -> Result<Entered, String> {
        let (inputs, messages) = (self.calls.inputs(), self.calls.take_messages());
        let mut next = None;
        if let Some(inputs) = &inputs {
            if inputs.enter(at, &messages, idle)? == Entered::Stop {
                return Ok(Entered::Stop);
            }
            next = inputs.next();
        } else {
            messages.iter().for_each(|message| {
                self.apics.message(*message);
            });
        }
        let stop = self.calls.stop_at.load(Ordering::SeqCst);
        let fence = stop.min(next.unwrap_or(NEVER));
        self.calls.fence.store(fence, Ordering::SeqCst);
        Ok(if at.instructions >= stop {
            Entered::Stop
        } else {
            Entered::GoOn
        })
    }

    /// Waits until a thread asks for something or comes back.
    fn rest<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let signals: Vec<_> = state
            .entries
            .values()
            .map(|entry| Arc::clone(&entry.signal))
            .collect();
        let present = self.present.load(Ordering::SeqCst);
        drop(state);
        self.bell.sleep(None, || {
            self.is_called()
                || self.present.load(Ordering::SeqCst) != present
                || signals.iter().any(|signal| signal.kicked())
        });
        self.lock()
    }

    /// Runs a vCPU for a debugger: alone, while all others stand still.
    pub(super) fn run_alone(&self, vcpu: &mut SoftVcpu) -> RunEnd {
        loop {
            self.lock().holder = Some(thread::current().id());
            let turn = vcpu.turn();
            self.lock().holder = None;
            match turn {
                Turn::End(end) => return end,
                Turn::Over => {}
                Turn::Cut => self.calls.called.store(false, Ordering::SeqCst),
                Turn::Idle(Some(deadline)) => self.clock.skip_to(deadline),
                Turn::Idle(None) => {
                    let signal = Arc::clone(&vcpu.cpu.signal);
                    self.bell.sleep(None, || signal.wanted());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        let place = |waits, deadline| Place {
            signal: Arc::default(),
            waits,
            deadline,
        };
        Order {
            places: BTreeMap::from([
                (0, place(false, None)),
                (1, place(true, Some(50))),
                (2, place(true, None)),
            ]),
            ..Order::default()
        }
    }

    #[test]
    fn a_turn_that_was_left_in_its_middle_goes_on_first() {
        let mut order = order();
        order.current = Some(2);
        assert_eq!(order.next(0), Some(2));
        order.over(2, None);
        assert_eq!(order.next(0), Some(0));
    }

    #[test]
    fn turns_begin_with_the_first_vcpu_and_go_round() {
        let mut order = order();
        assert_eq!(order.next(50), Some(0));
        order.over(0, None);
        assert_eq!(order.next(50), Some(1));
        order.over(1, Some(None));
        assert_eq!(order.next(50), Some(0));
        assert_eq!(order.deadline(), None);
    }

    #[test]
    fn a_kick_alone_makes_no_vcpu_due() {
        let order = order();
        let waiting = order.places.get(&2).unwrap();
        vmlet_vcpu::Kicker::kick(&*waiting.signal);
        assert!(!waiting.is_due(u64::MAX));
        waiting.signal.wake();
        assert!(waiting.is_due(0));
    }

    #[derive(Debug, Default)]
    struct Seen(Mutex<Vec<(u64, MsiMessage)>>);

    impl Inputs for Seen {
        fn next(&self) -> Option<u64> {
            Some(77)
        }

        fn enter(&self, at: Position, all: &[MsiMessage], _: bool) -> Result<Entered, String> {
            let all = all.iter().map(|message| (at.instructions, *message));
            self.0.lock().unwrap().extend(all);
            Ok(Entered::GoOn)
        }
    }

    fn turns(mode: crate::ClockMode) -> Turns {
        let clock = Arc::new(crate::clock::Clock::new(mode));
        Turns::new(clock, Arc::default(), Arc::default())
    }

    const MESSAGE: MsiMessage = MsiMessage {
        address: 0xfee0_0000,
        data: 0x41,
    };

    #[test]
    fn an_interrupt_from_another_thread_enters_between_two_instructions() {
        let (turns, seen) = (
            turns(crate::ClockMode::Instructions),
            Arc::new(Seen::default()),
        );
        turns.set_inputs(Arc::clone(&seen) as Arc<dyn Inputs>);
        assert!(turns.defer(MESSAGE));
        assert!(turns.is_called());
        turns.clock.retired(5);
        assert_eq!(
            turns.enter(turns.clock.position(), false),
            Ok(Entered::GoOn)
        );
        assert_eq!(*seen.0.lock().unwrap(), [(5, MESSAGE)]);
        assert_eq!(turns.fence(), Some(77));
    }

    #[test]
    fn under_the_hosts_clock_interrupts_are_delivered_at_once() {
        assert!(!turns(crate::ClockMode::Realtime).defer(MESSAGE));
    }

    #[test]
    fn interrupts_that_nobody_takes_are_bounded() {
        let turns = turns(crate::ClockMode::Instructions);
        for _ in 0..MESSAGES + 9 {
            turns.defer(MESSAGE);
        }
        assert_eq!(turns.calls.take_messages().len(), MESSAGES);
    }

    #[test]
    fn a_run_stops_at_its_instruction() {
        let turns = turns(crate::ClockMode::Instructions);
        turns.stop_at(Some(10));
        turns.clock.retired(9);
        assert_eq!(
            turns.enter(turns.clock.position(), false),
            Ok(Entered::GoOn)
        );
        turns.clock.left(1);
        assert_eq!(
            turns.enter(turns.clock.position(), false),
            Ok(Entered::Stop)
        );
    }
}
