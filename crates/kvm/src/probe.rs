//! Whether this KVM can run an operating system: learnt by running one.
//!
//! A KVM may be present, pass every capability check, and still be unable to run a kernel: some
//! nested set-ups interpret all supervisor code and give up at the first instruction their
//! interpreter lacks. So the probe runs two such instructions at CPL 0 in 64-bit mode and looks at
//! what came of it.

use vmlet_memory::{AddressSpace, Backing, Gpa, Mapping, MemoryError, Ram};
use vmlet_vcpu::{
    AccessContext, EngineError, FatalExit, Flow, GuestBus, Hypervisor, RunEnd, SlotChange, SpaceId,
    StopReason,
    cpuid::{Topology, host_policy},
    x86_64::{Regs, Table},
};

use crate::Kvm;

const RAM_SIZE: u64 = 0x4000;
const TABLES: u64 = 0x1000;
const CODE: u64 = 0x0;
const RESULT: u64 = 0x3ff0;
const PORT: u64 = 0xf4;
const CR4_OSFXSR: u64 = 1 << 9;

/// `pcmpeqd xmm0,xmm0; movdqa [rbx],xmm0; out 0xf4,al; hlt`.
const GUEST: [u8; 11] = [
    0x66, 0x0f, 0x76, 0xc0, 0x66, 0x0f, 0x7f, 0x03, 0xe6, 0xf4, 0xf4,
];

/// How supervisor code runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelMode {
    /// By the processor: an operating system's kernel can run.
    Native,
    /// By an interpreter that gave up at these bytes: no kernel can run.
    Interpreted {
        /// The instruction.
        bytes: Vec<u8>,
    },
    /// Otherwise wrong.
    Broken {
        /// What happened.
        detail: String,
    },
}

/// What a probe of `/dev/kvm` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// How supervisor code runs.
    pub kernel_mode: KernelMode,
    /// The vendor string guests see.
    pub vendor: String,
    /// vCPUs a VM.
    pub max_vcpus: u32,
    /// Memory slots a VM.
    pub max_slots: u32,
}

/// Runs a small guest on `/dev/kvm`.
pub fn probe() -> Result<Probe, EngineError> {
    let kvm = Kvm::open()?;
    let supported = kvm.supported_cpuid()?;
    let limits = kvm.limits();
    let kernel_mode = run_guest(&kvm)?;
    let vendor = supported.vendor();
    Ok(Probe {
        kernel_mode,
        vendor,
        max_vcpus: limits.vcpus,
        max_slots: limits.slots,
    })
}

fn run_guest(kvm: &Kvm) -> Result<KernelMode, EngineError> {
    let space = guest_memory().map_err(|error| {
        EngineError::call("mapping the probe's memory", std::io::Error::other(error))
    })?;
    let vm = kvm.create_vm()?;
    for slot in space.slots() {
        vm.change_slot(SlotChange::Set(&slot))?;
    }
    let place = Topology {
        apic_id: 0,
        cpus: 1,
        local_apic: false,
    };
    let mut vcpu = vm.create_vcpu(0, &host_policy(&kvm.supported_cpuid()?, place))?;
    let mut sregs = vcpu.sregs()?.enter_long64(TABLES, Table::default());
    sregs.cr4 |= CR4_OSFXSR;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&Regs {
        rip: CODE,
        rbx: RESULT,
        rflags: 2,
        ..Regs::default()
    })?;
    vcpu.bind()?;
    let end = vcpu.run(&mut StopAtPort);
    vcpu.unbind();
    let mut stored = [0; 16];
    let all_ones = space.read(Gpa(RESULT), &mut stored).is_ok() && stored == [0xff; 16];
    Ok(match end? {
        RunEnd::Stopped(_) if all_ones => KernelMode::Native,
        RunEnd::Fatal(FatalExit::Instruction { bytes, .. }) => KernelMode::Interpreted { bytes },
        other => KernelMode::Broken {
            detail: format!("{other:?}"),
        },
    })
}

/// Code at 0, three levels of tables that map the first 2 MiB one to one.
fn guest_memory() -> Result<AddressSpace, MemoryError> {
    let space = AddressSpace::new(1);
    let ram = Ram::new(RAM_SIZE, Backing::Anon)?;
    space.map(vec![Mapping::ram(Gpa(0), ram)])?;
    space.write(Gpa(CODE), &GUEST)?;
    // The top level's only entry points to a table whose first entry points to one that maps a
    // 2 MiB page.
    space.write(Gpa(TABLES), &(TABLES + 0x1000 + 3).to_le_bytes())?;
    space.write(Gpa(TABLES + 0x1000), &(TABLES + 0x2000 + 3).to_le_bytes())?;
    space.write(Gpa(TABLES + 0x2000), &0x83u64.to_le_bytes())?;
    Ok(space)
}

struct StopAtPort;

impl GuestBus for StopAtPort {
    fn read(&mut self, _: &dyn AccessContext, _: SpaceId, _: u64, data: &mut [u8]) -> Flow {
        data.fill(0xff);
        Flow::Continue
    }

    fn write(&mut self, _: &dyn AccessContext, space: SpaceId, addr: u64, _: &[u8]) -> Flow {
        if space == SpaceId::PORT && addr == PORT {
            Flow::Stop(StopReason::PowerOff { source: "probe" })
        } else {
            Flow::Stop(StopReason::Fault {
                detail: format!("stray write to {addr:#x}"),
            })
        }
    }

    fn end_of_interrupt(&mut self, _: u8) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probes_guest_gives_an_answer_where_there_is_kvm() {
        if let Err(error) = Kvm::open() {
            let required = std::env::var("VMLET_REQUIRE").unwrap_or_default();
            assert!(
                !required.split([',', ' ']).any(|need| need == "kvm"),
                "kvm is required here, and missing: {error}"
            );
            println!("SKIPPED the_probes_guest_gives_an_answer_where_there_is_kvm: {error}");
            return;
        }
        let found = probe().unwrap();
        assert!(
            !matches!(found.kernel_mode, KernelMode::Broken { .. }),
            "{found:?}"
        );
        assert_eq!(found.vendor.len(), 12);
    }
}
