//! Whether this KVM can run an operating system: learnt by running one.
//!
//! A KVM may be present, pass every capability check, and still be unable to run a kernel: some
//! nested set-ups interpret all supervisor code and give up at the first instruction their
//! interpreter lacks. So the probe runs two such instructions at CPL 0 in 64-bit mode and looks at
//! what came of it.
//!
//! Such a KVM may also take a CPUID table and show its guests the processor's features all the
//! same. That is learnt by a second guest, which has the table of the lowest CPU model and says
//! what it sees.

use vmlet_memory::{AddressSpace, Backing, Gpa, Mapping, MemoryError, Ram};
use vmlet_vcpu::{
    AccessContext, EngineError, FatalExit, Flow, GuestBus, Hypervisor, MissingFeature, RunEnd,
    SlotChange, SpaceId, StopReason,
    cpuid::{CpuidEntry, CpuidTable, Topology, X86_64_V1, host_policy, missing_features},
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

/// Leaves whose features the second guest looks at, and what it writes of each: the leaf, EBX, ECX,
/// EDX.
const LEAVES: [u32; 3] = [1, 7, 0x8000_0001];
const ROW: usize = 16;
const ROWS: u64 = 0x3f00;

/// `next: mov eax,[rbx]; test eax,eax; jz done; xor ecx,ecx; mov rsi,rbx; cpuid; mov [rsi+4],ebx;
/// mov [rsi+8],ecx; mov [rsi+12],edx; lea rbx,[rsi+16]; jmp next; done: out 0xf4,al; hlt`.
const LOOKS: [u8; 32] = [
    0x8b, 0x03, 0x85, 0xc0, 0x74, 0x17, 0x31, 0xc9, 0x48, 0x89, 0xde, 0x0f, 0xa2, 0x89, 0x5e, 0x04,
    0x89, 0x4e, 0x08, 0x89, 0x56, 0x0c, 0x48, 0x8d, 0x5e, 0x10, 0xeb, 0xe4, 0x90, 0xe6, 0xf4, 0xf4,
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

/// The features that guests of this KVM see though the CPU model has not got them: none, where
/// CPUID is the model's.
pub fn unmasked_features() -> Result<Vec<MissingFeature>, EngineError> {
    let kvm = Kvm::open()?;
    let asked = place(&X86_64_V1.cpuid(1_000_000));
    let space = guest_memory(&LOOKS).map_err(no_memory)?;
    for (leaf, at) in LEAVES.into_iter().zip((ROWS..).step_by(ROW)) {
        let written = space.write(Gpa(at), &leaf.to_le_bytes());
        written.map_err(no_memory)?;
    }
    let end = run(&kvm, &space, &asked, ROWS)?;
    if !matches!(end, RunEnd::Stopped(_)) {
        let detail = format!("a guest that reads CPUID ended by {end:?}");
        let source = std::io::Error::other(detail);
        return Err(EngineError::call("KVM_RUN", source));
    }
    let seen = seen(&space).map_err(no_memory)?;
    Ok(missing_features(&seen, &asked))
}

/// What the second guest wrote.
fn seen(space: &AddressSpace) -> Result<CpuidTable, MemoryError> {
    let row = |at: u64| {
        let word = |offset: u64| {
            let mut bytes = [0; 4];
            let read = space.read(Gpa(at + offset), &mut bytes);
            read.map(|()| u32::from_le_bytes(bytes))
        };
        Ok(CpuidEntry {
            leaf: word(0)?,
            ebx: word(4)?,
            ecx: word(8)?,
            edx: word(12)?,
            ..CpuidEntry::default()
        })
    };
    let rows = (ROWS..).step_by(ROW).take(LEAVES.len());
    let entries = rows.map(row).collect::<Result<_, MemoryError>>()?;
    Ok(CpuidTable { entries })
}

fn no_memory(error: MemoryError) -> EngineError {
    EngineError::call("mapping the probe's memory", std::io::Error::other(error))
}

fn place(table: &CpuidTable) -> CpuidTable {
    let place = Topology {
        apic_id: 0,
        cpus: 1,
        local_apic: false,
    };
    host_policy(table, place)
}

/// Runs the guest in `space` with `rbx` to its end.
fn run(
    kvm: &Kvm,
    space: &AddressSpace,
    cpuid: &CpuidTable,
    rbx: u64,
) -> Result<RunEnd, EngineError> {
    let vm = kvm.create_vm()?;
    for slot in space.slots() {
        vm.change_slot(SlotChange::Set(&slot))?;
    }
    let mut vcpu = vm.create_vcpu(0, cpuid)?;
    let mut sregs = vcpu.sregs()?.enter_long64(TABLES, Table::default());
    sregs.cr4 |= CR4_OSFXSR;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&Regs {
        rip: CODE,
        rbx,
        rflags: 2,
        ..Regs::default()
    })?;
    vcpu.bind()?;
    let end = vcpu.run(&mut StopAtPort);
    vcpu.unbind();
    end
}

fn run_guest(kvm: &Kvm) -> Result<KernelMode, EngineError> {
    let space = guest_memory(&GUEST).map_err(no_memory)?;
    let end = run(kvm, &space, &place(&kvm.supported_cpuid()?), RESULT)?;
    let mut stored = [0; 16];
    let all_ones = space.read(Gpa(RESULT), &mut stored).is_ok() && stored == [0xff; 16];
    Ok(match end {
        RunEnd::Stopped(_) if all_ones => KernelMode::Native,
        RunEnd::Fatal(FatalExit::Instruction { bytes, .. }) => KernelMode::Interpreted { bytes },
        other => KernelMode::Broken {
            detail: format!("{other:?}"),
        },
    })
}

/// `code` at 0, three levels of tables that map the first 2 MiB one to one.
fn guest_memory(code: &[u8]) -> Result<AddressSpace, MemoryError> {
    let space = AddressSpace::new(1);
    let ram = Ram::new(RAM_SIZE, Backing::Anon)?;
    space.map(vec![Mapping::ram(Gpa(0), ram)])?;
    space.write(Gpa(CODE), code)?;
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
