//! Guest I/O as a callback.
//!
//! KVM finishes an access only when the vCPU is entered again, and an interpreter cannot stop in
//! the middle of an instruction: so an access is answered where it happens, by a call into the
//! board, and `run` returns only for the end of running.

use crate::x86_64::Regs;

/// An address space a guest access goes to.
///
/// I/O ports are one space among others: an ISA without them never uses [`SpaceId::PORT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpaceId(pub u8);

impl SpaceId {
    /// Guest-physical addresses that no memory slot backs.
    pub const MMIO: SpaceId = SpaceId(0);
    /// x86 I/O ports, 0 to 0xffff.
    pub const PORT: SpaceId = SpaceId(1);
}

/// What a device may ask about the access it serves, on demand.
pub trait AccessContext {
    /// The vCPU that makes the access.
    fn vcpu(&self) -> u32;

    /// The general registers at the access. For a trapped instruction `rip` is where the engine
    /// reports it: the instruction itself or its successor, as the engine's documentation says.
    fn regs(&self) -> Regs;

    /// Instructions retired so far by this vCPU, where the engine counts them.
    fn instructions(&self) -> Option<u64> {
        None
    }
}

/// Why the board asks a vCPU to leave its run loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The guest asked for a reset (`source` names the device: "cf9", "keyboard-controller").
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
    /// A device cannot go on; the text says why.
    Fault {
        /// Cause, for the user.
        detail: String,
    },
}

/// What a callback asks of the engine once the access is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on with the next instruction.
    Continue,
    /// Complete this access, then return [`crate::RunEnd::Stopped`].
    Stop(StopReason),
}

/// The board as a vCPU sees it.
///
/// Calls come from the vCPU's own thread, or from another of the VM's vCPU threads while this one is
/// in [`crate::Vcpu::run`]: an engine may run all vCPUs on one of them. `data` is the bytes of one access in guest order (1, 2,
/// 4 or 8 of them, or another length where the guest's instruction has it). A read fills all of
/// `data`; an address nobody claims reads as all ones.
pub trait GuestBus: Send {
    /// The guest reads `data.len()` bytes at `addr`.
    fn read(&mut self, cx: &dyn AccessContext, space: SpaceId, addr: u64, data: &mut [u8]) -> Flow;

    /// The guest writes `data` at `addr`.
    fn write(&mut self, cx: &dyn AccessContext, space: SpaceId, addr: u64, data: &[u8]) -> Flow;

    /// The guest writes a string to one address (`rep outs`): `data` holds elements of `size`
    /// bytes, in order.
    fn write_string(
        &mut self,
        cx: &dyn AccessContext,
        space: SpaceId,
        addr: u64,
        size: usize,
        data: &[u8],
    ) -> Flow {
        let mut flow = Flow::Continue;
        for element in data.chunks(size.max(1)) {
            if let Flow::Stop(reason) = self.write(cx, space, addr, element) {
                flow = Flow::Stop(reason);
            }
        }
        flow
    }

    /// The guest's local APIC ended the level interrupt `vector` that an I/O APIC pin delivered.
    fn end_of_interrupt(&mut self, vector: u8);
}
