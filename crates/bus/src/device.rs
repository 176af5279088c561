//! A device as its board sees it.

use std::fmt::Debug;

use crate::{SavedError, SavedState};

/// What a device may ask about the access it serves.
pub trait AccessContext {
    /// The vCPU that makes the access.
    fn vcpu(&self) -> u32;

    /// The vCPU's instruction pointer as the engine reports it for a trapped access.
    fn rip(&self) -> u64;

    /// Instructions retired so far by this vCPU, where the engine counts them.
    fn instructions(&self) -> Option<u64> {
        None
    }

    /// The vCPU's general registers at the access, in the order in which the architecture numbers
    /// them, then instruction pointer and flags; none where nobody knows them. On demand: an engine
    /// may have to ask the kernel.
    fn registers(&self) -> Option<[u64; 18]> {
        None
    }
}

/// Why a device asks for the end of the VM's run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopRequest {
    /// The guest asked for a reset.
    Reset {
        /// The device that was told to.
        source: &'static str,
    },
    /// The guest powered the machine off.
    PowerOff {
        /// The device that was told to.
        source: &'static str,
    },
    /// The guest reported its own crash.
    Panic {
        /// The device that was told.
        source: &'static str,
        /// What the guest said, if anything.
        detail: String,
    },
    /// The device cannot go on.
    Fault {
        /// Cause, for the user.
        detail: String,
    },
}

/// What a device asks for once an access is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Nothing.
    Continue,
    /// The end of the run, once the access is complete.
    Stop(StopRequest),
}

/// Registers that a guest reads and writes.
///
/// Offsets count from the start of the range the device was added at. Any offset and width that
/// lies in the range may come, aligned or not; what the hardware does not define reads as all ones
/// and ignores writes. Calls come from any vCPU's thread.
pub trait Device: Send + Sync + Debug {
    /// The device's name in messages.
    fn name(&self) -> &'static str;

    /// Fills `data` from `offset` on.
    fn read(&self, cx: &dyn AccessContext, offset: u64, data: &mut [u8]) -> Flow;

    /// Takes `data` at `offset`.
    fn write(&self, cx: &dyn AccessContext, offset: u64, data: &[u8]) -> Flow;

    /// Takes the elements of a string write (`rep outs`), `size` bytes each, all at `offset`.
    fn write_string(&self, cx: &dyn AccessContext, offset: u64, size: usize, data: &[u8]) -> Flow {
        let mut flow = Flow::Continue;
        for element in data.chunks(size.max(1)) {
            if let Flow::Stop(request) = self.write(cx, offset, element) {
                flow = Flow::Stop(request);
            }
        }
        flow
    }

    /// Back to the state after power-on.
    fn reset(&self);

    /// The state; none where a device has no more than it has after power-on.
    fn save(&self) -> Option<SavedState> {
        None
    }

    /// Takes over a state, which nobody has looked at: a refused one changes nothing.
    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        Err(SavedError::Kind {
            expected: self.name(),
            found: saved.kind.clone(),
        })
    }
}
