//! Control registers, descriptor tables, system calls.

use vmlet_vcpu::x86_64::{Segment, Table};

use super::segment::{CODE_OR_DATA, PRESENT, code};
use crate::{
    cpu::{
        CR0_AM, CR0_CD, CR0_EM, CR0_MP, CR0_NE, CR0_NW, CR0_PE, CR0_PG, CR0_TS, CR0_WP, CR4_DE,
        CR4_KNOWN, CR4_PAE, CR4_PGE, CR4_PSE, CR4_TSD, CS, Cpu, EFER_LMA, EFER_LME, EFER_SCE, Exec,
        GP, GS, NP, RAX, RCX, RDX, RSP, SS, Stop,
    },
    event::canonical,
    flags,
    op::Op,
};

const CR0_ET: u64 = 1 << 4;
const CR0_KNOWN: u64 = CR0_PE
    | CR0_MP
    | CR0_EM
    | CR0_TS
    | CR0_ET
    | CR0_NE
    | CR0_WP
    | CR0_AM
    | CR0_NW
    | CR0_CD
    | CR0_PG;
const R11: u8 = 11;

impl Cpu {
    fn set_cr0(&mut self, value: u64) -> Exec {
        let bad = value >> 32 != 0
            || value & CR0_PG != 0 && value & CR0_PE == 0
            || value & CR0_NW != 0 && value & CR0_CD == 0;
        if bad {
            return self.gp(0);
        }
        let value = value & CR0_KNOWN | CR0_ET;
        let changed = value ^ self.cr0;
        if changed & CR0_PG != 0 {
            self.switch_paging(value & CR0_PG != 0)?;
        }
        self.cr0 = value;
        if changed & (CR0_PG | CR0_WP | CR0_PE) != 0 {
            self.flush_all();
        }
        self.mode_changed();
        Ok(())
    }

    fn switch_paging(&mut self, on: bool) -> Exec {
        if on && self.efer & EFER_LME != 0 {
            let long_cs = self.seg(CS).attributes & super::segment::LONG != 0;
            if self.cr4 & CR4_PAE == 0 || long_cs {
                return self.gp(0);
            }
            self.efer |= EFER_LMA;
        } else if !on {
            if self.is64() {
                return self.gp(0);
            }
            self.efer &= !EFER_LMA;
        }
        Ok(())
    }

    fn set_cr3(&mut self, value: u64) -> Exec {
        if self.long_mode() && value >> crate::mmu::PHYSICAL_BITS != 0 {
            return self.gp(0);
        }
        self.cr3 = if self.long_mode() {
            value
        } else {
            value & 0xffff_ffff
        };
        self.flush_local();
        Ok(())
    }

    fn set_cr4(&mut self, value: u64) -> Exec {
        if value & !CR4_KNOWN != 0 || self.long_mode() && value & CR4_PAE == 0 {
            return self.gp(0);
        }
        if (value ^ self.cr4) & (CR4_PAE | CR4_PGE | CR4_PSE) != 0 {
            self.flush_all();
        }
        let debug = (value ^ self.cr4) & CR4_DE != 0;
        self.cr4 = value;
        if debug {
            self.debug_changed();
        }
        Ok(())
    }

    /// The task priority as CR8 shows it.
    pub(crate) fn cr8(&self) -> u64 {
        let lapic = self.lapic.as_ref();
        lapic.map_or(self.msrs.cr8, |l| u64::from(l.tpr() >> 4))
    }
}

/// The size of moves to and from control and debug registers.
fn wide(cpu: &Cpu) -> u8 {
    if cpu.is64() { 3 } else { 2 }
}

/// Refuses a control register that is not there and, after that, code at a CPL other than 0.
fn control_number(cpu: &mut Cpu, number: u8) -> Exec {
    match number {
        0 | 2 | 3 | 4 | 8 => cpu.supervisor(),
        _ => cpu.ud(),
    }
}

/// `mov` reg, CRn.
pub(crate) fn from_cr(cpu: &mut Cpu, op: &Op) -> Exec {
    control_number(cpu, op.reg)?;
    let value = match op.reg {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        8 => cpu.cr8(),
        _ => return cpu.ud(),
    };
    let size = wide(cpu);
    cpu.put_sized(op.rm, size, value);
    Ok(())
}

/// `mov` CRn, reg.
pub(crate) fn to_cr(cpu: &mut Cpu, op: &Op) -> Exec {
    control_number(cpu, op.reg)?;
    let value = cpu.get_sized(op.rm, wide(cpu));
    match op.reg {
        0 => cpu.set_cr0(value),
        2 => {
            cpu.cr2 = value;
            Ok(())
        }
        3 => cpu.set_cr3(value),
        4 => cpu.set_cr4(value),
        8 if value < 16 => {
            if let Some(lapic) = &cpu.lapic {
                lapic.set_tpr((value as u8) << 4);
            } else {
                cpu.msrs.cr8 = value;
            }
            Ok(())
        }
        8 => cpu.gp(0),
        _ => cpu.ud(),
    }
}

/// DR4 and DR5 are other names of DR6 and DR7 unless CR4.DE is set.
fn debug_number(cpu: &mut Cpu, number: u8) -> Result<usize, Stop> {
    if number > 7 {
        return cpu.ud();
    }
    cpu.supervisor()?;
    let number = match number {
        4 | 5 if cpu.cr4 & CR4_DE != 0 => return cpu.ud(),
        4 | 5 => number + 2,
        _ => number,
    };
    cpu.check_debug_access()?;
    Ok(number.into())
}

/// `mov` reg, DRn.
pub(crate) fn from_dr(cpu: &mut Cpu, op: &Op) -> Exec {
    let number = debug_number(cpu, op.reg)?;
    let value = cpu.dr.get(number).copied().unwrap_or(0);
    let size = wide(cpu);
    cpu.put_sized(op.rm, size, value);
    Ok(())
}

/// `mov` DRn, reg.
pub(crate) fn to_dr(cpu: &mut Cpu, op: &Op) -> Exec {
    let number = debug_number(cpu, op.reg)?;
    let value = cpu.get_sized(op.rm, wide(cpu));
    if number >= 6 && value >> 32 != 0 {
        return cpu.gp(0);
    }
    let value = match number {
        6 => value & 0xe00f | 0xffff_0ff0,
        7 => value & 0xffff_23ff | 0x400,
        _ => value,
    };
    if let Some(dr) = cpu.dr.get_mut(number) {
        *dr = value;
    }
    cpu.debug_changed();
    Ok(())
}

/// `clts`.
pub(crate) fn clts(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.supervisor()?;
    cpu.cr0 &= !CR0_TS;
    Ok(())
}

/// `smsw`.
pub(crate) fn smsw(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = cpu.cr0;
    let size = if op.is_mem() { 1 } else { op.size() };
    cpu.put_rm(op, size, value)
}

/// `lmsw`: PE can be set and not cleared.
pub(crate) fn lmsw(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.supervisor()?;
    let value = cpu.get_rm(op, 1)? & 0xf;
    let value = cpu.cr0 & !0xe | value;
    cpu.set_cr0(value)
}

/// `invlpg`.
pub(crate) fn invlpg(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.supervisor()?;
    let offset = cpu.offset(op);
    let base = match op.kind() {
        crate::op::kind::FLAT => 0,
        _ => cpu.seg(usize::from(op.segment())).base,
    };
    cpu.tlb.flush_page(base.wrapping_add(offset));
    cpu.forget_fetched(true);
    Ok(())
}

/// `wbinvd`, `invd`: there are no caches.
pub(crate) fn cache(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.supervisor()
}

fn table_bytes(cpu: &Cpu) -> u64 {
    if cpu.is64() { 8 } else { 4 }
}

fn load_table(cpu: &mut Cpu, op: &Op) -> Result<Table, Stop> {
    cpu.supervisor()?;
    let at = cpu.ea(op, 2 + table_bytes(cpu), false)?;
    let limit = cpu.load::<u16>(at)?;
    let base = if cpu.is64() {
        cpu.load::<u64>(at.wrapping_add(2))?
    } else {
        let base = u64::from(cpu.load::<u32>(at.wrapping_add(2))?);
        if op.size() == 1 {
            base & 0xff_ffff
        } else {
            base
        }
    };
    if !canonical(base) {
        return cpu.gp(0);
    }
    Ok(Table { base, limit })
}

fn store_table(cpu: &mut Cpu, op: &Op, table: Table) -> Exec {
    let bytes = table_bytes(cpu);
    let at = cpu.ea(op, 2 + bytes, true)?;
    cpu.probe_write(at, 2 + bytes)?;
    cpu.store(at, table.limit)?;
    cpu.store_sized(
        at.wrapping_add(2),
        if bytes == 8 { 3 } else { 2 },
        table.base,
    )
}

/// `lgdt`.
pub(crate) fn lgdt(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.gdt = load_table(cpu, op)?;
    Ok(())
}

/// `lidt`.
pub(crate) fn lidt(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.idt = load_table(cpu, op)?;
    Ok(())
}

/// `sgdt`.
pub(crate) fn sgdt(cpu: &mut Cpu, op: &Op) -> Exec {
    let table = cpu.gdt;
    store_table(cpu, op, table)
}

/// `sidt`.
pub(crate) fn sidt(cpu: &mut Cpu, op: &Op) -> Exec {
    let table = cpu.idt;
    store_table(cpu, op, table)
}

/// `sldt` and, if `TASK`, `str`.
pub(crate) fn store_system<const TASK: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    if !cpu.protected() {
        return cpu.ud();
    }
    let value = if TASK {
        cpu.tr.selector
    } else {
        cpu.ldt.selector
    };
    let size = if op.is_mem() { 1 } else { op.size() };
    cpu.put_rm(op, size, value.into())
}

fn system_descriptor(cpu: &mut Cpu, selector: u16, kinds: [u16; 2]) -> Result<Segment, Stop> {
    if selector & 4 != 0 {
        return cpu.gp(code(selector));
    }
    let found = cpu.descriptor(selector, GP)?;
    if found.is(CODE_OR_DATA) || !kinds.contains(&found.kind()) {
        return cpu.gp(code(selector));
    }
    if !found.is(PRESENT) {
        return cpu.raise_code(NP, code(selector));
    }
    let base = cpu.long_base(&found)?;
    Ok(Segment {
        base,
        ..found.segment
    })
}

/// `lldt`.
pub(crate) fn lldt(cpu: &mut Cpu, op: &Op) -> Exec {
    if !cpu.protected() {
        return cpu.ud();
    }
    cpu.supervisor()?;
    let selector = cpu.get_rm(op, 1)? as u16;
    cpu.ldt = if selector & !3 == 0 {
        Segment {
            selector,
            ..Segment::default()
        }
    } else {
        system_descriptor(cpu, selector, [2, 2])?
    };
    Ok(())
}

/// `ltr`.
pub(crate) fn ltr(cpu: &mut Cpu, op: &Op) -> Exec {
    if !cpu.protected() {
        return cpu.ud();
    }
    cpu.supervisor()?;
    let selector = cpu.get_rm(op, 1)? as u16;
    if selector & !3 == 0 {
        return cpu.gp(0);
    }
    let kinds = if cpu.long_mode() { [9, 9] } else { [1, 9] };
    let mut segment = system_descriptor(cpu, selector, kinds)?;
    let at = cpu.gdt.base.wrapping_add(u64::from(selector & !7) + 5);
    let busy = cpu.load_system::<u8>(at)? | 2;
    cpu.store_system(at, busy)?;
    segment.attributes |= 2;
    cpu.tr = segment;
    Ok(())
}

/// `swapgs`.
pub(crate) fn swapgs(cpu: &mut Cpu, _: &Op) -> Exec {
    if !cpu.is64() {
        return cpu.ud();
    }
    cpu.supervisor()?;
    let old = cpu.seg(GS).base;
    cpu.seg_mut(GS).base = cpu.msrs.kernel_gs;
    cpu.msrs.kernel_gs = old;
    Ok(())
}

fn flat_code(selector: u16, cpl: u8, long: bool) -> Segment {
    let width = if long { 0xa000 } else { 0xc000 };
    Segment::flat(selector, width | 0x9b | u16::from(cpl) << 5)
}

fn flat_stack(selector: u16, cpl: u8) -> Segment {
    Segment::flat(selector, 0xc093 | u16::from(cpl) << 5)
}

fn enter(cpu: &mut Cpu, cs: Segment, ss: Segment, cpl: u8) {
    *cpu.seg_mut(SS) = ss;
    cpu.set_code_segment(cs, cpl);
}

/// `syscall`.
pub(crate) fn syscall(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.efer & EFER_SCE == 0 || !cpu.is64() {
        return cpu.ud();
    }
    let (next, flags) = (cpu.next_rip(), cpu.flags() & !flags::RF);
    cpu.set_reg(RCX, next);
    cpu.set_reg(R11, flags);
    let selector = (cpu.msrs.star >> 32) as u16 & !3;
    cpu.set_flags(flags & !cpu.msrs.sfmask);
    enter(
        cpu,
        flat_code(selector, 0, true),
        flat_stack(selector.wrapping_add(8), 0),
        0,
    );
    cpu.rip = cpu.msrs.lstar;
    Ok(())
}

/// `sysret`.
pub(crate) fn sysret(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.efer & EFER_SCE == 0 || !cpu.is64() {
        return cpu.ud();
    }
    cpu.supervisor()?;
    let base = (cpu.msrs.star >> 48) as u16 | 3;
    let target = cpu.reg(RCX);
    let wide = op.size() == 3;
    if wide && !canonical(target) {
        return cpu.gp(0);
    }
    let flags = cpu.reg(R11) & !(flags::RF | flags::VM);
    cpu.set_flags(flags);
    let cs = if wide { base.wrapping_add(16) } else { base };
    enter(
        cpu,
        flat_code(cs, 3, wide),
        flat_stack(base.wrapping_add(8), 3),
        3,
    );
    cpu.rip = if wide { target } else { target & 0xffff_ffff };
    Ok(())
}

/// `sysenter`.
pub(crate) fn sysenter(cpu: &mut Cpu, _: &Op) -> Exec {
    let selector = cpu.msrs.sysenter_cs as u16 & !3;
    if !cpu.protected() || selector == 0 {
        return cpu.gp(0);
    }
    let long = cpu.long_mode();
    cpu.rflags &= !(flags::VM | flags::IF | flags::RF);
    let (rsp, rip) = (cpu.msrs.sysenter_esp, cpu.msrs.sysenter_eip);
    enter(
        cpu,
        flat_code(selector, 0, long),
        flat_stack(selector.wrapping_add(8), 0),
        0,
    );
    cpu.set_reg(RSP, if long { rsp } else { rsp & 0xffff_ffff });
    cpu.rip = if long { rip } else { rip & 0xffff_ffff };
    Ok(())
}

/// `sysexit`.
pub(crate) fn sysexit(cpu: &mut Cpu, op: &Op) -> Exec {
    let base = cpu.msrs.sysenter_cs as u16 & !3;
    if !cpu.protected() || base == 0 {
        return cpu.gp(0);
    }
    cpu.supervisor()?;
    let wide = op.size() == 3;
    let (rip, rsp) = (cpu.reg(RDX), cpu.reg(RCX));
    if wide && (!canonical(rip) || !canonical(rsp)) {
        return cpu.gp(0);
    }
    let selector = if wide {
        base.wrapping_add(32)
    } else {
        base.wrapping_add(16)
    } | 3;
    enter(
        cpu,
        flat_code(selector, 3, wide),
        flat_stack(selector.wrapping_add(8), 3),
        3,
    );
    cpu.set_reg(RSP, if wide { rsp } else { rsp & 0xffff_ffff });
    cpu.rip = if wide { rip } else { rip & 0xffff_ffff };
    Ok(())
}

/// `hlt`.
pub(crate) fn hlt(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.supervisor()?;
    cpu.halted = true;
    cpu.look = true;
    Ok(())
}

/// `cli`.
pub(crate) fn cli(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cpl > cpu.iopl() {
        return cpu.gp(0);
    }
    cpu.rflags &= !flags::IF;
    Ok(())
}

/// `sti`: interrupts are taken after the next instruction.
pub(crate) fn sti(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cpl > cpu.iopl() {
        return cpu.gp(0);
    }
    if cpu.rflags & flags::IF == 0 {
        cpu.rflags |= flags::IF;
        cpu.shadow = 2;
    }
    cpu.look = true;
    Ok(())
}

/// `cpuid`.
pub(crate) fn cpuid(cpu: &mut Cpu, _: &Op) -> Exec {
    let (leaf, subleaf) = (cpu.get::<u32>(RAX), cpu.get::<u32>(RCX));
    let apic = cpu.apic_enabled();
    let [a, b, c, d] = crate::cpuid::answer_with_apic(&cpu.cpuid, leaf, subleaf, apic);
    for (number, value) in [(RAX, a), (crate::cpu::RBX, b), (RCX, c), (RDX, d)] {
        cpu.put(number, value);
    }
    Ok(())
}

/// `rdtsc`.
pub(crate) fn rdtsc(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cr4 & CR4_TSD != 0 && cpu.cpl != 0 {
        return cpu.gp(0);
    }
    let tsc = cpu.tsc();
    cpu.put(RAX, tsc as u32);
    cpu.put(RDX, (tsc >> 32) as u32);
    Ok(())
}

/// `rdpmc`: there are no counters.
pub(crate) fn rdpmc(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.gp(0)
}

/// `rdmsr`.
pub(crate) fn rdmsr(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.supervisor()?;
    let index = cpu.get::<u32>(RCX);
    let value = cpu.rdmsr(index)?;
    cpu.put(RAX, value as u32);
    cpu.put(RDX, (value >> 32) as u32);
    Ok(())
}

/// `wrmsr`.
pub(crate) fn wrmsr(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.supervisor()?;
    let index = cpu.get::<u32>(RCX);
    let value = u64::from(cpu.get::<u32>(RAX)) | u64::from(cpu.get::<u32>(RDX)) << 32;
    cpu.wrmsr(index, value)
}

/// Opcodes defined to be undefined.
pub(crate) fn ud(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.ud()
}

/// `cmc`, `clc`, `stc`, `cld`, `std`: `op.imm` is the opcode.
pub(crate) fn flag(cpu: &mut Cpu, op: &Op) -> Exec {
    match op.imm {
        0xf5 => {
            let cf = !cpu.lazy.cf();
            cpu.lazy.set_cf(cf);
        }
        0xf8 => cpu.lazy.set_cf(false),
        0xf9 => cpu.lazy.set_cf(true),
        0xfc => cpu.rflags &= !flags::DF,
        _ => cpu.rflags |= flags::DF,
    }
    Ok(())
}

/// `arpl`.
pub(crate) fn arpl(cpu: &mut Cpu, op: &Op) -> Exec {
    if !cpu.protected() {
        return cpu.ud();
    }
    let rpl = cpu.get_sized(op.reg, 1) & 3;
    let mut adjusted = false;
    cpu.modify_rm(op, 1, |_, old| {
        adjusted = old & 3 < rpl;
        if adjusted { old & !3 | rpl } else { old }
    })?;
    let rest = cpu.lazy.bits() & !flags::ZF;
    cpu.lazy
        .load(if adjusted { rest | flags::ZF } else { rest });
    Ok(())
}
