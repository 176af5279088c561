//! From a configuration to memory, vCPUs and registers.

use std::{ops::Range, sync::Arc};

use vmlet_boot::{BootPlan, BootRequest, Entry, MemoryRange, Mode};
use vmlet_memory::{
    AddressSpace, Backing, Gpa, MapChange, MapListener, Mapping, Memslot, Ram, Refusal, RegionKind,
};
use vmlet_vcpu::{
    EngineError, Hypervisor, SlotChange, Vcpu, Vm,
    cpuid::{CpuidTable, SOFT_V1, Topology, host_policy, missing_features},
    x86_64::{MpState, Regs, Table},
};

use crate::{
    Config, CpuChoice, EngineChoice, MachineError, RamBacking,
    board::{
        APERTURES, acpi,
        layout::{self, PciLayout},
    },
    engine,
    kernels::{self, Unpacked},
    loading::Loader,
    machine::VcpuMaker,
};

/// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 2;

/// Keeps the engine's memory slots in step with the map.
#[derive(Debug)]
pub(crate) struct Slots {
    pub(crate) vm: Arc<dyn Vm>,
}

impl Slots {
    fn apply(&self, changes: &[SlotChange<'_>]) -> Result<(), (usize, EngineError)> {
        changes.iter().enumerate().try_for_each(|(done, change)| {
            self.vm.change_slot(*change).map_err(|error| (done, error))
        })
    }
}

fn overlaps(a: &Memslot, b: &Memslot) -> bool {
    a.gpa.0 < b.gpa.0 + b.len && b.gpa.0 < a.gpa.0 + a.len
}

/// Slots may not overlap: those that make room for new ones go in `prepare`, the others in
/// `commit`.
fn forward(change: &MapChange) -> Vec<SlotChange<'_>> {
    let in_the_way = |old: &&Memslot| change.added.iter().any(|new| overlaps(old, new));
    let removed = change
        .removed
        .iter()
        .filter(in_the_way)
        .map(SlotChange::Remove);
    let changed = change.changed.iter().map(|(_, new)| SlotChange::Set(new));
    removed
        .chain(change.added.iter().map(SlotChange::Set))
        .chain(changed)
        .collect()
}

fn backward(change: &MapChange) -> Vec<SlotChange<'_>> {
    let in_the_way = |old: &&Memslot| change.added.iter().any(|new| overlaps(old, new));
    let removed = change
        .removed
        .iter()
        .filter(in_the_way)
        .map(SlotChange::Set);
    let added = change.added.iter().map(SlotChange::Remove);
    added
        .chain(removed)
        .chain(change.changed.iter().map(|(old, _)| SlotChange::Set(old)))
        .collect()
}

impl MapListener for Slots {
    fn name(&self) -> &str {
        "the engine's memory slots"
    }

    fn prepare(&self, change: &MapChange) -> Result<(), Refusal> {
        self.apply(&forward(change)).map_err(|(done, error)| {
            if done > 0 {
                self.rollback(change);
            }
            Refusal(error.to_string())
        })
    }

    fn commit(&self, change: &MapChange) {
        let gone = |old: &&Memslot| !change.added.iter().any(|new| overlaps(old, new));
        for slot in change.removed.iter().filter(gone) {
            let _ = self.vm.change_slot(SlotChange::Remove(slot));
        }
    }

    fn rollback(&self, change: &MapChange) {
        for step in backward(change) {
            let _ = self.vm.change_slot(step);
        }
    }
}

/// What goes where in memory, and how the first vCPU starts.
pub(crate) struct Image<'a> {
    boot: BootPlan<'a>,
}

/// What a plan refers to.
pub(crate) struct Sources<'a> {
    modules: Vec<&'a [u8]>,
    vmlinux: Option<Unpacked>,
    memory: Vec<MemoryRange>,
}

impl<'a> Sources<'a> {
    /// Those of `config`.
    pub(crate) fn of(config: &'a Config) -> Result<Sources<'a>, MachineError> {
        let packed = vmlet_boot::packed(&config.kernel, config.protocol)?;
        let folder = config.kernel_cache.as_deref();
        let unpack = |packed| kernels::unpack(&config.kernel, packed, folder);
        Ok(Sources {
            modules: config.modules.iter().map(|module| &**module).collect(),
            vmlinux: packed.map(unpack).transpose()?,
            memory: layout::memory_map(config.memory, config.pci_ports > 0),
        })
    }
}

/// Looks at kernel and initramfs. No engine is involved: a bad image costs nothing but this.
pub(crate) fn plan<'a>(
    config: &'a Config,
    sources: &'a Sources<'a>,
) -> Result<Image<'a>, MachineError> {
    let boot = vmlet_boot::plan(&BootRequest {
        kernel: &config.kernel,
        vmlinux: sources.vmlinux.as_deref(),
        initramfs: config.initramfs.as_deref(),
        modules: &sources.modules,
        cmdline: &config.cmdline,
        memory: &sources.memory,
        rsdp: Some(layout::ACPI_START),
        protocol: config.protocol,
    })?;
    Ok(Image { boot })
}

/// Where PCI lies: as far up as the guest's processor has addresses.
pub(crate) fn pci_layout(
    config: &Config,
    engine: &dyn Hypervisor,
) -> Result<Option<PciLayout>, MachineError> {
    if config.pci_ports == 0 {
        return Ok(None);
    }
    let bits = match config.cpu {
        CpuChoice::Model(model) => model.physical_bits,
        CpuChoice::Host if engine.name() == EngineChoice::Soft.name() => SOFT_V1.physical_bits,
        CpuChoice::Host => engine.supported_cpuid()?.physical_address_bits().into(),
    };
    Ok(layout::pci(config.pci_ports, config.memory, bits))
}

/// Makes memory and loads kernel, initramfs and tables.
pub(crate) fn load(
    config: &Config,
    image: &Image<'_>,
    engine: &dyn Hypervisor,
) -> Result<AddressSpace, MachineError> {
    let space = map_memory(config, engine.limits().slots)?;
    let pci = pci_layout(config, engine)?;
    let (rsdp, tables) = acpi::tables(config.cpus, pci.as_ref());
    let mut loader = Loader::new(&space);
    let loads = &image.boot.loads;
    let parts = loads.iter().map(|load| (load.gpa, &*load.bytes));
    let parts: Vec<_> = parts.chain([(rsdp, &*tables)]).collect();
    loader.copy(&parts)?;
    for load in loads {
        loader.clear(load.gpa + load.bytes.len() as u64, load.zeros)?;
    }
    Ok(space)
}

/// What of the memory the host is to give before the guest asks for it.
pub(crate) fn soon(config: &Config, image: &Image<'_>) -> Vec<Range<u64>> {
    if config.prefault {
        Vec::new()
    } else {
        image.boot.soon.clone()
    }
}

pub(crate) fn map_memory(config: &Config, max_slots: u32) -> Result<AddressSpace, MachineError> {
    let backing = match config.ram {
        RamBacking::Anon => Backing::Anon,
        RamBacking::Memfd => Backing::Memfd,
        RamBacking::HugeTlb { page_size } => Backing::HugeTlb { page_size },
    };
    let ram = Ram::new(config.memory, backing)?;
    if config.prefault {
        ram.prefault()?;
    }
    let low = layout::low_bytes(config.memory);
    let part = |gpa, offset, len| Mapping {
        gpa: Gpa(gpa),
        len,
        ram: Arc::clone(&ram),
        offset,
        readonly: false,
        kind: RegionKind::Ram,
    };
    let mut parts = vec![part(0, 0, low)];
    if config.memory > low {
        parts.push(part(layout::HIGH_START, low, config.memory - low));
    }
    let slots = max_slots.saturating_sub(APERTURES);
    let space = AddressSpace::new(usize::try_from(slots).unwrap_or(usize::MAX));
    space.map(parts)?;
    Ok(space)
}

/// How many vCPUs, and which processor they are to be.
#[derive(Clone, Copy)]
struct Wanted {
    cpus: u32,
    cpu: CpuChoice,
    tsc_khz: Option<u32>,
    dirty_ring: Option<u32>,
}

/// Makes the vCPUs: the first at the entry point, the others waiting for their start.
pub(crate) fn maker(config: &Config, image: &Image<'_>) -> VcpuMaker {
    let (entry, wanted) = (
        image.boot.entry,
        Wanted {
            cpus: config.cpus,
            cpu: config.cpu,
            tsc_khz: config.tsc_khz,
            dirty_ring: config.dirty_ring,
        },
    );
    Box::new(move |engine, vm| create_vcpus(engine, vm, wanted, &entry))
}

fn create_vcpus(
    engine: &dyn Hypervisor,
    vm: &dyn Vm,
    wanted: Wanted,
    entry: &Entry,
) -> Result<Vec<Box<dyn Vcpu>>, MachineError> {
    let table = processor(engine, wanted)?;
    restrict(vm, wanted.cpu)?;
    if let Some(entries) = wanted.dirty_ring {
        engine::check_rings(engine)?;
        vm.use_dirty_ring(entries)?;
    }
    let (mut vcpus, cpus) = (Vec::new(), wanted.cpus);
    for apic_id in 0..cpus {
        let place = Topology {
            apic_id,
            cpus,
            local_apic: true,
        };
        let mut vcpu = vm.create_vcpu(apic_id, &host_policy(&table, place))?;
        if let Some(khz) = wanted.tsc_khz {
            vcpu.set_tsc_khz(khz)?;
        }
        if apic_id == 0 {
            enter(vcpu.as_mut(), entry)?;
        } else {
            vcpu.set_mp_state(MpState::Uninitialized)?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

/// What the guest's `cpuid` answers, before policy.
fn processor(engine: &dyn Hypervisor, wanted: Wanted) -> Result<CpuidTable, MachineError> {
    let offered = engine.supported_cpuid()?;
    let model = match wanted.cpu {
        CpuChoice::Model(model) => model,
        CpuChoice::Host if engine.name() == EngineChoice::Soft.name() => &SOFT_V1,
        CpuChoice::Host => return Ok(offered),
    };
    let table = model.cpuid(match wanted.tsc_khz {
        Some(khz) => khz,
        None => engine.tsc_khz()?,
    });
    // First: what such a KVM says it offers is not what its guests see either.
    check_masks(engine)?;
    let missing = missing_features(&table, &offered);
    if missing.is_empty() {
        return Ok(table);
    }
    Err(MachineError::Level {
        model: model.name,
        engine: engine.name(),
        missing,
    })
}

/// Refuses a KVM whose guests see other features than those of their model.
pub(crate) fn check_masks(engine: &dyn Hypervisor) -> Result<(), MachineError> {
    if engine.name() == EngineChoice::Soft.name() {
        return Ok(());
    }
    let shown = engine::unmasked()?;
    if shown.is_empty() {
        Ok(())
    } else {
        Err(MachineError::Unmasked { shown })
    }
}

/// Gives guests the model-specific registers of their model.
pub(crate) fn restrict(vm: &dyn Vm, cpu: CpuChoice) -> Result<(), MachineError> {
    if let CpuChoice::Model(model) = cpu
        && let Some(policy) = model.msrs
    {
        vm.set_msr_policy(policy)?;
    }
    Ok(())
}

fn enter(vcpu: &mut dyn Vcpu, entry: &Entry) -> Result<(), MachineError> {
    let reset = vcpu.sregs()?;
    let gdt = Table {
        base: entry.gdt,
        limit: entry.gdt_limit,
    };
    vcpu.set_sregs(&match entry.mode {
        Mode::Flat32 => reset.enter_flat32(gdt),
        Mode::Long64 { cr3 } => reset.enter_long64(cr3, gdt),
    })?;
    let Entry {
        rip, rsp, rbx, rsi, ..
    } = *entry;
    let rbp = rsp;
    vcpu.set_regs(&Regs {
        rip,
        rsp,
        rbp,
        rbx,
        rsi,
        rflags: RFLAGS,
        ..Regs::default()
    })?;
    Ok(())
}
