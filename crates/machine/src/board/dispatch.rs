//! From a vCPU's access to a device: the engine's contract on one side, the devices' on the other.

use std::sync::Arc;

use super::exits::{ExitKind, Exits};
use vmlet_bus::{self as bus, IoSpace, Recent, StopRequest};
use vmlet_devices::ioapic::IoApic;
use vmlet_vcpu::{AccessContext, Flow, GuestBus, SpaceId, StopReason, x86_64::Regs};

/// One vCPU's way to the board.
#[derive(Clone, Debug)]
pub(crate) struct Dispatch {
    ports: Recent,
    mmio: Recent,
    pub(crate) ioapic: Arc<IoApic>,
    pub(crate) exits: Arc<Exits>,
}

/// The engine's context as devices see it.
struct Context<'a>(&'a dyn AccessContext);

impl bus::AccessContext for Context<'_> {
    fn vcpu(&self) -> u32 {
        self.0.vcpu()
    }

    fn rip(&self) -> u64 {
        self.0.regs().rip
    }

    fn instructions(&self) -> Option<u64> {
        self.0.instructions()
    }

    fn registers(&self) -> Option<[u64; 18]> {
        Some(self.0.regs().by_number())
    }
}

/// The general registers of the vCPU whose access a device serves.
pub fn registers_at(cx: &dyn bus::AccessContext) -> Option<Regs> {
    cx.registers().map(Regs::from_numbers)
}

impl Dispatch {
    pub(crate) fn new(ports: Arc<IoSpace>, mmio: Arc<IoSpace>, ioapic: Arc<IoApic>) -> Dispatch {
        Dispatch {
            ports: Recent::new(ports),
            mmio: Recent::new(mmio),
            ioapic,
            exits: Arc::default(),
        }
    }

    /// The same way, whose accesses `exits` counts.
    pub(crate) fn counting(&self, exits: Arc<Exits>) -> Dispatch {
        Dispatch {
            exits,
            ..self.clone()
        }
    }

    pub(crate) fn ports(&self) -> &Arc<IoSpace> {
        self.ports.space()
    }

    pub(crate) fn mmio(&self) -> &Arc<IoSpace> {
        self.mmio.space()
    }

    fn count(&self, space: SpaceId, write: bool, addr: u64) {
        let kind = match (space, write) {
            (SpaceId::PORT, false) => ExitKind::PortRead,
            (SpaceId::PORT, true) => ExitKind::PortWrite,
            (_, false) => ExitKind::MemoryRead,
            (_, true) => ExitKind::MemoryWrite,
        };
        self.exits.count(kind, addr);
    }

    fn way(&mut self, id: SpaceId) -> &mut Recent {
        if id == SpaceId::PORT {
            &mut self.ports
        } else {
            &mut self.mmio
        }
    }
}

fn flow(flow: bus::Flow) -> Flow {
    match flow {
        bus::Flow::Continue => Flow::Continue,
        bus::Flow::Stop(request) => Flow::Stop(match request {
            StopRequest::Reset { source } => StopReason::Reset { source },
            StopRequest::PowerOff { source } => StopReason::PowerOff { source },
            StopRequest::Panic { source, detail } => StopReason::Panic { source, detail },
            StopRequest::Fault { detail } => StopReason::Fault { detail },
        }),
    }
}

impl GuestBus for Dispatch {
    fn read(&mut self, cx: &dyn AccessContext, space: SpaceId, addr: u64, data: &mut [u8]) -> Flow {
        self.count(space, false, addr);
        flow(self.way(space).read(&Context(cx), addr, data))
    }

    fn write(&mut self, cx: &dyn AccessContext, space: SpaceId, addr: u64, data: &[u8]) -> Flow {
        self.count(space, true, addr);
        flow(self.way(space).write(&Context(cx), addr, data))
    }

    fn write_string(
        &mut self,
        cx: &dyn AccessContext,
        space: SpaceId,
        addr: u64,
        size: usize,
        data: &[u8],
    ) -> Flow {
        self.count(space, true, addr);
        flow(
            self.way(space)
                .space()
                .write_string(&Context(cx), addr, size, data),
        )
    }

    fn end_of_interrupt(&mut self, vector: u8) {
        self.exits.count_end_of_interrupt();
        self.ioapic.end_of_interrupt(vector);
    }
}
