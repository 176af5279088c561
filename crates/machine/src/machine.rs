//! A machine: what its owner holds.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reach::Reach;
use vmlet_bus::Unclaimed;
use vmlet_devices::virtio::{balloon::Balloon, console::VirtioConsole, vsock::Vsock};
use vmlet_kvm::reaper;
use vmlet_memory::{
    AddressSpace, Extent, Gpa, Lease, LeaseKind, PAGE_SIZE, RegionKind,
    fork::{Origin, ParentOnly},
    paging::PagingContext,
};
use vmlet_vcpu::{
    EngineError, Leaving, PendingStep, RunEnd, Spawner, Stat, VcpuThread, Vm,
    x86_64::{Regs, Sregs},
};
use vmlet_vfio::{ApertureEngine, Owner};

use crate::{
    Bell, Console, CpuChoice, Event, EventKind, MachineError, PageReport, RunHandle, State,
    WalkEnd, WalkReport,
    ahead::Ahead,
    board::{Board, ExitReport},
    inspect,
    lifecycle::Life,
};

mod assembly;
mod balloon;
mod counted;
mod devices;
mod making;
mod passthrough;
mod reach;
mod saving;
mod sockets;
mod terminal;

pub(crate) use making::VcpuMaker;

/// Starts a machine's threads.
pub type ThreadStarter = Spawner;

/// A range of guest memory as users see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// First guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u64,
    /// "ram", "rom" or "device".
    pub kind: &'static str,
}

/// A virtual machine. Closed when dropped.
#[derive(Debug)]
pub struct Machine {
    inner: ParentOnly<Inner>,
    origin: Origin,
    engine: &'static str,
    memory: u64,
    cpu: CpuChoice,
    cmdline: String,
    debug_port: bool,
    pci_ports: u8,
    console_limit: usize,
}

/// What only the process that made the machine may touch.
#[derive(Debug)]
struct Inner {
    life: Arc<Life>,
    cpus: usize,
    /// Gone once the machine is closed: descriptors and memory go at once, or with the last call
    /// or view that uses them, and do not wait for the owner to drop the machine.
    parts: Mutex<Option<Arc<Parts>>>,
    /// Held by who changes the state: two threads that start, pause and stop one machine take
    /// turns, or its vCPUs and its state would part.
    control: Mutex<()>,
}

/// What an open machine is made of.
#[derive(Debug)]
struct Parts {
    /// Goes before the memory that it has a hold of.
    _ahead: Option<Ahead>,
    life: Arc<Life>,
    vcpus: Vec<Arc<VcpuThread>>,
    board: Board,
    /// Where registers of the host's devices are shown to the guest; none: by exits alone.
    apertures: Option<Arc<dyn ApertureEngine>>,
    /// Whom the host's devices are opened for.
    owner: Owner,
    // Before the memory: a VM that is gone need not be told of each page that goes.
    vm: Arc<dyn Vm>,
    space: Arc<AddressSpace>,
    sockets: Reach<Vsock>,
    terminal: Reach<VirtioConsole>,
    balloon: Reach<Balloon>,
    /// Dirty pages are noted in rings.
    dirty_rings: bool,
    physical_bits: u8,
    gibibyte_pages: bool,
}

impl Machine {
    fn inner(&self) -> Result<&Inner, MachineError> {
        self.origin.check().map_err(|_| MachineError::Forked)?;
        Ok(&self.inner)
    }

    fn open(&self) -> Result<Arc<Parts>, MachineError> {
        let parts = self.inner()?.parts();
        parts.as_ref().cloned().ok_or(MachineError::Closed)
    }

    /// The engine that runs it.
    pub fn engine(&self) -> Result<&'static str, MachineError> {
        self.inner().map(|_| self.engine)
    }

    /// Bytes of memory.
    pub fn memory_size(&self) -> Result<u64, MachineError> {
        self.inner().map(|_| self.memory)
    }

    /// The kernel's command line.
    pub fn cmdline(&self) -> &str {
        &self.cmdline
    }

    /// vCPUs.
    pub fn cpus(&self) -> Result<usize, MachineError> {
        Ok(self.inner()?.cpus)
    }

    /// Where it is in its life.
    pub fn state(&self) -> Result<State, MachineError> {
        Ok(self.inner()?.life.state())
    }

    /// What rings for every event and all output of the console.
    pub fn bell(&self) -> Result<Arc<Bell>, MachineError> {
        let rope = &self.inner()?.life.console.rope;
        rope.bell()
            .map_err(|source| EngineError::call("eventfd", source).into())
    }

    /// Runs guest code for the first time.
    pub fn start(&self) -> Result<(), MachineError> {
        self.go("start", State::Created, EventKind::Started)
    }

    /// Runs guest code again.
    pub fn resume(&self) -> Result<(), MachineError> {
        self.go("resume", State::Paused, EventKind::Resumed)
    }

    fn go(&self, action: &'static str, from: State, kind: EventKind) -> Result<(), MachineError> {
        let (inner, _turn) = (self.open()?, self.inner()?.take_turn());
        inner.expect(action, from)?;
        if inner.life.journal.get().is_some() {
            inner.vm.stop_at(None)?;
        }
        inner.run(kind)
    }

    /// Stops guest code between two instructions, on every vCPU.
    pub fn pause(&self) -> Result<(), MachineError> {
        let (inner, _turn) = (self.open()?, self.inner()?.take_turn());
        inner.expect("pause", State::Running)?;
        inner.vcpus.iter().try_for_each(|vcpu| vcpu.pause())?;
        inner.pause_devices();
        inner
            .life
            .advance(State::Paused, Event::by_user(EventKind::Paused));
        Ok(())
    }

    /// What ends this machine's run, for devices that are attached later.
    pub fn run_handle(&self) -> Result<RunHandle, MachineError> {
        Ok(RunHandle(Arc::downgrade(&self.open()?.life)))
    }

    /// Asks every vCPU to stand still, without waiting for it: one that serves an access for long
    /// can be waited for in another way before [`Machine::pause`] or [`Machine::close`].
    pub fn ask_pause(&self) -> Result<(), MachineError> {
        self.open()?.life.ask_pause();
        Ok(())
    }

    /// Has the vCPUs of a running machine run on after [`Machine::ask_pause`].
    pub fn run_on(&self) -> Result<(), MachineError> {
        let (inner, _turn) = (self.open()?, self.inner()?.take_turn());
        match inner.life.state() {
            State::Running => Ok(inner.vcpus.iter().try_for_each(|vcpu| vcpu.resume())?),
            _ => Ok(()),
        }
    }

    /// Ends the run. Nothing happens if it has ended.
    pub fn stop(&self) -> Result<(), MachineError> {
        let (inner, _turn) = (self.open()?, self.inner()?.take_turn());
        inner.vcpus.iter().try_for_each(|vcpu| vcpu.pause())?;
        inner.pause_devices();
        inner.life.end(Event::by_user(EventKind::Stopped));
        Ok(())
    }

    /// Waits for the end of the run; `None` when `timeout` passes before.
    pub fn wait(&self, timeout: Duration) -> Result<Option<Event>, MachineError> {
        let life = &self.inner()?.life;
        match life.wait(timeout) {
            None if life.state() == State::Closed => Err(MachineError::Closed),
            found => Ok(found),
        }
    }

    /// The next event; `None` when `timeout` passes before, or none will come.
    pub fn next_event(&self, timeout: Duration) -> Result<Option<Event>, MachineError> {
        Ok(self.inner()?.life.next_event(timeout))
    }

    /// The console's output.
    pub fn console(&self) -> Result<Arc<Console>, MachineError> {
        Ok(Arc::clone(&self.inner()?.life.console))
    }

    /// Gives the guest console input; returns how many bytes were taken.
    pub fn console_input(&self, bytes: &[u8]) -> Result<usize, MachineError> {
        let parts = self.open()?;
        match parts.life.journal.get() {
            Some(journal) => Ok(journal.push(bytes)?),
            None => Ok(parts.board.serial.push_input(bytes)),
        }
    }

    /// `len` bytes of guest memory.
    pub fn read_memory(&self, gpa: u64, len: usize) -> Result<Vec<u8>, MachineError> {
        let (inner, most) = (self.open()?, self.memory);
        if len as u64 > most {
            return Err(MachineError::TooLong { len, most });
        }
        let mut data = vec![0; len];
        inner.space.read(Gpa(gpa), &mut data)?;
        Ok(data)
    }

    /// Writes guest memory.
    pub fn write_memory(&self, gpa: u64, data: &[u8]) -> Result<(), MachineError> {
        self.unrecorded("writing memory")?;
        Ok(self.open()?.space.write(Gpa(gpa), data)?)
    }

    /// Writes guest memory as a device does in an access: part of the run, also of a recorded one.
    pub fn write_memory_in_access(&self, gpa: u64, data: &[u8]) -> Result<(), MachineError> {
        Ok(self.open()?.space.write(Gpa(gpa), data)?)
    }

    /// A hold on guest memory for a view that may outlive the machine.
    pub fn lease_memory(&self, gpa: u64, len: u64, writable: bool) -> Result<Lease, MachineError> {
        let inner = self.open()?;
        let missing = |gpa| vmlet_memory::MemoryError::NotMemory { gpa };
        let (ram, offset, there) = inner.space.find(Gpa(gpa)).ok_or_else(|| missing(gpa))?;
        if len > there {
            return Err(missing(gpa.saturating_add(there)).into());
        }
        if writable {
            self.unrecorded("a writable view")?;
        }
        let kind = if writable {
            LeaseKind::WritableView
        } else {
            LeaseKind::View
        };
        let range: Range<u64> = offset..offset + len;
        Ok(ram.lease(kind, range, format!("a view of {gpa:#x}+{len:#x}"))?)
    }

    /// The ranges of guest memory.
    pub fn regions(&self) -> Result<Vec<Region>, MachineError> {
        let kind = |kind| match kind {
            RegionKind::Ram => "ram",
            RegionKind::Rom => "rom",
            RegionKind::DeviceBar => "device",
        };
        let regions = self.open()?.space.regions();
        Ok(regions
            .iter()
            .map(|r| Region {
                gpa: r.gpa.0,
                len: r.len,
                kind: kind(r.kind),
            })
            .collect())
    }

    /// The ranges written since the last call. The first call switches the log on and gives all
    /// memory.
    pub fn dirty(&self) -> Result<Vec<(u64, u64)>, MachineError> {
        let inner = self.open()?;
        if inner.space.slots().iter().all(|slot| !slot.log_dirty) {
            inner.space.set_dirty_logging(true)?;
            inner.collect_dirty()?;
            let regions = inner.space.regions();
            return Ok(regions
                .iter()
                .map(|region| (region.gpa.0, region.len))
                .collect());
        }
        Ok(inner
            .collect_dirty()?
            .iter()
            .map(|extent| (extent.gpa.0, extent.len))
            .collect())
    }

    /// What no device claimed: ports, memory addresses.
    pub fn unclaimed(&self) -> Result<(Unclaimed, Unclaimed), MachineError> {
        let parts = self.open()?;
        let dispatch = &parts.board.dispatch;
        Ok((dispatch.ports().unclaimed(), dispatch.mmio().unclaimed()))
    }

    /// The exits of a vCPU that the board served.
    pub fn exits(&self, vcpu: usize) -> Result<ExitReport, MachineError> {
        let parts = self.open()?;
        let count = parts.vcpus.len();
        let found = parts.board.exits_of(vcpu);
        found.ok_or(MachineError::NoVcpu { id: vcpu, count })
    }

    /// The general registers of a vCPU.
    pub fn regs(&self, vcpu: usize) -> Result<Regs, MachineError> {
        Ok(self.vcpu(vcpu)?.with(|vcpu| vcpu.regs())??)
    }

    /// Segments and control registers of a vCPU.
    pub fn sregs(&self, vcpu: usize) -> Result<Sregs, MachineError> {
        Ok(self.vcpu(vcpu)?.with(|vcpu| vcpu.sregs())??)
    }

    /// Sets general registers; not while guest code runs.
    pub fn set_regs(&self, vcpu: usize, regs: Regs) -> Result<(), MachineError> {
        self.still("setting registers")?;
        Ok(self.vcpu(vcpu)?.with(move |vcpu| vcpu.set_regs(&regs))??)
    }

    /// Sets segments and control registers; not while guest code runs.
    pub fn set_sregs(&self, vcpu: usize, sregs: Sregs) -> Result<(), MachineError> {
        self.still("setting registers")?;
        Ok(self
            .vcpu(vcpu)?
            .with(move |vcpu| vcpu.set_sregs(&sregs))??)
    }

    /// Begins to carry out one instruction of a vCPU that stands still; [`Machine::end_step`] has
    /// the rest. Dropped, the step is given up.
    pub fn begin_step(&self, vcpu: usize) -> Result<PendingStep, MachineError> {
        self.still("a single step")?;
        Ok(self.vcpu(vcpu)?.step()?)
    }

    /// Whether `step` is over; waits for it up to `limit`.
    pub fn end_step(
        &self,
        vcpu: usize,
        step: &mut PendingStep,
        limit: Duration,
    ) -> Result<bool, MachineError> {
        match step.wait(limit)? {
            None => Ok(false),
            Some(RunEnd::Debug(_)) => Ok(true),
            Some(RunEnd::Stopped(reason)) => {
                let inner = self.open()?;
                let id = u32::try_from(vcpu).unwrap_or(0);
                inner.life.run_ended(id, Ok(RunEnd::Stopped(reason)));
                Ok(true)
            }
            Some(RunEnd::Kicked) => Err(MachineError::Step {
                detail: "it made way for another call of this VM".to_owned(),
            }),
            Some(other) => Err(MachineError::Step {
                detail: format!("{other:?}"),
            }),
        }
    }

    /// The guest-physical address of a linear address, by a walk of the guest's page tables.
    pub fn translate(&self, address: u64, vcpu: usize) -> Result<u64, MachineError> {
        match self.walk(address, vcpu)?.end {
            WalkEnd::Page { gpa, .. } => Ok(gpa),
            WalkEnd::Fault(fault) => Err(MachineError::NotMapped {
                address,
                reason: fault.to_string(),
            }),
        }
    }

    /// The guest-physical address of a linear address by the engine's own walk; `None` when it is
    /// not mapped.
    pub fn engine_translate(&self, address: u64, vcpu: usize) -> Result<Option<u64>, MachineError> {
        let vcpu = self.vcpu(vcpu)?;
        Ok(vcpu.with(move |vcpu| vcpu.translate(address))??)
    }

    /// Explains the walk of the guest's page tables for a linear address.
    pub fn walk(&self, address: u64, vcpu: usize) -> Result<WalkReport, MachineError> {
        let Sregs {
            cr0,
            cr3,
            cr4,
            efer,
            ..
        } = self.sregs(vcpu)?;
        let inner = self.open()?;
        let context = PagingContext {
            cr0,
            cr3,
            cr4,
            efer,
            physical_bits: inner.physical_bits,
            gibibyte_pages: inner.gibibyte_pages,
        };
        Ok(inspect::explain(&inner.space, &context, address))
    }

    /// In which pages memory can be mapped in the second stage, and in which it is.
    pub fn page_sizes(&self) -> Result<PageReport, MachineError> {
        let inner = self.open()?;
        Ok(inspect::pages(inner.space.page_plans(), &inner.vm.stats()?))
    }

    /// The numbers the engine keeps about the VM.
    pub fn stats(&self) -> Result<Vec<Stat>, MachineError> {
        Ok(self.open()?.vm.stats()?)
    }

    /// The numbers the engine keeps about a vCPU.
    pub fn vcpu_stats(&self, vcpu: usize) -> Result<Vec<Stat>, MachineError> {
        Ok(self.vcpu(vcpu)?.with(|vcpu| vcpu.stats())??)
    }

    /// Ends everything: guest code, threads, descriptors. What the kernel has to free is freed
    /// behind the caller's back, unless they `wait` for it.
    pub fn close(&self, wait: bool) -> Result<(), MachineError> {
        self.inner()?.close(wait);
        Ok(())
    }

    fn vcpu(&self, id: usize) -> Result<Arc<VcpuThread>, MachineError> {
        let parts = self.open()?;
        let count = parts.vcpus.len();
        let found = parts.vcpus.get(id).cloned();
        found.ok_or(MachineError::NoVcpu { id, count })
    }

    fn still(&self, action: &'static str) -> Result<(), MachineError> {
        self.unrecorded(action)?;
        match self.open()?.life.state() {
            State::Running => Err(MachineError::State {
                state: "running",
                action,
                needed: "paused",
            }),
            _ => Ok(()),
        }
    }
}

impl Inner {
    fn take_turn(&self) -> MutexGuard<'_, ()> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn parts(&self) -> MutexGuard<'_, Option<Arc<Parts>>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, wait: bool) {
        let turn = self.take_turn();
        let parts = self.parts().take();
        if let Some(parts) = &parts {
            parts.finish_record();
        }
        let before = self.life.close();
        drop(turn);
        if let Some(parts) = parts {
            // Whoever closes a machine can count on its guest doing nothing any more.
            if before == State::Running || parts.vcpus.iter().any(|vcpu| vcpu.may_run()) {
                parts.leave();
            }
            parts.pause_devices();
            parts.end_devices();
            let remains = Box::new(Remains(Some(parts)));
            if wait {
                reaper::bury_here(remains);
            } else {
                reaper::bury(remains);
            }
        } else if wait {
            reaper::drain();
        }
    }
}

/// What is left of a closed machine: threads that wait, memory, descriptors.
struct Remains(Option<Arc<Parts>>);

impl Drop for Remains {
    fn drop(&mut self) {
        let Some(parts) = self.0.take() else {
            return;
        };
        let life = Arc::clone(&parts.life);
        // Guest memory goes with the parts, and vCPUs run on it until they have left.
        let runs = parts.vcpus.iter().any(|vcpu| vcpu.may_run());
        if runs {
            parts.leave();
        }
        // Of two threads that let go of the VM, the last frees it: it should be this one. It takes
        // vCPUs before it wakes their threads, which end while the kernel frees the VM.
        let waited = parts.vcpus.iter().filter(|vcpu| vcpu.drop_waiting());
        let all = waited.count() == parts.vcpus.len();
        if !runs {
            parts.leave();
        }
        if !all {
            life.join();
        }
        drop(parts);
        life.join();
        life.forget_vcpus();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close(false);
    }
}

impl Parts {
    fn expect(&self, action: &'static str, needed: State) -> Result<(), MachineError> {
        match self.life.state() {
            state if state == needed => Ok(()),
            State::Closed => Err(MachineError::Closed),
            state => Err(MachineError::State {
                state: state.name(),
                action,
                needed: needed.name(),
            }),
        }
    }

    /// Has every thread end. Returns once guest code runs no more.
    fn leave(&self) {
        let leaving: Vec<_> = self.vcpus.iter().map(|vcpu| vcpu.ask_finish()).collect();
        leaving.into_iter().for_each(Leaving::wait);
    }

    /// Has every vCPU leave guest code for a moment: what a processor's own log holds of its writes
    /// reaches its ring then.
    fn leave_guest(&self) -> Result<(), MachineError> {
        let mut running = self.vcpus.iter().filter(|vcpu| vcpu.may_run());
        Ok(running.try_for_each(|vcpu| vcpu.with(|_| ()))?)
    }

    fn collect_dirty(&self) -> Result<Vec<Extent>, MachineError> {
        if self.dirty_rings {
            self.leave_guest()?;
        }
        let vm = &self.vm;
        let mut log = |slot, pages: u64| {
            debug_assert!(pages.checked_mul(PAGE_SIZE).is_some());
            vm.dirty_log(slot, pages).map_err(|error| error.to_string())
        };
        Ok(self.space.collect_dirty(&mut log)?)
    }
}
