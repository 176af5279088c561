//! One vCPU on one thread, in three states.
//!
//! ```text
//!          resume                     finish, or the handler says so
//! Paused <--------> Running ------------------------------> Finished
//!          pause
//! ```
//!
//! Requests go through a queue and a kick (`kick.rs` proves that none is lost) and are carried out
//! on the vCPU's own thread, between two runs: nobody else ever touches the vCPU.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
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

enum Request {
    Go(RunState, SyncSender<()>),
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
}

/// A step that has been asked for. Dropped before its end it is given up: a vCPU that halts would
/// wait for an interrupt.
#[derive(Debug)]
pub struct PendingStep {
    id: u32,
    requests: Sender<Request>,
    kicker: Arc<dyn Kicker>,
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
        if !self.answered && self.requests.send(Request::GiveUp).is_ok() {
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
        let worker = Worker {
            vcpu,
            bus,
            on_end,
            queue,
            early: None,
            state: RunState::Paused,
        };
        let body = Box::new(move || {
            worker.live();
            on_exit();
        });
        spawn(format!("vmlet-vcpu{id}"), body)
            .map_err(|source| EngineError::call("starting a vCPU thread", source))?;
        Ok(VcpuThread {
            id,
            requests,
            kicker,
        })
    }

    /// Makes the vCPU run. Returns once the thread has taken the request.
    pub fn resume(&self) -> Result<(), EngineError> {
        self.go(RunState::Running)
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
        let (done, _) = sync_channel(1);
        if self
            .requests
            .send(Request::Go(RunState::Paused, done))
            .is_ok()
        {
            self.kicker.kick();
        }
    }

    /// Asks the thread to end, without waiting for it.
    pub fn ask_finish(&self) {
        let (done, _) = sync_channel(1);
        if self
            .requests
            .send(Request::Go(RunState::Finished, done))
            .is_ok()
        {
            self.kicker.kick();
        }
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
            answer: result,
            answered: false,
        })
    }

    fn go(&self, state: RunState) -> Result<(), EngineError> {
        let (done, taken) = sync_channel(1);
        self.send(Request::Go(state, done))?;
        taken.recv().map_err(|_| EngineError::Ended { id: self.id })
    }

    fn send(&self, request: Request) -> Result<(), EngineError> {
        self.requests
            .send(request)
            .map_err(|_| EngineError::Ended { id: self.id })?;
        self.kicker.kick();
        Ok(())
    }
}

struct Worker {
    vcpu: Box<dyn Vcpu>,
    bus: Box<dyn GuestBus>,
    on_end: OnEnd,
    queue: Receiver<Request>,
    /// Taken from the queue by a step that makes way for it.
    early: Option<Request>,
    state: RunState,
}

impl Worker {
    fn live(mut self) {
        if let Err(error) = self.vcpu.bind() {
            let _ = (self.on_end)(self.vcpu.id(), Err(error));
        }
        while self.state != RunState::Finished {
            if self.serve() && self.state == RunState::Running {
                self.run_once();
            }
        }
        self.vcpu.unbind();
    }

    /// Takes requests: all that are queued while running, at least one while paused. False when
    /// nobody is left to ask.
    fn serve(&mut self) -> bool {
        loop {
            let request = match self.early.take() {
                Some(request) => Ok(request),
                None if self.state == RunState::Paused => {
                    self.queue.recv().map_err(|_| TryRecvError::Disconnected)
                }
                None => self.queue.try_recv(),
            };
            match request {
                Ok(Request::Go(state, done)) => {
                    self.state = state;
                    let _ = done.send(());
                    if state == RunState::Finished {
                        return false;
                    }
                }
                Ok(Request::Call(job)) => job(self.vcpu.as_mut()),
                Ok(Request::Step(answer)) => drop(answer.send(self.step())),
                Ok(Request::GiveUp) => {}
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => {
                    self.state = RunState::Finished;
                    return false;
                }
            }
        }
    }

    /// One instruction. A step that waits, in a halt, makes way for whoever asks for the vCPU.
    fn step(&mut self) -> Result<RunEnd, EngineError> {
        self.vcpu.set_debug(&DebugControl {
            single_step: true,
            ..DebugControl::default()
        })?;
        let end = loop {
            match self.vcpu.run(self.bus.as_mut()) {
                Ok(RunEnd::Kicked) if self.goes_on_stepping() => {}
                other => break other,
            }
        };
        self.vcpu.set_debug(&DebugControl::default())?;
        end
    }

    /// Carries out what was asked for during a step; false when the step is to end by it.
    fn goes_on_stepping(&mut self) -> bool {
        loop {
            match self.queue.try_recv() {
                Ok(Request::Call(job)) => job(self.vcpu.as_mut()),
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
    fn run_once(&mut self) {
        let (vcpu, bus) = (&mut self.vcpu, &mut self.bus);
        let end = catch_unwind(AssertUnwindSafe(|| vcpu.run(bus.as_mut())))
            .unwrap_or_else(|panic| Ok(RunEnd::Fatal(panicked(panic.as_ref()))));
        if matches!(end, Ok(RunEnd::Kicked)) {
            return;
        }
        if (self.on_end)(self.vcpu.id(), end) == Next::Pause {
            self.state = RunState::Paused;
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
