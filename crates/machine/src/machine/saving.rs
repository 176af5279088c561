//! A machine as bytes: saved on one engine, restored on another.
//!
//! A machine whose CPU is a model ([`CpuChoice::Model`]) can go on under every engine that can carry
//! it: what a kernel has made of the features it found at its boot holds there too. What the guest
//! cannot have changed is left out. One that has all its engine offers goes on where nothing of it
//! is lacking, and is refused elsewhere by the names of what is.
//!
//! Devices in PCI slots are made by who restores, and attached: each takes its state then, and the
//! machine does not go on before all are there.
//!
//! The guest's clock stands still meanwhile. Not saved: console output that nobody has read, events,
//! what the host's clock says.

use vmlet_memory::{AddressSpace, Gpa};
use vmlet_vcpu::{
    EngineError,
    cpuid::{CpuidTable, missing_features},
    x86_64::{PORTABLE_MSRS, VcpuState},
};

use super::{
    Machine, ThreadStarter,
    assembly::{Contents, check_cpus},
};
use crate::{
    Attached, Config, CpuChoice, MachineError, SavedMachineError, State, attached, engine, launch,
    saved::{Head, Saved, Writer},
};

const PAGE: usize = 4096;

impl Machine {
    /// The whole paused machine as bytes.
    pub fn save(&self) -> Result<Vec<u8>, MachineError> {
        let (parts, _turn) = (self.open()?, self.inner()?.take_turn());
        parts.expect("saving", State::Paused)?;
        parts.saveable()?;
        let vcpus: Vec<VcpuState> = parts
            .vcpus
            .iter()
            .map(|vcpu| Ok(trim(vcpu.with(|vcpu| vcpu.save())??, self.cpu)))
            .collect::<Result<_, EngineError>>()?;
        let dispatch = &parts.board.dispatch;
        let mut writer = Writer::new(&Head {
            engine: self.engine()?.to_owned(),
            cpu: self.cpu.name().to_owned(),
            memory: self.memory_size()?,
            cpus: u32::try_from(vcpus.len()).unwrap_or(u32::MAX),
            cmdline: self.cmdline.clone(),
            debug_port: self.debug_port,
            pci_ports: self.pci_ports,
            clock: parts.vm.clock()?,
            vcpus,
            ports: dispatch.ports().save(),
            mmio: dispatch.mmio().save(),
        });
        for region in parts.space.regions() {
            let mut at = 0;
            while at < region.len {
                let (gpa, mut page) = (region.gpa.0 + at, [0; PAGE]);
                parts.space.read(Gpa(gpa), &mut page)?;
                writer.page(gpa, &page);
                at += PAGE as u64;
            }
        }
        Ok(writer.finish())
    }

    /// The machine that [`Machine::save`] made `bytes` of; it waits for its start. Of `config` the
    /// engine, the kind of memory and the console's limit count. `devices` are the
    /// user's own that it had.
    pub fn restore(
        bytes: &[u8],
        config: &Config,
        devices: &[Attached],
        spawn: &ThreadStarter,
    ) -> Result<Machine, MachineError> {
        let saved = Saved::parse(bytes)?;
        let config = Config {
            cmdline: saved.head.cmdline.clone(),
            memory: saved.head.memory,
            cpus: saved.head.cpus,
            cpu: CpuChoice::named(&saved.head.cpu).ok_or_else(|| unknown_model(&saved.head))?,
            debug_port: saved.head.debug_port,
            pci_ports: saved.head.pci_ports,
            ..config.clone()
        };
        config.check()?;
        attached::check(devices, config.memory, config.pci_ports)?;
        let engine = engine::open(config.engine, config.clock)?;
        check_cpus(&config, engine.limits())?;
        let offered = engine.supported_cpuid()?;
        for vcpu in &saved.head.vcpus {
            let missing = missing_features(&vcpu.cpuid, &offered);
            if !missing.is_empty() {
                return Err(EngineError::State { missing }.into());
            }
        }
        if config.cpu != CpuChoice::Host {
            launch::check_masks(&*engine)?;
        }
        let slots = engine.limits().slots;
        let tables: Vec<CpuidTable> = saved.head.vcpus.iter().map(|v| v.cpuid.clone()).collect();
        let cpu = config.cpu;
        let contents = Contents {
            load: &|| {
                let space = launch::map_memory(&config, slots)?;
                fill(&space, &saved)?;
                Ok(space)
            },
            soon: Vec::new(),
            kept: None,
            make: Box::new(move |_, vm| {
                launch::restrict(vm, cpu)?;
                let make = |(id, cpuid)| vm.create_vcpu(id, cpuid);
                Ok((0..).zip(&tables).map(make).collect::<Result<_, _>>()?)
            }),
            clock: saved.head.clock,
            states: &saved.head.vcpus,
        };
        let machine = Machine::assemble(&config, devices, engine, contents, spawn)?;
        let parts = machine.open()?;
        let dispatch = &parts.board.dispatch;
        if let Some(bus) = &parts.board.pci {
            bus.set_booted();
        }
        dispatch
            .mmio()
            .restore(&saved.head.mmio)
            .and_then(|()| dispatch.ports().restore(&saved.head.ports))
            .map_err(SavedMachineError::from)?;
        Ok(machine)
    }
}

fn unknown_model(head: &Head) -> MachineError {
    MachineError::Config {
        what: "the CPU model of the saved VM",
        detail: format!("{:?}", head.cpu),
        remedy: "Use the version of vmlet that saved it.",
    }
}

/// What another engine needs to know of a state.
fn trim(mut state: VcpuState, cpu: CpuChoice) -> VcpuState {
    if let CpuChoice::Model(model) = cpu {
        state
            .msrs
            .retain(|(index, _)| PORTABLE_MSRS.contains(index));
        if !model.has_xsave() {
            // XCR0 is what the engine starts with.
            state.xcrs.clear();
        }
    }
    state
}

fn fill(space: &AddressSpace, saved: &Saved<'_>) -> Result<(), MachineError> {
    for (gpa, page) in saved.pages() {
        space.load(Gpa(gpa), page)?;
    }
    Ok(())
}
