//! A VM of the software engine.

use std::{
    os::fd::BorrowedFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use vmlet_memory::{SlotId, fork::Origin};
use vmlet_vcpu::{
    EngineError, Inputs, IoEvent, MsiMessage, MsiRoute, Position, SlotChange, Vcpu, Vm,
    cpuid::CpuidTable, x86_64::MsrPolicy,
};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    MAX_VCPUS,
    clock::{Clock, ClockMode},
    cpu::Shared,
    events::{IoEvents, Irqs},
    lapic::{Apics, Lapic},
    memory::Memory,
    signal::{Bell, Signal},
    turns::Turns,
    vcpu::SoftVcpu,
};

/// Memory, interrupts and clock that vCPUs share.
#[derive(Debug)]
pub(crate) struct SoftVm {
    memory: Arc<Memory>,
    clock: Arc<Clock>,
    turns: Arc<Turns>,
    bell: Arc<Bell>,
    apics: Arc<Apics>,
    irqs: Arc<Irqs>,
    io_events: Arc<IoEvents>,
    has_apics: AtomicBool,
    msr_policy: OnceLock<&'static MsrPolicy>,
    origin: Origin,
}

impl SoftVm {
    pub(crate) fn new(mode: ClockMode) -> SoftVm {
        let (apics, bell) = (Arc::new(Apics::default()), Arc::<Bell>::default());
        let clock = Arc::new(Clock::new(mode));
        let (for_turns, for_irqs) = (Arc::clone(&apics), Arc::clone(&apics));
        let turns = Arc::new(Turns::new(Arc::clone(&clock), Arc::clone(&bell), for_turns));
        SoftVm {
            memory: Arc::default(),
            irqs: Arc::new(Irqs::new(for_irqs, Arc::clone(&turns))),
            turns,
            clock,
            bell,
            apics,
            io_events: Arc::default(),
            has_apics: AtomicBool::new(false),
            msr_policy: OnceLock::new(),
            origin: Origin::here(),
        }
    }

    fn here(&self) -> Result<(), EngineError> {
        self.origin.check().map_err(|_| EngineError::Forked)
    }

    fn counting(&self) -> Result<(), EngineError> {
        self.here()?;
        if self.clock.counts() {
            return Ok(());
        }
        Err(EngineError::Lacking {
            feature: "a clock that counts instructions",
            remedy: "Make the VM with such a clock.",
        })
    }
}

impl Vm for SoftVm {
    fn change_slot(&self, change: SlotChange<'_>) -> Result<(), EngineError> {
        self.here()?;
        self.turns.still(|| match change {
            SlotChange::Set(slot) => self.memory.set(slot),
            SlotChange::Remove(slot) => {
                self.memory.remove(slot.id);
                Ok(())
            }
        })
    }

    fn create_irqchip(&self, _: u32) -> Result<(), EngineError> {
        self.here()?;
        self.has_apics.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn create_vcpu(&self, id: u32, cpuid: &CpuidTable) -> Result<Box<dyn Vcpu>, EngineError> {
        self.here()?;
        if id >= MAX_VCPUS {
            return Err(EngineError::TooManyVcpus { id, max: MAX_VCPUS });
        }
        self.clock.add_vcpu();
        let signal = Arc::new(Signal::new(Arc::clone(&self.bell)));
        let lapic = self.has_apics.load(Ordering::SeqCst).then(|| {
            let lapic = Arc::new(Lapic::new(id, Arc::clone(&signal)));
            self.apics.add(Arc::clone(&lapic));
            lapic
        });
        self.turns.register(id, &signal);
        let shared = Shared {
            memory: Arc::clone(&self.memory),
            clock: Arc::clone(&self.clock),
            lapic,
            signal,
            io_events: Arc::clone(&self.io_events),
        };
        let turns = Arc::clone(&self.turns);
        let mut vcpu = SoftVcpu::new(id, cpuid.clone(), shared, turns);
        vcpu.cpu.msrs.policy = self.msr_policy.get().copied();
        Ok(Box::new(vcpu))
    }

    fn set_msr_policy(&self, policy: &'static MsrPolicy) -> Result<(), EngineError> {
        self.here()?;
        self.msr_policy.get_or_init(|| policy);
        Ok(())
    }

    fn set_routes(&self, routes: &[MsiRoute]) -> Result<(), EngineError> {
        self.here()?;
        self.irqs.set_routes(routes);
        Ok(())
    }

    fn signal_msi(&self, message: MsiMessage) -> Result<bool, EngineError> {
        self.here()?;
        Ok(self.turns.defer(message) || self.apics.message(message))
    }

    fn attach_irqfd(&self, fd: &EventFd, gsi: u32) -> Result<(), EngineError> {
        self.here()?;
        self.irqs.attach(fd, gsi)
    }

    fn detach_irqfd(&self, fd: &EventFd, _: u32) -> Result<(), EngineError> {
        self.here()?;
        self.irqs.detach(fd)
    }

    fn attach_ioevent(&self, fd: &EventFd, event: &IoEvent) -> Result<(), EngineError> {
        self.here()?;
        self.io_events.add(event, fd)
    }

    fn detach_ioevent(&self, _: &EventFd, event: &IoEvent) -> Result<(), EngineError> {
        self.here()?;
        self.io_events.remove(event);
        Ok(())
    }

    fn dirty_log(&self, slot: SlotId, pages: u64) -> Result<Vec<u64>, EngineError> {
        self.here()?;
        Ok(self.turns.still(|| self.memory.take_dirty(slot, pages)))
    }

    fn clock(&self) -> Result<u64, EngineError> {
        Ok(self.clock.now())
    }

    fn set_clock(&self, nanoseconds: u64) -> Result<(), EngineError> {
        self.clock.set(nanoseconds);
        Ok(())
    }

    fn position(&self) -> Option<Position> {
        self.clock.counts().then(|| self.clock.position())
    }

    fn stop_at(&self, instructions: Option<u64>) -> Result<(), EngineError> {
        self.counting()?;
        self.turns.stop_at(instructions);
        Ok(())
    }

    fn set_inputs(&self, inputs: Arc<dyn Inputs>) -> Result<(), EngineError> {
        self.counting()?;
        self.turns.set_inputs(inputs);
        Ok(())
    }

    fn input_waits(&self) {
        self.turns.call();
    }

    /// Device memory is never cached here: there is nothing to honour.
    fn attach_vfio_fd(&self, _: BorrowedFd<'_>) -> Result<(), EngineError> {
        self.here()
    }
}
