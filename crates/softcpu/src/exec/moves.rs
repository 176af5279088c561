//! Copies between registers and memory.

use super::operand::{G, I, M, Place, R, Source, by_form};
use crate::{
    cpu::{Cpu, Exec, RAX, RBX},
    int::{Int, sext},
    op::{Handler, Op},
};

fn copy<T: Int, D: Place, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = S::get::<T>(cpu, op)?;
    D::put(cpu, op, value)
}

fn to_reg<T: Int, S: Source>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = S::get::<T>(cpu, op)?;
    cpu.put(op.reg, value);
    Ok(())
}

/// `mov` rm, reg.
pub(crate) fn store(size: u8, mem: bool) -> Handler {
    by_form!(size, mem, copy; G)
}

/// `mov` reg, rm.
pub(crate) fn load(size: u8, mem: bool) -> Handler {
    by_form!(size, mem, to_reg;)
}

/// `mov` rm, immediate.
pub(crate) fn immediate(size: u8, mem: bool) -> Handler {
    by_form!(size, mem, copy; I)
}

fn extend<F: Int, S: Source, const SIGNED: bool, const TO: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = S::get::<F>(cpu, op)?;
    let value = if SIGNED { value.s() } else { value.u() };
    match TO {
        1 => cpu.put(op.reg, value as u16),
        2 => cpu.put(op.reg, value as u32),
        _ => cpu.put(op.reg, value),
    }
    Ok(())
}

fn extend_to<const SIGNED: bool, const TO: u8>(from: u8, mem: bool) -> Handler {
    match (from, mem) {
        (0, false) => extend::<u8, R, SIGNED, TO>,
        (0, true) => extend::<u8, M, SIGNED, TO>,
        (1, false) => extend::<u16, R, SIGNED, TO>,
        (1, true) => extend::<u16, M, SIGNED, TO>,
        (_, false) => extend::<u32, R, SIGNED, TO>,
        (_, true) => extend::<u32, M, SIGNED, TO>,
    }
}

/// `movzx`, `movsx`, `movsxd` from size `from` to size `to`.
pub(crate) fn extension(signed: bool, from: u8, to: u8, mem: bool) -> Handler {
    match (signed, to) {
        (false, 1) => extend_to::<false, 1>(from, mem),
        (false, 2) => extend_to::<false, 2>(from, mem),
        (false, _) => extend_to::<false, 3>(from, mem),
        (true, 1) => extend_to::<true, 1>(from, mem),
        (true, 2) => extend_to::<true, 2>(from, mem),
        (true, _) => extend_to::<true, 3>(from, mem),
    }
}

/// `lea`.
pub(crate) fn lea(cpu: &mut Cpu, op: &Op) -> Exec {
    let offset = cpu.short_offset(op);
    cpu.put_sized(op.reg, op.size(), offset);
    Ok(())
}

/// `lea` in 64-bit code with a 64-bit result.
pub(crate) fn lea64(cpu: &mut Cpu, op: &Op) -> Exec {
    let offset = cpu.offset(op);
    cpu.set_reg(op.reg, offset);
    Ok(())
}

/// `xchg`.
pub(crate) fn xchg(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let new = cpu.get_sized(op.reg, size);
    let mut old = 0;
    cpu.modify_rm(op, size, |_, value| {
        old = value;
        new
    })?;
    cpu.put_sized(op.reg, size, old);
    Ok(())
}

/// `cmovcc`: the source is read whether or not the condition holds.
pub(crate) fn cmov<const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let value = cpu.get_rm(op, size)?;
    let value = if cpu.lazy.condition(CODE) {
        value
    } else {
        cpu.get_sized(op.reg, size)
    };
    cpu.put_sized(op.reg, size, value);
    Ok(())
}

/// `setcc`.
pub(crate) fn setcc<const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = u64::from(cpu.lazy.condition(CODE));
    cpu.put_rm(op, 0, value)
}

/// `cbw`, `cwde`, `cdqe`.
pub(crate) fn widen(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let value = sext(size - 1, cpu.reg(RAX));
    cpu.put_sized(RAX, size, value);
    Ok(())
}

/// `cwd`, `cdq`, `cqo`.
pub(crate) fn sign(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let value = sext(size, cpu.reg(RAX)).cast_signed() >> 63;
    cpu.put_sized(crate::cpu::RDX, size, value.cast_unsigned());
    Ok(())
}

/// `bswap`.
pub(crate) fn bswap(cpu: &mut Cpu, op: &Op) -> Exec {
    if op.size() == 3 {
        let value = cpu.reg(op.rm).swap_bytes();
        cpu.set_reg(op.rm, value);
    } else if op.size() == 2 {
        let value = (cpu.reg(op.rm) as u32).swap_bytes();
        cpu.put(op.rm, value);
    } else {
        // With a 16-bit operand the result is undefined; processors give zero.
        cpu.put(op.rm, 0u16);
    }
    Ok(())
}

/// `xlat`: the decoder gives the address without AL.
pub(crate) fn xlat(cpu: &mut Cpu, op: &Op) -> Exec {
    let al = cpu.reg(RAX) & 0xff;
    let at = Op {
        disp: al,
        base: RBX,
        ..*op
    };
    let value = M::get::<u8>(cpu, &at)?;
    cpu.put(RAX, value);
    Ok(())
}

/// `lahf`.
pub(crate) fn lahf(cpu: &mut Cpu, _: &Op) -> Exec {
    let flags = (cpu.lazy.bits() | 2) as u8;
    cpu.put(crate::op::HIGH, flags);
    Ok(())
}

/// `sahf`.
pub(crate) fn sahf(cpu: &mut Cpu, _: &Op) -> Exec {
    let ah = cpu.get::<u8>(crate::op::HIGH).u();
    let of = cpu.lazy.bits() & crate::flags::OF;
    cpu.lazy.load(ah & 0xd5 | of);
    Ok(())
}

/// Nothing to do.
pub(crate) fn nop(_: &mut Cpu, _: &Op) -> Exec {
    Ok(())
}

/// `pause`: somebody else may run.
pub(crate) fn pause(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.yields = true;
    cpu.look = true;
    Ok(())
}
