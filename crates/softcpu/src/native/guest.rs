//! Runs one instruction on the engine: a guest at CPL 3 whose every exception ends in a `hlt`.
//!
//! The guest's tables lie in the first half of its memory and are mapped for the system only; the
//! second half is the instance's pages. A run begins at the instruction and goes through the
//! engine's own loop until the handler of an exception halts.

use std::sync::Arc;

use vmlet_memory::{Backing, Gpa, Memslot, Ram, SlotId};
use vmlet_vcpu::{
    RunEnd,
    x86_64::{Segment, Table},
};

use super::{
    host,
    layout::{CODE, CODE_PAGES, DATA, PAGE, PAGES, Rights, SPAN},
    state::{End, RSP, Registers},
};
use crate::{
    clock::{Clock, ClockMode},
    cpu::{
        CR0_AM, CR0_MP, CR0_NE, CR0_PE, CR0_PG, CR0_WP, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_PAE,
        CR4_PGE, CS, DS, EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, ES, FS, GS, PF, SS, Shared,
    },
    cpuid,
    memory::Memory,
    turns::{Turn, Turns},
    vcpu::SoftVcpu,
};

const LOW: u64 = SPAN;
/// Linear addresses of the system: its tables, from guest-physical 0 on.
const SYSTEM: u64 = 0xffff_8000_0000_0000;
const ROOT: u64 = 0x1000;
const LOW_POINTERS: u64 = 0x2000;
const LOW_DIRECTORY: u64 = 0x3000;
const LOW_TABLE: u64 = 0x4000;
const HIGH_POINTERS: u64 = 0x5000;
const HIGH_DIRECTORY: u64 = 0x6000;
const GDT: u64 = 0x7000;
const IDT: u64 = 0x8000;
const TSS: u64 = 0x9000;
const STACK_TOP: u64 = 0xb000;
const HANDLERS: u64 = 0xc000;
const HANDLER_BYTES: u64 = 16;
const SYSTEM_CODE: u16 = 0x10;
/// Selectors of a 64-bit Linux process.
const USER_CODE: u16 = 0x33;
const USER_DATA: u16 = 0x2b;

const TABLE: u64 = 7;
const SYSTEM_LARGE: u64 = 0x83;
const NO_EXECUTE: u64 = 1 << 63;

fn segment(selector: u16, attributes: u16) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        attributes,
    }
}

/// The engine with its guest.
#[derive(Debug)]
pub(crate) struct Guest {
    vcpu: SoftVcpu,
    ram: Arc<Ram>,
    start: u64,
    /// The code placed last is translated at once; else it is interpreted.
    translates: bool,
}

impl Guest {
    /// A guest with the instance's pages at linear `start`, data pages filled with `data`.
    pub(crate) fn new(start: u64, data: &[u8]) -> Guest {
        let ram = Ram::new(2 * SPAN, Backing::Anon).unwrap();
        let memory = Arc::new(Memory::default());
        let slot = Memslot {
            id: SlotId(0),
            gpa: Gpa(0),
            len: 2 * SPAN,
            hva: ram.hva(),
            readonly: false,
            log_dirty: false,
        };
        memory.set(&slot).unwrap();
        let clock = Arc::new(Clock::new(ClockMode::Instructions));
        let turns = Arc::new(Turns::new(
            Arc::clone(&clock),
            Arc::default(),
            Arc::default(),
        ));
        let shared = Shared {
            memory,
            clock,
            lapic: None,
            signal: Arc::default(),
            io_events: Arc::default(),
        };
        let vcpu = SoftVcpu::new(0, cpuid::table(), shared, turns);
        let mut guest = Guest {
            vcpu,
            ram,
            start,
            translates: false,
        };
        guest.write_page_tables();
        guest.write_descriptors();
        guest.ram.write(LOW + DATA, data).unwrap();
        guest.set_system_registers();
        guest
    }

    fn put_word(&self, gpa: u64, value: u64) {
        self.ram.write(gpa, &value.to_le_bytes()).unwrap();
    }

    fn write_page_tables(&self) {
        let index = |shift: u32| (self.start >> shift & 0x1ff) * 8;
        self.put_word(ROOT + index(39), LOW_POINTERS | TABLE);
        self.put_word(LOW_POINTERS + index(30), LOW_DIRECTORY | TABLE);
        self.put_word(LOW_DIRECTORY + index(21), LOW_TABLE | TABLE);
        self.put_word(ROOT + (SYSTEM >> 39 & 0x1ff) * 8, HIGH_POINTERS | TABLE);
        self.put_word(HIGH_POINTERS, HIGH_DIRECTORY | TABLE);
        self.put_word(HIGH_DIRECTORY, SYSTEM_LARGE);
        let page = |offset: u64, bits: u64| {
            self.put_word(LOW_TABLE + offset / PAGE * 8, (LOW + offset) | bits);
        };
        for number in 0..CODE_PAGES {
            page(CODE + number * PAGE, TABLE);
        }
        for (number, rights) in (0..).zip(PAGES) {
            let offset = DATA + number * PAGE;
            match rights {
                Rights::None => {}
                Rights::Read => page(offset, NO_EXECUTE | 5),
                Rights::Write => page(offset, NO_EXECUTE | TABLE),
            }
        }
    }

    fn write_descriptors(&self) {
        self.put_word(GDT + u64::from(SYSTEM_CODE), 0x00af_9b00_0000_ffff);
        self.put_word(GDT + u64::from(USER_DATA & !7), 0x00cf_f300_0000_ffff);
        self.put_word(GDT + u64::from(USER_CODE & !7), 0x00af_fb00_0000_ffff);
        self.put_word(TSS + 4, SYSTEM + STACK_TOP);
        // No bitmap of I/O permissions: it would lie past the limit.
        self.ram.write(TSS + 0x66, &[0xff; 2]).unwrap();
        for vector in 0..256 {
            let handler = HANDLERS + vector * HANDLER_BYTES;
            self.ram.write(handler, &[0xf4]).unwrap();
            // Programs may use the gates of int3 and into only.
            let level = if matches!(vector, 3 | 4) { 3 } else { 0 };
            let low = SYSTEM + handler;
            let word = low & 0xffff
                | u64::from(SYSTEM_CODE) << 16
                | (0x8e | level << 5) << 40
                | (low >> 16 & 0xffff) << 48;
            self.put_word(IDT + vector * 16, word);
            self.put_word(IDT + vector * 16 + 8, low >> 32);
        }
    }

    fn set_system_registers(&mut self) {
        let cpu = &mut self.vcpu.cpu;
        cpu.cr0 = CR0_PE | CR0_MP | 0x10 | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
        cpu.cr3 = ROOT;
        cpu.cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT;
        cpu.efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
        (cpu.gdt, cpu.idt) = (table(GDT, 0x7f), table(IDT, 0xfff));
        cpu.tr = Segment {
            base: SYSTEM + TSS,
            limit: 0x67,
            selector: 0x40,
            attributes: 0x8b,
        };
        for number in [ES, DS, FS, GS] {
            *cpu.seg_mut(number) = segment(0, 0);
        }
        cpu.flush_all();
    }

    /// The bases of FS and GS.
    pub(crate) fn set_bases(&mut self, fs: u64, gs: u64) {
        self.vcpu.cpu.seg_mut(FS).base = fs;
        self.vcpu.cpu.seg_mut(GS).base = gs;
    }

    /// The host's address of an offset in the instance.
    pub(crate) fn address(&self, offset: u64) -> u64 {
        self.ram.hva().0 + LOW + offset
    }

    /// Places an instruction at `at` and what ends a run behind it and at `target`.
    pub(crate) fn place(&mut self, at: u64, instruction: &[u8], target: u64) {
        let end = CODE + CODE_PAGES * PAGE;
        // Each in turn.
        self.translates = !self.translates;
        self.vcpu.cpu.hot.set_after(self.translates.into());
        self.ram
            .write(LOW + (target - self.start), &[0xcc])
            .unwrap();
        let whole = [instruction, &[0xcc]].concat();
        let room = (end - (at - self.start)) as usize;
        let bytes = &whole[..whole.len().min(room)];
        self.ram.write(LOW + (at - self.start), bytes).unwrap();
    }

    /// Runs from `at` on; `after` takes what comes out.
    pub(crate) fn run(
        &mut self,
        at: u64,
        before: &Registers,
        after: &mut Registers,
        floats: bool,
    ) -> Result<End, String> {
        let cpu = &mut self.vcpu.cpu;
        *cpu.seg_mut(CS) = segment(USER_CODE, 0xa0fb);
        *cpu.seg_mut(SS) = segment(USER_DATA, 0xc0f3);
        for (number, value) in (0..).zip(before.gpr) {
            cpu.set_reg(number, value);
        }
        cpu.rip = at;
        cpu.cr2 = 0;
        cpu.set_flags(before.flags);
        cpu.mode_changed();
        if floats && cpu.fpu.restore(&before.fx.0, true, 16).is_err() {
            return Err("the image is refused".into());
        }
        loop {
            match self.vcpu.turn() {
                Turn::End(RunEnd::Halt) => break,
                Turn::Over => {}
                end => return Err(format!("the run ended with {end:?}")),
            }
        }
        self.take(after, floats)
    }

    fn take(&self, after: &mut Registers, floats: bool) -> Result<End, String> {
        let cpu = &self.vcpu.cpu;
        let handler = cpu.rip.wrapping_sub(SYSTEM + HANDLERS + 1);
        let vector = (handler / HANDLER_BYTES) as u8;
        if !handler.is_multiple_of(HANDLER_BYTES) || handler / HANDLER_BYTES > 255 {
            return Err(format!("the run ended at {:#x}", cpu.rip));
        }
        let has_code = matches!(vector, 8 | 10..=14 | 17);
        let frame = cpu.reg(RSP).wrapping_sub(SYSTEM);
        let mut bytes = [0; 48];
        host::get(self.ram.hva().0 + (frame & (STACK_TOP - 1)), &mut bytes);
        let word = |index: usize| {
            let index = index + usize::from(has_code);
            u64::from_le_bytes(bytes[8 * index..][..8].try_into().unwrap())
        };
        for (number, value) in (0..).zip(&mut after.gpr) {
            *value = cpu.reg(number);
        }
        after.gpr[usize::from(RSP)] = word(3);
        after.flags = word(2);
        if floats {
            after.fx.0 = cpu.fpu.save(true);
        }
        Ok(End {
            vector,
            code: if has_code {
                u64::from_le_bytes(bytes[..8].try_into().unwrap())
            } else {
                0
            },
            rip: word(0),
            cr2: if vector == PF { cpu.cr2 } else { 0 },
        })
    }
}

fn table(offset: u64, limit: u16) -> Table {
    Table {
        base: SYSTEM + offset,
        limit,
    }
}
