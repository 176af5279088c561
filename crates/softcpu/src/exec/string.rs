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
    tlb::{self, READ, WRITE},
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
    repeated_in_bulk(cpu, op, |_, _| 0, step)
}

/// The same where `bulk` carries out as many iterations at once as are easy, at most those it is
/// given; it gives how many.
fn repeated_in_bulk(
    cpu: &mut Cpu,
    op: &Op,
    bulk: impl Fn(&mut Cpu, u64) -> u64,
    step: impl Fn(&mut Cpu) -> Result<bool, Stop>,
) -> Exec {
    if op.rep() == 0 {
        step(cpu)?;
        return Ok(());
    }
    let size = address_size(op);
    let mut portion = PORTION;
    while portion > 0 {
        let left = cpu.get_sized(RCX, size);
        if left == 0 {
            return Ok(());
        }
        let mut done = bulk(cpu, left.min(portion));
        let mut on = true;
        if done == 0 {
            on = step(cpu)?;
            done = 1;
        }
        portion -= done;
        cpu.put_sized(RCX, size, left - done);
        if !on || left == done {
            return Ok(());
        }
        if cpu.cut {
            break;
        }
    }
    cpu.rip = cpu.next_rip().wrapping_sub(op.len().into());
    Ok(())
}

/// Upwards in 64-bit addresses.
fn is_easy(cpu: &Cpu, op: &Op) -> bool {
    address_size(op) == 3 && cpu.rflags & flags::DF == 0
}

/// Whole operands from `at` to the end of its page.
fn room<T: Int>(at: u64) -> u64 {
    (0x1000 - (at & 0xfff)) / T::BYTES
}

fn skip<T: Int>(cpu: &mut Cpu, reg: u8, count: u64) {
    let new = cpu.reg(reg).wrapping_add(count * T::BYTES);
    cpu.set_reg(reg, new);
}

/// Copies what lies in one page on either side, if both are in the TLB.
fn move_many<T: Int>(cpu: &mut Cpu, op: &Op, most: u64) -> u64 {
    let mut copy = || {
        let (from, to) = (source(cpu, op).ok()?, target(cpu, op, true).ok()?);
        let count = most.min(room::<T>(from)).min(room::<T>(to));
        let bytes = count * T::BYTES;
        if !is_easy(cpu, op) || count == 0 {
            return None;
        }
        let from = cpu.tlb.find(READ + cpu.tlb_mode, from, bytes)?;
        let to = cpu.tlb.find(WRITE + cpu.tlb_mode, to, bytes)?;
        // An operand that overlaps the one it is copied to is read as a whole first.
        if (1..T::BYTES).contains(&to.wrapping_sub(from)) {
            return None;
        }
        tlb::copy_up(from, to, bytes);
        skip::<T>(cpu, RSI, count);
        skip::<T>(cpu, RDI, count);
        Some(count)
    };
    copy().unwrap_or(0)
}

/// Fills what lies in one page, if it is in the TLB.
fn store_many<T: Int>(cpu: &mut Cpu, op: &Op, most: u64) -> u64 {
    let mut fill = || {
        let to = target(cpu, op, true).ok()?;
        let count = most.min(room::<T>(to));
        if !is_easy(cpu, op) || count == 0 {
            return None;
        }
        let bytes = count * T::BYTES;
        let to = cpu.tlb.find(WRITE + cpu.tlb_mode, to, bytes)?;
        // The operand over and over in eight bytes.
        let pattern = cpu.get::<T>(RAX).u().wrapping_mul(u64::MAX / T::MASK);
        tlb::fill_up(to, pattern, bytes);
        skip::<T>(cpu, RDI, count);
        Some(count)
    };
    fill().unwrap_or(0)
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

fn move_all<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let bulk = |cpu: &mut Cpu, most| move_many::<T>(cpu, op, most);
    repeated_in_bulk(cpu, op, bulk, |cpu| move_one::<T>(cpu, op))
}

/// `movs`.
pub(crate) fn movs(cpu: &mut Cpu, op: &Op) -> Exec {
    match op.size() {
        0 => move_all::<u8>(cpu, op),
        1 => move_all::<u16>(cpu, op),
        2 => move_all::<u32>(cpu, op),
        _ => move_all::<u64>(cpu, op),
    }
}

fn store_one<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<bool, Stop> {
    let to = target(cpu, op, true)?;
    let value = cpu.get::<T>(RAX);
    cpu.store(to, value)?;
    advance(cpu, op, RDI);
    Ok(true)
}

fn store_all<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let bulk = |cpu: &mut Cpu, most| store_many::<T>(cpu, op, most);
    repeated_in_bulk(cpu, op, bulk, |cpu| store_one::<T>(cpu, op))
}

/// `stos`.
pub(crate) fn stos(cpu: &mut Cpu, op: &Op) -> Exec {
    match op.size() {
        0 => store_all::<u8>(cpu, op),
        1 => store_all::<u16>(cpu, op),
        2 => store_all::<u32>(cpu, op),
        _ => store_all::<u64>(cpu, op),
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

/// Source and target of a comparison. Where both fault, processors find the target's fault first; AMD's
/// of family 25, model 17 find the source's in a repetition of at least eight bytes.
fn operands(cpu: &mut Cpu, op: &Op) -> Result<(u64, u64), Stop> {
    let source = |cpu: &mut Cpu| {
        let from = source(cpu, op)?;
        cpu.load_sized(from, op.size())
    };
    let first = if order::source_first() {
        Some(source(cpu)?)
    } else {
        None
    };
    let to = target(cpu, op, false)?;
    let b = cpu.load_sized(to, op.size())?;
    let a = first.map_or_else(|| source(cpu), Ok)?;
    Ok((a, b))
}

/// Which operand's fault comes first: the other order is for comparisons with processors that have it.
pub(crate) mod order {
    #[cfg(test)]
    thread_local! {
        pub(crate) static SOURCE_FIRST: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }

    #[cfg(test)]
    pub(super) fn source_first() -> bool {
        SOURCE_FIRST.get()
    }

    #[cfg(not(test))]
    pub(super) const fn source_first() -> bool {
        false
    }
}

/// `cmps`.
pub(crate) fn cmps(cpu: &mut Cpu, op: &Op) -> Exec {
    repeated(cpu, op, |cpu| {
        let (a, b) = operands(cpu, op)?;
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
