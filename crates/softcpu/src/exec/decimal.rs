//! Decimal adjustments, which 64-bit code does not have (Intel SDM volume 2, AAA to DAS).

use crate::{
    cpu::{Cpu, DE, Exec, RAX},
    flags::{AF, CF},
    int::sext,
    op::Op,
};

fn set(cpu: &mut Cpu, result: u64, cf: bool, af: bool) {
    cpu.lazy.result(sext(0, result), cf, false);
    let bits = cpu.lazy.bits() & !AF;
    cpu.lazy.load(if af { bits | AF } else { bits });
}

/// `daa` and, if `SUB`, `das`.
pub(crate) fn packed<const SUB: bool>(cpu: &mut Cpu, _: &Op) -> Exec {
    let al = cpu.reg(RAX) & 0xff;
    let flags = cpu.lazy.bits();
    let low = al & 15 > 9 || flags & AF != 0;
    let high = al > 0x99 || flags & CF != 0;
    let by = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    let borrow = SUB && low && al < 6;
    let res = if SUB { al.wrapping_sub(by) } else { al + by } & 0xff;
    cpu.put(RAX, res as u8);
    set(cpu, res, high || borrow, low);
    Ok(())
}

/// `aaa` and, if `SUB`, `aas`.
pub(crate) fn unpacked<const SUB: bool>(cpu: &mut Cpu, _: &Op) -> Exec {
    let ax = cpu.reg(RAX) & 0xffff;
    let adjust = ax & 15 > 9 || cpu.lazy.bits() & AF != 0;
    let res = match (adjust, SUB) {
        (false, _) => ax,
        (true, false) => ax + 0x106,
        (true, true) => ax.wrapping_sub(0x106),
    };
    cpu.put(RAX, (res & 0xff0f) as u16);
    set(cpu, res & 15, adjust, adjust);
    Ok(())
}

/// `aam`.
pub(crate) fn aam(cpu: &mut Cpu, op: &Op) -> Exec {
    let al = cpu.reg(RAX) & 0xff;
    let by = op.imm & 0xff;
    if by == 0 {
        return cpu.raise(DE);
    }
    cpu.put(RAX, (((al / by) << 8) | (al % by)) as u16);
    set(cpu, al % by, false, false);
    Ok(())
}

/// `aad`.
pub(crate) fn aad(cpu: &mut Cpu, op: &Op) -> Exec {
    let ax = cpu.reg(RAX) & 0xffff;
    let res = ((ax & 0xff) + (ax >> 8) * (op.imm & 0xff)) & 0xff;
    cpu.put(RAX, res as u16);
    set(cpu, res, false, false);
    Ok(())
}

/// `salc`: AL becomes 0 or 0xff by CF.
pub(crate) fn salc(cpu: &mut Cpu, _: &Op) -> Exec {
    let value = if cpu.lazy.cf() { 0xffu8 } else { 0 };
    cpu.put(RAX, value);
    Ok(())
}
