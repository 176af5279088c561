//! The stack.

use super::operand::{G, M, R, Source};
use crate::{
    cpu::{Cpu, Exec, RBP, RSP, SS, STACK, Stop, Width},
    flags,
    int::{Int, mask},
    op::Op,
};

impl Cpu {
    /// The size of the stack pointer, 1 to 3.
    pub(crate) fn stack_size(&self) -> u8 {
        if self.width == Width::Bits64 {
            3
        } else if self.seg(SS).attributes & (1 << 14) != 0 {
            2
        } else {
            1
        }
    }

    fn stack_address(&mut self, offset: u64, bytes: u64, write: bool) -> Result<u64, Stop> {
        if self.width == Width::Bits64 {
            let sign = (offset.cast_signed() >> 47).cast_unsigned();
            if sign != 0 && sign != u64::MAX {
                return self.raise_code(STACK, 0);
            }
            return Ok(offset);
        }
        self.linear(SS, offset, bytes, write)
    }

    /// Pushes; RSP moves only if the store succeeds.
    #[inline(always)]
    pub(crate) fn push<T: Int>(&mut self, value: T) -> Exec {
        let size = self.stack_size();
        let new = self.reg(RSP).wrapping_sub(T::BYTES) & mask(size);
        let at = self.stack_address(new, T::BYTES, true)?;
        self.store(at, value)?;
        self.set_stack(size, new);
        Ok(())
    }

    #[inline(always)]
    pub(crate) fn set_stack(&mut self, size: u8, value: u64) {
        self.put_sized(RSP, size, value);
    }

    /// What lies `skip` bytes above the top of the stack.
    #[inline(always)]
    pub(crate) fn peek_stack<T: Int>(&mut self, skip: u64) -> Result<T, Stop> {
        let size = self.stack_size();
        let from = self.reg(RSP).wrapping_add(skip) & mask(size);
        let at = self.stack_address(from, T::BYTES, false)?;
        self.load(at)
    }

    #[inline(always)]
    pub(crate) fn pop<T: Int>(&mut self) -> Result<T, Stop> {
        let value = self.peek_stack(0)?;
        self.drop_stack(T::BYTES);
        Ok(value)
    }

    /// Moves the stack pointer up.
    #[inline(always)]
    pub(crate) fn drop_stack(&mut self, bytes: u64) {
        let size = self.stack_size();
        let new = self.reg(RSP).wrapping_add(bytes) & mask(size);
        self.set_stack(size, new);
    }

    /// Checks that a push of this size would succeed.
    pub(crate) fn probe_push(&mut self, size: u8) -> Exec {
        let new = self.reg(RSP).wrapping_sub(1 << size) & mask(self.stack_size());
        let at = self.stack_address(new, 1 << size, true)?;
        self.probe_write(at, 1 << size)
    }

    pub(crate) fn push_sized(&mut self, size: u8, value: u64) -> Exec {
        match size {
            1 => self.push(value as u16),
            2 => self.push(value as u32),
            _ => self.push(value),
        }
    }

    pub(crate) fn peek_sized(&mut self, size: u8, skip: u64) -> Result<u64, Stop> {
        match size {
            1 => self.peek_stack::<u16>(skip).map(Int::u),
            2 => self.peek_stack::<u32>(skip).map(Int::u),
            _ => self.peek_stack(skip),
        }
    }

    pub(crate) fn pop_sized(&mut self, size: u8) -> Result<u64, Stop> {
        let value = self.peek_sized(size, 0)?;
        self.drop_stack(1 << size);
        Ok(value)
    }
}

/// `push` of a 64-bit register.
pub(crate) fn push_reg64(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = R::get::<u64>(cpu, op)?;
    cpu.push(value)
}

/// `pop` of a 64-bit register.
pub(crate) fn pop_reg64(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = cpu.pop::<u64>()?;
    cpu.set_reg(op.rm, value);
    Ok(())
}

/// `push` of a register or memory.
pub(crate) fn push(cpu: &mut Cpu, op: &Op) -> Exec {
    let value = cpu.get_rm(op, op.size())?;
    cpu.push_sized(op.size(), value)
}

/// `push` of an immediate.
pub(crate) fn push_imm(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.push_sized(op.size(), op.imm)
}

/// `pop` to a register or memory; an address with RSP uses its new value.
pub(crate) fn pop(cpu: &mut Cpu, op: &Op) -> Exec {
    let (size, old) = (op.size(), cpu.reg(RSP));
    let value = cpu.pop_sized(size)?;
    let done = cpu.put_rm(op, size, value);
    if done.is_err() {
        cpu.set_reg(RSP, old);
    }
    done
}

/// `pushf`.
pub(crate) fn pushf(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.rflags & flags::VM != 0 && cpu.iopl() < 3 {
        return cpu.gp(0);
    }
    let value = cpu.flags() & !(flags::VM | flags::RF);
    cpu.push_sized(op.size(), value)
}

/// The flags that code at the current CPL may change.
pub(crate) fn changeable(cpu: &Cpu, size: u8) -> u64 {
    let mut mask = flags::ARITHMETIC | flags::TF | flags::DF | flags::NT;
    if size > 1 {
        mask |= flags::AC | flags::ID;
    }
    if cpu.cpl == 0 {
        mask |= flags::IOPL;
    }
    if cpu.cpl <= cpu.iopl() {
        mask |= flags::IF;
    }
    mask
}

/// `popf`.
pub(crate) fn popf(cpu: &mut Cpu, op: &Op) -> Exec {
    if cpu.rflags & flags::VM != 0 && cpu.iopl() < 3 {
        return cpu.gp(0);
    }
    let value = cpu.pop_sized(op.size())?;
    let mask = changeable(cpu, op.size());
    let rest = cpu.flags() & !mask & !flags::RF;
    cpu.set_flags(rest | value & mask);
    Ok(())
}

/// `pusha`.
pub(crate) fn pusha(cpu: &mut Cpu, op: &Op) -> Exec {
    let old = cpu.reg(RSP);
    for number in 0..8 {
        let value = if number == RSP { old } else { cpu.reg(number) };
        if let Err(stop) = cpu.push_sized(op.size(), value) {
            cpu.set_reg(RSP, old);
            return Err(stop);
        }
    }
    Ok(())
}

/// `popa`.
pub(crate) fn popa(cpu: &mut Cpu, op: &Op) -> Exec {
    let bytes = 1u64 << op.size();
    let mut values = [0; 8];
    for (value, at) in values.iter_mut().zip(0..) {
        *value = cpu.peek_sized(op.size(), at * bytes)?;
    }
    for (number, value) in (0..8u8).rev().zip(values) {
        if number != RSP {
            cpu.put_sized(number, op.size(), value);
        }
    }
    cpu.drop_stack(8 * bytes);
    Ok(())
}

/// `enter`: `op.imm` is the frame's size, `op.reg` the nesting level.
pub(crate) fn enter(cpu: &mut Cpu, op: &Op) -> Exec {
    let (size, old) = (op.size(), cpu.reg(RSP));
    let done = enter_frame(cpu, op, size);
    if done.is_err() {
        cpu.set_reg(RSP, old);
    }
    done
}

fn enter_frame(cpu: &mut Cpu, op: &Op, size: u8) -> Exec {
    let stack = cpu.stack_size();
    let old_frame = cpu.reg(RBP);
    cpu.push_sized(size, old_frame)?;
    let frame = cpu.reg(RSP);
    for level in 1..=op.reg & 31 {
        let value = if level == op.reg & 31 {
            frame
        } else {
            let from = old_frame.wrapping_sub(u64::from(level) << size) & mask(stack);
            let at = cpu.stack_address(from, 1 << size, false)?;
            cpu.load_sized(at, size)?
        };
        cpu.push_sized(size, value)?;
    }
    let new = cpu.reg(RSP).wrapping_sub(op.imm);
    // The new top must be writable, so that the frame's code does not fault instead.
    let at = cpu.stack_address(new & mask(stack), 1, true)?;
    cpu.probe_write(at, 1)?;
    cpu.set_stack(stack, new & mask(stack));
    cpu.put_sized(RBP, size, frame);
    Ok(())
}

/// `leave`.
pub(crate) fn leave(cpu: &mut Cpu, op: &Op) -> Exec {
    let (size, old) = (cpu.stack_size(), cpu.reg(RSP));
    let frame = cpu.get_sized(RBP, size);
    cpu.set_stack(size, frame);
    match cpu.pop_sized(op.size()) {
        Ok(value) => {
            cpu.put_sized(RBP, op.size(), value);
            Ok(())
        }
        Err(stop) => {
            cpu.set_reg(RSP, old);
            Err(stop)
        }
    }
}

/// `bound`.
pub(crate) fn bound(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let at = cpu.ea(op, 2 << size, false)?;
    let low = cpu.load_sized(at, size)?;
    let high = cpu.load_sized(at.wrapping_add(1 << size), size)?;
    let sign = |value| crate::int::sext(size, value).cast_signed();
    let index = sign(cpu.get_sized(op.reg, size));
    if index < sign(low) || index > sign(high) {
        return cpu.raise(crate::cpu::BR);
    }
    Ok(())
}

/// `movnti` and moves that keep nothing but data.
pub(crate) fn store_plain(cpu: &mut Cpu, op: &Op) -> Exec {
    if op.size() == 3 {
        let value = G::get::<u64>(cpu, op)?;
        <M as super::operand::Place>::put(cpu, op, value)
    } else {
        let value = G::get::<u32>(cpu, op)?;
        <M as super::operand::Place>::put(cpu, op, value)
    }
}
