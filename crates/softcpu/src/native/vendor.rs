//! What Intel's processors do in a way of their own, where the engine does as AMD's do.
//!
//! All of it is listed in `undefined.rs`. On a host with another processor nothing here applies.

use std::{fs, sync::LazyLock};

use super::{
    compare::{PENDING, Side},
    encode::Encoded,
    state::{ARITHMETIC, Image, OF},
    template::{Need, Operand, Reg, Template, Unit},
};

const BREAKPOINT: u8 = 3;
const STACK_FAULT: u8 = 12;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
/// Bytes of an x87 register in memory.
const LONG_BYTES: u8 = 10;
/// x87's mask of results too small to be normal.
const UNDERFLOW: u16 = 1 << 4;
/// RCX, RSI and RDI.
const STRING_REGISTERS: [usize; 3] = [1, 6, 7];

static INTEL: LazyLock<bool> = LazyLock::new(|| {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("GenuineIntel"))
});

/// Whether the host's processor is Intel's.
pub(crate) fn is_intel() -> bool {
    *INTEL
}

/// A shift or rotation by a number of places.
pub(crate) fn shifts_by_many(template: &Template) -> bool {
    let rotates = matches!(template.reg, Reg::Extension(0 | 1 | 4..=6));
    is_intel() && rotates && matches!(template.opcode[..], [0xc0 | 0xc1 | 0xd2 | 0xd3])
}

/// Flags that are not compared.
pub(crate) fn flags(template: &Template, native: Side<'_>) -> u64 {
    let text = matches!(template.opcode[..], [0xa6 | 0xa7 | 0xae | 0xaf]);
    let interrupted = text && template.repeat.is_some() && native.end.vector == PAGE_FAULT;
    match template {
        _ if shifts_by_many(template) => OF,
        _ if is_intel() && interrupted => ARITHMETIC,
        _ => 0,
    }
}

/// Bits of a general register that are compared.
pub(crate) fn bits(template: &Template, encoded: &Encoded, number: usize) -> u64 {
    let short = encoded.short && template.need == Need::Text && template.repeat.is_some();
    if is_intel() && short && STRING_REGISTERS.contains(&number) {
        u64::from(u32::MAX)
    } else {
        u64::MAX
    }
}

/// A store of x87's that waits with an exception, and does not get to its operand.
pub(crate) fn keeps_store(template: &Template, native: Side<'_>, here: Side<'_>) -> bool {
    let store = template.unit == Unit::X87 && template.operand == Operand::Edge;
    let ends = native.end.vector == BREAKPOINT && is_fault(here.end.vector);
    is_intel() && store && ends && native.registers.fx.status() & PENDING != 0
}

/// A number below the normal ones that comes back as it is, as its remainder by infinity or scaled by
/// less than one, where the exception for such results is not masked.
pub(crate) fn keeps_tiny(template: &Template, image: &Image) -> bool {
    let exponent = |index| image.st(index).1 & 0x7fff;
    let same = match template.opcode[..] {
        [0xd9, 0xf5 | 0xf8] => exponent(1) == 0x7fff,
        [0xd9, 0xfd] => exponent(1) < 0x3fff,
        _ => false,
    };
    let unmasked = image.control() & UNDERFLOW == 0;
    is_intel() && template.unit == Unit::X87 && same && unmasked && exponent(0) == 0
}

/// An MMX instruction whose operand faults.
pub(crate) fn enters_mmx(template: &Template, native: Side<'_>) -> bool {
    is_intel() && template.unit == Unit::Vector && is_fault(native.end.vector)
}

fn is_fault(vector: u8) -> bool {
    matches!(vector, STACK_FAULT | GENERAL_PROTECTION | PAGE_FAULT)
}

/// What was written before a fault.
pub(crate) fn leaves_memory(template: &Template, vector: u8) -> bool {
    let call = template.need == Need::Target && vector == GENERAL_PROTECTION;
    let long = template.unit == Unit::X87 && template.bytes == LONG_BYTES;
    is_intel() && (call || long && vector == PAGE_FAULT)
}
