//! Multiplications and divisions.

use crate::{
    cpu::{Cpu, DE, Exec, RAX, RDX},
    int::{bits, mask, sext},
    op::{HIGH, Op},
};

/// Writes a double-width result to AX, or to DX:AX and its kin.
fn put_pair(cpu: &mut Cpu, size: u8, low: u64, high: u64) {
    if size == 0 {
        cpu.put(RAX, ((low & 0xff) | high << 8) as u16);
    } else {
        cpu.put_sized(RAX, size, low);
        cpu.put_sized(RDX, size, high);
    }
}

fn set_flags(cpu: &mut Cpu, size: u8, low: u64, over: bool) {
    cpu.lazy.result(sext(size, low), over, over);
}

/// `mul`.
pub(crate) fn mul(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let b = cpu.get_rm(op, size)?;
    let full = u128::from(cpu.get_sized(RAX, size)) * u128::from(b);
    let low = full as u64 & mask(size);
    let high = (full >> bits(size)) as u64 & mask(size);
    put_pair(cpu, size, low, high);
    set_flags(cpu, size, low, high != 0);
    Ok(())
}

fn signed_product(size: u8, a: u64, b: u64) -> (u64, u64, bool) {
    let full = i128::from(sext(size, a).cast_signed()) * i128::from(sext(size, b).cast_signed());
    let low = full as u64 & mask(size);
    let high = (full >> bits(size)) as u64 & mask(size);
    let fits = i128::from(sext(size, low).cast_signed()) == full;
    (low, high, !fits)
}

/// `imul` with one operand.
pub(crate) fn imul(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let b = cpu.get_rm(op, size)?;
    let (low, high, over) = signed_product(size, cpu.get_sized(RAX, size), b);
    put_pair(cpu, size, low, high);
    set_flags(cpu, size, low, over);
    Ok(())
}

/// `imul` reg, rm.
pub(crate) fn imul2(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let b = cpu.get_rm(op, size)?;
    let (low, _, over) = signed_product(size, cpu.get_sized(op.reg, size), b);
    cpu.put_sized(op.reg, size, low);
    set_flags(cpu, size, low, over);
    Ok(())
}

/// `imul` reg, rm, immediate.
pub(crate) fn imul3(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let a = cpu.get_rm(op, size)?;
    let (low, _, over) = signed_product(size, a, op.imm);
    cpu.put_sized(op.reg, size, low);
    set_flags(cpu, size, low, over);
    Ok(())
}

/// The dividend: AX, or DX:AX and its kin.
fn dividend(cpu: &Cpu, size: u8) -> u128 {
    if size == 0 {
        return u128::from(cpu.reg(RAX) & 0xffff);
    }
    u128::from(cpu.get_sized(RDX, size)) << bits(size) | u128::from(cpu.get_sized(RAX, size))
}

fn put_quotient(cpu: &mut Cpu, size: u8, quotient: u64, rest: u64) {
    cpu.put_sized(RAX, size, quotient);
    if size == 0 {
        cpu.put(HIGH, rest as u8);
    } else {
        cpu.put_sized(RDX, size, rest);
    }
}

/// `div`. The flags are undefined; they stay.
pub(crate) fn div(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let by = cpu.get_rm(op, size)?;
    let value = dividend(cpu, size);
    // Narrow divisions are most, and far quicker on the host.
    if let (Ok(value), true) = (u64::try_from(value), by != 0) {
        let quotient = value / by;
        if quotient > mask(size) {
            return cpu.raise(DE);
        }
        put_quotient(cpu, size, quotient, value % by);
        return Ok(());
    }
    let by = u128::from(by);
    if by == 0 || value / by > u128::from(mask(size)) {
        return cpu.raise(DE);
    }
    put_quotient(cpu, size, (value / by) as u64, (value % by) as u64);
    Ok(())
}

/// `idiv`.
pub(crate) fn idiv(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let by = i128::from(sext(size, cpu.get_rm(op, size)?).cast_signed());
    let shift = 128 - 2 * bits(size);
    let value = (dividend(cpu, size) << shift).cast_signed() >> shift;
    let (Some(quotient), Some(rest)) = (value.checked_div(by), value.checked_rem(by)) else {
        return cpu.raise(DE);
    };
    let short = i128::from(sext(size, quotient as u64).cast_signed());
    if short != quotient {
        return cpu.raise(DE);
    }
    put_quotient(cpu, size, quotient as u64, rest as u64);
    Ok(())
}
