//! What a user asks for.

use vmlet_boot::ProtocolChoice;
use vmlet_host::{HostMemory, HostRoot};

use crate::{MachineError, board::layout};

/// Memory comes in pages.
const GRANULE: u64 = 4096;
/// The boot protocols' tables and ACPI's need the first mebibyte.
const SMALLEST: u64 = 1 << 20;

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

/// A VM to be made.
#[derive(Clone, Debug)]
pub struct Config {
    /// The kernel image.
    pub kernel: Vec<u8>,
    /// The initramfs.
    pub initramfs: Option<Vec<u8>>,
    /// PVH modules.
    pub modules: Vec<Vec<u8>>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Bytes of memory, a multiple of 4 KiB.
    pub memory: u64,
    /// vCPUs.
    pub cpus: u32,
    /// Which engine.
    pub engine: EngineChoice,
    /// What guest time follows.
    pub clock: ClockChoice,
    /// Which boot protocol.
    pub protocol: ProtocolChoice,
    /// What stands behind the memory.
    pub ram: RamBacking,
    /// Have the host give all memory at once, not at the first access to each page.
    pub prefault: bool,
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
        let host = HostMemory::read(&HostRoot::default()).map(|memory| memory.ceiling());
        if let Some(most) = host.filter(|most| self.memory > *most) {
            let detail = format!("{} bytes: the host can give {most}", self.memory);
            return refuse("memory", detail, "Give the VM less memory.");
        }
        if self.memory > layout::MAX_MEMORY {
            let detail = format!("{} bytes", self.memory);
            return refuse("memory", detail, "Give at most 1 TiB.");
        }
        if self.cpus == 0 {
            return refuse("cpus", "0".to_owned(), "Give at least one vCPU.");
        }
        if self.console_limit == 0 {
            return refuse("console_limit", "0".to_owned(), "Give at least one byte.");
        }
        Ok(())
    }
}
