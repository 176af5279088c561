//! Single bits and searches for them.

use crate::{
    cpu::{Cpu, Exec},
    flags::ZF,
    int::{bits, sext},
    op::Op,
};

fn changed(which: u8, value: u64, bit: u32) -> u64 {
    match which {
        0 => value,
        1 => value | 1 << bit,
        2 => value & !(1 << bit),
        _ => value ^ 1 << bit,
    }
}

/// `bt`, `bts`, `btr`, `btc` by an immediate: `op.reg` says which.
pub(crate) fn by_immediate(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let bit = op.imm as u32 % bits(size);
    run(cpu, op, op.reg & 3, size, bit)
}

fn run(cpu: &mut Cpu, op: &Op, which: u8, size: u8, bit: u32) -> Exec {
    if which == 0 {
        let value = cpu.get_rm(op, size)?;
        cpu.lazy.set_cf(value >> bit & 1 != 0);
        return Ok(());
    }
    cpu.modify_rm(op, size, |cpu, value| {
        cpu.lazy.set_cf(value >> bit & 1 != 0);
        changed(which, value, bit)
    })
}

/// The same by a register: in memory the bit may lie anywhere.
pub(crate) fn by_register<const WHICH: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let index = sext(size, cpu.get_sized(op.reg, size)).cast_signed();
    let width = i64::from(bits(size));
    let bit = (index & (width - 1)) as u32;
    let mut at = *op;
    if op.is_mem() {
        let bytes = (index >> (3 + i64::from(size))) << size;
        at.disp = at.disp.wrapping_add(bytes.cast_unsigned());
    }
    run(cpu, &at, WHICH, size, bit)
}

fn search(cpu: &mut Cpu, op: &Op, find: impl FnOnce(u64) -> u32) -> Exec {
    let size = op.size();
    let value = cpu.get_rm(op, size)?;
    // CF, OF, SF, AF, PF are undefined: those of the source's comparison with zero.
    cpu.lazy.result(sext(size, value), false, false);
    let flags = cpu.lazy.bits() & !ZF;
    if value == 0 {
        // Undefined in Intel's manual, unchanged in AMD's and on both vendors' processors.
        let old = cpu.get_sized(op.reg, size);
        if size == 2 {
            let whole = cpu.reg(op.reg);
            cpu.set_reg(op.reg, whole);
        } else {
            cpu.put_sized(op.reg, size, old);
        }
        cpu.lazy.load(flags | ZF);
    } else {
        cpu.put_sized(op.reg, size, find(value).into());
        cpu.lazy.load(flags);
    }
    Ok(())
}

/// `bsf`.
pub(crate) fn bsf(cpu: &mut Cpu, op: &Op) -> Exec {
    search(cpu, op, u64::trailing_zeros)
}

/// `bsr`.
pub(crate) fn bsr(cpu: &mut Cpu, op: &Op) -> Exec {
    search(cpu, op, |value| 63 - value.leading_zeros())
}
