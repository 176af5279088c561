//! A guest: memory, a VM, vCPU 0 on the test's thread, a recording board, and a time limit on
//! every run.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, channel},
    },
    thread,
    time::Duration,
};

use vmlet_memory::{AddressSpace, Gpa, Mapping};
use vmlet_vcpu::{
    FatalExit, RunEnd, SlotChange, Vcpu, Vm,
    cpuid::{CpuidTable, Topology, host_policy},
    x86_64::{MsrPolicy, Regs, Sregs},
};

use super::{
    CODE, Place, Recorder, STACK, STOP, Thread, USER_STACK,
    bus::{DONE, EXCEPTION},
    limit,
    memory::{self, GDT, HANDLERS, TABLES},
    paging, segments,
};

/// How long a run may take.
const RUN_LIMIT: Duration = Duration::from_secs(20);
/// How long a guest runs that does not end.
const BRIEFLY: Duration = Duration::from_millis(200);
/// And at most, where faults take longer than all else.
const MOST_BRIEFLY: Duration = Duration::from_secs(2);

/// What a guest is made of.
#[derive(Debug, Default)]
pub(crate) struct Options {
    pub(crate) cpus: u32,
    /// Local APICs in the engine.
    pub(crate) irqchip: bool,
    /// Changes what the vCPU shows.
    pub(crate) cpuid: Option<fn(&mut CpuidTable)>,
    /// What the vCPU shows; none: what the engine offers.
    pub(crate) table: Option<CpuidTable>,
    /// The model-specific registers it has; none: the engine's.
    pub(crate) msrs: Option<&'static MsrPolicy>,
    /// Entries of the rings in which the engine notes written pages; none: it keeps a log a slot.
    pub(crate) dirty_ring: Option<u32>,
    /// Memory besides the standard one.
    pub(crate) more: Vec<Mapping>,
}

/// An exception as its entry point saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) vector: u64,
    pub(crate) code: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) cr2: u64,
}

/// A vCPU that is bound to the test's thread until it goes elsewhere.
#[derive(Debug)]
pub(crate) struct BoundVcpu(Option<Box<dyn Vcpu>>);

impl BoundVcpu {
    fn new(mut vcpu: Box<dyn Vcpu>) -> BoundVcpu {
        vcpu.bind().unwrap();
        BoundVcpu(Some(vcpu))
    }

    fn release(mut self) -> Box<dyn Vcpu> {
        let mut vcpu = self.0.take().unwrap();
        vcpu.unbind();
        vcpu
    }
}

impl Deref for BoundVcpu {
    type Target = dyn Vcpu;

    fn deref(&self) -> &Self::Target {
        self.0.as_deref().unwrap()
    }
}

impl DerefMut for BoundVcpu {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.0.as_deref_mut().unwrap()
    }
}

impl Drop for BoundVcpu {
    fn drop(&mut self) {
        if let Some(vcpu) = &mut self.0 {
            vcpu.unbind();
        }
    }
}

/// A guest. The vCPU goes first: no guest code may run when the memory goes.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) vcpu: BoundVcpu,
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) memory: Arc<AddressSpace>,
    pub(crate) bus: Recorder,
    pub(crate) place: Place,
}

impl Guest {
    /// One vCPU, no interrupt controller, ready for 64-bit code at CPL 0.
    pub(crate) fn new(place: &Place) -> Guest {
        Guest::with(place, Options::default())
    }

    /// As [`Guest::new`], with local APICs in the engine.
    pub(crate) fn with_irqchip(place: &Place) -> Guest {
        let irqchip = true;
        Guest::with(
            place,
            Options {
                irqchip,
                ..Options::default()
            },
        )
    }

    /// A guest made of `options`; further vCPUs are up to the test.
    pub(crate) fn with(place: &Place, options: Options) -> Guest {
        let engine = &place.engine;
        let memory = memory::flat(engine.limits().slots, options.more);
        let vm = engine.create_vm().unwrap();
        for slot in memory.slots() {
            vm.change_slot(SlotChange::Set(&slot)).unwrap();
        }
        if options.irqchip {
            vm.create_irqchip(24).unwrap();
        }
        if let Some(policy) = options.msrs {
            vm.set_msr_policy(policy).unwrap();
        }
        if let Some(entries) = options.dirty_ring {
            vm.use_dirty_ring(entries).unwrap();
        }
        let offered = || cpuid(place, 0, options.cpus.max(1), options.irqchip);
        let mut cpuid = options.table.unwrap_or_else(offered);
        if let Some(change) = options.cpuid {
            change(&mut cpuid);
        }
        let mut vcpu = BoundVcpu::new(vm.create_vcpu(0, &cpuid).unwrap());
        standard_content()
            .iter()
            .for_each(|(at, bytes)| memory.load(Gpa(*at), bytes).unwrap());
        let sregs = segments::kernel(vcpu.sregs().unwrap(), TABLES);
        vcpu.set_sregs(&sregs).unwrap();
        Guest {
            vcpu,
            vm,
            memory,
            bus: Recorder::default(),
            place: place.clone(),
        }
    }

    /// A guest that starts `code` at CPL 3.
    pub(crate) fn user(place: &Place, code: &[u8]) -> Guest {
        let mut guest = Guest::new(place);
        guest.enter_user();
        guest.load(code);
        guest
    }

    /// Changes segments and control registers.
    pub(crate) fn change_sregs(&mut self, change: impl FnOnce(&mut Sregs)) {
        let mut sregs = self.vcpu.sregs().unwrap();
        change(&mut sregs);
        self.vcpu.set_sregs(&sregs).unwrap();
    }

    /// 64-bit CPL 3 from the next run on.
    pub(crate) fn enter_user(&mut self) {
        self.change_sregs(|sregs| *sregs = segments::user(*sregs));
    }

    /// Puts `code` where it starts and points the vCPU to it.
    pub(crate) fn load(&mut self, code: &[u8]) {
        self.load_with(code, Regs::default());
    }

    /// As [`Guest::load`], with further registers; RIP, R15 and, if 0, RSP are set here.
    pub(crate) fn load_with(&mut self, code: &[u8], mut regs: Regs) {
        self.memory.load(Gpa(CODE), code).unwrap();
        let cpl = self.vcpu.sregs().unwrap().cs.selector & 3;
        if regs.rsp == 0 {
            regs.rsp = if cpl == 3 { USER_STACK } else { STACK };
        }
        (regs.rip, regs.r15) = (CODE, STOP);
        regs.rflags |= 2;
        self.vcpu.set_regs(&regs).unwrap();
    }

    /// Has the guest start with interrupts on, though nothing raises one, as every guest must that
    /// may run for ever.
    ///
    /// The lab's VT-x processor keeps its own timer from a guest that it enters with interrupts off
    /// (it decides what is masked before it takes itself to be in a guest), so that nothing else
    /// runs there any more: no thread that kicks, no time limit.
    pub(crate) fn let_interrupts_in(&mut self) {
        let mut regs = self.vcpu.regs().unwrap();
        regs.rflags |= 1 << 9;
        self.vcpu.set_regs(&regs).unwrap();
    }

    /// Runs until something ends the run; fails if nothing does.
    pub(crate) fn run(&mut self) -> RunEnd {
        let (end, late) = self.run_for(limit(RUN_LIMIT));
        assert!(!late, "the guest did not end: {:?}", self.vcpu.regs());
        end
    }

    /// Runs for at most `time`, then kicks; whether it came to the kick.
    pub(crate) fn run_for(&mut self, time: Duration) -> (RunEnd, bool) {
        let (kicker, late) = (self.vcpu.kicker(), AtomicBool::new(false));
        let (done, wait) = channel::<()>();
        let end = thread::scope(|scope| {
            let late = &late;
            scope.spawn(move || {
                if wait.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
                    late.store(true, Ordering::SeqCst);
                    kicker.kick();
                }
            });
            let end = self.vcpu.run(&mut self.bus);
            drop(done);
            end
        });
        (end.unwrap(), late.load(Ordering::SeqCst))
    }

    /// Runs a guest that may well never end, until it does or is kicked.
    pub(crate) fn run_briefly(&mut self) -> RunEnd {
        self.run_for(limit(BRIEFLY).min(MOST_BRIEFLY)).0
    }

    /// Runs to the guest's own stop; its registers.
    pub(crate) fn finish(&mut self) -> Regs {
        let end = self.run();
        let regs = self.vcpu.regs().unwrap();
        assert_eq!(end, RunEnd::Stopped(DONE), "{regs:x?} {:?}", self.bus);
        regs
    }

    /// Runs to an exception.
    pub(crate) fn exception(&mut self) -> Taken {
        let end = self.run();
        let regs = self.vcpu.regs().unwrap();
        assert_eq!(end, RunEnd::Stopped(EXCEPTION), "{regs:x?} {:?}", self.bus);
        assert_eq!(regs.rdi, 0xe5ce);
        Taken {
            vector: regs.rax,
            code: regs.rbx,
            rip: regs.rcx,
            cs: regs.rdx,
            cr2: regs.rsi,
        }
    }

    /// Runs into an instruction the engine lacks, which starts with `bytes`; where.
    pub(crate) fn lacking(&mut self, bytes: &[u8]) -> u64 {
        match self.run() {
            RunEnd::Fatal(FatalExit::Instruction {
                rip, bytes: found, ..
            }) => {
                assert!(found.starts_with(bytes), "{found:02x?} is not {bytes:02x?}");
                rip
            }
            other => panic!("{other:?} {:x?}", self.vcpu.regs()),
        }
    }

    /// Runs `code` at CPL 0: to its stop where supervisor code is native, into its first
    /// instruction an interpreter lacks, which starts with `bytes`, elsewhere.
    pub(crate) fn native_or_lacking(&mut self, code: &[u8], bytes: &[u8]) -> Option<Regs> {
        self.load(code);
        if self.place.native() {
            return Some(self.finish());
        }
        let rip = self.lacking(bytes);
        let offset = usize::try_from(rip - CODE).unwrap();
        assert!(
            code.get(offset..).unwrap().starts_with(bytes),
            "the engine stopped at {rip:#x}, another instruction"
        );
        None
    }

    /// Lets the guest use those states of `wanted` (bit 1 SSE, bit 2 AVX, bits 5-7 AVX-512) that
    /// its processor has; which they are.
    pub(crate) fn enable_xsave(&mut self, wanted: u64) -> u64 {
        let xcr0 = wanted & cpuid_in_guest(&self.place, 0xd, 0)[0];
        if xcr0 != 0 {
            self.change_sregs(|sregs| sregs.cr4 |= 1 << 18);
            let mut state = self.vcpu.save().unwrap();
            state.xcrs = vec![(0, xcr0)];
            self.vcpu.restore(&state).unwrap();
        }
        xcr0
    }

    /// Moves vCPU 0 to a thread of its own, where it waits to be resumed, with interrupts on.
    pub(crate) fn into_thread(mut self) -> Threaded {
        self.let_interrupts_in();
        let thread = Thread::start(self.vcpu.release(), self.bus);
        let (vm, memory) = (self.vm, self.memory);
        Threaded { thread, vm, memory }
    }

    /// Reads guest memory.
    pub(crate) fn read<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut data = [0; N];
        self.memory.read(Gpa(gpa), &mut data).unwrap();
        data
    }

    /// Reads a 64-bit word of guest memory.
    pub(crate) fn word(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.read(gpa))
    }

    /// Writes guest memory.
    pub(crate) fn write(&self, gpa: u64, data: &[u8]) {
        self.memory.write(Gpa(gpa), data).unwrap();
    }
}

/// A guest whose vCPU 0 runs on a thread. The thread goes first.
#[derive(Debug)]
pub(crate) struct Threaded {
    pub(crate) thread: Thread,
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) memory: Arc<AddressSpace>,
}

/// The CPUID table of vCPU `id`.
pub(crate) fn cpuid(place: &Place, id: u32, cpus: u32, local_apic: bool) -> CpuidTable {
    let topology = Topology {
        apic_id: id,
        cpus,
        local_apic,
    };
    host_policy(&place.engine.supported_cpuid().unwrap(), topology)
}

/// Where CPUID offers an instruction: leaf, register (EAX to EDX) and bit.
pub(crate) type Feature = (u32, usize, u32);

/// Whether a guest sees `feature`.
pub(crate) fn offered(place: &Place, (leaf, register, bit): Feature) -> bool {
    cpuid_in_guest(place, leaf, 0)[register] >> bit & 1 == 1
}

/// Engine, leaf and subleaf, and the four registers.
type Answers = BTreeMap<(&'static str, u32, u32), [u64; 4]>;

/// What `cpuid` gives inside a guest: EAX, EBX, ECX, EDX. Asked once an engine.
pub(crate) fn cpuid_in_guest(place: &Place, leaf: u32, subleaf: u32) -> [u64; 4] {
    static KNOWN: Mutex<Answers> = Mutex::new(BTreeMap::new());
    let key = (place.engine.name(), leaf, subleaf);
    let mut known = KNOWN.lock().unwrap();
    *known
        .entry(key)
        .or_insert_with(|| ask_cpuid(place, leaf, subleaf))
}

fn ask_cpuid(place: &Place, leaf: u32, subleaf: u32) -> [u64; 4] {
    let mut guest = Guest::new(place);
    let regs = Regs {
        rax: u64::from(leaf),
        rcx: u64::from(subleaf),
        ..Regs::default()
    };
    guest.load_with(guest!("cpuid", "out 0xf4, al"), regs);
    let regs = guest.finish();
    [regs.rax, regs.rbx, regs.rcx, regs.rdx]
}

/// Descriptor tables, entry points and page tables: the same in every guest, so made once.
fn standard_content() -> &'static [(u64, Vec<u8>)] {
    static CONTENT: OnceLock<Vec<(u64, Vec<u8>)>> = OnceLock::new();
    CONTENT.get_or_init(|| {
        let memory = memory::flat(1, Vec::new());
        segments::install(&memory);
        let end = paging::Tables::identity(&memory).end();
        let ranges = [(GDT, 0x3000), (HANDLERS, 0x2000), (TABLES, end - TABLES)];
        let read = |(at, len): (u64, u64)| {
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            memory.read(Gpa(at), &mut bytes).unwrap();
            (at, bytes)
        };
        ranges.map(read).to_vec()
    })
}
