//! Where operands come from and go to.

use crate::{
    cpu::{Cpu, Exec, Stop},
    int::Int,
    op::Op,
};

/// An operand that can be read.
pub(crate) trait Source {
    fn get<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<T, Stop>;
}

/// An operand that can be written too.
pub(crate) trait Place: Source {
    fn put<T: Int>(cpu: &mut Cpu, op: &Op, value: T) -> Exec;

    /// Reads, changes, writes; the change happens only if the write will succeed.
    fn modify<T: Int>(cpu: &mut Cpu, op: &Op, change: impl FnOnce(&mut Cpu, T) -> T) -> Exec;
}

/// The register of ModRM.rm.
pub(crate) struct R;
/// The register of ModRM.reg.
pub(crate) struct G;
/// Memory.
pub(crate) struct M;
/// The immediate.
pub(crate) struct I;

impl Source for R {
    #[inline(always)]
    fn get<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<T, Stop> {
        Ok(cpu.get(op.rm))
    }
}

impl Place for R {
    #[inline(always)]
    fn put<T: Int>(cpu: &mut Cpu, op: &Op, value: T) -> Exec {
        cpu.put(op.rm, value);
        Ok(())
    }

    #[inline(always)]
    fn modify<T: Int>(cpu: &mut Cpu, op: &Op, change: impl FnOnce(&mut Cpu, T) -> T) -> Exec {
        let old = cpu.get(op.rm);
        let new = change(cpu, old);
        cpu.put(op.rm, new);
        Ok(())
    }
}

impl Source for G {
    #[inline(always)]
    fn get<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<T, Stop> {
        Ok(cpu.get(op.reg))
    }
}

impl Place for G {
    #[inline(always)]
    fn put<T: Int>(cpu: &mut Cpu, op: &Op, value: T) -> Exec {
        cpu.put(op.reg, value);
        Ok(())
    }

    #[inline(always)]
    fn modify<T: Int>(cpu: &mut Cpu, op: &Op, change: impl FnOnce(&mut Cpu, T) -> T) -> Exec {
        let old = cpu.get(op.reg);
        let new = change(cpu, old);
        cpu.put(op.reg, new);
        Ok(())
    }
}

impl Source for M {
    #[inline(always)]
    fn get<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<T, Stop> {
        let at = cpu.ea(op, T::BYTES, false)?;
        cpu.load(at)
    }
}

impl Place for M {
    #[inline(always)]
    fn put<T: Int>(cpu: &mut Cpu, op: &Op, value: T) -> Exec {
        let at = cpu.ea(op, T::BYTES, true)?;
        cpu.store(at, value)
    }

    #[inline(always)]
    fn modify<T: Int>(cpu: &mut Cpu, op: &Op, change: impl FnOnce(&mut Cpu, T) -> T) -> Exec {
        let at = cpu.ea(op, T::BYTES, true)?;
        cpu.modify(at, change)
    }
}

impl Source for I {
    #[inline(always)]
    fn get<T: Int>(_: &mut Cpu, op: &Op) -> Result<T, Stop> {
        Ok(T::of(op.imm))
    }
}

impl Cpu {
    /// Reads the ModRM.rm operand with its size as a number, 0 to 3.
    pub(crate) fn get_rm(&mut self, op: &Op, size: u8) -> Result<u64, Stop> {
        if !op.is_mem() {
            return Ok(self.get_sized(op.rm, size));
        }
        let at = self.ea(op, 1 << size, false)?;
        self.load_sized(at, size)
    }

    /// Writes the ModRM.rm operand.
    pub(crate) fn put_rm(&mut self, op: &Op, size: u8, value: u64) -> Exec {
        if !op.is_mem() {
            self.put_sized(op.rm, size, value);
            return Ok(());
        }
        let at = self.ea(op, 1 << size, true)?;
        self.store_sized(at, size, value)
    }

    /// Reads, changes and writes the ModRM.rm operand.
    pub(crate) fn modify_rm(
        &mut self,
        op: &Op,
        size: u8,
        change: impl FnOnce(&mut Cpu, u64) -> u64,
    ) -> Exec {
        if !op.is_mem() {
            let old = self.get_sized(op.rm, size);
            let new = change(self, old);
            self.put_sized(op.rm, size, new);
            return Ok(());
        }
        let at = self.ea(op, 1 << size, true)?;
        match size {
            0 => self.modify(at, |cpu, old: u8| change(cpu, old.u()) as u8),
            1 => self.modify(at, |cpu, old: u16| change(cpu, old.u()) as u16),
            2 => self.modify(at, |cpu, old: u32| change(cpu, old.u()) as u32),
            _ => self.modify(at, change),
        }
    }

    pub(crate) fn load_sized(&mut self, at: u64, size: u8) -> Result<u64, Stop> {
        match size {
            0 => self.load::<u8>(at).map(Int::u),
            1 => self.load::<u16>(at).map(Int::u),
            2 => self.load::<u32>(at).map(Int::u),
            _ => self.load(at),
        }
    }

    pub(crate) fn store_sized(&mut self, at: u64, size: u8, value: u64) -> Exec {
        match size {
            0 => self.store(at, value as u8),
            1 => self.store(at, value as u16),
            2 => self.store(at, value as u32),
            _ => self.store(at, value),
        }
    }
}

/// Picks the instance of a handler for an operand size and for a register or memory operand.
macro_rules! by_form {
    ($size:expr, $mem:expr, $handler:ident $(::<$($first:ty),+>)?; $($last:ty),*) => {
        match ($size, $mem) {
            (0, false) => $handler::<$($($first,)+)? u8, R $(, $last)*>,
            (1, false) => $handler::<$($($first,)+)? u16, R $(, $last)*>,
            (2, false) => $handler::<$($($first,)+)? u32, R $(, $last)*>,
            (_, false) => $handler::<$($($first,)+)? u64, R $(, $last)*>,
            (0, true) => $handler::<$($($first,)+)? u8, M $(, $last)*>,
            (1, true) => $handler::<$($($first,)+)? u16, M $(, $last)*>,
            (2, true) => $handler::<$($($first,)+)? u32, M $(, $last)*>,
            (_, true) => $handler::<$($($first,)+)? u64, M $(, $last)*>,
        }
    };
}
pub(crate) use by_form;
