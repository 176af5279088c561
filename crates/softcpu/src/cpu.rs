//! The state of a vCPU and its registers.

#![expect(
    clippy::indexing_slicing,
    reason = "register numbers are cut to the arrays' sizes"
)]

use std::sync::Arc;

use vmlet_memory::ForeignWrites;
use vmlet_vcpu::{
    FatalExit, StopReason,
    x86_64::{Segment, Table},
};

#[cfg(debug_assertions)]
use crate::dispatch::At;
use crate::{
    block::Cache,
    bus::BusSlot,
    clock::Clock,
    debug::{DR6_NONE, Watch},
    dispatch::{Link, LinkCell},
    events::IoEvents,
    flags::{self, Lazy},
    fp::Fpu,
    hot::{Hot, Late},
    int::Int,
    lapic::Lapic,
    memory::{Map, Memory},
    msr::Msrs,
    op::HIGH,
    run::SLICE,
    signal::Signal,
    tlb::Tlb,
};

pub(crate) const ES: usize = 0;
pub(crate) const CS: usize = 1;
pub(crate) const SS: usize = 2;
pub(crate) const DS: usize = 3;
pub(crate) const FS: usize = 4;
pub(crate) const GS: usize = 5;

pub(crate) const RAX: u8 = 0;
pub(crate) const RCX: u8 = 1;
pub(crate) const RDX: u8 = 2;
pub(crate) const RBX: u8 = 3;
pub(crate) const RSP: u8 = 4;
pub(crate) const RBP: u8 = 5;
pub(crate) const RSI: u8 = 6;
pub(crate) const RDI: u8 = 7;

/// Why an instruction was not completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// [`Cpu::fault`] says which exception it raised.
    Fault,
    /// The engine lacks it.
    Lacking,
}

/// What a handler gives.
pub(crate) type Exec = Result<(), Stop>;

/// An exception on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) vector: u8,
    pub(crate) code: Option<u32>,
}

/// The width of code: how opcodes are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    Bits16,
    Bits32,
    Bits64,
}

pub(crate) const CR0_PE: u64 = 1;
pub(crate) const CR0_MP: u64 = 1 << 1;
pub(crate) const CR0_EM: u64 = 1 << 2;
pub(crate) const CR0_TS: u64 = 1 << 3;
pub(crate) const CR0_NE: u64 = 1 << 5;
pub(crate) const CR0_WP: u64 = 1 << 16;
pub(crate) const CR0_AM: u64 = 1 << 18;
pub(crate) const CR0_NW: u64 = 1 << 29;
pub(crate) const CR0_CD: u64 = 1 << 30;
pub(crate) const CR0_PG: u64 = 1 << 31;
pub(crate) const CR4_TSD: u64 = 1 << 2;
pub(crate) const CR4_DE: u64 = 1 << 3;
pub(crate) const CR4_PSE: u64 = 1 << 4;
pub(crate) const CR4_PAE: u64 = 1 << 5;
pub(crate) const CR4_MCE: u64 = 1 << 6;
pub(crate) const CR4_PGE: u64 = 1 << 7;
pub(crate) const CR4_PCE: u64 = 1 << 8;
pub(crate) const CR4_OSFXSR: u64 = 1 << 9;
pub(crate) const CR4_OSXMMEXCPT: u64 = 1 << 10;
/// What CR4 may hold. MCE is among them without machine checks in CPUID: on KVM a guest can find it
/// set and keeps it.
pub(crate) const CR4_KNOWN: u64 = CR4_TSD
    | CR4_DE
    | CR4_PSE
    | CR4_PAE
    | CR4_MCE
    | CR4_PGE
    | CR4_PCE
    | CR4_OSFXSR
    | CR4_OSXMMEXCPT;
pub(crate) const EFER_SCE: u64 = 1;
pub(crate) const EFER_LME: u64 = 1 << 8;
pub(crate) const EFER_LMA: u64 = 1 << 10;
pub(crate) const EFER_NXE: u64 = 1 << 11;

/// What ends a run from inside.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Stopped(StopReason),
    Fatal(FatalExit),
}

/// The whole state of a vCPU.
#[derive(Debug)]
pub(crate) struct Cpu {
    /// 0-15 the general registers, 16 always zero; so many that a number needs no check.
    pub(crate) regs: [u64; 256],
    pub(crate) lazy: Lazy,
    pub(crate) rip: u64,
    /// Linear start of the block that runs, without the base of CS.
    pub(crate) block_rip: u64,
    /// From there to the end of the current instruction.
    pub(crate) op_end: u16,
    /// The current instruction is the last of this turn through its block.
    pub(crate) cut: bool,
    /// Something at the block's end may deserve a look: interrupts were enabled, a trap waits.
    pub(crate) look: bool,
    /// Interrupt shadow: bit 0 after `mov ss`, bit 1 after `sti`.
    pub(crate) shadow: u8,
    pub(crate) halted: bool,
    /// `pause` was executed: another vCPU may have the turn.
    pub(crate) yields: bool,
    pub(crate) width: Width,
    pub(crate) cpl: u8,
    /// [`crate::tlb::USER`] or [`crate::tlb::ALIGNED`] at CPL 3.
    pub(crate) tlb_mode: usize,
    /// What a block's mark must be for its use now: [0] where a change of CR3 takes its page away,
    /// [1] in global pages.
    pub(crate) tags: [u64; 2],
    /// Epochs of fetched translations, for each of the two.
    pub(crate) epochs: [u64; 2],
    /// Instructions left in this slice; a block's are taken off when it begins.
    pub(crate) budget: i64,
    /// The block that runs.
    pub(crate) block: Link,
    /// The next operation, where steps return to a loop.
    #[cfg(debug_assertions)]
    pub(crate) at: At,
    pub(crate) cache: Cache,
    /// Where the TLB's entries for reading in this mode begin.
    pub(crate) tlb_at: u64,
    /// Flags as translated code leaves them; all zero outside of it.
    pub(crate) late: Late,
    /// The block translated code is about to go on with.
    pub(crate) spare: LinkCell,
    pub(crate) hot: Hot,
    /// RFLAGS without the arithmetic flags and bit 1.
    pub(crate) rflags: u64,
    pub(crate) segs: [Segment; 8],
    pub(crate) tr: Segment,
    pub(crate) ldt: Segment,
    pub(crate) gdt: Table,
    pub(crate) idt: Table,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    pub(crate) dr: [u64; 8],
    pub(crate) fault: Fault,
    /// It is #GP for an address that is not canonical.
    pub(crate) bad_address: bool,
    pub(crate) nmi_masked: bool,
    /// An exception that another engine left undelivered.
    pub(crate) pending: Option<Fault>,
    /// An external interrupt waits for its delivery.
    pub(crate) injected: Option<u8>,
    pub(crate) ending: Option<Ending>,
    pub(crate) msrs: Msrs,
    pub(crate) fpu: Fpu,
    pub(crate) tlb: Tlb,
    pub(crate) memory: Arc<Memory>,
    pub(crate) map: Arc<Map>,
    pub(crate) map_version: u64,
    pub(crate) code_epoch: u64,
    /// Writes to pages with code seen so far.
    pub(crate) code_writes: u64,
    pub(crate) lapic: Option<Arc<Lapic>>,
    pub(crate) signal: Arc<Signal>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) bus: BusSlot,
    pub(crate) id: u32,
    pub(crate) instructions: u64,
    pub(crate) cpuid: vmlet_vcpu::cpuid::CpuidTable,
    /// MSRs that software touched and this model lacks.
    pub(crate) unknown_msrs: u64,
    /// How often the process itself wrote to pages that hold code, as far as seen.
    pub(crate) foreign: u64,
    pub(crate) foreign_writes: ForeignWrites,
    pub(crate) io_events: Arc<IoEvents>,
    pub(crate) watch: Watch,
    /// The name of what [`Stop::Lacking`] stands for.
    pub(crate) lacking: Option<&'static str>,
    code: CodeSegment,
}

/// What blocks take from CS.
#[derive(Clone, Copy, Debug, Default)]
struct CodeSegment {
    base: u64,
    limit: u32,
}

/// What a vCPU shares with the others.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) memory: Arc<Memory>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) lapic: Option<Arc<Lapic>>,
    pub(crate) signal: Arc<Signal>,
    pub(crate) io_events: Arc<IoEvents>,
}

impl Cpu {
    /// A vCPU as it comes out of reset (Intel SDM volume 3, section 11.1.1).
    pub(crate) fn new(id: u32, cpuid: vmlet_vcpu::cpuid::CpuidTable, shared: Shared) -> Cpu {
        // The version first: a map that changes in between is taken again.
        let map_version = shared.memory.version();
        let map = shared.memory.map();
        let cache = Cache::new();
        let mut cpu = Cpu {
            regs: [0; 256],
            lazy: Lazy::default(),
            rip: 0xfff0,
            block_rip: 0,
            op_end: 0,
            cut: false,
            look: true,
            shadow: 0,
            halted: false,
            yields: false,
            width: Width::Bits16,
            cpl: 0,
            tlb_mode: 0,
            tags: [0; 2],
            epochs: [0; 2],
            budget: SLICE,
            block: cache.nothing(),
            #[cfg(debug_assertions)]
            at: At::NOWHERE,
            spare: LinkCell::new(cache.nothing()),
            cache,
            tlb_at: 0,
            late: Late::default(),
            hot: Hot::new(),
            rflags: 0,
            segs: [Segment::default(); 8],
            tr: system(0x8b),
            ldt: system(0x82),
            gdt: Table {
                base: 0,
                limit: 0xffff,
            },
            idt: Table {
                base: 0,
                limit: 0xffff,
            },
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            dr: [0; 8],
            fault: Fault::default(),
            bad_address: false,
            nmi_masked: false,
            pending: None,
            injected: None,
            ending: None,
            msrs: Msrs::new(id == 0),
            fpu: Fpu::default(),
            tlb: Tlb::new(),
            map_version,
            code_epoch: shared.memory.code_epoch(),
            code_writes: shared.memory.code_writes(),
            memory: shared.memory,
            map,
            lapic: shared.lapic,
            signal: shared.signal,
            clock: shared.clock,
            bus: BusSlot::default(),
            id,
            instructions: 0,
            cpuid,
            unknown_msrs: 0,
            foreign: 0,
            foreign_writes: ForeignWrites::new(),
            io_events: shared.io_events,
            watch: Watch::default(),
            lacking: None,
            code: CodeSegment::default(),
        };
        cpu.reset();
        cpu
    }

    /// What INIT resets (Intel SDM volume 3, table 11-1).
    pub(crate) fn reset(&mut self) {
        self.regs = [0; 256];
        self.regs[usize::from(RDX)] = self.cpuid.get(1, 0).map_or(0x600, |e| e.eax.into());
        self.lazy.load(0);
        self.rflags = 0;
        self.rip = 0xfff0;
        let data = Segment::real(0, 3);
        self.segs = [data; 8];
        self.segs[CS] = Segment {
            base: 0xffff_0000,
            limit: 0xffff,
            selector: 0xf000,
            attributes: 0x9b,
        };
        self.segs[6] = Segment::default();
        (self.tr, self.ldt) = (system(0x8b), system(0x82));
        self.gdt = Table {
            base: 0,
            limit: 0xffff,
        };
        self.idt = self.gdt;
        self.cr0 = 0x10 | (self.cr0 & (CR0_CD | CR0_NW));
        (self.cr2, self.cr3, self.cr4, self.efer) = (0, 0, 0, 0);
        self.dr = [0, 0, 0, 0, 0, 0, DR6_NONE, 0x400];
        self.debug_changed();
        (self.halted, self.shadow, self.nmi_masked) = (false, 0, false);
        (self.pending, self.injected) = (None, None);
        self.mode_changed();
        self.flush_all();
    }

    /// Recomputes which translations data accesses use.
    fn data_mode(&mut self) {
        let checked = self.cr0 & CR0_AM != 0 && self.rflags & flags::AC != 0;
        self.tlb_mode = match self.cpl {
            3 if checked => crate::tlb::ALIGNED,
            3 => crate::tlb::USER,
            _ => 0,
        };
        self.tlb_at = self.tlb.address(crate::tlb::READ + self.tlb_mode);
    }

    /// Recomputes what is derived from CS, CR0 and EFER.
    pub(crate) fn mode_changed(&mut self) {
        let cs = self.segs[CS].attributes;
        let protected = self.cr0 & CR0_PE != 0 && self.rflags & flags::VM == 0;
        self.width = if self.efer & EFER_LMA != 0 && cs & (1 << 13) != 0 && protected {
            Width::Bits64
        } else if cs & (1 << 14) != 0 {
            Width::Bits32
        } else {
            Width::Bits16
        };
        self.cpl = if self.rflags & flags::VM != 0 {
            3
        } else if self.cr0 & CR0_PE == 0 {
            0
        } else {
            (self.segs[SS].attributes >> 5) as u8 & 3
        };
        self.data_mode();
        let CodeSegment { base, limit } = self.code;
        if (self.segs[CS].base, self.segs[CS].limit) != (base, limit) {
            self.code = CodeSegment {
                base: self.segs[CS].base,
                limit: self.segs[CS].limit,
            };
            self.forget_fetched(true);
        }
        self.set_tags();
        self.look = true;
    }

    pub(crate) fn long_mode(&self) -> bool {
        self.efer & EFER_LMA != 0
    }

    pub(crate) fn is64(&self) -> bool {
        self.width == Width::Bits64
    }

    pub(crate) fn protected(&self) -> bool {
        self.cr0 & CR0_PE != 0 && self.rflags & flags::VM == 0
    }

    #[inline(always)]
    pub(crate) fn reg(&self, number: u8) -> u64 {
        self.regs[usize::from(number)]
    }

    #[inline(always)]
    pub(crate) fn set_reg(&mut self, number: u8, value: u64) {
        self.regs[usize::from(number & 15)] = value;
    }

    /// As [`Cpu::set_reg`] for a number that is known to be below 16.
    #[inline(always)]
    pub(crate) fn set_known(&mut self, number: u8, value: u64) {
        self.regs[usize::from(number)] = value;
    }

    /// A register as an operand.
    #[inline(always)]
    pub(crate) fn get<T: Int>(&self, number: u8) -> T {
        if T::BITS == 8 && number >= HIGH {
            return T::of(self.reg(number - HIGH) >> 8);
        }
        T::of(self.reg(number))
    }

    /// Writes a register operand: 32 bits clear the upper half, fewer leave it.
    #[inline(always)]
    pub(crate) fn put<T: Int>(&mut self, number: u8, value: T) {
        let value = value.u();
        if T::BITS >= 32 {
            self.set_reg(number, value);
        } else if T::BITS == 8 && number >= HIGH {
            let old = self.reg(number - HIGH);
            self.set_reg(number - HIGH, (old & !0xff00) | (value << 8));
        } else {
            let old = self.reg(number);
            self.set_reg(number, (old & !T::MASK) | value);
        }
    }

    /// As [`Cpu::get`] with the size as a number, 0 to 3.
    pub(crate) fn get_sized(&self, number: u8, size: u8) -> u64 {
        match size {
            0 => self.get::<u8>(number).u(),
            1 => self.get::<u16>(number).u(),
            2 => self.get::<u32>(number).u(),
            _ => self.get::<u64>(number),
        }
    }

    /// As [`Cpu::put`] with the size as a number, 0 to 3.
    pub(crate) fn put_sized(&mut self, number: u8, size: u8, value: u64) {
        match size {
            0 => self.put(number, value as u8),
            1 => self.put(number, value as u16),
            2 => self.put(number, value as u32),
            _ => self.put(number, value),
        }
    }

    pub(crate) fn seg(&self, number: usize) -> &Segment {
        &self.segs[number & 7]
    }

    pub(crate) fn seg_mut(&mut self, number: usize) -> &mut Segment {
        &mut self.segs[number & 7]
    }

    /// The whole of RFLAGS.
    pub(crate) fn flags(&self) -> u64 {
        self.rflags | self.lazy.bits() | 2
    }

    /// Sets the whole of RFLAGS.
    pub(crate) fn set_flags(&mut self, value: u64) {
        let kept = flags::TF
            | flags::IF
            | flags::DF
            | flags::IOPL
            | flags::NT
            | flags::RF
            | flags::VM
            | flags::AC
            | flags::VIF
            | flags::VIP
            | flags::ID;
        self.lazy.load(value);
        self.rflags = value & kept;
        self.data_mode();
        self.look = true;
    }

    pub(crate) fn iopl(&self) -> u8 {
        (self.rflags >> 12) as u8 & 3
    }

    /// Where the current instruction ends.
    #[inline(always)]
    pub(crate) fn next_rip(&self) -> u64 {
        self.block_rip.wrapping_add(u64::from(self.op_end))
    }

    /// Raises an exception without an error code.
    #[cold]
    pub(crate) fn raise<T>(&mut self, vector: u8) -> Result<T, Stop> {
        self.fault = Fault { vector, code: None };
        Err(Stop::Fault)
    }

    /// Raises an exception with an error code.
    #[cold]
    pub(crate) fn raise_code<T>(&mut self, vector: u8, code: u32) -> Result<T, Stop> {
        self.fault = Fault {
            vector,
            code: Some(code),
        };
        Err(Stop::Fault)
    }

    /// Ends the run by what the engine does not carry out.
    #[cold]
    pub(crate) fn lacks<T>(&mut self, name: &'static str) -> Result<T, Stop> {
        self.lacking = Some(name);
        Err(Stop::Lacking)
    }

    /// #GP with `code`.
    #[cold]
    pub(crate) fn gp<T>(&mut self, code: u32) -> Result<T, Stop> {
        self.raise_code(GP, code)
    }

    /// #UD.
    #[cold]
    pub(crate) fn ud<T>(&mut self) -> Result<T, Stop> {
        self.raise(UD)
    }

    /// Refuses at a CPL other than 0.
    pub(crate) fn supervisor(&mut self) -> Exec {
        if self.cpl == 0 { Ok(()) } else { self.gp(0) }
    }
}

pub(crate) const DE: u8 = 0;
pub(crate) const DB: u8 = 1;
pub(crate) const NMI: u8 = 2;
pub(crate) const BP: u8 = 3;
pub(crate) const OVERFLOW: u8 = 4;
pub(crate) const BR: u8 = 5;
pub(crate) const UD: u8 = 6;
pub(crate) const NM: u8 = 7;
pub(crate) const DF: u8 = 8;
pub(crate) const TS: u8 = 10;
pub(crate) const NP: u8 = 11;
pub(crate) const STACK: u8 = 12;
pub(crate) const GP: u8 = 13;
pub(crate) const PF: u8 = 14;
pub(crate) const MF: u8 = 16;
pub(crate) const AC: u8 = 17;
pub(crate) const XM: u8 = 19;

fn system(attributes: u16) -> Segment {
    Segment {
        base: 0,
        limit: 0xffff,
        selector: 0,
        attributes,
    }
}
