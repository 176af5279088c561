//! x87: memory operands, #MF and pointers; what is computed is [`crate::fp::x87`].

use crate::{
    cpu::{CS, Cpu, Exec, MF, RAX, Stop},
    fp::x87::{EnvironmentFormat, Fault, Form, LARGEST_STORE, Outcome, Pointers, is_control},
    op::Op,
};

/// The arithmetic flags that FCOMI writes.
const FLAGS: u64 = 0x8d5;

impl Cpu {
    fn environment_format(&self, op: &Op) -> EnvironmentFormat {
        match (self.protected(), op.size() == 1) {
            (true, true) => EnvironmentFormat::Protected16,
            (true, false) => EnvironmentFormat::Protected32,
            (false, true) => EnvironmentFormat::Real16,
            (false, false) => EnvironmentFormat::Real32,
        }
    }

    fn load_bytes(&mut self, op: &Op, bytes: &mut [u8]) -> Exec {
        let at = self.ea(op, bytes.len() as u64, false)?;
        for (offset, chunk) in (0..).step_by(8).zip(bytes.chunks_mut(8)) {
            let at = at.wrapping_add(offset);
            if chunk.len() == 8 {
                chunk.copy_from_slice(&self.load::<u64>(at)?.to_le_bytes());
            } else {
                for (offset, byte) in (0..).zip(chunk) {
                    *byte = self.load::<u8>(at.wrapping_add(offset))?;
                }
            }
        }
        Ok(())
    }

    /// Writes all of `bytes` or, with a fault, nothing.
    fn store_bytes(&mut self, op: &Op, bytes: &[u8]) -> Exec {
        let at = self.ea(op, bytes.len() as u64, true)?;
        self.probe_write(at, bytes.len() as u64)?;
        for (offset, byte) in (0..).zip(bytes) {
            self.store(at.wrapping_add(offset), *byte)?;
        }
        Ok(())
    }

    /// Keeps where a non-control instruction and its operand are.
    fn note_pointers(&mut self, op: &Op, opcode: u8, modrm: u8) {
        let old = self.fpu.x87.pointers;
        let (data, data_segment) = if op.is_mem() {
            let segment = self.seg(usize::from(op.segment())).selector;
            (self.short_offset(op), segment)
        } else {
            (old.data, old.data_segment)
        };
        let long = self.is64();
        self.fpu.x87.pointers = Pointers {
            opcode: u16::from(opcode & 7) << 8 | u16::from(modrm),
            instruction: self.next_rip().wrapping_sub(u64::from(op.len())),
            code_segment: if long { 0 } else { self.seg(CS).selector },
            data,
            data_segment: if long { 0 } else { data_segment },
        };
    }
}

/// Opcodes 0xd8 to 0xdf: `op.imm` is the opcode, bits 8-15 the ModRM byte.
pub(crate) fn run(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.check_x87()?;
    let (opcode, modrm) = (op.imm as u8, (op.imm >> 8) as u8);
    let format = cpu.environment_format(op);
    match cpu.fpu.x87.begin(opcode, modrm, format) {
        Err(Fault::Undefined) => return cpu.ud(),
        Err(Fault::Pending) => return cpu.raise(MF),
        Ok(Form::Register) => registers(cpu, opcode, modrm)?,
        Ok(Form::Load(count)) => {
            let mut bytes = [0; LARGEST_STORE];
            let Some(bytes) = bytes.get_mut(..count) else {
                return Err(Stop::Lacking);
            };
            cpu.load_bytes(op, bytes)?;
            cpu.fpu.x87.load_form(opcode, modrm, bytes, format);
        }
        Ok(Form::Store(bytes)) => {
            // A page that refuses the store comes before an exception of the number stored.
            let at = cpu.ea(op, bytes as u64, true)?;
            cpu.probe_write(at, bytes as u64)?;
            let mut bytes = [0; LARGEST_STORE];
            let mut next = cpu.fpu.x87.clone();
            let count = next.store_form(opcode, modrm, &mut bytes, format);
            if count > 0 {
                cpu.store_bytes(op, bytes.get(..count).unwrap_or_default())?;
            }
            cpu.fpu.x87 = next;
        }
    }
    if !is_control(opcode, modrm) {
        cpu.note_pointers(op, opcode, modrm);
    }
    Ok(())
}

fn registers(cpu: &mut Cpu, opcode: u8, modrm: u8) -> Exec {
    let flags = cpu.lazy.bits();
    match cpu.fpu.x87.register_form(opcode, modrm, flags) {
        Err(_) => return cpu.ud(),
        Ok(Outcome::Done) => {}
        Ok(Outcome::Ax(value)) => cpu.put(RAX, value),
        Ok(Outcome::Flags(value)) => cpu.lazy.load(flags & !FLAGS | u64::from(value)),
    }
    Ok(())
}
