//! Runs that are counted in instructions.

use std::{path::Path, time::Duration};

use vmlet_vcpu::Position;

use super::Machine;
use crate::{Event, EventKind, Identity, MachineError, RecordError, State, journal::Journal};

impl Machine {
    /// Instructions that all vCPUs have retired; exact while guest code stands still.
    pub fn instructions(&self) -> Result<u64, MachineError> {
        self.position("counting").map(|at| at.instructions)
    }

    /// The run is counted in instructions.
    pub(crate) fn is_counted(&self) -> Result<bool, MachineError> {
        Ok(self.open()?.vm.position().is_some())
    }

    /// Where inputs of a counted run go.
    pub(crate) fn journal(&self) -> Result<Option<std::sync::Arc<Journal>>, MachineError> {
        Ok(self.open()?.life.journal.get().cloned())
    }

    fn position(&self, action: &'static str) -> Result<Position, MachineError> {
        let found = self.open()?.vm.position();
        Ok(found.ok_or(RecordError::NotCounted { action })?)
    }

    /// Starts or resumes the guest; it pauses again after `instructions` more. Gives where.
    pub fn begin_run_for(&self, instructions: u64) -> Result<u64, MachineError> {
        let at = self.position("running for a number of instructions")?;
        let target = at.instructions.saturating_add(instructions);
        let (parts, turn) = (self.open()?, self.inner()?.take_turn());
        let kind = match parts.life.state() {
            State::Created => EventKind::Started,
            State::Paused => EventKind::Resumed,
            _ => {
                parts.expect("running for a number of instructions", State::Paused)?;
                EventKind::Resumed
            }
        };
        if instructions > 0 {
            parts.vm.stop_at(Some(target))?;
            parts.run(kind)?;
        }
        drop(turn);
        Ok(target)
    }

    /// Whether guest code stands still again; waits for it up to `limit`.
    pub fn end_run_for(&self, limit: Duration) -> Result<bool, MachineError> {
        let parts = self.open()?;
        if !parts.life.wait_still(limit) {
            return Ok(false);
        }
        let _turn = self.inner()?.take_turn();
        if parts.life.state() == State::Paused {
            parts.vcpus.iter().try_for_each(|vcpu| vcpu.pause())?;
            parts.pause_devices();
        }
        Ok(true)
    }

    /// Writes every input of the run to come to the file at `path`; `identity` says what the VM was
    /// made of.
    pub fn record(&self, path: &Path, identity: &Identity) -> Result<(), MachineError> {
        Ok(self.unstarted("recording")?.record(path, identity)?)
    }

    /// Takes the inputs of the run to come from a record; the run ends with it.
    pub fn replay(&self, path: &Path, identity: &Identity) -> Result<(), MachineError> {
        Ok(self.unstarted("replaying")?.replay(path, identity)?)
    }

    fn unstarted(&self, action: &'static str) -> Result<std::sync::Arc<Journal>, MachineError> {
        let parts = self.open()?;
        let journal = parts.life.journal.get();
        let journal = journal.ok_or(RecordError::NotCounted { action })?;
        if parts.life.state() != State::Created {
            return Err(RecordError::Late { action }.into());
        }
        Ok(std::sync::Arc::clone(journal))
    }

    /// Refuses what a record would not hold.
    pub(super) fn unrecorded(&self, action: &'static str) -> Result<(), MachineError> {
        match self.open()?.life.journal.get() {
            Some(journal) => Ok(journal.allows(action)?),
            None => Ok(()),
        }
    }
}

impl super::Parts {
    /// Lets the vCPUs run.
    pub(super) fn run(&self, kind: EventKind) -> Result<(), MachineError> {
        self.complete()?;
        if self.life.advance(State::Running, Event::by_user(kind)) {
            self.vcpus.iter().try_for_each(|vcpu| vcpu.resume())?;
        }
        // The run of one vCPU may have ended while others were still to be resumed.
        if self.life.is_over() {
            self.life.ask_pause();
        }
        Ok(())
    }

    /// Ends a record before the machine goes: where that is can only be said of vCPUs that stand.
    pub(super) fn finish_record(&self) {
        let journal = self.life.journal.get();
        if journal.is_some_and(|journal| journal.is_recording()) {
            self.vcpus.iter().for_each(|vcpu| {
                let _ = vcpu.pause();
            });
            self.life.finish_record();
        }
    }
}
