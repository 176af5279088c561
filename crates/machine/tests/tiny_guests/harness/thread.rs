//! A vCPU on a thread of its own.

use std::{
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, channel},
    },
    thread::{Builder, JoinHandle},
    time::Duration,
};

use vmlet_vcpu::{EngineError, Next, RunEnd, Vcpu, VcpuThread};

use super::{Recorder, limit};

/// How long an end may take.
const END_LIMIT: Duration = Duration::from_secs(20);

/// The thread of one vCPU; joined when dropped.
#[derive(Debug)]
pub(crate) struct Thread {
    pub(crate) vcpu: VcpuThread,
    ends: Receiver<Result<RunEnd, EngineError>>,
    join: Option<JoinHandle<()>>,
}

impl Thread {
    /// Starts the thread of `vcpu`, paused. After an end other than a kick the vCPU waits.
    pub(crate) fn start(vcpu: Box<dyn Vcpu>, bus: Recorder) -> Thread {
        let (ended, ends) = channel();
        let started = Arc::new(Mutex::new(None));
        let handle = Arc::clone(&started);
        let vcpu = VcpuThread::start(
            vcpu,
            Box::new(bus),
            Box::new(move |_, end| {
                let _ = ended.send(end);
                Next::Pause
            }),
            Box::new(|| ()),
            &move |name, body| {
                *handle.lock().unwrap() = Some(Builder::new().name(name).spawn(body)?);
                Ok(())
            },
        )
        .unwrap();
        let join = started.lock().unwrap().take();
        Thread { vcpu, ends, join }
    }

    /// What ended the run.
    pub(crate) fn end(&self) -> RunEnd {
        self.ends.recv_timeout(limit(END_LIMIT)).unwrap().unwrap()
    }

    /// Whether no run has ended.
    pub(crate) fn still_runs(&self) -> bool {
        self.ends.try_recv().is_err()
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.vcpu.ask_finish().wait();
        if let Some(join) = self.join.take() {
            let _ = join.join();
        }
    }
}
