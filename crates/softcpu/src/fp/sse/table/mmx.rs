//! The 64-bit forms in MMX registers: the low halves of the 128-bit ones.

use super::{Entry, File, Forms, Place, Prefix};
use crate::fp::sse::integer as int;
use crate::fp::sse::permute::{self, interleave_low};

const LOW: u128 = u64::MAX as u128;

macro_rules! plain {
    ($opcode:literal, $function:path) => {
        Entry::mmx($opcode, |d, s, _, _| Ok($function(d & LOW, s & LOW) & LOW))
    };
}

/// Both operands' lanes narrowed into one register.
macro_rules! packed {
    ($opcode:literal, $function:path) => {
        Entry::mmx($opcode, |d, s, _, _| {
            Ok($function(d & LOW | s << 64, 0) & LOW)
        })
    };
}

macro_rules! low {
    ($opcode:literal, $width:literal) => {
        Entry::mmx($opcode, |d, s, _, _| Ok(interleave_low(d, s, $width) & LOW)).memory(4)
    };
}

macro_rules! high {
    ($opcode:literal, $width:literal) => {
        Entry::mmx($opcode, |d, s, _, _| Ok(interleave_low(d, s, $width) >> 64))
    };
}

macro_rules! shift {
    ($opcode:literal, $reg:literal, $function:path) => {
        Entry::mmx($opcode, |d, _, imm, _| {
            Ok($function(d & LOW, imm.into()) & LOW)
        })
        .between(Place::Rm(File::Mmx), Place::Rm(File::Mmx))
        .only(Forms::Register)
        .in_group($reg)
        .with_immediate()
    };
}

const fn and(d: u128, s: u128) -> u128 {
    d & s
}

const fn and_not(d: u128, s: u128) -> u128 {
    !d & s
}

const fn or(d: u128, s: u128) -> u128 {
    d | s
}

const fn xor(d: u128, s: u128) -> u128 {
    d ^ s
}

const fn to_gpr(entry: Entry) -> Entry {
    entry
        .between(Place::Reg(File::Gpr32), Place::Rm(File::Mmx))
        .only(Forms::Register)
}

pub(super) const ENTRIES: &[Entry] = &[
    low!(0x60, 8),
    low!(0x61, 16),
    low!(0x62, 32),
    high!(0x68, 8),
    high!(0x69, 16),
    high!(0x6a, 32),
    packed!(0x63, permute::pack_signed16),
    packed!(0x67, permute::pack_unsigned16),
    packed!(0x6b, permute::pack_signed32),
    plain!(0x64, int::greater8),
    plain!(0x65, int::greater16),
    plain!(0x66, int::greater32),
    plain!(0x74, int::equal8),
    plain!(0x75, int::equal16),
    plain!(0x76, int::equal32),
    plain!(0xd4, int::add64),
    plain!(0xfc, int::add8),
    plain!(0xfd, int::add16),
    plain!(0xfe, int::add32),
    plain!(0xf8, int::sub8),
    plain!(0xf9, int::sub16),
    plain!(0xfa, int::sub32),
    plain!(0xfb, int::sub64),
    plain!(0xec, int::add_signed8),
    plain!(0xed, int::add_signed16),
    plain!(0xdc, int::add_unsigned8),
    plain!(0xdd, int::add_unsigned16),
    plain!(0xe8, int::sub_signed8),
    plain!(0xe9, int::sub_signed16),
    plain!(0xd8, int::sub_unsigned8),
    plain!(0xd9, int::sub_unsigned16),
    plain!(0xe0, int::average8),
    plain!(0xe3, int::average16),
    plain!(0xda, int::min_unsigned8),
    plain!(0xde, int::max_unsigned8),
    plain!(0xea, int::min_signed16),
    plain!(0xee, int::max_signed16),
    plain!(0xd5, int::multiply_low),
    plain!(0xe4, int::multiply_high_unsigned),
    plain!(0xe5, int::multiply_high),
    plain!(0xf4, int::multiply_even),
    plain!(0xf5, int::multiply_add),
    plain!(0xf6, int::sum_of_differences),
    plain!(0xd1, int::shift_right16),
    plain!(0xd2, int::shift_right32),
    plain!(0xd3, int::shift_right64),
    plain!(0xe1, int::shift_arithmetic16),
    plain!(0xe2, int::shift_arithmetic32),
    plain!(0xf1, int::shift_left16),
    plain!(0xf2, int::shift_left32),
    plain!(0xf3, int::shift_left64),
    plain!(0xdb, and),
    plain!(0xdf, and_not),
    plain!(0xeb, or),
    plain!(0xef, xor),
    shift!(0x71, 2, int::shift_right16),
    shift!(0x71, 4, int::shift_arithmetic16),
    shift!(0x71, 6, int::shift_left16),
    shift!(0x72, 2, int::shift_right32),
    shift!(0x72, 4, int::shift_arithmetic32),
    shift!(0x72, 6, int::shift_left32),
    shift!(0x73, 2, int::shift_right64),
    shift!(0x73, 6, int::shift_left64),
    Entry::mmx(
        0x70,
        |_, s, imm, _| Ok(permute::shuffle_low16(s, imm) & LOW),
    )
    .with_immediate(),
    Entry::mmx(0xc4, |d, s, imm, _| Ok(permute::insert16(d, s, imm, 4)))
        .between(Place::Reg(File::Mmx), Place::Rm(File::Gpr32))
        .memory(2)
        .with_immediate(),
    to_gpr(Entry::mmx(0xc5, |_, s, imm, _| {
        Ok(permute::extract16(s, imm, 4))
    }))
    .with_immediate(),
    to_gpr(Entry::mmx(0xd7, |_, s, _, _| Ok(int::sign_bits8(s & LOW)))),
    // MOVD, MOVQ
    Entry::mmx(0x6e, |_, s, _, _| Ok(s))
        .between(Place::Reg(File::Mmx), Place::Rm(File::Gpr32))
        .memory(4)
        .wide(false),
    Entry::mmx(0x6e, |_, s, _, _| Ok(s))
        .between(Place::Reg(File::Mmx), Place::Rm(File::Gpr64))
        .wide(true),
    Entry::mmx(0x7e, |_, s, _, _| Ok(s))
        .between(Place::Rm(File::Gpr32), Place::Reg(File::Mmx))
        .memory(4)
        .wide(false),
    Entry::mmx(0x7e, |_, s, _, _| Ok(s))
        .between(Place::Rm(File::Gpr64), Place::Reg(File::Mmx))
        .wide(true),
    Entry::mmx(0x6f, |_, s, _, _| Ok(s)),
    Entry::mmx(0x7f, |_, s, _, _| Ok(s)).between(Place::Rm(File::Mmx), Place::Reg(File::Mmx)),
    // MOVNTQ
    Entry::mmx(0xe7, |_, s, _, _| Ok(s))
        .between(Place::Rm(File::Mmx), Place::Reg(File::Mmx))
        .only(Forms::Memory),
    // MOVDQ2Q, MOVQ2DQ
    Entry::xmm(Prefix::F2, 0xd6, |_, s, _, _| Ok(s & LOW))
        .between(Place::Reg(File::Mmx), Place::Rm(File::Xmm))
        .only(Forms::Register),
    Entry::xmm(Prefix::F3, 0xd6, |_, s, _, _| Ok(s & LOW))
        .between(Place::Reg(File::Xmm), Place::Rm(File::Mmx))
        .only(Forms::Register),
];
