//! A vCPU descriptor and its run loop.

use std::{os::fd::AsRawFd, sync::Arc};

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_DIRTY_RING_FULL, KVM_EXIT_HLT, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IOAPIC_EOI, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SET_TPR,
    KVM_EXIT_SHUTDOWN,
};
use kvm_ioctls::VcpuFd;
use vmlet_memory::fork::{ParentOnly, Watch, watch_fd};
use vmlet_vcpu::{
    AccessContext, DebugControl, DebugStop, EngineError, Flow, GuestBus, Kicker, RunEnd, SpaceId,
    Stat, StopReason, Vcpu,
    cpuid::CpuidTable,
    x86_64::{MpState, Regs, Sregs, VcpuState},
};

use crate::{
    convert, debug, exits,
    ext::{self, RunPage},
    kick::{self, Bound, VcpuKicker},
    state, stats,
    system::call,
    vm::Shared,
};

/// #DB.
const DEBUG_EXCEPTION: u32 = 1;
/// DR6 after a single step: BS and the bits that are always one.
const DR6_STEP: u64 = 0xffff_4ff0;

/// Exits after which a vCPU is one that exits often: making a ring takes as long as a hundred
/// changes of the signal mask.
const OFTEN: u32 = 1024;

/// A vCPU of `/dev/kvm`.
#[derive(Debug)]
pub(crate) struct KvmVcpu {
    id: u32,
    parts: Option<Parts>,
    kicker: Arc<VcpuKicker>,
    bound: Option<Bound>,
    /// A run ends after one instruction.
    stepping: bool,
    /// What was asked for: a KVM that ignores masks gives back the processor's own.
    pub(crate) cpuid: CpuidTable,
}

/// The page is unregistered before the descriptor unmaps it.
#[derive(Debug)]
struct Parts {
    page: RunPage,
    fd: ParentOnly<VcpuFd>,
    shared: Arc<Shared>,
    /// Exits until this is a vCPU that exits often; 0 once it is, and before it is bound.
    until_often: u32,
    _watch: Option<Watch>,
}

/// What callbacks may ask.
struct Access<'a> {
    id: u32,
    fd: &'a VcpuFd,
}

impl AccessContext for Access<'_> {
    fn vcpu(&self) -> u32 {
        self.id
    }

    fn regs(&self) -> Regs {
        // It cannot fail on an open vCPU of its own thread.
        convert::regs_from_kvm(&self.fd.get_regs().unwrap_or_default())
    }
}

/// Why running guest code stopped.
enum Pause {
    End(RunEnd),
    /// The board asked to stop in an access that is not complete.
    Stop(StopReason),
    /// A single-stepped instruction made an access that is not complete.
    Access,
    /// A signal or a completion came.
    Interrupted,
    /// It has become a vCPU that exits often.
    Often,
}

impl KvmVcpu {
    pub(crate) fn new(id: u32, mut fd: VcpuFd, run_size: usize, shared: Arc<Shared>) -> KvmVcpu {
        let page = RunPage::new(&mut fd, run_size);
        let watch = watch_fd(fd.as_raw_fd());
        let parts = Parts {
            page,
            fd: ParentOnly::new(fd),
            shared,
            until_often: 0,
            _watch: watch,
        };
        let kicker = Arc::new(VcpuKicker::default());
        KvmVcpu {
            id,
            parts: Some(parts),
            kicker,
            bound: None,
            stepping: false,
            cpuid: CpuidTable::default(),
        }
    }

    fn parts(&self) -> Result<&Parts, EngineError> {
        let parts = self.parts.as_ref().ok_or(EngineError::Forked)?;
        parts
            .shared
            .origin
            .check()
            .map_err(|_| EngineError::Forked)?;
        Ok(parts)
    }

    fn parts_mut(&mut self) -> Result<&mut Parts, EngineError> {
        self.parts()?;
        self.parts.as_mut().ok_or(EngineError::Forked)
    }

    fn fd(&self) -> Result<&VcpuFd, EngineError> {
        Ok(&self.parts()?.fd)
    }

    /// Kicks are signals that come through inside `KVM_RUN` only.
    fn mask_signals(&self) -> Result<(), EngineError> {
        ext::set_signal_mask(self.fd()?, Some(kick::mask_while_running()))
    }

    /// Spares a vCPU that exits often the changes of the thread's signal mask at each `KVM_RUN`: kicks
    /// come by completions of io_uring, where the host permits it.
    fn unmask_signals(&self) -> Result<(), EngineError> {
        let parts = self.parts()?;
        if self.bound.is_some() && self.kicker.by_completion(&parts.page) {
            ext::set_signal_mask(&parts.fd, None)?;
        }
        Ok(())
    }

    /// Whether it was a kick that ended a run.
    fn takes_kick(&self) -> Result<bool, EngineError> {
        if self.kicker.settle().is_err() {
            self.mask_signals()?;
        }
        Ok(self.kicker.consume())
    }

    /// Completes the access in flight without entering the guest. An access that KVM split gives
    /// further exits, which are served too; the end of a run among them is given back.
    fn complete(&mut self, bus: &mut dyn GuestBus) -> Result<Option<RunEnd>, EngineError> {
        let (id, mut end) = (self.id, None);
        self.parts()?.page.set_immediate_exit(true);
        let result = loop {
            match ext::run(self.fd()?) {
                // Whoever has asked to stop has been heard already.
                Ok(()) => {
                    if let Some(Pause::End(found)) = self.parts_mut()?.serve(id, bus)? {
                        end = Some(found);
                    }
                }
                Err(libc::EINTR) => break Ok(end),
                Err(libc::EAGAIN) => {}
                Err(errno) => break Err(run_error(errno)),
            }
        };
        self.kicker.restore_exit(&self.parts()?.page);
        result
    }

    /// Completes the access of a single-stepped instruction. KVM's emulator forgets the step of a
    /// port write, so it is reported from here when KVM does not.
    fn complete_step(&mut self, bus: &mut dyn GuestBus) -> Result<RunEnd, EngineError> {
        if let Some(end) = self.complete(bus)? {
            return Ok(end);
        }
        let rip = self.regs()?.rip;
        let (exception, dr6) = (DEBUG_EXCEPTION, DR6_STEP);
        Ok(RunEnd::Debug(DebugStop {
            rip,
            exception,
            dr6,
        }))
    }
}

impl Parts {
    /// Runs guest code and serves its accesses until the vCPU has to see to something. Nothing here
    /// asks again whether this is still the process that made the VM: the thread that is here is in
    /// no other.
    fn run(
        &mut self,
        id: u32,
        stepping: bool,
        bus: &mut dyn GuestBus,
    ) -> Result<Pause, EngineError> {
        loop {
            match ext::run(&self.fd) {
                Ok(()) => {
                    if let Some(pause) = self.serve(id, bus)? {
                        return Ok(pause);
                    }
                    if stepping && self.in_access() {
                        return Ok(Pause::Access);
                    }
                    if self.becomes_often() {
                        return Ok(Pause::Often);
                    }
                }
                Err(libc::EINTR) => return Ok(Pause::Interrupted),
                // An application processor that waited for its start has got a message.
                Err(libc::EAGAIN) => {}
                Err(libc::EFAULT) => {
                    let end = RunEnd::Fatal(exits::unserved(&self.page));
                    return Ok(Pause::End(end));
                }
                Err(errno) => return Err(run_error(errno)),
            }
        }
    }

    fn becomes_often(&mut self) -> bool {
        let last = self.until_often == 1;
        self.until_often = self.until_often.saturating_sub(1);
        last
    }

    /// The last exit was an access that KVM completes when it is entered again.
    fn in_access(&self) -> bool {
        matches!(self.page.exit_reason(), KVM_EXIT_IO | KVM_EXIT_MMIO)
    }

    /// Serves the exit that `KVM_RUN` has returned with; the end of running by it.
    ///
    /// Accesses come often, so that they are told from all else first and nothing is made for one
    /// that goes on.
    #[inline]
    fn serve(&mut self, id: u32, bus: &mut dyn GuestBus) -> Result<Option<Pause>, EngineError> {
        let access = Access { id, fd: &self.fd };
        let flow = match self.page.exit_reason() {
            KVM_EXIT_IO => serve_io(&access, &mut self.page, bus),
            KVM_EXIT_MMIO => serve_mmio(&access, &mut self.page, bus),
            reason => return Ok(self.serve_other(reason, bus)?.map(Pause::End)),
        };
        match flow {
            Flow::Continue => Ok(None),
            Flow::Stop(reason) => Ok(Some(Pause::Stop(reason))),
        }
    }

    #[cold]
    fn serve_other(
        &mut self,
        reason: u32,
        bus: &mut dyn GuestBus,
    ) -> Result<Option<RunEnd>, EngineError> {
        Ok(match reason {
            KVM_EXIT_IOAPIC_EOI => {
                bus.end_of_interrupt(self.page.eoi_vector());
                None
            }
            KVM_EXIT_HLT => Some(RunEnd::Halt),
            KVM_EXIT_SHUTDOWN => Some(RunEnd::Shutdown),
            KVM_EXIT_DEBUG => {
                let stop = self.page.debug();
                let (rip, exception, dr6) = (stop.pc, stop.exception, stop.dr6);
                Some(RunEnd::Debug(DebugStop {
                    rip,
                    exception,
                    dr6,
                }))
            }
            KVM_EXIT_IRQ_WINDOW_OPEN => Some(RunEnd::InterruptWindow),
            KVM_EXIT_DIRTY_RING_FULL => {
                self.shared.rings.make_room(&self.shared.fd)?;
                None
            }
            KVM_EXIT_INTR | KVM_EXIT_SET_TPR => None,
            reason => Some(RunEnd::Fatal(exits::fatal(&self.page, &self.fd, reason))),
        })
    }
}

fn serve_io(access: &Access<'_>, page: &mut RunPage, bus: &mut dyn GuestBus) -> Flow {
    let (io, space) = (page.io(), SpaceId::PORT);
    let addr = u64::from(io.port);
    let data = page.io_data(&io);
    if io.count == 1 && io.write {
        return bus.write(access, space, addr, data);
    }
    if io.count == 1 {
        return bus.read(access, space, addr, data);
    }
    if io.write {
        return bus.write_string(access, space, addr, io.size, data);
    }
    let mut flow = Flow::Continue;
    for element in data.chunks_mut(io.size.max(1)) {
        if let stop @ Flow::Stop(_) = bus.read(access, space, addr, element) {
            flow = stop;
        }
    }
    flow
}

fn serve_mmio(access: &Access<'_>, page: &mut RunPage, bus: &mut dyn GuestBus) -> Flow {
    let mut mmio = page.mmio();
    let Some(data) = mmio.data.get_mut(..mmio.len) else {
        return Flow::Continue;
    };
    if mmio.write {
        return bus.write(access, SpaceId::MMIO, mmio.addr, data);
    }
    let flow = bus.read(access, SpaceId::MMIO, mmio.addr, data);
    page.answer_mmio(mmio.data);
    flow
}

fn run_error(errno: i32) -> EngineError {
    EngineError::call("KVM_RUN", std::io::Error::from_raw_os_error(errno))
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        // A vCPU that is dropped bound is dropped by another thread.
        if self.bound.take().is_some() {
            self.kicker.forget_thread();
        }
        // In place: a vCPU's descriptor alone is closed in no time.
        if let Some(parts) = self.parts.take()
            && !parts.shared.origin.is_here()
        {
            std::mem::forget(parts);
        }
    }
}

impl Vcpu for KvmVcpu {
    fn id(&self) -> u32 {
        self.id
    }

    fn kicker(&self) -> Arc<dyn Kicker> {
        Arc::clone(&self.kicker) as Arc<dyn Kicker>
    }

    fn bind(&mut self) -> Result<(), EngineError> {
        if self.bound.is_none() {
            self.bound = Some(self.kicker.bind());
            self.parts_mut()?.until_often = OFTEN;
            self.mask_signals()?;
        }
        Ok(())
    }

    fn unbind(&mut self) {
        if let Some(bound) = self.bound.take() {
            self.kicker.unbind(&bound);
        }
    }

    fn run(&mut self, bus: &mut dyn GuestBus) -> Result<RunEnd, EngineError> {
        let (id, stepping) = (self.id, self.stepping);
        loop {
            return match self.parts_mut()?.run(id, stepping, bus)? {
                Pause::End(end) => Ok(end),
                Pause::Access => self.complete_step(bus),
                Pause::Stop(reason) => {
                    self.complete(bus)?;
                    Ok(RunEnd::Stopped(reason))
                }
                Pause::Often => {
                    self.unmask_signals()?;
                    continue;
                }
                // The kernel also interrupts threads for work of its own, such as the end of an
                // io_uring that the thread had made.
                Pause::Interrupted if !self.takes_kick()? => continue,
                Pause::Interrupted => Ok(RunEnd::Kicked),
            };
        }
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), EngineError> {
        self.fd()?
            .set_guest_debug(&debug::to_kvm(control))
            .map_err(call("KVM_SET_GUEST_DEBUG"))?;
        self.stepping = control.single_step;
        Ok(())
    }

    fn regs(&self) -> Result<Regs, EngineError> {
        Ok(convert::regs_from_kvm(
            &self.fd()?.get_regs().map_err(call("KVM_GET_REGS"))?,
        ))
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<(), EngineError> {
        self.fd()?
            .set_regs(&convert::regs_to_kvm(regs))
            .map_err(call("KVM_SET_REGS"))
    }

    fn sregs(&self) -> Result<Sregs, EngineError> {
        Ok(convert::sregs_from_kvm(
            &self.fd()?.get_sregs().map_err(call("KVM_GET_SREGS"))?,
        ))
    }

    fn set_sregs(&mut self, sregs: &Sregs) -> Result<(), EngineError> {
        self.fd()?
            .set_sregs(&convert::sregs_to_kvm(sregs))
            .map_err(call("KVM_SET_SREGS"))
    }

    fn mp_state(&self) -> Result<MpState, EngineError> {
        let state = self
            .fd()?
            .get_mp_state()
            .map_err(call("KVM_GET_MP_STATE"))?;
        Ok(convert::mp_state_from_kvm(state))
    }

    fn set_mp_state(&mut self, state: MpState) -> Result<(), EngineError> {
        let state = convert::mp_state_to_kvm(state);
        self.fd()?
            .set_mp_state(state)
            .map_err(call("KVM_SET_MP_STATE"))
    }

    fn msr(&self, index: u32) -> Result<u64, EngineError> {
        state::get_msrs(self.fd()?, &[index])?
            .first()
            .map(|(_, value)| *value)
            .ok_or(EngineError::Msr { index })
    }

    fn set_msr(&mut self, index: u32, value: u64) -> Result<(), EngineError> {
        state::set_msrs(self.fd()?, &[(index, value)])
    }

    fn set_tsc_khz(&mut self, khz: u32) -> Result<(), EngineError> {
        state::set_tsc_khz(self.fd()?, self.parts()?.shared.tsc_scales(), khz)
    }

    fn inject_nmi(&mut self) -> Result<(), EngineError> {
        self.fd()?.nmi().map_err(call("KVM_NMI"))
    }

    fn inject_interrupt(&mut self, vector: u8) -> Result<(), EngineError> {
        ext::interrupt(self.fd()?, vector)
    }

    fn set_interrupt_window(&mut self, on: bool) -> Result<(), EngineError> {
        self.parts_mut()?.page.set_interrupt_window(on);
        Ok(())
    }

    fn translate(&self, linear: u64) -> Result<Option<u64>, EngineError> {
        let found = self
            .fd()?
            .translate_gva(linear)
            .map_err(call("KVM_TRANSLATE"))?;
        Ok((found.valid != 0).then_some(found.physical_address))
    }

    fn stats(&self) -> Result<Vec<Stat>, EngineError> {
        stats::read(&ext::stats_file(self.fd()?)?)
    }

    fn save(&mut self) -> Result<VcpuState, EngineError> {
        let parts = self.parts()?;
        let state = state::save(&parts.fd, &parts.shared.msr_indices)?;
        Ok(VcpuState {
            cpuid: self.cpuid.clone(),
            ..state
        })
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        let parts = self.parts()?;
        let shared = &parts.shared;
        state::restore(&parts.fd, &shared.msr_indices, shared.tsc_scales(), state)?;
        self.cpuid = state.cpuid.clone();
        Ok(())
    }
}
