//! Hostile guest code of every mode on the software engine: any code, registers, segments, page
//! tables and memory map, with a board that answers anything and stops at any access. A run ends
//! within its instructions; nothing beside the guest's memory changes; the state can be saved and
//! restored.
#![no_main]

use std::{
    sync::{Arc, Mutex, OnceLock},
    thread,
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use vmlet_fuzz::{Input, MemoryCap, seeds};
use vmlet_memory::{Backing, Gpa, Memslot, Ram, SlotId};
use vmlet_softcpu::{ClockMode, Soft};
use vmlet_vcpu::{
    AccessContext, DebugControl, Flow, GuestBus, Hypervisor, Kicker, MsiMessage, RunEnd,
    SlotChange, SpaceId, StopReason, Vcpu, Vm,
    x86_64::{Regs, Segment, Sregs, Table},
};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(512);

const PAGE: u64 = 4096;
/// Guest memory, and pages on both sides that must stay as they are.
const LOW: u64 = 64 * PAGE;
const HIGH: u64 = 8 * PAGE;
const GUARD: u64 = PAGE;
const HIGH_GPA: u64 = 0x1_0000_0000;
const READ_ONLY_GPA: u64 = 0x20_0000;
const FILL: u8 = 0xa5;
const TABLES: u64 = 0x8000;
const INSTRUCTIONS: u64 = 600;
const RUNS: usize = 3;

const PG: u64 = 1 << 31;
const PE: u64 = 1;
const PAE: u64 = 1 << 5;
const PSE: u64 = 1 << 4;
const FXSR: u64 = 3 << 9;
const LONG: u64 = 1 << 8 | 1 << 10;

/// Guest-physical memory in the middle of memory that is watched.
struct Guest {
    ram: Arc<Ram>,
}

impl Guest {
    fn new() -> Guest {
        let ram = Ram::new(LOW + HIGH + 3 * GUARD, Backing::Anon).expect("memory");
        let guest = Guest { ram };
        for at in [0, GUARD + LOW, 2 * GUARD + LOW + HIGH] {
            let page = [FILL; PAGE as usize];
            guest.ram.write(at, &page).expect("in range");
        }
        guest
    }

    fn slot(&self, id: u32, gpa: u64, offset: u64, len: u64, readonly: bool) -> Memslot {
        Memslot {
            id: SlotId(id),
            gpa: Gpa(gpa),
            len,
            hva: vmlet_memory::Hva(self.ram.hva().0 + offset),
            readonly,
            log_dirty: id == 0,
        }
    }

    fn slots(&self) -> [Memslot; 3] {
        let high = 2 * GUARD + LOW;
        [
            self.slot(0, 0, GUARD, LOW, false),
            self.slot(1, HIGH_GPA, high, HIGH / 2, false),
            self.slot(2, READ_ONLY_GPA, high + HIGH / 2, HIGH / 2, true),
        ]
    }

    fn write(&self, gpa: u64, bytes: &[u8]) {
        let at = gpa % LOW;
        let count = (LOW - at).min(bytes.len() as u64);
        self.ram
            .write(GUARD + at, &bytes[..count as usize])
            .expect("in range");
    }

    fn check_guards(&self) {
        for at in [0, GUARD + LOW, 2 * GUARD + LOW + HIGH] {
            let mut page = [0; PAGE as usize];
            self.ram.read(at, &mut page).expect("in range");
            assert_eq!(page, [FILL; PAGE as usize], "memory beside the guest's");
        }
    }
}

/// Answers with the input's bytes; stops now and then.
struct Board<'a> {
    answers: Input<'a>,
}

impl Board<'_> {
    fn flow(&mut self) -> Flow {
        if self.answers.byte() == 0x80 {
            Flow::Stop(StopReason::Reset { source: "fuzz" })
        } else {
            Flow::Continue
        }
    }
}

impl GuestBus for Board<'_> {
    fn read(&mut self, cx: &dyn AccessContext, _: SpaceId, _: u64, data: &mut [u8]) -> Flow {
        assert!(cx.vcpu() == 0 && (1..=8).contains(&data.len()));
        let _ = cx.regs();
        data.iter_mut().for_each(|byte| *byte = self.answers.byte());
        self.flow()
    }

    fn write(&mut self, _: &dyn AccessContext, _: SpaceId, _: u64, data: &[u8]) -> Flow {
        assert!((1..=8).contains(&data.len()));
        self.flow()
    }

    fn end_of_interrupt(&mut self, vector: u8) {
        assert!(vector >= 16);
    }
}

/// Kicks a vCPU that waits for an interrupt that nobody sends.
fn watch(kicker: Option<Arc<dyn Kicker>>) {
    type Watched = Mutex<Option<Arc<dyn Kicker>>>;
    static WATCHED: OnceLock<&'static Watched> = OnceLock::new();
    let watched = WATCHED.get_or_init(|| {
        let watched: &'static Watched = Box::leak(Box::default());
        thread::spawn(move || {
            loop {
                thread::sleep(Duration::from_millis(1));
                if let Some(kicker) = &*watched.lock().expect("no panics") {
                    kicker.kick();
                }
            }
        });
        watched
    });
    *watched.lock().expect("no panics") = kicker;
}

fn segment(selector: u16, attributes: u16) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        attributes,
    }
}

/// The registers of a mode, with flat segments and identity-mapped tables where it has any.
fn mode(number: u8, sregs: &mut Sregs) {
    let (code, data, level) = match number % 8 {
        0 => return,
        1..=3 => (0xc09b, 0xc093, 0),
        4 => (0xc0fb, 0xc0f3, 3),
        5 => (0xa09b, 0xc093, 0),
        6 => (0xa0fb, 0xc0f3, 3),
        _ => (0xc0fb, 0xc0f3, 3),
    };
    sregs.cs = segment(8 | level, code);
    let data = segment(16 | level, data);
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    (sregs.fs, sregs.gs) = (data, data);
    sregs.cr3 = TABLES;
    (sregs.cr0, sregs.cr4, sregs.efer) = match number % 8 {
        1 => (PE, FXSR, 0),
        2 => (PE | PG, FXSR | PSE, 0),
        3 | 4 => (PE | PG, FXSR | PAE, 1 << 11),
        _ => (PE | PG, FXSR | PAE, LONG | 1 | 1 << 11),
    };
    sregs.cr0 |= 0x10 | 1 << 16;
    sregs.gdt = Table {
        base: 0x2000,
        limit: 0xff,
    };
    sregs.idt = Table {
        base: 0x3000,
        limit: 0xfff,
    };
    sregs.tr = Segment {
        base: 0x4000,
        limit: 0x67,
        selector: 0x20,
        attributes: 0x8b,
    };
}

/// Tables that map the first gibibyte to itself, in the mode's format.
fn write_tables(number: u8, guest: &Guest) {
    let put = |at: u64, entry: u64, bytes: usize| {
        guest.write(at, &entry.to_le_bytes()[..bytes]);
    };
    match number % 8 {
        2 => (0..64).for_each(|n| put(TABLES + 4 * n, n << 22 | 0xe7, 4)),
        3 | 4 => {
            put(TABLES, TABLES + 0x1000 | 1, 8);
            (0..128).for_each(|n| put(TABLES + 0x1000 + 8 * n, n << 21 | 0xe7, 8));
        }
        5..=7 => {
            put(TABLES, TABLES + 0x1000 | 7, 8);
            put(TABLES + 0x1000, TABLES + 0x2000 | 7, 8);
            put(TABLES + 0x1020, HIGH_GPA | 0xe7, 8);
            (0..128).for_each(|n| put(TABLES + 0x2000 + 8 * n, n << 21 | 0xe7, 8));
        }
        _ => {}
    }
    // Flat segments, a task segment, gates to one place.
    for (selector, descriptor) in [
        (8, 0x00af_9b00_0000_ffff_u64),
        (16, 0x00cf_9300_0000_ffff),
        (24, 0x00cf_f300_0000_ffff),
        (0x28, 0x00af_fb00_0000_ffff),
    ] {
        put(0x2000 + selector, descriptor, 8);
    }
    let bytes = if number % 8 >= 5 { 16 } else { 8 };
    for vector in 0..32 {
        put(
            0x3000 + vector * bytes,
            0x0000_8e00_0008_6000 | vector << 4,
            8,
        );
    }
    put(0x4004, 0x7000, 8);
}

/// A number: small, an address near something, or any.
fn number(input: &mut Input<'_>) -> u64 {
    let near = |base: u64, byte: u8| base.wrapping_add(byte as i8 as u64);
    let kind = input.byte();
    match kind % 8 {
        0 => input.byte().into(),
        1 => near(0x5000, input.byte()),
        2 => near(LOW, input.byte()),
        3 => near(HIGH_GPA, input.byte()),
        4 => near(READ_ONLY_GPA, input.byte()),
        5 => near(0x8000_0000_0000, input.byte()),
        6 => near(TABLES, input.byte()),
        _ => input.word(),
    }
}

fn registers(input: &mut Input<'_>) -> Regs {
    let mut regs = Regs {
        rip: 0x5000,
        rsp: 0x7800,
        rflags: 2,
        ..Regs::default()
    };
    let chosen = input.half();
    let all = [
        &mut regs.rax,
        &mut regs.rbx,
        &mut regs.rcx,
        &mut regs.rdx,
        &mut regs.rsi,
        &mut regs.rdi,
        &mut regs.rsp,
        &mut regs.rbp,
        &mut regs.r8,
        &mut regs.r15,
        &mut regs.rip,
        &mut regs.rflags,
    ];
    for (index, register) in all.into_iter().enumerate() {
        if chosen >> index & 1 != 0 {
            *register = number(input);
        }
    }
    regs
}

fn flip(input: &mut Input<'_>, sregs: &mut Sregs) {
    for _ in 0..input.byte() % 4 {
        let (which, value) = (input.byte(), number(input));
        match which % 16 {
            0 => sregs.cr0 ^= value,
            1 => sregs.cr3 = value,
            2 => sregs.cr4 ^= value,
            3 => sregs.efer ^= value,
            4 => sregs.gdt.base = value,
            5 => sregs.idt.limit = value as u16,
            6 => sregs.idt.base = value,
            7 => sregs.tr.limit = value as u32,
            8 => sregs.tr.base = value,
            9 => sregs.cs.attributes ^= value as u16,
            10 => sregs.ss.attributes ^= value as u16,
            11 => sregs.cs.base = value,
            12 => sregs.ss.limit = value as u32,
            13 => sregs.fs.base = value,
            14 => sregs.ldt.base = value,
            _ => sregs.ds.limit = value as u32,
        }
    }
}

fn poke(input: &mut Input<'_>, guest: &Guest) {
    for _ in 0..input.byte() % 8 {
        let place = input.choose(&[0x2000, 0x3000, 0x4000, 0x5ff0, 0x6000, 0x7000, TABLES, 0]);
        let at = place + u64::from(input.byte()) * 8;
        let count = usize::from(input.byte() % 32);
        guest.write(at, input.bytes(count));
    }
}

/// What happens between two runs.
fn outside(input: &mut Input<'_>, guest: &Guest, vm: &dyn Vm, vcpu: &mut dyn Vcpu) {
    match input.byte() % 8 {
        0 => poke(input, guest),
        1 => vcpu.inject_nmi().expect("an NMI"),
        2 => vcpu.inject_interrupt(input.byte()).expect("an interrupt"),
        3 => {
            let message = MsiMessage {
                address: 0xfee0_0000 | u64::from(input.half()) << 4,
                data: input.half().into(),
            };
            let _ = vm.signal_msi(message);
        }
        4 => {
            let control = DebugControl {
                single_step: input.byte() & 1 != 0,
                breakpoints: [Some(number(input)), None, None, None],
                ..DebugControl::default()
            };
            vcpu.set_debug(&control).expect("debug control");
        }
        5 => {
            let _ = vm.dirty_log(SlotId(0), LOW / PAGE);
        }
        6 => {
            let [_, slot, _] = guest.slots();
            vm.change_slot(SlotChange::Remove(&slot)).expect("a slot");
            vm.change_slot(SlotChange::Set(&slot)).expect("a slot");
        }
        _ => {
            let state = vcpu.save().expect("a state");
            // Registers that no processor has, or this one lacks, are refused.
            if vcpu.restore(&state).is_ok() {
                assert_eq!(vcpu.save().expect("a state"), state);
            }
        }
    }
}

fuzz_target!(init: seeds::plant("soft_cpu"), |data: &[u8]| {
    let mut input = Input::new(data);
    let number = input.byte();
    let guest = Guest::new();
    let soft = Soft {
        clock: ClockMode::Instructions,
    };
    let vm = soft.create_vm().expect("a VM");
    for slot in &guest.slots() {
        vm.change_slot(SlotChange::Set(slot)).expect("a slot");
    }
    if number & 0x40 != 0 {
        vm.create_irqchip(24).expect("an interrupt controller");
    }
    let table = soft.supported_cpuid().expect("CPUID");
    let mut vcpu = vm.create_vcpu(0, &table).expect("a vCPU");
    write_tables(number, &guest);
    let mut sregs = vcpu.sregs().expect("registers");
    mode(number, &mut sregs);
    if number % 8 == 0 {
        sregs.cs.base = 0;
    }
    flip(&mut input, &mut sregs);
    let regs = registers(&mut input);
    poke(&mut input, &guest);
    vcpu.set_sregs(&sregs).expect("registers");
    vcpu.set_regs(&regs).expect("registers");
    guest.write(0x5000, input.rest());
    watch(Some(vcpu.kicker()));
    let mut board = Board { answers: input };
    vcpu.bind().expect("this thread");
    for _ in 0..RUNS {
        let from = vm.position().map_or(0, |position| position.instructions);
        vm.stop_at(Some(from + INSTRUCTIONS)).expect("a clock that counts");
        let end = vcpu.run(&mut board).expect("a run");
        let to = vm.position().map_or(0, |position| position.instructions);
        assert!(to <= from + INSTRUCTIONS, "{from} {to} {end:?}");
        guest.check_guards();
        if matches!(end, RunEnd::Fatal(_) | RunEnd::Shutdown) && board.answers.byte() & 1 == 0 {
            break;
        }
        outside(&mut board.answers, &guest, &*vm, &mut *vcpu);
    }
    watch(None);
    vcpu.unbind();
});
