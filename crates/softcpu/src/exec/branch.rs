//! Jumps, calls and returns in one segment.
//!
//! A branch is the last instruction of its block; the block has set RIP to its end before.

use super::operand::{M, R, Source};
use crate::{
    cpu::{Cpu, Exec, RCX, Width},
    int::mask,
    op::Op,
};

impl Cpu {
    /// Goes to `rip`, checked against the limit or for its form.
    pub(crate) fn branch(&mut self, rip: u64) -> Exec {
        self.check_branch(rip)?;
        self.rip = rip;
        Ok(())
    }

    fn check_branch(&mut self, rip: u64) -> Exec {
        if self.width == Width::Bits64 {
            let sign = (rip.cast_signed() >> 47).cast_unsigned();
            if sign != 0 && sign != u64::MAX {
                return self.gp(0);
            }
        } else if rip > u64::from(self.seg(crate::cpu::CS).limit) {
            return self.gp(0);
        }
        Ok(())
    }
}

/// `jmp` to `op.imm`.
pub(crate) fn jmp(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.branch(op.imm)
}

/// `jcc` to `op.imm`.
pub(crate) fn jcc<const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.lazy.condition(CODE) {
        cpu.branch(op.imm)
    } else {
        Ok(())
    }
}

/// `call` to `op.imm`.
pub(crate) fn call(cpu: &mut Cpu, op: &Op) -> Exec {
    if let Err(stop) = cpu.check_branch(op.imm) {
        // A stack that cannot take the return address is found first.
        let fault = cpu.fault;
        cpu.probe_push(op.size())?;
        cpu.fault = fault;
        return Err(stop);
    }
    let next = cpu.next_rip();
    cpu.push_sized(op.size(), next)?;
    cpu.rip = op.imm;
    Ok(())
}

/// `jmp` through a register or memory.
pub(crate) fn jmp_rm(cpu: &mut Cpu, op: &Op) -> Exec {
    let target = cpu.get_rm(op, op.size())?;
    cpu.branch(target)
}

/// `call` through a register or memory.
pub(crate) fn call_rm(cpu: &mut Cpu, op: &Op) -> Exec {
    let target = match (op.size(), op.is_mem()) {
        (3, false) => R::get::<u64>(cpu, op)?,
        (3, true) => M::get::<u64>(cpu, op)?,
        (size, _) => cpu.get_rm(op, size)?,
    };
    let at = Op { imm: target, ..*op };
    call(cpu, &at)
}

/// `ret`; `op.imm` bytes of arguments go.
pub(crate) fn ret(cpu: &mut Cpu, op: &Op) -> Exec {
    let target = cpu.peek_sized(op.size(), 0)?;
    cpu.branch(target)?;
    cpu.drop_stack((1 << op.size()) + op.imm);
    Ok(())
}

/// The size of the counter of `loop` and `jcxz`: by the address size, in `op.reg`.
fn counter(op: &Op) -> u8 {
    op.reg
}

/// `loopne` (0), `loope` (1), `loop` (2).
pub(crate) fn repeat<const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = counter(op);
    let left = cpu.get_sized(RCX, size).wrapping_sub(1) & mask(size);
    let goes = left != 0
        && match KIND {
            0 => !cpu.lazy.zf(),
            1 => cpu.lazy.zf(),
            _ => true,
        };
    if goes {
        cpu.branch(op.imm)?;
    }
    cpu.put_sized(RCX, size, left);
    Ok(())
}

/// `jcxz`, `jecxz`, `jrcxz`.
pub(crate) fn jcxz(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.get_sized(RCX, counter(op)) == 0 {
        cpu.branch(op.imm)
    } else {
        Ok(())
    }
}
