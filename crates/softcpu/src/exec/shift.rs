//! Shifts and rotations.
//!
//! Source: Intel SDM volume 2, SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD, SHRD. Where a flag is
//! undefined there, it is set as processors of both vendors do: OF as for a count of one, AF clear.

use crate::{
    cpu::{Cpu, Exec, RCX},
    int::{bits, mask, sext},
    op::Op,
};

fn rotate(cpu: &mut Cpu, which: u8, size: u8, value: u64, count: u32) -> u64 {
    let n = bits(size);
    let m = mask(size);
    let k = count % n;
    let top = |v: u64| v >> (n - 1) & 1 != 0;
    if which == 0 {
        let res = if k == 0 {
            value
        } else {
            (value << k | value >> (n - k)) & m
        };
        let cf = res & 1 != 0;
        cpu.lazy.set_co(cf, top(res) != cf);
        res
    } else {
        let res = if k == 0 {
            value
        } else {
            (value >> k | value << (n - k)) & m
        };
        let cf = top(res);
        cpu.lazy.set_co(cf, cf != top(res << 1));
        res
    }
}

fn rotate_carry(cpu: &mut Cpu, which: u8, size: u8, value: u64, count: u32) -> u64 {
    let n = bits(size);
    let m = u128::from(mask(size));
    let k = count % (n + 1);
    if k == 0 {
        return value;
    }
    let wide = u128::from(value) | u128::from(cpu.lazy.cf()) << n;
    let all = m << 1 | 1;
    let res = if which == 2 {
        (wide << k | wide >> (n + 1 - k)) & all
    } else {
        (wide >> k | wide << (n + 1 - k)) & all
    };
    let cf = res >> n & 1 != 0;
    let top = res >> (n - 1) & 1 != 0;
    let second = res >> (n - 2) & 1 != 0;
    let of = if which == 2 { top != cf } else { top != second };
    cpu.lazy.set_co(cf, of);
    (res & m) as u64
}

fn shift(cpu: &mut Cpu, which: u8, size: u8, value: u64, count: u32) -> u64 {
    let n = bits(size);
    let m = mask(size);
    let wide = u128::from(value);
    let (res, cf, of);
    match which {
        4 | 6 => {
            let full = wide << count;
            res = full as u64 & m;
            cf = full >> n & 1 != 0;
            of = (res >> (n - 1) & 1 != 0) != cf;
        }
        5 => {
            res = (wide >> count) as u64;
            cf = (wide >> (count - 1)) & 1 != 0;
            of = res >> (n - 2) & 1 != 0;
        }
        _ => {
            let signed = i128::from(sext(size, value).cast_signed());
            res = (signed >> count) as u64 & m;
            cf = (signed >> (count - 1)) & 1 != 0;
            of = false;
        }
    }
    cpu.lazy.result(sext(size, res), cf, of);
    res
}

/// One of the eight operations of opcodes 0xc0, 0xd0 and their kin; `op.reg` says which, `op.imm`
/// the count or, with bit 8 set, CL.
pub(crate) fn group(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let by = if op.imm & 0x100 != 0 {
        cpu.reg(RCX)
    } else {
        op.imm
    };
    let count = by as u32 & if size == 3 { 63 } else { 31 };
    let which = op.reg;
    cpu.modify_rm(op, size, |cpu, value| {
        if count == 0 {
            return value;
        }
        match which {
            0 | 1 => rotate(cpu, which, size, value, count),
            2 | 3 => rotate_carry(cpu, which, size, value, count),
            _ => shift(cpu, which, size, value, count),
        }
    })
}

/// `shld` (`LEFT`) and `shrd`; the count is in `op.imm` as for [`group`].
pub(crate) fn double<const LEFT: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let n = bits(size);
    let by = if op.imm & 0x100 != 0 {
        cpu.reg(RCX)
    } else {
        op.imm
    };
    let count = by as u32 & if size == 3 { 63 } else { 31 };
    let other = u128::from(cpu.get_sized(op.reg, size));
    cpu.modify_rm(op, size, |cpu, value| {
        if count == 0 {
            return value;
        }
        let m = mask(size);
        let value = u128::from(value);
        // With 16-bit operands and counts above 16 the first operand comes round again.
        let (res, cf) = if LEFT {
            if n == 64 {
                let joined = value << 64 | other;
                (
                    ((joined << count) >> 64) as u64,
                    value >> (64 - count) & 1 != 0,
                )
            } else {
                let wide = value << (2 * n) | other << n | value;
                let top = wide << count;
                ((top >> (2 * n)) as u64 & m, top >> (3 * n) & 1 != 0)
            }
        } else if n == 64 {
            let joined = other << 64 | value;
            ((joined >> count) as u64, value >> (count - 1) & 1 != 0)
        } else {
            let wide = value << (2 * n) | other << n | value;
            ((wide >> count) as u64 & m, wide >> (count - 1) & 1 != 0)
        };
        let of = (res >> (n - 1) ^ (value >> (n - 1)) as u64) & 1 != 0;
        cpu.lazy.result(sext(size, res), cf, of);
        res
    })
}
