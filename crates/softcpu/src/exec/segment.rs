//! Descriptors and loads of segment registers.
//!
//! Source: Intel SDM volume 3, section 3.4 and 6.5 to 6.8; volume 2, MOV and LDS.

use vmlet_vcpu::x86_64::Segment;

use crate::{
    cpu::{CS, Cpu, Exec, GP, NP, SS, STACK, Stop, TS},
    flags,
    op::Op,
};

pub(crate) const PRESENT: u16 = 1 << 7;
pub(crate) const CODE_OR_DATA: u16 = 1 << 4;
pub(crate) const CODE: u16 = 1 << 3;
pub(crate) const CONFORMING: u16 = 1 << 2;
pub(crate) const READ_WRITE: u16 = 1 << 1;
pub(crate) const ACCESSED: u16 = 1;
pub(crate) const LONG: u16 = 1 << 13;
pub(crate) const BIG: u16 = 1 << 14;
const GRANULAR: u16 = 1 << 15;

/// A descriptor and where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) segment: Segment,
    pub(crate) at: u64,
    pub(crate) raw: u64,
}

impl Descriptor {
    pub(crate) fn dpl(&self) -> u8 {
        (self.segment.attributes >> 5) as u8 & 3
    }

    pub(crate) fn is(&self, bits: u16) -> bool {
        self.segment.attributes & bits == bits
    }

    /// Type of a system descriptor.
    pub(crate) fn kind(&self) -> u16 {
        self.segment.attributes & 0x1f
    }
}

fn decode(selector: u16, raw: u64) -> Segment {
    let attributes = (raw >> 40) as u16 & 0xf0ff;
    let limit = (raw & 0xffff | (raw >> 32) & 0xf_0000) as u32;
    let limit = if attributes & GRANULAR != 0 {
        limit << 12 | 0xfff
    } else {
        limit
    };
    Segment {
        base: (raw >> 16) & 0xff_ffff | (raw >> 32) & 0xff00_0000,
        limit,
        selector,
        attributes,
    }
}

/// The error code that names a selector.
pub(crate) fn code(selector: u16) -> u32 {
    u32::from(selector & !3)
}

impl Cpu {
    /// Reads a descriptor; outside its table raises `vector` with the selector.
    pub(crate) fn descriptor(&mut self, selector: u16, vector: u8) -> Result<Descriptor, Stop> {
        let (base, limit) = if selector & 4 == 0 {
            (self.gdt.base, u32::from(self.gdt.limit))
        } else if self.ldt.attributes & PRESENT != 0 && self.ldt.selector & !3 != 0 {
            (self.ldt.base, self.ldt.limit)
        } else {
            return self.raise_code(vector, code(selector));
        };
        let offset = u32::from(selector & !7);
        if offset + 7 > limit {
            return self.raise_code(vector, code(selector));
        }
        let at = base.wrapping_add(offset.into());
        let raw = self.load_system::<u64>(at)?;
        Ok(Descriptor {
            segment: decode(selector, raw),
            at,
            raw,
        })
    }

    /// The base of a 16-byte system descriptor in long mode.
    pub(crate) fn long_base(&mut self, descriptor: &Descriptor) -> Result<u64, Stop> {
        if !self.long_mode() {
            return Ok(descriptor.segment.base);
        }
        let high = self.load_system::<u64>(descriptor.at.wrapping_add(8))?;
        let base = descriptor.segment.base | high << 32;
        let sign = (base.cast_signed() >> 47).cast_unsigned();
        if sign != 0 && sign != u64::MAX || high & 0x1f00_0000_0000 != 0 {
            return self.gp(code(descriptor.segment.selector));
        }
        Ok(base)
    }

    /// Marks a code or data descriptor as used.
    pub(crate) fn mark_accessed(&mut self, descriptor: &mut Descriptor) -> Exec {
        if !descriptor.is(ACCESSED) {
            descriptor.segment.attributes |= ACCESSED;
            descriptor.raw |= 1 << 40;
            self.store_system::<u8>(descriptor.at.wrapping_add(5), (descriptor.raw >> 40) as u8)?;
        }
        Ok(())
    }

    /// Loads ES, SS, DS, FS or GS.
    pub(crate) fn load_segment(&mut self, number: usize, selector: u16) -> Exec {
        if self.rflags & flags::VM != 0 {
            *self.seg_mut(number) = Segment {
                base: u64::from(selector) << 4,
                limit: 0xffff,
                selector,
                attributes: 0xf3,
            };
            return Ok(());
        }
        if !self.protected() {
            let old = *self.seg(number);
            *self.seg_mut(number) = Segment {
                base: u64::from(selector) << 4,
                selector,
                ..old
            };
            return Ok(());
        }
        if number == SS {
            let cpl = self.cpl;
            return self.load_stack_segment(selector, cpl, GP);
        }
        if selector & !3 == 0 {
            let old = *self.seg(number);
            *self.seg_mut(number) = Segment {
                base: 0,
                limit: 0,
                selector,
                attributes: old.attributes & !PRESENT,
            };
            return Ok(());
        }
        let mut found = self.descriptor(selector, GP)?;
        let rpl = (selector & 3) as u8;
        let readable = found.is(CODE_OR_DATA) && (!found.is(CODE) || found.is(READ_WRITE));
        let conforming = found.is(CODE | CONFORMING);
        if !readable || (!conforming && (rpl > found.dpl() || self.cpl > found.dpl())) {
            return self.gp(code(selector));
        }
        if !found.is(PRESENT) {
            return self.raise_code(NP, code(selector));
        }
        self.mark_accessed(&mut found)?;
        *self.seg_mut(number) = found.segment;
        Ok(())
    }

    /// Loads SS for code at `cpl`; `vector` is #GP or, in a task's stack switch, #TS.
    pub(crate) fn load_stack_segment(&mut self, selector: u16, cpl: u8, vector: u8) -> Exec {
        let found = self.stack_descriptor(selector, cpl, vector)?;
        *self.seg_mut(SS) = found;
        self.mode_changed();
        Ok(())
    }

    /// The segment that SS would get.
    pub(crate) fn stack_descriptor(
        &mut self,
        selector: u16,
        cpl: u8,
        vector: u8,
    ) -> Result<Segment, Stop> {
        let rpl = (selector & 3) as u8;
        if selector & !3 == 0 {
            if self.is64() && rpl == cpl && cpl != 3 && vector != TS {
                return Ok(null_stack(selector, cpl));
            }
            return self.raise_code(vector, 0);
        }
        let mut found = self.descriptor(selector, vector)?;
        let writable = found.is(CODE_OR_DATA | READ_WRITE) && !found.is(CODE);
        if !writable || rpl != cpl || found.dpl() != cpl {
            return self.raise_code(vector, code(selector));
        }
        if !found.is(PRESENT) {
            return self.raise_code(STACK, code(selector));
        }
        self.mark_accessed(&mut found)?;
        Ok(found.segment)
    }

    /// Takes CS and with it the CPL.
    pub(crate) fn set_code_segment(&mut self, mut segment: Segment, cpl: u8) {
        segment.selector = segment.selector & !3 | u16::from(cpl);
        *self.seg_mut(CS) = segment;
        self.set_cpl(cpl);
    }

    /// The CPL is kept in the DPL of SS, as on processors.
    pub(crate) fn set_cpl(&mut self, cpl: u8) {
        let ss = self.seg_mut(SS);
        ss.attributes = ss.attributes & !0x60 | u16::from(cpl) << 5;
        self.mode_changed();
    }
}

/// What SS is after a null selector was loaded in 64-bit mode.
pub(crate) fn null_stack(selector: u16, cpl: u8) -> Segment {
    Segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        attributes: 0xc013 | u16::from(cpl) << 5,
    }
}

/// `mov` rm, Sreg; the register's number is in `op.reg`.
pub(crate) fn store(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = u64::from(cpu.seg(usize::from(op.reg)).selector);
    if op.is_mem() {
        cpu.put_rm(op, 1, value)
    } else {
        cpu.put_rm(op, op.size(), value)
    }
}

/// `mov` Sreg, rm.
pub(crate) fn load(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = cpu.get_rm(op, 1)? as u16;
    let number = usize::from(op.reg);
    cpu.load_segment(number, value)?;
    if number == SS {
        cpu.shadow = 1;
    }
    Ok(())
}

/// `push` Sreg.
pub(crate) fn push(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = u64::from(cpu.seg(usize::from(op.reg)).selector);
    cpu.push_sized(op.size(), value)
}

/// `pop` Sreg.
pub(crate) fn pop(cpu: &mut Cpu, op: &Op) -> Exec {
    let bytes = 1 << op.size();
    let value = cpu.peek_sized(op.size(), 0)? as u16;
    let number = usize::from(op.reg);
    let size = cpu.stack_size();
    let new = cpu.reg(crate::cpu::RSP).wrapping_add(bytes) & crate::int::mask(size);
    cpu.load_segment(number, value)?;
    cpu.set_stack(size, new);
    if number == SS {
        cpu.shadow = 1;
    }
    Ok(())
}

/// `lds`, `les`, `lss`, `lfs`, `lgs`: `op.imm` is the segment register.
pub(crate) fn load_far(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let bytes = 1u64 << size;
    let at = cpu.ea(op, bytes + 2, false)?;
    let offset = cpu.load_sized(at, size)?;
    let selector = cpu.load::<u16>(at.wrapping_add(bytes))?;
    cpu.load_segment(op.imm as usize, selector)?;
    cpu.put_sized(op.reg, size, offset);
    Ok(())
}

/// What `lar`, `lsl`, `verr` and `verw` look at, if the code may see it.
fn visible(cpu: &mut Cpu, selector: u16) -> Result<Option<Descriptor>, Stop> {
    if selector & !3 == 0 {
        return Ok(None);
    }
    let found = match cpu.descriptor(selector, GP) {
        Ok(found) => found,
        Err(Stop::Fault) if cpu.fault.vector == GP => return Ok(None),
        Err(stop) => return Err(stop),
    };
    let level = cpu.cpl.max((selector & 3) as u8);
    let conforming = found.is(CODE_OR_DATA | CODE | CONFORMING);
    Ok((conforming || level <= found.dpl()).then_some(found))
}

fn set_zf(cpu: &mut Cpu, on: bool) {
    let rest = cpu.lazy.bits() & !flags::ZF;
    cpu.lazy.load(if on { rest | flags::ZF } else { rest });
}

/// `lar` and, if `LIMIT`, `lsl`.
pub(crate) fn look<const LIMIT: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    if !cpu.protected() {
        return cpu.ud();
    }
    let selector = cpu.get_rm(op, 1)? as u16;
    let found = visible(cpu, selector)?.filter(|d| {
        let system = [1, 2, 3, 9, 0xb].contains(&d.kind());
        let gate = [4, 5, 0xc].contains(&d.kind()) && !LIMIT;
        d.is(CODE_OR_DATA) || system || gate
    });
    if let Some(found) = found {
        let value = if LIMIT {
            found.segment.limit.into()
        } else {
            (found.raw >> 32) & 0x00f0_ff00
        };
        cpu.put_sized(op.reg, op.size(), value);
    }
    set_zf(cpu, found.is_some());
    Ok(())
}

/// `verr` and, if `WRITE`, `verw`.
pub(crate) fn verify<const WRITE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    if !cpu.protected() {
        return cpu.ud();
    }
    let selector = cpu.get_rm(op, 1)? as u16;
    let found = visible(cpu, selector)?;
    let fits = found.is_some_and(|d| {
        d.is(CODE_OR_DATA)
            && if WRITE {
                !d.is(CODE) && d.is(READ_WRITE)
            } else {
                !d.is(CODE) || d.is(READ_WRITE)
            }
    });
    set_zf(cpu, fits);
    Ok(())
}
