//! The states of a machine, its events, and how it ends.
//!
//! ```text
//! created -> running <-> paused
//!               |           |
//!               +-> ended <-+      closed from anywhere
//! ```

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use log::Level;
use vmlet_vcpu::{EngineError, FatalExit, Next, RunEnd, StopReason, VcpuThread};

use crate::{Console, Event, EventKind, LackingInstruction, journal::Journal};

/// Events kept for who has not asked for them yet.
const KEPT: usize = 4096;

/// Where a machine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, not started.
    Created,
    /// Guest code runs.
    Running,
    /// Guest code stands still.
    Paused,
    /// The guest's run is over.
    Ended,
    /// Nothing is left.
    Closed,
}

impl State {
    /// The state's name as users see it.
    pub fn name(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Ended => "ended",
            State::Closed => "closed",
        }
    }
}

#[derive(Debug)]
struct Status {
    /// What records call the machine.
    name: String,
    state: State,
    outcome: Option<Event>,
    events: VecDeque<Event>,
    /// vCPU threads that have not ended.
    threads: usize,
}

/// What a machine's threads and its owner share.
#[derive(Debug)]
pub(crate) struct Life {
    status: Mutex<Status>,
    changed: Condvar,
    pub(crate) console: Arc<Console>,
    /// The output of the virtio console, once there is one.
    terminal: OnceLock<Arc<Console>>,
    pub(crate) vcpus: Mutex<Vec<Arc<VcpuThread>>>,
    /// The inputs of a counted run.
    pub(crate) journal: OnceLock<Arc<Journal>>,
}

impl Life {
    pub(crate) fn new(name: &str, console: Arc<Console>, threads: usize) -> Arc<Life> {
        let status = Status {
            name: name.to_owned(),
            state: State::Created,
            outcome: None,
            events: VecDeque::new(),
            threads,
        };
        Arc::new(Life {
            status: Mutex::new(status),
            changed: Condvar::new(),
            console,
            terminal: OnceLock::new(),
            vcpus: Mutex::default(),
            journal: OnceLock::new(),
        })
    }

    pub(crate) fn state(&self) -> State {
        self.lock().state
    }

    /// Moves to `state` with `event`, if the guest's run is not over meanwhile.
    pub(crate) fn advance(&self, state: State, event: Event) -> bool {
        let mut status = self.lock();
        let goes_on = !status.is_over();
        if goes_on {
            status.state = state;
            status.note(event);
        }
        drop(status);
        self.changed.notify_all();
        self.console.rope.pull();
        goes_on
    }

    /// Notes `event`, which changes no state.
    pub(crate) fn tell(&self, event: Event) {
        self.lock().note(event);
        self.changed.notify_all();
        self.console.rope.pull();
    }

    /// Whether the guest's run is over.
    pub(crate) fn is_over(&self) -> bool {
        self.lock().is_over()
    }

    /// Ends the run with `event`; only the first end counts. The vCPUs are asked to pause.
    pub(crate) fn end(&self, event: Event) {
        if self.note_end(event) {
            self.ask_pause();
        }
    }

    /// Whether `event` ends the run: only the first does.
    fn note_end(&self, event: Event) -> bool {
        self.finish_record();
        let mut status = self.lock();
        if status.is_over() {
            return false;
        }
        status.state = State::Ended;
        status.outcome = Some(event.clone());
        status.note(event);
        drop(status);
        self.changed.notify_all();
        self.end_consoles();
        true
    }

    /// Asks every vCPU to stand still, without waiting for it.
    pub(crate) fn ask_pause(&self) {
        self.ask_others_to_pause(None);
    }

    /// Asks every vCPU but one, which does so by itself.
    fn ask_others_to_pause(&self, but: Option<u32>) {
        let vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        let others = vcpus.iter().filter(|vcpu| Some(vcpu.id()) != but);
        others.for_each(|vcpu| vcpu.ask_pause());
    }

    /// Ends a record; that it could not be written is an event.
    pub(crate) fn finish_record(&self) {
        if let Some(Err(detail)) = self.journal.get().map(|journal| journal.finish()) {
            let event = Event {
                detail,
                source: "record",
                ..Event::by_user(EventKind::Error)
            };
            self.lock().note(event);
        }
    }

    /// The output of the virtio console, which keeps `limit` bytes.
    pub(crate) fn terminal(&self, limit: usize) -> Arc<Console> {
        let made = || Console::with_rope(limit, self.console.rope.clone());
        let terminal = self.terminal.get_or_init(made);
        if self.is_over() {
            terminal.set_ended(true);
        }
        Arc::clone(terminal)
    }

    /// That output, if there ever was such a console.
    pub(crate) fn terminal_if_any(&self) -> Option<Arc<Console>> {
        self.terminal.get().cloned()
    }

    /// No more output comes.
    fn end_consoles(&self) {
        self.console.set_ended(true);
        if let Some(terminal) = self.terminal.get() {
            terminal.set_ended(true);
        }
    }

    /// What the guest's kernel said on one of its consoles when it gave up.
    fn panic(&self) -> Option<String> {
        let terminal = || self.terminal.get()?.panic();
        self.console.panic().or_else(terminal)
    }

    /// Waits until no guest code runs; `false` when `timeout` passes before.
    pub(crate) fn wait_still(&self, timeout: Duration) -> bool {
        let still = |status: &mut Status| (status.state != State::Running).then_some(());
        self.until(timeout, still).is_some()
    }

    /// Marks the machine as closed; gives the state it had.
    pub(crate) fn close(&self) -> State {
        let before = std::mem::replace(&mut self.lock().state, State::Closed);
        // Whoever waits for a run that is over has been told.
        if !matches!(before, State::Ended | State::Closed) {
            self.end_consoles();
            self.changed.notify_all();
        }
        before
    }

    /// Nobody asks the vCPUs any more; their threads know the machine, which so is known no more.
    pub(crate) fn forget_vcpus(&self) {
        let mut vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        vcpus.clear();
    }

    /// One thread has ended.
    pub(crate) fn thread_ended(&self) {
        self.lock().threads -= 1;
        self.changed.notify_all();
    }

    /// Threads that could not be started do not count.
    pub(crate) fn forget_threads(&self, count: usize) {
        self.lock().threads -= count;
    }

    /// Waits until every thread has ended.
    pub(crate) fn join(&self) {
        let mut status = self.lock();
        while status.threads > 0 {
            status = self
                .changed
                .wait(status)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the end of the run; `None` when `timeout` passes before, or the machine is closed
    /// before its run has ended.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<Event> {
        self.until(timeout, |status| match &status.outcome {
            Some(event) => Some(Some(event.clone())),
            None => status.is_over().then_some(None),
        })
        .flatten()
    }

    /// The next event, waited for; `None` when `timeout` passes before or none will come.
    pub(crate) fn next_event(&self, timeout: Duration) -> Option<Event> {
        self.until(timeout, |status| match status.events.pop_front() {
            Some(event) => Some(Some(event)),
            None => status.is_over().then_some(None),
        })
        .flatten()
    }

    fn until<T>(
        &self,
        timeout: Duration,
        mut ready: impl FnMut(&mut Status) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + timeout;
        let mut status = self.lock();
        loop {
            if let Some(found) = ready(&mut status) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let waited = self.changed.wait_timeout(status, left);
            status = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A vCPU's run has ended: decides what becomes of the machine.
    pub(crate) fn run_ended(&self, vcpu: u32, end: Result<RunEnd, EngineError>) -> Next {
        if !matches!(end, Ok(RunEnd::Budget)) {
            if self.note_end(self.explain(vcpu, end)) {
                self.ask_others_to_pause(Some(vcpu));
            }
        } else if self.journal.get().is_some_and(|journal| journal.is_over()) {
            self.end(Event {
                source: "record",
                ..Event::by_user(EventKind::Stopped)
            });
        } else {
            let event = Event {
                source: "budget",
                ..Event::by_user(EventKind::Paused)
            };
            self.advance(State::Paused, event);
            self.ask_pause();
        }
        Next::Pause
    }

    fn explain(&self, vcpu: u32, end: Result<RunEnd, EngineError>) -> Event {
        let event = |kind, source, detail: String| Event {
            kind,
            vcpu: Some(vcpu),
            source,
            detail,
            instruction: None,
        };
        let end = match end {
            Ok(end) => end,
            Err(error) => return event(EventKind::Error, "engine", error.to_string()),
        };
        let none = String::new();
        match end {
            RunEnd::Halt => event(EventKind::Halt, "engine", none),
            RunEnd::Shutdown => self.or_panic(event(EventKind::TripleFault, "engine", none)),
            RunEnd::Stopped(StopReason::PowerOff { source }) => {
                event(EventKind::PowerOff, source, none)
            }
            RunEnd::Stopped(StopReason::Reset { source }) => {
                self.or_panic(event(EventKind::Reset, source, none))
            }
            RunEnd::Stopped(StopReason::Panic { source, detail }) => {
                let said = self.panic().unwrap_or(detail);
                event(EventKind::Panic, source, said)
            }
            RunEnd::Stopped(StopReason::Fault { detail }) => {
                event(EventKind::Error, "device", detail)
            }
            RunEnd::Fatal(fatal) => Event {
                instruction: lacking(&fatal),
                ..event(EventKind::Error, "engine", describe(&fatal))
            },
            other => event(EventKind::Error, "engine", format!("{other:?}")),
        }
    }

    /// A kernel that panics reboots at once when its command line says so: then the console is the
    /// only witness.
    fn or_panic(&self, event: Event) -> Event {
        match self.panic() {
            Some(detail) => Event {
                kind: EventKind::Panic,
                source: "console",
                detail,
                ..event
            },
            None => event,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Status {
    fn is_over(&self) -> bool {
        matches!(self.state, State::Ended | State::Closed)
    }

    fn note(&mut self, event: Event) {
        let level = match event.kind {
            EventKind::Paused | EventKind::Resumed => Level::Debug,
            _ => Level::Info,
        };
        log::log!(target: "vmlet.vm", level, "{}: {event}", self.name);
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

fn lacking(fatal: &FatalExit) -> Option<LackingInstruction> {
    match fatal {
        FatalExit::Instruction { rip, bytes, name } => Some(LackingInstruction {
            rip: *rip,
            bytes: bytes.clone(),
            name: *name,
        }),
        _ => None,
    }
}

fn describe(fatal: &FatalExit) -> String {
    match fatal {
        FatalExit::Instruction { rip, bytes, name } => {
            let name = name.map_or_else(String::new, |name| format!(" ({name})"));
            let bytes: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let bytes = if bytes.is_empty() {
                bytes
            } else {
                format!(": {bytes}")
            };
            format!("the engine cannot carry out the instruction at {rip:#x}{name}{bytes}")
        }
        FatalExit::EntryRefused { reason } => {
            format!("the processor refuses the guest's state (reason {reason:#x})")
        }
        FatalExit::Memory { gpa } => format!("the engine cannot serve an access to {gpa:#x}"),
        FatalExit::Other { detail } => detail.clone(),
        other => format!("{other:?}"),
    }
}
