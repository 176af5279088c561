//! MMX, SSE and SSE2: where operands come from and go to; what is computed is [`crate::fp::sse`].

use crate::{
    cpu::{CR4_OSXMMEXCPT, Cpu, Exec, RDI, Stop, XM},
    fp::sse::table::{self, Entry, File, Place},
    op::Op,
};

/// [`Op::imm`] of an instruction of the table: its position and its immediate byte.
pub(crate) fn encode(position: usize, immediate: u8) -> u64 {
    (position as u64) << 8 | u64::from(immediate)
}

const fn file(place: Place) -> File {
    match place {
        Place::Reg(file) | Place::Rm(file) => file,
        Place::Flags => File::Xmm,
    }
}

impl Cpu {
    /// Reads 16 bytes; with `aligned` a misaligned address is refused.
    fn load128(&mut self, op: &Op, aligned: bool) -> Result<u128, Stop> {
        let at = self.ea(op, 16, false)?;
        if aligned && at & 15 != 0 {
            return self.gp(0);
        }
        let low = self.load::<u64>(at)?;
        let high = self.load::<u64>(at.wrapping_add(8))?;
        Ok(u128::from(low) | u128::from(high) << 64)
    }

    fn store128(&mut self, op: &Op, aligned: bool, value: u128) -> Exec {
        let at = self.ea(op, 16, true)?;
        if aligned && at & 15 != 0 {
            return self.gp(0);
        }
        self.probe_write(at, 16)?;
        self.store(at, value as u64)?;
        self.store(at.wrapping_add(8), (value >> 64) as u64)
    }

    fn vector_register(&self, file: File, number: u8) -> u128 {
        match file {
            File::Xmm => self.fpu.xmm(number),
            File::Mmx => self.fpu.x87.mmx(number).into(),
            File::Gpr32 => self.get::<u32>(number).into(),
            File::Gpr64 => self.get::<u64>(number).into(),
        }
    }

    fn set_vector_register(&mut self, file: File, number: u8, value: u128) {
        match file {
            File::Xmm => self.fpu.set_xmm(number, value),
            File::Mmx => self.fpu.x87.set_mmx(number, value),
            File::Gpr32 => self.put(number, value as u32),
            File::Gpr64 => self.put(number, value as u64),
        }
    }

    fn vector_operand(&mut self, op: &Op, place: Place, entry: &Entry) -> Result<u128, Stop> {
        match place {
            Place::Reg(file) => Ok(self.vector_register(file, op.reg)),
            Place::Flags => Ok(self.fpu.xmm(op.reg)),
            Place::Rm(file) if !op.is_mem() => Ok(self.vector_register(file, op.rm)),
            Place::Rm(_) if entry.bytes == 16 => self.load128(op, entry.aligned),
            Place::Rm(_) => {
                let at = self.ea(op, entry.bytes.into(), false)?;
                let size = entry.bytes.trailing_zeros() as u8;
                self.load_sized(at, size).map(u128::from)
            }
        }
    }

    fn set_vector_operand(&mut self, op: &Op, entry: &Entry, value: u128) -> Exec {
        match entry.dst {
            Place::Reg(file) => self.set_vector_register(file, op.reg, value),
            Place::Flags => self.lazy.load(value as u64),
            Place::Rm(file) if !op.is_mem() => self.set_vector_register(file, op.rm, value),
            Place::Rm(_) if entry.bytes == 16 => return self.store128(op, entry.aligned, value),
            Place::Rm(_) => {
                let at = self.ea(op, entry.bytes.into(), true)?;
                return self.store_sized(at, entry.bytes.trailing_zeros() as u8, value as u64);
            }
        }
        Ok(())
    }

    /// #XM, or #UD where the system does not take it (Intel SDM volume 3, table 14-4).
    fn simd_exception(&mut self) -> Exec {
        if self.cr4 & CR4_OSXMMEXCPT == 0 {
            return self.ud();
        }
        self.raise(XM)
    }
}

/// An instruction of the table.
pub(crate) fn run(cpu: &mut Cpu, op: &Op) -> Exec {
    let Some(entry) = table::entry((op.imm >> 8) as usize) else {
        return cpu.ud();
    };
    let files = [file(entry.dst), file(entry.src)];
    if files.contains(&File::Xmm) {
        cpu.check_sse()?;
    }
    // CVTPI2PS and CVTPI2PD from memory leave the x87 state alone.
    let mmx = file(entry.dst) == File::Mmx
        || file(entry.src) == File::Mmx && !(op.is_mem() && files.contains(&File::Xmm));
    if mmx {
        cpu.check_mmx()?;
    }
    let src = cpu.vector_operand(op, entry.src, entry)?;
    let dst = match entry.dst {
        Place::Rm(_) if op.is_mem() => 0,
        place => cpu.vector_operand(op, place, entry)?,
    };
    let conversion = mmx && files.contains(&File::Xmm);
    if conversion {
        // Before an exception of the numbers.
        cpu.fpu.x87.enter_mmx();
    }
    let Ok(value) = (entry.operation)(dst, src, op.imm as u8, &mut cpu.fpu.mxcsr) else {
        return cpu.simd_exception();
    };
    cpu.set_vector_operand(op, entry, value)?;
    if mmx {
        cpu.fpu.x87.enter_mmx();
    }
    Ok(())
}

/// `maskmovdqu`: `op.imm` is zero; `maskmovq`: it is one. Bytes whose mask has its highest bit
/// set go to [RDI].
pub(crate) fn masked_store(cpu: &mut Cpu, op: &Op) -> Exec {
    let mmx = op.imm != 0;
    let file = if mmx { File::Mmx } else { File::Xmm };
    if mmx {
        cpu.check_mmx()?
    } else {
        cpu.check_sse()?
    }
    let (value, mask) = (
        cpu.vector_register(file, op.reg),
        cpu.vector_register(file, op.rm),
    );
    let bytes = if mmx { 8 } else { 16 };
    let offset = cpu.get_sized(RDI, op.index);
    let at = cpu.linear(usize::from(op.segment()), offset, bytes, true)?;
    let chosen = |i: &u64| (mask >> (i * 8 + 7)) & 1 != 0;
    if mmx {
        cpu.fpu.x87.enter_mmx();
    }
    // All of it or nothing.
    for i in (0..bytes).filter(chosen) {
        cpu.probe_write(at.wrapping_add(i), 1)?;
    }
    for i in (0..bytes).filter(chosen) {
        cpu.store(at.wrapping_add(i), (value >> (i * 8)) as u8)?;
    }
    Ok(())
}
