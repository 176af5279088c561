//! The open `/dev/kvm`.

use std::{
    fs::OpenOptions,
    io,
    os::fd::IntoRawFd,
    os::unix::fs::OpenOptionsExt,
    sync::{Arc, OnceLock},
};

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::Cap;
use vmlet_memory::fork::ParentOnly;
use vmlet_vcpu::{EngineError, Hypervisor, Limits, Vm, cpuid::CpuidTable, x86_64::msr};

use crate::{convert, vm::KvmVm};

const DEVICE: &str = "/dev/kvm";
const API_VERSION: i32 = 12;
/// APIC ids above 254 need x2APIC ids in interrupt messages, which boards do not use yet.
const MAX_VCPUS: u32 = 254;

/// What this engine cannot do without, with the name users find in KVM's documentation.
const REQUIRED: [(Cap, &str); 12] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
];

/// What `KVM_GET_SUPPORTED_CPUID` says does not change while the module is loaded. To say it the
/// kernel carries out CPUID for every leaf, which a hypervisor above makes half a millisecond.
static SUPPORTED: OnceLock<CpuidTable> = OnceLock::new();

/// What else the module said, asked by the first to open the device.
static FACTS: OnceLock<Facts> = OnceLock::new();

/// The engine: an open `/dev/kvm`.
#[derive(Debug)]
pub struct Kvm {
    kvm: ParentOnly<kvm_ioctls::Kvm>,
    facts: &'static Facts,
}

/// What a KVM that has all that is required says of itself.
#[derive(Debug)]
struct Facts {
    limits: Limits,
    run_size: usize,
    saved_msrs: Arc<[u32]>,
}

impl Facts {
    fn of(kvm: &kvm_ioctls::Kvm) -> Result<Facts, EngineError> {
        if let Some(feature) = missing(|cap| kvm.check_extension(cap)).next() {
            let remedy = "Use a newer kernel, or the software engine.";
            return Err(EngineError::Lacking { feature, remedy });
        }
        let vcpus = u32::try_from(kvm.get_max_vcpus())
            .unwrap_or(1)
            .min(MAX_VCPUS);
        let slots = u32::try_from(kvm.get_nr_memslots()).unwrap_or(32);
        let msrs = kvm
            .get_msr_index_list()
            .map_err(call("KVM_GET_MSR_INDEX_LIST"))?;
        Ok(Facts {
            limits: Limits { vcpus, slots },
            run_size: kvm
                .get_vcpu_mmap_size()
                .map_err(call("KVM_GET_VCPU_MMAP_SIZE"))?,
            saved_msrs: saved_msrs(msrs.as_slice()).into(),
        })
    }
}

impl Kvm {
    /// Opens `/dev/kvm` and checks what the engine needs of it.
    pub fn open() -> Result<Kvm, EngineError> {
        let kvm = Self::open_device()?;
        let facts = match FACTS.get() {
            Some(known) => known,
            None => {
                let found = Facts::of(&kvm)?;
                FACTS.get_or_init(|| found)
            }
        };
        Ok(Kvm {
            kvm: ParentOnly::new(kvm),
            facts,
        })
    }

    /// The names of the required capabilities that this host's KVM lacks.
    pub fn missing_capabilities() -> Result<Vec<&'static str>, EngineError> {
        let kvm = Self::open_device()?;
        Ok(missing(|cap| kvm.check_extension(cap)).collect())
    }

    fn open_device() -> Result<kvm_ioctls::Kvm, EngineError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(DEVICE)
            .map_err(open_error)?;
        let kvm = crate::ext::adopt_system(file.into_raw_fd());
        if kvm.get_api_version() == API_VERSION {
            Ok(kvm)
        } else {
            Err(EngineError::Lacking {
                feature: "KVM API version 12",
                remedy: "The device is not Linux's KVM; use the software engine.",
            })
        }
    }
}

/// The names of the required capabilities that `has` denies.
fn missing(has: impl Fn(Cap) -> bool) -> impl Iterator<Item = &'static str> {
    REQUIRED
        .into_iter()
        .filter(move |(cap, _)| !has(*cap))
        .map(|(_, name)| name)
}

/// The MSRs that make up a vCPU's state: those KVM lists, and the memory types, which it leaves out.
fn saved_msrs(listed: &[u32]) -> Vec<u32> {
    let memory_types = msr::MTRR_VARIABLE
        .chain(msr::MTRR_FIXED)
        .chain([msr::MTRR_DEF_TYPE])
        .filter(|index| !listed.contains(index));
    listed.iter().copied().chain(memory_types).collect()
}

fn open_error(source: io::Error) -> EngineError {
    let errno = source.raw_os_error().unwrap_or(0);
    let remedy = match errno {
        libc::ENOENT => {
            "The host has no KVM: load the module kvm_intel or kvm_amd, switch virtualization on \
             in the firmware or, in a cloud VM, ask for nested virtualization."
        }
        libc::EACCES | libc::EPERM => {
            "You may not use KVM: join the group that owns the device (usually kvm) and log in \
             again, or give this container the device."
        }
        libc::EMFILE => "Raise the limit of open files (ulimit -n), or close other VMs.",
        libc::ENFILE => "Raise the host's limit of open files (fs.file-max).",
        _ => "See the kernel's log for what is wrong with KVM.",
    };
    EngineError::Open {
        path: DEVICE.to_owned(),
        errno,
        remedy,
        source,
    }
}

impl Hypervisor for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn limits(&self) -> Limits {
        self.facts.limits
    }

    fn supported_cpuid(&self) -> Result<CpuidTable, EngineError> {
        if let Some(known) = SUPPORTED.get() {
            return Ok(known.clone());
        }
        let cpuid = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let cpuid = convert::cpuid_from_kvm(&cpuid.map_err(call("KVM_GET_SUPPORTED_CPUID"))?);
        Ok(SUPPORTED.get_or_init(|| cpuid).clone())
    }

    fn tsc_khz(&self) -> Result<u32, EngineError> {
        // A vCPU knows it; the rate is the processor's.
        let vm = self.kvm.create_vm().map_err(call("KVM_CREATE_VM"))?;
        let vcpu = vm.create_vcpu(0).map_err(call("KVM_CREATE_VCPU"))?;
        vcpu.get_tsc_khz().map_err(call("KVM_GET_TSC_KHZ"))
    }

    fn create_vm(&self) -> Result<Arc<dyn Vm>, EngineError> {
        // The kernel answers EINTR when a signal comes while it starts a VM's worker thread.
        let fd = loop {
            match self.kvm.create_vm() {
                Err(error) if error.errno() == libc::EINTR => {}
                other => break other.map_err(call("KVM_CREATE_VM"))?,
            }
        };
        Ok(Arc::new(KvmVm::new(
            fd,
            self.facts.run_size,
            self.facts.limits,
            Arc::clone(&self.facts.saved_msrs),
        )?))
    }
}

/// Names the ioctl that failed.
pub(crate) fn call(name: &'static str) -> impl Fn(kvm_ioctls::Error) -> EngineError {
    move |error| EngineError::call(name, io::Error::from_raw_os_error(error.errno()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_types_are_saved_once() {
        let saved = saved_msrs(&[0x10, 0x2ff]);
        assert_eq!(saved.len(), 2 + 16 + 11);
        assert_eq!(saved.iter().filter(|index| **index == 0x2ff).count(), 1);
    }

    #[test]
    fn each_capability_that_is_lacking_is_named() {
        assert_eq!(missing(|_| true).count(), 0);
        for (cap, name) in REQUIRED {
            let lacking: Vec<_> = missing(|other| other as u32 != cap as u32).collect();
            assert_eq!(lacking, [name]);
        }
    }

    #[test]
    fn what_keeps_the_device_closed_has_its_own_remedy() {
        for (errno, word) in [
            (libc::ENOENT, "kvm_intel or kvm_amd"),
            (libc::EACCES, "group"),
            (libc::EMFILE, "ulimit -n"),
            (libc::EIO, "kernel's log"),
        ] {
            let error = open_error(io::Error::from_raw_os_error(errno));
            assert_eq!(error.errno(), Some(errno));
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
