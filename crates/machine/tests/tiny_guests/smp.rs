//! Rows: the start of an application processor, and interrupts between two processors.

use vmlet_memory::Gpa;
use vmlet_vcpu::x86_64::MpState;

use crate::harness::{
    DATA, Guest, Place, Recorder, Thread, each,
    guest::{Options, cpuid},
    segments,
};

/// A guest with a second vCPU, which runs on a thread and waits for its start.
struct Pair {
    second: Thread,
    first: Guest,
}

impl Pair {
    /// Has the first run `code`, which waits for the second without leaving the guest.
    fn load_first(&mut self, code: &[u8]) {
        self.first.load(code);
        self.first.let_interrupts_in();
    }
}

fn pair(place: &Place) -> Pair {
    let options = Options {
        cpus: 2,
        irqchip: true,
        ..Options::default()
    };
    let first = Guest::with(place, options);
    let vcpu = first.vm.create_vcpu(1, &cpuid(place, 1, 2, true)).unwrap();
    assert_eq!(vcpu.mp_state().unwrap(), MpState::Uninitialized);
    let second = Thread::start(vcpu, Recorder::default());
    second.vcpu.resume().unwrap();
    Pair { second, first }
}

/// x2APIC on; INIT and start-up message for page 7 to APIC 1; then the lines given.
macro_rules! start_second {
    ($($line:expr),+ $(,)?) => {
        guest!(
            "mov ecx, 0x1b",
            "rdmsr",
            "or eax, 0x400",
            "wrmsr",
            "xor edx, edx",
            "mov ecx, 0x80f",
            "mov eax, 0x1ff",
            "wrmsr",
            "mov ecx, 0x830",
            "mov edx, 1",
            "mov eax, 0x4500",
            "wrmsr",
            "mov edx, 1",
            "mov eax, 0x4607",
            "wrmsr",
            $($line,)+
        )
    };
}

/// Real-mode code at 0x7000: says its code segment and stops.
fn real_mode_trampoline(guest: &Guest) {
    let code = guest!(
        ".code16",
        "mov ax, cs",
        "mov bx, 0x5000",
        "mov cs:[0x10], ax",
        "mov word ptr cs:[0x12], 0x1234",
        "2: hlt",
        "jmp 2b"
    );
    // Room for what it says lies behind a jump.
    guest
        .memory
        .load(Gpa(0x7000), guest!(".code16", "jmp 2f", ".fill 30", "2:"))
        .unwrap();
    guest.memory.load(Gpa(0x7020), code).unwrap();
}

#[test]
fn init_and_sipi_start_a_processor_in_real_mode() {
    each(|place| {
        let mut pair = pair(place);
        real_mode_trampoline(&pair.first);
        pair.load_first(start_second!(
            "2: cmp word ptr [0x7012], 0x1234",
            "jne 2b",
            "movzx ebx, word ptr [0x7010]",
            "mov [r15], eax"
        ));
        assert_eq!(pair.first.finish().rbx, 0x700);
        let (state, cs) = pair
            .second
            .vcpu
            .with(|vcpu| (vcpu.mp_state().unwrap(), vcpu.sregs().unwrap().cs))
            .unwrap();
        assert!(
            matches!(state, MpState::Halted | MpState::Runnable),
            "{state:?}"
        );
        assert_eq!((cs.selector, cs.base), (0x700, 0x7000));
        assert!(pair.second.still_runs());
    });
}

#[test]
fn init_stops_a_processor_that_runs() {
    each(|place| {
        let mut pair = pair(place);
        pair.first
            .memory
            .load(
                Gpa(0x7000),
                guest!(".code16", "sti", "2: inc dword ptr cs:[0x10]", "jmp 2b"),
            )
            .unwrap();
        pair.load_first(start_second!(
            "2: cmp dword ptr [0x7010], 2",
            "jb 2b",
            "mov edx, 1",
            "mov eax, 0x4500",
            "wrmsr",
            "mov [r15], eax"
        ));
        pair.first.finish();
        let state = pair
            .second
            .vcpu
            .with(|vcpu| vcpu.mp_state().unwrap())
            .unwrap();
        assert!(
            matches!(state, MpState::InitReceived | MpState::Uninitialized),
            "{state:?}"
        );
        let ip = pair
            .second
            .vcpu
            .with(|vcpu| vcpu.regs().unwrap().rip)
            .unwrap();
        assert_eq!(ip, 0xfff0);
    });
}

/// Code that one processor rewrites while another runs it in a loop.
#[test]
fn code_rewritten_by_another_processor_is_seen() {
    each(|place| {
        let mut pair = pair(place);
        let memory = &pair.first.memory;
        let load = |at, code| memory.load(Gpa(at), code).unwrap();
        // At 0x1100:0001 is the operand; the answer comes when the loop has begun.
        load(
            0x7000,
            guest!(
                ".code16",
                "sti",
                "mov ax, 0x1100",
                "mov ds, ax",
                "3: inc byte ptr [1]",
                "mov al, [1]",
                "2: cmp al, [0x1100]",
                "jne 2b",
                "jmp 3b"
            ),
        );
        load(
            0x1_1000,
            guest!(
                "2: mov eax, 0",
                "mov [0x12100], al",
                "cmp al, 200",
                "jne 2b",
                "mov [r15], eax"
            ),
        );
        pair.load_first(start_second!("mov eax, 0x11000", "jmp rax"));
        assert_eq!(pair.first.finish().rax, 200);
    });
}

/// The second processor starts in 64-bit mode here, so that it can serve interrupts.
#[test]
fn an_interrupt_from_one_processor_reaches_the_other() {
    each(|place| {
        let options = Options {
            cpus: 2,
            irqchip: true,
            ..Options::default()
        };
        let mut first = Guest::with(place, options);
        let mut vcpu = first.vm.create_vcpu(1, &cpuid(place, 1, 2, true)).unwrap();
        let sregs = segments::kernel(vcpu.sregs().unwrap(), 0x10_0000);
        vcpu.set_sregs(&sregs).unwrap();
        vcpu.set_mp_state(MpState::Runnable).unwrap();
        let mut regs = first.vcpu.regs().unwrap();
        (regs.rip, regs.rsp, regs.rflags, regs.r15) = (DATA, 0x6_8000, 2, 0xd000_1000);
        vcpu.set_regs(&regs).unwrap();
        let (waiting, handler) = (
            guest!(
                "mov ebx, 0xfee00000",
                "mov dword ptr [rbx + 0xf0], 0x1ff",
                "mov dword ptr [0x22000], 1",
                "sti",
                "2: hlt",
                "jmp 2b"
            ),
            guest!("mov dword ptr [0x22004], 0x77", "mov [r15], eax"),
        );
        first.write(DATA, waiting);
        first.write(DATA + 0x1000, handler);
        segments::set_gate(&first.memory, 0x55, DATA + 0x1000, 0);
        let second = Thread::start(vcpu, Recorder::default());
        second.vcpu.resume().unwrap();
        first.load(guest!(
            "mov ebx, 0xfee00000",
            "mov dword ptr [rbx + 0xf0], 0x1ff",
            "2: cmp dword ptr [0x22000], 1",
            "jne 2b",
            "mov dword ptr [rbx + 0x310], 0x01000000",
            "mov dword ptr [rbx + 0x300], 0x4055",
            "3: cmp dword ptr [0x22004], 0x77",
            "jne 3b",
            "mov [r15], eax"
        ));
        first.let_interrupts_in();
        first.finish();
        assert_eq!(
            second.end(),
            vmlet_vcpu::RunEnd::Stopped(crate::harness::bus::DONE)
        );
    });
}
