//! How a machine is put together.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use vmlet_devices::serial::SerialOut;
use vmlet_memory::{
    AddressSpace, MapListener,
    fork::{Origin, ParentOnly},
};
use vmlet_vcpu::{Hypervisor, Inputs, Limits, Vcpu, VcpuThread, x86_64::VcpuState};
use vmlet_vfio::{ApertureEngine, Owner};

use super::{Inner, Machine, Parts, ThreadStarter, VcpuMaker, making::Making, reach::Reach};
use crate::{
    Attached, Config, Console, EngineChoice, Image, MachineError,
    ahead::Ahead,
    attached,
    board::{ApertureSlots, Board},
    console::ConsoleFeed,
    engine,
    journal::Journal,
    launch::{self, Slots},
    lifecycle::Life,
};

/// What a machine begins with.
pub(super) struct Contents<'a> {
    /// Fills its memory.
    pub(super) load: &'a dyn Fn() -> Result<AddressSpace, MachineError>,
    /// What of it the host gives before the guest asks for it.
    pub(super) soon: Vec<Range<u64>>,
    /// The kernel, where it is mapped.
    pub(super) kept: Option<Image>,
    /// Makes its vCPUs.
    pub(super) make: VcpuMaker,
    /// What the guest's clock says, in nanoseconds. One that is behind what the guest has seen stands
    /// still for it until that is reached.
    pub(super) clock: u64,
    /// What the vCPUs go on from; none: from where they were made.
    pub(super) states: &'a [VcpuState],
}

/// Refuses more vCPUs than the engine takes.
pub(super) fn check_cpus(config: &Config, limits: Limits) -> Result<(), MachineError> {
    if config.cpus <= limits.vcpus {
        return Ok(());
    }
    Err(MachineError::Config {
        what: "cpus",
        detail: format!("{}, and this engine takes {}", config.cpus, limits.vcpus),
        remedy: "Give the VM fewer vCPUs.",
    })
}

impl Machine {
    /// Makes a machine. Its vCPU threads are started by `spawn` and wait.
    pub fn new(config: &Config, spawn: &ThreadStarter) -> Result<Machine, MachineError> {
        Machine::with_devices(config, &[], spawn)
    }

    /// Makes a machine with devices of the user's own.
    pub fn with_devices(
        config: &Config,
        devices: &[Attached],
        spawn: &ThreadStarter,
    ) -> Result<Machine, MachineError> {
        config.check()?;
        attached::check(devices, config.memory, config.pci_ports)?;
        let engine = engine::open(config.engine, config.clock)?;
        let limits = engine.limits();
        check_cpus(config, limits)?;
        let sources = launch::Sources::of(config)?;
        let image = launch::plan(config, &sources)?;
        let make = launch::maker(config, &image);
        let contents = Contents {
            load: &|| launch::load(config, &image, &*engine),
            soon: launch::soon(config, &image),
            kept: config.kernel.kept(),
            make,
            clock: 0,
            states: &[],
        };
        Machine::assemble(config, devices, Arc::clone(&engine), contents, spawn)
    }

    /// Makes a machine of its contents.
    pub(super) fn assemble(
        config: &Config,
        devices: &[Attached],
        engine: Arc<dyn Hypervisor>,
        contents: Contents<'_>,
        spawn: &ThreadStarter,
    ) -> Result<Machine, MachineError> {
        let making = Making::start(Arc::clone(&engine), contents.make, spawn)?;
        let space = Arc::new((contents.load)()?);
        let ahead = Ahead::start(&space, contents.soon, contents.kept);
        let vm = making.vm()?;
        let slots: Arc<dyn MapListener> = Arc::new(Slots {
            vm: Arc::clone(&vm),
        });
        space.add_listener(slots)?;
        let console = Console::new(config.console_limit);
        let feed = || Box::new(ConsoleFeed::new(&console)) as Box<dyn SerialOut>;
        let debug = config.debug_port.then(feed);
        let layout = launch::pci_layout(config, &*engine)?;
        let pci = layout.as_ref().map(|layout| (layout, Arc::clone(&space)));
        let board = Board::new(Arc::clone(&vm), config.memory, feed(), debug, pci)
            .map_err(|error| MachineError::Board(error.to_string()))?;
        let mut vcpus = making.vcpus()?;
        if contents.clock > 0 {
            // Before the timers of local APICs, some of which are relative to it.
            vm.set_clock(contents.clock)?;
        }
        // All are there when the first local APIC is restored, as interrupts may be on their way; and
        // so is memory, which KVM's own registers (its end of interrupt, its clock) point into.
        for (vcpu, state) in vcpus.iter_mut().zip(contents.states) {
            vcpu.restore(state)?;
        }
        let life = Life::new(&config.name, console, vcpus.len());
        if vm.position().is_some() {
            let journal = Journal::new(Arc::downgrade(&vm), Arc::downgrade(&board.serial));
            let journal = Arc::new(journal);
            vm.set_inputs(Arc::clone(&journal) as Arc<dyn Inputs>)?;
            let _ = life.journal.set(journal);
        }
        if let Some(bus) = &board.pci {
            bus.watch.tell(&life);
        }
        attached::connect(devices, &board, &life)?;
        let vcpus = start_threads(vcpus, &board, &life, &making, spawn)?;
        let cpuid = engine.supported_cpuid()?;
        let parts = Parts {
            _ahead: ahead,
            life: Arc::clone(&life),
            vcpus,
            board,
            space,
            sockets: Reach::default(),
            terminal: Reach::default(),
            balloon: Reach::default(),
            apertures: (engine.name() == EngineChoice::Kvm.name()).then(|| {
                let slots = ApertureSlots::new(Arc::clone(&vm), engine.limits().slots);
                Arc::new(slots) as Arc<dyn ApertureEngine>
            }),
            owner: Owner::new("a VM of this process"),
            vm,
            dirty_rings: config.dirty_ring.is_some(),
            physical_bits: cpuid.physical_address_bits(),
            gibibyte_pages: cpuid.gibibyte_pages(),
        };
        let inner = ParentOnly::new(Inner {
            life,
            cpus: parts.vcpus.len(),
            parts: Mutex::new(Some(Arc::new(parts))),
            control: Mutex::default(),
        });
        let (origin, engine) = (Origin::here(), engine.name());
        log::debug!(
            target: "vmlet.vm",
            "{}: made on {engine} with {} vCPUs and {} MiB",
            config.name,
            config.cpus,
            config.memory >> 20,
        );
        Ok(Machine {
            inner,
            origin,
            engine,
            memory: config.memory,
            cpu: config.cpu,
            cmdline: config.cmdline.clone(),
            debug_port: config.debug_port,
            pci_ports: config.pci_ports,
            console_limit: config.console_limit,
        })
    }
}

fn start_threads(
    vcpus: Vec<Box<dyn Vcpu>>,
    board: &Board,
    life: &Arc<Life>,
    making: &Making,
    spawn: &ThreadStarter,
) -> Result<Vec<Arc<VcpuThread>>, MachineError> {
    let mut threads: Vec<Arc<VcpuThread>> = Vec::new();
    let count = vcpus.len();
    let first = making.spawner();
    for vcpu in vcpus {
        let spawn = if threads.is_empty() { &first } else { spawn };
        let (on_end, on_exit) = (Arc::clone(life), Arc::clone(life));
        let thread = VcpuThread::start(
            vcpu,
            Box::new(board.connect()),
            Box::new(move |id, end| on_end.run_ended(id, end)),
            Box::new(move || on_exit.thread_ended()),
            spawn,
        );
        match thread {
            Ok(thread) => threads.push(Arc::new(thread)),
            Err(error) => {
                life.forget_threads(count - threads.len());
                threads.iter().for_each(|thread| thread.ask_finish().wait());
                life.join();
                return Err(error.into());
            }
        }
    }
    life.vcpus
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .extend(threads.iter().cloned());
    Ok(threads)
}
