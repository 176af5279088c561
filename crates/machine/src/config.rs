//! What a user asks for.

use std::{
    ops::RangeInclusive,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use vmlet_boot::ProtocolChoice;
use vmlet_host::{HostMemory, HostRoot};
use vmlet_pci::Root;
use vmlet_vcpu::cpuid::{CpuModel, MODELS};

use crate::{Image, MachineError, board::layout};

/// Memory comes in pages.
const GRANULE: u64 = 4096;
/// The boot protocols' tables and ACPI's need the first mebibyte.
const SMALLEST: u64 = 1 << 20;

/// Rates that CPUID and guests can express.
const TSC_KHZ: RangeInclusive<u32> = 100_000..=4_000_000;

/// Which engine runs the VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// KVM where it runs supervisor code on the processor, else the software CPU.
    #[default]
    Auto,
    /// `/dev/kvm`.
    Kvm,
    /// The software CPU.
    Soft,
}

impl EngineChoice {
    /// The choice's name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            EngineChoice::Auto => "auto",
            EngineChoice::Kvm => "kvm",
            EngineChoice::Soft => "soft",
        }
    }
}

/// Which processor guests see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuChoice {
    /// All that the engine offers.
    #[default]
    Host,
    /// A model, which is the same on every engine that can carry it: a VM can move between them.
    Model(&'static CpuModel),
}

impl CpuChoice {
    /// All choices.
    pub fn all() -> impl Iterator<Item = CpuChoice> {
        let models = MODELS.into_iter().map(CpuChoice::Model);
        [CpuChoice::Host].into_iter().chain(models)
    }

    /// The choice's name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            CpuChoice::Host => "host",
            CpuChoice::Model(model) => model.name,
        }
    }

    /// The choice of that name.
    pub fn named(name: &str) -> Option<CpuChoice> {
        CpuChoice::all().find(|choice| choice.name() == name)
    }
}

/// What guest time follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClockChoice {
    /// The host's clock.
    #[default]
    Realtime,
    /// The guest's instructions: two runs are the same.
    Icount,
}

/// What stands behind the guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RamBacking {
    /// Anonymous memory.
    #[default]
    Anon,
    /// A sealed memfd.
    Memfd,
    /// A sealed memfd of huge pages from the host's pool.
    HugeTlb {
        /// Bytes a page: 2 MiB or 1 GiB.
        page_size: u64,
    },
}

/// The most memory that the host was found to give; zero before it was asked. To ask it takes a
/// tenth of the time that a small VM takes to be made.
static CEILING: AtomicU64 = AtomicU64::new(0);

/// What the host can give, if that is less than `memory`.
fn exceeded(memory: u64) -> Option<u64> {
    if memory <= CEILING.load(Ordering::Relaxed) {
        return None;
    }
    let most = HostMemory::read(&HostRoot::default())?.ceiling();
    CEILING.store(most, Ordering::Relaxed);
    (memory > most).then_some(most)
}

/// A VM to be made.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// What records call the VM.
    pub name: String,
    /// The kernel image.
    pub kernel: Image,
    /// A folder of the user's in which unpacked kernels are kept; none: they are not.
    pub kernel_cache: Option<PathBuf>,
    /// The initramfs.
    pub initramfs: Option<Image>,
    /// PVH modules.
    pub modules: Vec<Image>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Bytes of memory, a multiple of 4 KiB.
    pub memory: u64,
    /// vCPUs.
    pub cpus: u32,
    /// Which engine.
    pub engine: EngineChoice,
    /// Which processor.
    pub cpu: CpuChoice,
    /// Kilohertz of the guest's time-stamp counter; none: the engine's.
    pub tsc_khz: Option<u32>,
    /// What guest time follows.
    pub clock: ClockChoice,
    /// Which boot protocol.
    pub protocol: ProtocolChoice,
    /// What stands behind the memory.
    pub ram: RamBacking,
    /// Have the host give all memory at once, not at the first access to each page.
    pub prefault: bool,
    /// Entries of a ring for each vCPU in which the engine notes dirty pages; none: a log a slot.
    pub dirty_ring: Option<u32>,
    /// PCIe root ports, each with a slot for one device; without any the board has no PCI.
    pub pci_ports: u8,
    /// Bytes of console output kept for the user.
    pub console_limit: usize,
    /// What the guest writes to the debug port (0xe9) goes to the console too.
    pub debug_port: bool,
}

impl Config {
    /// Checks what can be checked without making anything.
    pub(crate) fn check(&self) -> Result<(), MachineError> {
        let refuse = |what: &'static str, detail: String, remedy: &'static str| {
            Err(MachineError::Config {
                what,
                detail,
                remedy,
            })
        };
        if self.memory < SMALLEST || !self.memory.is_multiple_of(GRANULE) {
            let detail = format!("{} bytes", self.memory);
            return refuse(
                "memory",
                detail,
                "Give at least 1 MiB, in multiples of 4 KiB.",
            );
        }
        if let CpuChoice::Model(model) = self.cpu
            && layout::memory_end(self.memory) > 1 << model.physical_bits
        {
            let (name, bits) = (model.name, model.physical_bits);
            let detail = format!(
                "{} bytes: cpu={name:?} has addresses of {bits} bits",
                self.memory
            );
            return refuse(
                "memory",
                detail,
                "Give the VM less memory, or a higher level.",
            );
        }
        if let Some(most) = exceeded(self.memory) {
            let detail = format!("{} bytes: the host can give {most}", self.memory);
            return refuse("memory", detail, "Give the VM less memory.");
        }
        if self.memory > layout::MAX_MEMORY {
            let detail = format!("{} bytes", self.memory);
            return refuse("memory", detail, "Give at most 1 TiB.");
        }
        if let Some(khz) = self.tsc_khz.filter(|khz| !TSC_KHZ.contains(khz)) {
            return refuse("tsc_khz", khz.to_string(), "Give 100,000 to 4,000,000.");
        }
        if self.cpus == 0 {
            return refuse("cpus", "0".to_owned(), "Give at least one vCPU.");
        }
        if self.pci_ports > Root::MAX_PORTS {
            let detail = self.pci_ports.to_string();
            return refuse("pci_ports", detail, "Give at most 30 root ports.");
        }
        if self.console_limit == 0 {
            return refuse("console_limit", "0".to_owned(), "Give at least one byte.");
        }
        Ok(())
    }
}
