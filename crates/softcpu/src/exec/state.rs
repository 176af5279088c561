//! Whole images of the floating-point state, and instructions that only check it.

use crate::{
    cpu::{CR0_EM, CR0_MP, CR0_TS, CR4_OSFXSR, Cpu, Exec, MF, NM, Stop},
    fp::{IMAGE_BYTES, WRITTEN_BYTES, WRITTEN_BYTES_32, mxcsr::Mxcsr},
    op::Op,
};

impl Cpu {
    /// What SSE instructions check first (Intel SDM volume 3, section 14.1 and table 14-2).
    pub(crate) fn check_sse(&mut self) -> Exec {
        if self.cr0 & CR0_EM != 0 || self.cr4 & CR4_OSFXSR == 0 {
            return self.ud();
        }
        if self.cr0 & CR0_TS != 0 {
            return self.raise(NM);
        }
        Ok(())
    }

    /// What MMX instructions check first.
    pub(crate) fn check_mmx(&mut self) -> Exec {
        if self.cr0 & CR0_EM != 0 {
            return self.ud();
        }
        if self.cr0 & CR0_TS != 0 {
            return self.raise(NM);
        }
        self.check_waiting()
    }

    /// What x87 instructions check first.
    pub(crate) fn check_x87(&mut self) -> Exec {
        if self.cr0 & (CR0_EM | CR0_TS) != 0 {
            return self.raise(NM);
        }
        Ok(())
    }

    /// Raises a waiting x87 exception.
    pub(crate) fn check_waiting(&mut self) -> Exec {
        if self.fpu.x87.is_pending() {
            return self.raise(MF);
        }
        Ok(())
    }

    fn check_image(&mut self, op: &Op, write: bool) -> Result<u64, Stop> {
        if self.cr0 & (CR0_EM | CR0_TS) != 0 {
            return self.raise(NM);
        }
        let at = self.ea(op, IMAGE_BYTES as u64, write)?;
        if at & 15 != 0 {
            return self.misaligned(at);
        }
        Ok(at)
    }
}

/// `fxsave`.
pub(crate) fn fxsave(cpu: &mut Cpu, op: &Op) -> Exec {
    let at = cpu.check_image(op, true)?;
    let image = cpu.fpu.save(op.size() == 3);
    cpu.probe_write(at, IMAGE_BYTES as u64)?;
    // The reserved end of the image stays as it is in memory.
    let used = if cpu.is64() {
        WRITTEN_BYTES
    } else {
        WRITTEN_BYTES_32
    } as u64;
    for (chunk, offset) in image.chunks(8).zip((0..used).step_by(8)) {
        let word = chunk.try_into().map_or(0, u64::from_le_bytes);
        cpu.store(at.wrapping_add(offset), word)?;
    }
    Ok(())
}

/// `fxrstor`.
pub(crate) fn fxrstor(cpu: &mut Cpu, op: &Op) -> Exec {
    let at = cpu.check_image(op, false)?;
    let mut image = [0; IMAGE_BYTES];
    for (chunk, offset) in image.chunks_mut(8).zip((0..).step_by(8)) {
        let word = cpu.load::<u64>(at.wrapping_add(offset))?;
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    let vectors = if cpu.is64() { 16 } else { 8 };
    if cpu.fpu.restore(&image, op.size() == 3, vectors).is_err() {
        return cpu.gp(0);
    }
    Ok(())
}

/// `ldmxcsr`.
pub(crate) fn ldmxcsr(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.check_sse()?;
    let value = cpu.get_rm(op, 2)? as u32;
    let Ok(value) = Mxcsr::new(value) else {
        return cpu.gp(0);
    };
    cpu.fpu.mxcsr = value;
    Ok(())
}

/// `stmxcsr`.
pub(crate) fn stmxcsr(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.check_sse()?;
    let value = cpu.fpu.mxcsr.bits().into();
    cpu.put_rm(op, 2, value)
}

/// `clflush`: nothing is cached, but the page must be there.
pub(crate) fn clflush(cpu: &mut Cpu, op: &Op) -> Exec {
    let at = cpu.ea(op, 1, false)?;
    cpu.probe_read(at)
}

/// `wait`.
pub(crate) fn wait(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.cr0 & (CR0_MP | CR0_TS) == CR0_MP | CR0_TS {
        return cpu.raise(NM);
    }
    cpu.check_waiting()
}

/// `emms`.
pub(crate) fn emms(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.check_mmx()?;
    cpu.fpu.x87.empty_mmx();
    Ok(())
}
