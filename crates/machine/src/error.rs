//! Everything that can go wrong with a machine.

use thiserror::Error;
use vmlet_boot::{BootError, initramfs};
use vmlet_bus::DmaFault;
use vmlet_devices::{
    backend::{block::BlockError, net::NetError},
    virtio::vsock::VsockError,
};
use vmlet_host::Obstacle;
use vmlet_memory::MemoryError;
use vmlet_pci::PciError;
use vmlet_reactor::ReactorError;
use vmlet_vcpu::{EngineError, MissingFeature};
use vmlet_vfio::VfioError;

use crate::{RecordError, SavedMachineError};

/// The error number of "out of memory", which a pool of huge pages answers with.
const ENOMEM: i32 = 12;

/// What kind of error it is: decides the exception a user sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A setting that cannot be.
    Config,
    /// An image that cannot be booted.
    Kernel,
    /// Something this host or this version does not have.
    Unsupported,
    /// The guest did something that cannot go on.
    Guest,
    /// The host refused something.
    Host,
    /// The machine is closed, or not in a state for this.
    State,
    /// The machine belongs to another process.
    Forked,
}

/// What a machine refuses or fails at. A machine whose operation failed is in the state it was in
/// before, unless the variant says otherwise.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MachineError {
    /// A setting that cannot be.
    #[error("{what} cannot be {detail}. {remedy}")]
    Config {
        /// The setting.
        what: &'static str,
        /// Its value.
        detail: String,
        /// What would do.
        remedy: &'static str,
    },
    /// An image that cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// An initramfs that cannot be made.
    #[error(transparent)]
    Archive(#[from] initramfs::ArchiveError),
    /// Kernel modules that cannot be had.
    #[error(transparent)]
    Modules(#[from] initramfs::ModuleError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A CPU model whose features the engine has not got on this host.
    #[error(
        "this host's engine {engine:?} lacks what cpu={model:?} needs: {}. Take a lower level, or an engine or host that has them",
        MissingFeature::list(missing)
    )]
    Level {
        /// The model's name.
        model: &'static str,
        /// The engine's name.
        engine: &'static str,
        /// What is lacking.
        missing: Vec<MissingFeature>,
    },
    /// A KVM that shows guests features which their CPU model has not got.
    #[error(
        "this host's KVM ignores CPU models: whatever the model, guests see the processor's {}. Ask for cpu=\"host\", or for engine=\"soft\"",
        MissingFeature::list(shown)
    )]
    Unmasked {
        /// What guests see.
        shown: Vec<MissingFeature>,
    },
    /// A thread cannot be started.
    #[error("a device cannot be placed on the board: {0}")]
    Board(String),
    /// Something this version does not have.
    #[error("{what} is not supported. {remedy}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// What would do.
        remedy: &'static str,
    },
    /// A saved machine.
    #[error(transparent)]
    Saved(#[from] SavedMachineError),
    /// A record of a run.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Not in this state.
    #[error("the VM is {state}; {action} needs it {needed}")]
    State {
        /// The state it is in.
        state: &'static str,
        /// What was asked for.
        action: &'static str,
        /// The state that would do.
        needed: &'static str,
    },
    /// A vCPU that does not exist.
    #[error("there is no vCPU {id}: this VM has {count}")]
    NoVcpu {
        /// The number asked for.
        id: usize,
        /// vCPUs there are.
        count: usize,
    },
    /// A linear address that leads nowhere.
    #[error("linear address {address:#x} is not mapped: {reason}")]
    NotMapped {
        /// The address.
        address: u64,
        /// Where the walk ended.
        reason: String,
    },
    /// A single step did not end as one.
    #[error("the instruction did not complete: {detail}")]
    Step {
        /// How it ended.
        detail: String,
    },
    /// More bytes than the guest has.
    #[error("{len} bytes are more than the guest's memory of {most}. Read less at a time")]
    TooLong {
        /// Bytes asked for.
        len: usize,
        /// The guest's memory.
        most: u64,
    },
    /// A device's access that memory does not serve.
    #[error(transparent)]
    Dma(#[from] DmaFault),
    /// A PCI bus refuses a device, or has none to give.
    #[error(transparent)]
    Device(#[from] PciError),
    /// A restored machine lacks a device it had.
    #[error(
        "the saved VM had {device:?} in root port {port}. Attach it there before the VM goes on"
    )]
    MissingDevice {
        /// What the device is.
        device: String,
        /// Where it was.
        port: u8,
    },
    /// A device keeps the machine from being saved.
    #[error("a VM with {device} in root port {port} cannot be saved: {reason}. Detach it first")]
    Unsaveable {
        /// The device.
        device: &'static str,
        /// Where it is.
        port: u8,
        /// Why.
        reason: &'static str,
    },
    /// A disk's image cannot be used.
    #[error(transparent)]
    Disk(#[from] BlockError),
    /// What stands behind a network device.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A socket device, or a stream of it.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// A device of the host.
    #[error(transparent)]
    Vfio(#[from] VfioError),
    /// An event loop.
    #[error("the devices' event loop cannot be had: {0}")]
    Reactor(#[from] ReactorError),
    /// The host gives no random bytes.
    #[error("the host's random bytes cannot be read")]
    Source {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The machine is closed.
    #[error("the VM is closed. Make a new one")]
    Closed,
    /// The machine belongs to the process that made it.
    #[error("this VM belongs to the process that made it. Make a VM in the child process instead")]
    Forked,
}

impl MachineError {
    /// What the user can do, where the text does not say it.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            MachineError::Net(error) => Some(error.remedy()).filter(|remedy| !remedy.is_empty()),
            MachineError::Vfio(error) => error
                .remedy()
                .or_else(|| self.errno().and_then(errno_remedy)),
            MachineError::State { needed, .. } => match *needed {
                "created" => Some("Make a new VM: a run cannot be repeated."),
                "running" => Some("Start or resume it first."),
                "paused" => Some("Pause it first."),
                _ => None,
            },
            MachineError::NotMapped { .. } => {
                Some("Check that the guest maps the address now: kernels change their tables.")
            }
            MachineError::NoVcpu { .. } => Some("Count vCPUs from 0."),
            MachineError::Engine(EngineError::TooManyVcpus { .. }) => {
                Some("Give the VM fewer vCPUs.")
            }
            MachineError::Device(PciError::Full { count: 0 } | PciError::NoPort { .. }) => {
                Some("Make the VM with more root ports (pci_ports).")
            }
            MachineError::Device(PciError::Full { .. } | PciError::Taken { .. }) => {
                Some("Detach a device first, or make the VM with more root ports (pci_ports).")
            }
            MachineError::Memory(MemoryError::NotMemory { .. }) => {
                Some("The VM's regions say which addresses have memory.")
            }
            _ => self.errno().and_then(errno_remedy),
        }
    }

    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            MachineError::Config { .. }
            | MachineError::NoVcpu { .. }
            | MachineError::TooLong { .. } => ErrorKind::Config,
            MachineError::Archive(_) | MachineError::Modules(_) | MachineError::Boot(_) => {
                ErrorKind::Kernel
            }
            MachineError::Memory(error) => memory_kind(error),
            MachineError::Engine(error) => engine_kind(error),
            MachineError::Unsupported { .. }
            | MachineError::Level { .. }
            | MachineError::Unmasked { .. } => ErrorKind::Unsupported,
            MachineError::Saved(_) => ErrorKind::Config,
            MachineError::Record(error) => record_kind(error),
            MachineError::Step { .. } | MachineError::NotMapped { .. } => ErrorKind::Guest,
            MachineError::Board(_) | MachineError::Reactor(_) | MachineError::Source { .. } => {
                ErrorKind::Host
            }
            MachineError::Disk(error) if error.errno().is_some() => ErrorKind::Host,
            MachineError::Disk(_) => ErrorKind::Config,
            MachineError::Net(error) if net_errno(error).is_some() => ErrorKind::Host,
            MachineError::Net(_) => ErrorKind::Config,
            MachineError::Vsock(VsockError::PortTaken { .. } | VsockError::Closed) => {
                ErrorKind::State
            }
            MachineError::Vsock(error) if error.errno().is_some() => ErrorKind::Host,
            MachineError::Vsock(_) => ErrorKind::Config,
            MachineError::Vfio(error) => vfio_kind(error),
            MachineError::Device(error) => device_kind(error),
            MachineError::Dma(_) => ErrorKind::Guest,
            MachineError::State { .. }
            | MachineError::Closed
            | MachineError::MissingDevice { .. }
            | MachineError::Unsaveable { .. } => ErrorKind::State,
            MachineError::Forked => ErrorKind::Forked,
        }
    }

    /// The processor's features that the error is about.
    pub fn features(&self) -> &[MissingFeature] {
        match self {
            MachineError::Level { missing, .. }
            | MachineError::Engine(EngineError::State { missing }) => missing,
            MachineError::Unmasked { shown } => shown,
            _ => &[],
        }
    }

    /// The error number behind the error, if the host gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            MachineError::Engine(error) => error.errno(),
            MachineError::Disk(error) => error.errno(),
            MachineError::Net(error) => net_errno(error),
            MachineError::Vsock(error) => error.errno(),
            MachineError::Vfio(error) => error.errno(),
            MachineError::Reactor(error) => error.errno(),
            MachineError::Source { source } => source.raw_os_error(),
            MachineError::Memory(
                MemoryError::NoMemory { errno, .. } | MemoryError::File { errno, .. },
            ) => Some(*errno),
            MachineError::Memory(MemoryError::HugePool { .. }) => Some(ENOMEM),
            MachineError::Record(RecordError::File { source, .. }) => source.raw_os_error(),
            MachineError::Archive(initramfs::ArchiveError::Read { source, .. })
            | MachineError::Modules(
                initramfs::ModuleError::NoIndex { source, .. }
                | initramfs::ModuleError::Read { source, .. },
            ) => source.raw_os_error(),
            _ => None,
        }
    }
}

fn errno_remedy(errno: i32) -> Option<&'static str> {
    match errno {
        libc::EMFILE => Some("Raise the limit of open files (ulimit -n), or close other VMs."),
        libc::ENFILE => Some("Raise the host's limit of open files (fs.file-max)."),
        libc::ENOMEM => Some("Give the VM less memory, or free some of the host's."),
        libc::EAGAIN => Some("Raise the limit of threads (ulimit -u), or close other VMs."),
        _ => None,
    }
}

fn record_kind(error: &RecordError) -> ErrorKind {
    match error {
        RecordError::Damaged { .. } | RecordError::Foreign { .. } => ErrorKind::Config,
        RecordError::File { .. } => ErrorKind::Host,
        RecordError::NotCounted { .. } => ErrorKind::Unsupported,
        RecordError::Late { .. } | RecordError::Unrecorded { .. } | RecordError::Replaying => {
            ErrorKind::State
        }
    }
}

fn net_errno(error: &NetError) -> Option<i32> {
    error.source_error()?.raw_os_error()
}

fn device_kind(error: &PciError) -> ErrorKind {
    match error {
        PciError::Full { .. } | PciError::Taken { .. } | PciError::Empty { .. } => ErrorKind::State,
        _ => ErrorKind::Config,
    }
}

fn vfio_kind(error: &VfioError) -> ErrorKind {
    match error {
        VfioError::Obstacle { obstacle, .. } => match obstacle {
            Obstacle::Missing { .. } => ErrorKind::Config,
            Obstacle::Unbound { .. } | Obstacle::Shared { .. } => ErrorKind::State,
            Obstacle::NoIommu | Obstacle::NoGroup { .. } | Obstacle::NoDriver => {
                ErrorKind::Unsupported
            }
        },
        VfioError::UnsafeInterrupts { .. }
        | VfioError::NoType1
        | VfioError::NoIommufd { .. }
        | VfioError::NoDeviceFile { .. }
        | VfioError::NoReset { .. }
        | VfioError::NoSriov { .. }
        | VfioError::NoVfDriver { .. }
        | VfioError::NoNvme { .. } => ErrorKind::Unsupported,
        VfioError::Denied { .. }
        | VfioError::NoFile { .. }
        | VfioError::LockedMemory { .. }
        | VfioError::LockedByUser { .. }
        | VfioError::TooManyMaps
        | VfioError::Call { .. }
        | VfioError::NvmeRefused { .. }
        | VfioError::NvmeUnknown { .. }
        | VfioError::NvmeNotLive { .. }
        | VfioError::File { .. } => ErrorKind::Host,
        VfioError::Busy { .. }
        | VfioError::GroupHeld { .. }
        | VfioError::OtherBackend { .. }
        | VfioError::HotReset { .. }
        | VfioError::Used { .. }
        | VfioError::NotViable { .. }
        | VfioError::Overlap { .. }
        | VfioError::NoAddresses { .. }
        | VfioError::SwitchesOff { .. }
        | VfioError::InterruptsOn { .. }
        | VfioError::NotTaken { .. }
        | VfioError::NotOurs { .. }
        | VfioError::VfsThere { .. }
        | VfioError::VfsHeld { .. }
        | VfioError::VfsChanging { .. }
        | VfioError::VfsNotOurs { .. }
        | VfioError::VfsMissing { .. }
        | VfioError::NvmeWithoutDriver { .. }
        | VfioError::Closed => ErrorKind::State,
        VfioError::Memory(error) => memory_kind(error),
        VfioError::Reactor(_) => ErrorKind::Host,
        VfioError::Forked => ErrorKind::Forked,
        _ => ErrorKind::Config,
    }
}

fn memory_kind(error: &MemoryError) -> ErrorKind {
    match error {
        MemoryError::NoMemory { .. }
        | MemoryError::HugePool { .. }
        | MemoryError::NoHugePages { .. }
        | MemoryError::File { .. } => ErrorKind::Host,
        MemoryError::Forked => ErrorKind::Forked,
        MemoryError::Leased { .. } => ErrorKind::State,
        _ => ErrorKind::Config,
    }
}

fn engine_kind(error: &EngineError) -> ErrorKind {
    match error {
        EngineError::Forked => ErrorKind::Forked,
        EngineError::TooManyVcpus { .. } | EngineError::DirtyRing { .. } => ErrorKind::Config,
        EngineError::Lacking { .. } | EngineError::State { .. } | EngineError::TscRate { .. } => {
            ErrorKind::Unsupported
        }
        EngineError::Ended { .. } => ErrorKind::State,
        _ => ErrorKind::Host,
    }
}
