//! One vCPU on one thread, in three states.
//!
//! ```text
//!          resume                     finish, or the handler says so
//! Paused <--------> Running ------------------------------> Finished
//!          pause
//! ```
//!
//! Requests go through a queue and, where guest code may run, a kick (`kick.rs` proves that none is
//! lost). They are carried out on the vCPU's own thread, between two runs: nobody else ever touches
//! the vCPU.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering, fence},
        mpsc::{
            Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel, sync_channel,
        },
    },
    time::Duration,
};

use crate::{DebugControl, EngineError, FatalExit, GuestBus, Kicker, RunEnd, Vcpu};

/// Starts a thread under a name; the user of the VMM gives it, so that threads can carry what its
/// language needs.
pub type Spawner = dyn Fn(String, Box<dyn FnOnce() + Send>) -> std::io::Result<()> + Send + Sync;

/// What the vCPU does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Guest code runs.
    Running,
    /// The vCPU waits for a request.
    Paused,
    /// The thread has ended.
    Finished,
}

/// What a vCPU does after its run has ended for a reason other than a kick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Run on.
    Continue,
    /// Wait for a request.
    Pause,
}

type Job = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;
type OnEnd = Box<dyn FnMut(u32, Result<RunEnd, EngineError>) -> Next + Send>;

/// What a vCPU's thread tells those that ask it.
///
/// The thread says that it may be in guest code before it looks at its queue for the last time before
/// a run, and a requester looks here after having queued a request. So either the thread finds the
/// request or the requester finds that said: the fences order each one's store before its load.
#[derive(Debug, Default)]
struct Sign {
    in_guest: AtomicBool,
    finished: AtomicBool,
}

impl Sign {
    fn set_in_guest(&self, on: bool) {
        self.in_guest.store(on, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn may_be_in_guest(&self) -> bool {
        fence(Ordering::SeqCst);
        self.in_guest.load(Ordering::Relaxed)
    }
}

/// A vCPU and what serves its accesses.
struct Guest {
    vcpu: Box<dyn Vcpu>,
    bus: Box<dyn GuestBus>,
}

/// Where a thread leaves its guest while it waits for requests.
type Seat = Mutex<Option<Guest>>;

fn sit(seat: &Seat, guest: Option<Guest>) -> Option<Guest> {
    let mut seat = seat.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::replace(&mut seat, guest)
}

enum Request {
    Go(RunState, Option<SyncSender<()>>),
    Call(Job),
    Step(SyncSender<Result<RunEnd, EngineError>>),
    /// Nobody waits for the step any more.
    GiveUp,
}

/// The handle of a vCPU's thread.
#[derive(Debug)]
pub struct VcpuThread {
    id: u32,
    requests: Sender<Request>,
    kicker: Arc<dyn Kicker>,
    sign: Arc<Sign>,
    seat: Arc<Seat>,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Guest").field(&self.vcpu).finish()
    }
}

/// A vCPU on its way out of guest code for good.
#[derive(Debug)]
#[must_use = "guest code may run until it has been waited for"]
pub struct Leaving(Option<Receiver<()>>);

impl Leaving {
    /// Returns once the vCPU runs no guest code and never will.
    pub fn wait(self) {
        if let Some(left) = self.0 {
            let _ = left.recv();
        }
    }
}

/// A step that has been asked for. Dropped before its end it is given up: a vCPU that halts would
/// wait for an interrupt.
#[derive(Debug)]
pub struct PendingStep {
    id: u32,
    requests: Sender<Request>,
    kicker: Arc<dyn Kicker>,
    sign: Arc<Sign>,
    answer: Receiver<Result<RunEnd, EngineError>>,
    answered: bool,
}

impl PendingStep {
    /// Waits for the end of the step; `None` when `limit` passes before. [`RunEnd::Kicked`] is the
    /// end of a step that made way for another request.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<RunEnd>, EngineError> {
        let answer = self.answer.recv_timeout(limit);
        self.answered = !matches!(answer, Err(RecvTimeoutError::Timeout));
        match answer {
            Ok(end) => end.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(EngineError::Ended { id: self.id }),
        }
    }
}

impl Drop for PendingStep {
    fn drop(&mut self) {
        if !self.answered
            && self.requests.send(Request::GiveUp).is_ok()
            && self.sign.may_be_in_guest()
        {
            self.kicker.kick();
        }
    }
}

impl VcpuThread {
    /// Starts the thread of `vcpu`, paused. `on_end` is called on that thread whenever a run ends
    /// other than by a kick; `on_exit` once, as the thread's last act.
    pub fn start(
        vcpu: Box<dyn Vcpu>,
        bus: Box<dyn GuestBus>,
        on_end: OnEnd,
        on_exit: Box<dyn FnOnce() + Send>,
        spawn: &Spawner,
    ) -> Result<VcpuThread, EngineError> {
        let (requests, queue) = channel();
        let (id, kicker) = (vcpu.id(), vcpu.kicker());
        let (sign, seat) = (Arc::<Sign>::default(), Arc::<Seat>::default());
        let worker = Worker {
            on_end,
            queue,
            early: None,
            state: RunState::Paused,
            sign: Arc::clone(&sign),
            seat: Arc::clone(&seat),
        };
        let guest = Guest { vcpu, bus };
        let body = Box::new(move || {
            worker.live(guest);
            on_exit();
        });
        spawn(format!("vmlet-vcpu{id}"), body)
            .map_err(|source| EngineError::call("starting a vCPU thread", source))?;
        Ok(VcpuThread {
            id,
            requests,
            kicker,
            sign,
            seat,
        })
    }

    /// The vCPU's number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Makes the vCPU run, soon.
    pub fn resume(&self) -> Result<(), EngineError> {
        self.send(Request::Go(RunState::Running, None))
    }

    /// Whether guest code may run now; one that was resumed may be about to.
    pub fn may_run(&self) -> bool {
        self.sign.may_be_in_guest()
    }

    /// Makes the vCPU wait. Returns once it no longer runs.
    pub fn pause(&self) -> Result<(), EngineError> {
        self.go(RunState::Paused)
    }

    /// Ends the thread. Returns once the vCPU no longer runs; what it owns is dropped soon after.
    pub fn finish(&self) -> Result<(), EngineError> {
        self.go(RunState::Finished)
    }

    /// Asks the vCPU to leave its run and wait, without waiting for it.
    pub fn ask_pause(&self) {
        let _ = self.send(Request::Go(RunState::Paused, None));
    }

    /// Asks the thread to end, without waiting for it.
    pub fn ask_finish(&self) -> Leaving {
        let (done, left) = sync_channel(1);
        let sent = self
            .requests
            .send(Request::Go(RunState::Finished, Some(done)));
        if sent.is_err() || !self.sign.may_be_in_guest() {
            return Leaving(None);
        }
        self.kicker.kick();
        Leaving(Some(left))
    }

    /// Drops, on the calling thread, the vCPU of a thread that waits and was asked to end or is to be;
    /// false where that is under way already and does it itself. Who waits for the end anyway is
    /// spared a change of threads: this one finds nothing when it wakes up, and ends.
    pub fn drop_waiting(&self) -> bool {
        sit(&self.seat, None).is_some()
    }

    /// Runs `job` on the vCPU's thread between two runs and returns its answer. A running vCPU
    /// runs on afterwards.
    pub fn with<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut dyn Vcpu) -> T + Send + 'static,
    ) -> Result<T, EngineError> {
        let (answer, result) = sync_channel(1);
        self.send(Request::Call(Box::new(move |vcpu| {
            let _ = answer.send(job(vcpu));
        })))?;
        result
            .recv()
            .map_err(|_| EngineError::Ended { id: self.id })
    }

    /// Begins to carry out one instruction of a paused vCPU. A trapped access is served by the
    /// board and is part of the instruction.
    pub fn step(&self) -> Result<PendingStep, EngineError> {
        let (answer, result) = sync_channel(1);
        self.send(Request::Step(answer))?;
        Ok(PendingStep {
            id: self.id,
            requests: self.requests.clone(),
            kicker: Arc::clone(&self.kicker),
            sign: Arc::clone(&self.sign),
            answer: result,
            answered: false,
        })
    }

    fn go(&self, state: RunState) -> Result<(), EngineError> {
        let (done, taken) = sync_channel(1);
        self.send(Request::Go(state, Some(done)))?;
        taken.recv().map_err(|_| EngineError::Ended { id: self.id })
    }

    fn send(&self, request: Request) -> Result<(), EngineError> {
        if self.sign.finished.load(Ordering::Acquire) || self.requests.send(request).is_err() {
            return Err(EngineError::Ended { id: self.id });
        }
        if self.sign.may_be_in_guest() {
            self.kicker.kick();
        }
        Ok(())
    }
}

struct Worker {
    on_end: OnEnd,
    queue: Receiver<Request>,
    /// Taken from the queue by a step that makes way for it.
    early: Option<Request>,
    state: RunState,
    sign: Arc<Sign>,
    seat: Arc<Seat>,
}

impl Worker {
    fn enter(&mut self, state: RunState) {
        self.state = state;
        self.sign.set_in_guest(state == RunState::Running);
        if state == RunState::Finished {
            self.sign.finished.store(true, Ordering::Release);
        }
    }

    fn live(mut self, mut guest: Guest) {
        if let Err(error) = guest.vcpu.bind() {
            let _ = (self.on_end)(guest.vcpu.id(), Err(error));
        }
        while let Some(mine) = self.serve(guest) {
            guest = mine;
            match self.state {
                RunState::Running => self.run_once(&mut guest),
                RunState::Paused => {}
                RunState::Finished => return guest.vcpu.unbind(),
            }
        }
    }

    /// The next request; waits for it while paused. None when the guest was taken away meanwhile.
    fn next(&mut self, guest: Guest) -> Option<(Result<Request, TryRecvError>, Guest)> {
        if let Some(request) = self.early.take() {
            return Some((Ok(request), guest));
        }
        if self.state != RunState::Paused {
            return Some((self.queue.try_recv(), guest));
        }
        sit(&self.seat, Some(guest));
        let request = self.queue.recv().map_err(|_| TryRecvError::Disconnected);
        sit(&self.seat, None).map(|guest| (request, guest))
    }

    /// Takes requests: all that are queued while running, at least one while paused. None when the
    /// guest was taken away.
    fn serve(&mut self, mut guest: Guest) -> Option<Guest> {
        loop {
            let Some((request, mine)) = self.next(guest) else {
                self.enter(RunState::Finished);
                return None;
            };
            guest = mine;
            match request {
                Ok(Request::Go(state, done)) => {
                    self.enter(state);
                    if let Some(done) = done {
                        let _ = done.send(());
                    }
                    if state == RunState::Finished {
                        return Some(guest);
                    }
                }
                Ok(Request::Call(job)) => job(guest.vcpu.as_mut()),
                Ok(Request::Step(answer)) => drop(answer.send(self.step(&mut guest))),
                Ok(Request::GiveUp) => {}
                Err(TryRecvError::Empty) => return Some(guest),
                Err(TryRecvError::Disconnected) => {
                    self.enter(RunState::Finished);
                    return Some(guest);
                }
            }
        }
    }

    /// One instruction. A step that waits, in a halt, makes way for whoever asks for the vCPU.
    fn step(&mut self, guest: &mut Guest) -> Result<RunEnd, EngineError> {
        guest.vcpu.set_debug(&DebugControl {
            single_step: true,
            ..DebugControl::default()
        })?;
        self.sign.set_in_guest(true);
        let end = loop {
            if !self.goes_on_stepping(guest) {
                break Ok(RunEnd::Kicked);
            }
            match guest.vcpu.run(guest.bus.as_mut()) {
                Ok(RunEnd::Kicked) => {}
                other => break other,
            }
        };
        self.sign.set_in_guest(self.state == RunState::Running);
        guest.vcpu.set_debug(&DebugControl::default())?;
        end
    }

    /// Carries out what was asked for during a step; false when the step is to end by it.
    fn goes_on_stepping(&mut self, guest: &mut Guest) -> bool {
        loop {
            match self.queue.try_recv() {
                Ok(Request::Call(job)) => job(guest.vcpu.as_mut()),
                Ok(Request::GiveUp) | Err(TryRecvError::Disconnected) => return false,
                Ok(request) => {
                    self.early = Some(request);
                    return false;
                }
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    /// A panic below is a defect of the VMM; it ends this VM and not the user's process.
    fn run_once(&mut self, guest: &mut Guest) {
        let Guest { vcpu, bus } = guest;
        let end = catch_unwind(AssertUnwindSafe(|| vcpu.run(bus.as_mut())))
            .unwrap_or_else(|panic| Ok(RunEnd::Fatal(panicked(panic.as_ref()))));
        if matches!(end, Ok(RunEnd::Kicked)) {
            return;
        }
        if (self.on_end)(guest.vcpu.id(), end) == Next::Pause {
            self.enter(RunState::Paused);
        }
    }
}

fn panicked(panic: &(dyn Any + Send)) -> FatalExit {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("unknown");
    FatalExit::Other {
        detail: format!("internal error of the VMM: {text}"),
    }
}
