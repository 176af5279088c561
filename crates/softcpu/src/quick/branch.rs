//! Jumps, calls and returns of 64-bit code. The decoder asks for canonical targets only; a target
//! that is not has no block.

use super::operand::{Mem, Rm, Shape, Short, Source};
use crate::{
    cpu::{Cpu, RSP},
    dispatch::{At, Leave, Step, follow, into, known, plain},
    quick::moves::by_condition,
};

#[inline(always)]
pub(super) extern "C-unwind" fn conditional<const CODE: u8>(cpu: &mut Cpu, at: At) -> Leave {
    if cpu.lazy.condition(CODE) {
        follow::<true>(cpu, at.op().imm)
    } else {
        follow::<false>(cpu, at.next().op().imm)
    }
}

extern "C-unwind" fn to_target(cpu: &mut Cpu, at: At) -> Leave {
    follow::<true>(cpu, at.op().imm)
}

extern "C-unwind" fn call_target(cpu: &mut Cpu, at: At) -> Leave {
    // What comes after the block is where to return to.
    match cpu.push_quick(at.next().op().imm) {
        Some(()) => follow::<true>(cpu, at.op().imm),
        None => plain(cpu, at),
    }
}

extern "C-unwind" fn back(cpu: &mut Cpu, at: At) -> Leave {
    let target = cpu.top_quick();
    match target.and_then(|target| known(cpu, target)) {
        Some(block) => {
            let top = cpu.reg(RSP).wrapping_add(8 + at.op().imm);
            cpu.set_known(RSP, top);
            into(cpu, block)
        }
        None => plain(cpu, at),
    }
}

extern "C-unwind" fn indirect<S: Source>(cpu: &mut Cpu, at: At) -> Leave {
    let target = S::get::<u64>(cpu, at.op());
    match target.and_then(|target| known(cpu, target)) {
        Some(block) => into(cpu, block),
        None => plain(cpu, at),
    }
}

extern "C-unwind" fn call_indirect<S: Source>(cpu: &mut Cpu, at: At) -> Leave {
    let target = S::get::<u64>(cpu, at.op());
    let block = target.and_then(|target| known(cpu, target));
    let Some(block) = block else {
        return plain(cpu, at);
    };
    match cpu.push_quick(at.next().op().imm) {
        Some(()) => into(cpu, block),
        None => plain(cpu, at),
    }
}

/// `jcc`.
pub(crate) fn jcc(code: u8) -> Step {
    by_condition!(code, |N| conditional::<N> as Step)
}

/// `jmp` to a fixed target.
pub(crate) fn jmp() -> Step {
    to_target
}

/// `call` of a fixed target.
pub(crate) fn call() -> Step {
    call_target
}

/// `ret`.
pub(crate) fn ret() -> Step {
    back
}

/// `jmp` through a register or memory.
pub(crate) fn jmp_rm(shape: &crate::op::Op) -> Option<Step> {
    use super::operand::Full;
    match Shape::of(shape) {
        Shape::Register => Some(indirect::<Rm>),
        Shape::Short => Some(indirect::<Mem<Short>>),
        Shape::Full => Some(indirect::<Mem<Full>>),
        _ => None,
    }
}

/// `call` through a register or memory.
pub(crate) fn call_rm(shape: &crate::op::Op) -> Option<Step> {
    use super::operand::Full;
    match Shape::of(shape) {
        Shape::Register => Some(call_indirect::<Rm>),
        Shape::Short => Some(call_indirect::<Mem<Short>>),
        Shape::Full => Some(call_indirect::<Mem<Full>>),
        _ => None,
    }
}
