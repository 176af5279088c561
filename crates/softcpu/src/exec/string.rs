//! String instructions with their repetitions.
//!
//! A repetition is carried out in portions; between two of them interrupts are taken, with RIP at
//! the instruction, as a processor does.

use vmlet_vcpu::SpaceId;

use crate::{
    cpu::{Cpu, ES, Exec, RAX, RCX, RDI, RDX, RSI, Stop},
    exec::alu::{Alu, Cmp},
    flags,
    int::{Int, mask},
    op::{Op, REPNE},
};

/// Iterations at a time.
const PORTION: u64 = 4096;

/// The size of addresses: in `op.index`, by the decoder.
fn address_size(op: &Op) -> u8 {
    op.index
}

fn advance(cpu: &mut Cpu, op: &Op, reg: u8) {
    let (size, bytes) = (address_size(op), 1u64 << op.size());
    let old = cpu.get_sized(reg, size);
    let new = if cpu.rflags & flags::DF != 0 {
        old.wrapping_sub(bytes)
    } else {
        old.wrapping_add(bytes)
    };
    cpu.put_sized(reg, size, new & mask(size));
}

fn source(cpu: &mut Cpu, op: &Op) -> Result<u64, Stop> {
    let offset = cpu.get_sized(RSI, address_size(op));
    cpu.linear(usize::from(op.segment()), offset, 1 << op.size(), false)
}

fn target(cpu: &mut Cpu, op: &Op, write: bool) -> Result<u64, Stop> {
    let offset = cpu.get_sized(RDI, address_size(op));
    cpu.linear(ES, offset, 1 << op.size(), write)
}

/// Repeats `step` as the prefix says; it gives whether to go on.
fn repeated(cpu: &mut Cpu, op: &Op, step: impl Fn(&mut Cpu) -> Result<bool, Stop>) -> Exec {
    if op.rep() == 0 {
        step(cpu)?;
        return Ok(());
    }
    let size = address_size(op);
    for _ in 0..PORTION {
        let left = cpu.get_sized(RCX, size);
        if left == 0 {
            return Ok(());
        }
        let on = step(cpu)?;
        cpu.put_sized(RCX, size, left - 1);
        if !on || left == 1 {
            return Ok(());
        }
        if cpu.cut {
            break;
        }
    }
    cpu.rip = cpu.next_rip().wrapping_sub(op.len().into());
    Ok(())
}

fn compare(cpu: &mut Cpu, size: u8, a: u64, b: u64) {
    match size {
        0 => drop(Cmp::apply(cpu, a as u8, b as u8)),
        1 => drop(Cmp::apply(cpu, a as u16, b as u16)),
        2 => drop(Cmp::apply(cpu, a as u32, b as u32)),
        _ => drop(Cmp::apply(cpu, a, b)),
    }
}

/// Whether a comparison's repetition goes on.
fn goes_on(cpu: &Cpu, op: &Op) -> bool {
    cpu.lazy.zf() != (op.rep() == REPNE)
}

fn move_one<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<bool, Stop> {
    let from = source(cpu, op)?;
    let value = cpu.load::<T>(from)?;
    let to = target(cpu, op, true)?;
    cpu.store(to, value)?;
    advance(cpu, op, RSI);
    advance(cpu, op, RDI);
    Ok(true)
}

/// `movs`.
pub(crate) fn movs(cpu: &mut Cpu, op: &Op) -> Exec {
    match op.size() {
        0 => repeated(cpu, op, |cpu| move_one::<u8>(cpu, op)),
        1 => repeated(cpu, op, |cpu| move_one::<u16>(cpu, op)),
        2 => repeated(cpu, op, |cpu| move_one::<u32>(cpu, op)),
        _ => repeated(cpu, op, |cpu| move_one::<u64>(cpu, op)),
    }
}

fn store_one<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<bool, Stop> {
    let to = target(cpu, op, true)?;
    let value = cpu.get::<T>(RAX);
    cpu.store(to, value)?;
    advance(cpu, op, RDI);
    Ok(true)
}

/// `stos`.
pub(crate) fn stos(cpu: &mut Cpu, op: &Op) -> Exec {
    match op.size() {
        0 => repeated(cpu, op, |cpu| store_one::<u8>(cpu, op)),
        1 => repeated(cpu, op, |cpu| store_one::<u16>(cpu, op)),
        2 => repeated(cpu, op, |cpu| store_one::<u32>(cpu, op)),
        _ => repeated(cpu, op, |cpu| store_one::<u64>(cpu, op)),
    }
}

/// `lods`.
pub(crate) fn lods(cpu: &mut Cpu, op: &Op) -> Exec {
    repeated(cpu, op, |cpu| {
        let from = source(cpu, op)?;
        let value = cpu.load_sized(from, op.size())?;
        cpu.put_sized(RAX, op.size(), value);
        advance(cpu, op, RSI);
        Ok(true)
    })
}

/// `cmps`.
pub(crate) fn cmps(cpu: &mut Cpu, op: &Op) -> Exec {
    repeated(cpu, op, |cpu| {
        // The order in which processors find faults.
        let to = target(cpu, op, false)?;
        let b = cpu.load_sized(to, op.size())?;
        let from = source(cpu, op)?;
        let a = cpu.load_sized(from, op.size())?;
        compare(cpu, op.size(), a, b);
        advance(cpu, op, RSI);
        advance(cpu, op, RDI);
        Ok(goes_on(cpu, op))
    })
}

/// `scas`.
pub(crate) fn scas(cpu: &mut Cpu, op: &Op) -> Exec {
    repeated(cpu, op, |cpu| {
        let to = target(cpu, op, false)?;
        let b = cpu.load_sized(to, op.size())?;
        let a = cpu.get_sized(RAX, op.size());
        compare(cpu, op.size(), a, b);
        advance(cpu, op, RDI);
        Ok(goes_on(cpu, op))
    })
}

/// `ins`.
pub(crate) fn ins(cpu: &mut Cpu, op: &Op) -> Exec {
    let port = (cpu.reg(RDX) & 0xffff) as u16;
    cpu.check_port(port, 1 << op.size())?;
    repeated(cpu, op, |cpu| {
        let to = target(cpu, op, true)?;
        cpu.probe_write(to, 1 << op.size())?;
        let mut data = [0; 8];
        if let Some(data) = data.get_mut(..1 << op.size()) {
            cpu.bus_read(SpaceId::PORT, port.into(), data);
        }
        cpu.watch_port(port, 1 << op.size());
        cpu.store_sized(to, op.size(), u64::from_le_bytes(data))?;
        advance(cpu, op, RDI);
        Ok(true)
    })
}

/// `outs`: what one portion writes goes out at once.
pub(crate) fn outs(cpu: &mut Cpu, op: &Op) -> Exec {
    let port = (cpu.reg(RDX) & 0xffff) as u16;
    cpu.check_port(port, 1 << op.size())?;
    let bytes = 1usize << op.size();
    let collected = std::cell::RefCell::new(Vec::new());
    let done = repeated(cpu, op, |cpu| {
        let from = source(cpu, op)?;
        let value = cpu.load_sized(from, op.size())?;
        cpu.watch_port(port, 1 << op.size());
        advance(cpu, op, RSI);
        let data = value.to_le_bytes();
        collected.borrow_mut().extend(data.iter().take(bytes));
        Ok(true)
    });
    let data = collected.into_inner();
    if op.rep() != 0 && data.len() > bytes {
        cpu.bus_write_string(port.into(), bytes, &data);
    } else if !data.is_empty() && !cpu.io_event(SpaceId::PORT, port.into(), &data) {
        cpu.bus_write(SpaceId::PORT, port.into(), &data);
    }
    done
}
