//! Packed integers in XMM registers, logic and permutation.

use super::{Entry, File, Forms, Place, Prefix};
use crate::fp::sse::integer as int;
use crate::fp::sse::permute::{self, interleave_high, interleave_low};
use Prefix::{F2, F3, None as NP, P66};

macro_rules! plain {
    ($prefix:expr, $opcode:literal, $function:path) => {
        Entry::xmm($prefix, $opcode, |d, s, _, _| Ok($function(d, s)))
    };
}

macro_rules! interleaved {
    ($prefix:expr, $opcode:literal, $function:path, $width:literal) => {
        Entry::xmm($prefix, $opcode, |d, s, _, _| Ok($function(d, s, $width)))
    };
}

/// A shift by an immediate: the destination is the register of ModRM.rm.
macro_rules! shift {
    ($opcode:literal, $reg:literal, $function:path) => {
        Entry::xmm(P66, $opcode, |d, _, imm, _| Ok($function(d, imm.into())))
            .between(Place::Rm(File::Xmm), Place::Rm(File::Xmm))
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
        .between(Place::Reg(File::Gpr32), Place::Rm(File::Xmm))
        .only(Forms::Register)
}

pub(super) const ENTRIES: &[Entry] = &[
    plain!(NP, 0x54, and),
    plain!(P66, 0x54, and),
    plain!(NP, 0x55, and_not),
    plain!(P66, 0x55, and_not),
    plain!(NP, 0x56, or),
    plain!(P66, 0x56, or),
    plain!(NP, 0x57, xor),
    plain!(P66, 0x57, xor),
    plain!(P66, 0xdb, and),
    plain!(P66, 0xdf, and_not),
    plain!(P66, 0xeb, or),
    plain!(P66, 0xef, xor),
    interleaved!(NP, 0x14, interleave_low, 32),
    interleaved!(P66, 0x14, interleave_low, 64),
    interleaved!(NP, 0x15, interleave_high, 32),
    interleaved!(P66, 0x15, interleave_high, 64),
    interleaved!(P66, 0x60, interleave_low, 8),
    interleaved!(P66, 0x61, interleave_low, 16),
    interleaved!(P66, 0x62, interleave_low, 32),
    interleaved!(P66, 0x6c, interleave_low, 64),
    interleaved!(P66, 0x68, interleave_high, 8),
    interleaved!(P66, 0x69, interleave_high, 16),
    interleaved!(P66, 0x6a, interleave_high, 32),
    interleaved!(P66, 0x6d, interleave_high, 64),
    plain!(P66, 0x63, permute::pack_signed16),
    plain!(P66, 0x67, permute::pack_unsigned16),
    plain!(P66, 0x6b, permute::pack_signed32),
    plain!(P66, 0x64, int::greater8),
    plain!(P66, 0x65, int::greater16),
    plain!(P66, 0x66, int::greater32),
    plain!(P66, 0x74, int::equal8),
    plain!(P66, 0x75, int::equal16),
    plain!(P66, 0x76, int::equal32),
    plain!(P66, 0xd4, int::add64),
    plain!(P66, 0xfc, int::add8),
    plain!(P66, 0xfd, int::add16),
    plain!(P66, 0xfe, int::add32),
    plain!(P66, 0xf8, int::sub8),
    plain!(P66, 0xf9, int::sub16),
    plain!(P66, 0xfa, int::sub32),
    plain!(P66, 0xfb, int::sub64),
    plain!(P66, 0xec, int::add_signed8),
    plain!(P66, 0xed, int::add_signed16),
    plain!(P66, 0xdc, int::add_unsigned8),
    plain!(P66, 0xdd, int::add_unsigned16),
    plain!(P66, 0xe8, int::sub_signed8),
    plain!(P66, 0xe9, int::sub_signed16),
    plain!(P66, 0xd8, int::sub_unsigned8),
    plain!(P66, 0xd9, int::sub_unsigned16),
    plain!(P66, 0xe0, int::average8),
    plain!(P66, 0xe3, int::average16),
    plain!(P66, 0xda, int::min_unsigned8),
    plain!(P66, 0xde, int::max_unsigned8),
    plain!(P66, 0xea, int::min_signed16),
    plain!(P66, 0xee, int::max_signed16),
    plain!(P66, 0xd5, int::multiply_low),
    plain!(P66, 0xe4, int::multiply_high_unsigned),
    plain!(P66, 0xe5, int::multiply_high),
    plain!(P66, 0xf4, int::multiply_even),
    plain!(P66, 0xf5, int::multiply_add),
    plain!(P66, 0xf6, int::sum_of_differences),
    plain!(P66, 0xd1, int::shift_right16),
    plain!(P66, 0xd2, int::shift_right32),
    plain!(P66, 0xd3, int::shift_right64),
    plain!(P66, 0xe1, int::shift_arithmetic16),
    plain!(P66, 0xe2, int::shift_arithmetic32),
    plain!(P66, 0xf1, int::shift_left16),
    plain!(P66, 0xf2, int::shift_left32),
    plain!(P66, 0xf3, int::shift_left64),
    shift!(0x71, 2, int::shift_right16),
    shift!(0x71, 4, int::shift_arithmetic16),
    shift!(0x71, 6, int::shift_left16),
    shift!(0x72, 2, int::shift_right32),
    shift!(0x72, 4, int::shift_arithmetic32),
    shift!(0x72, 6, int::shift_left32),
    shift!(0x73, 2, int::shift_right64),
    shift!(0x73, 3, int::shift_right_bytes),
    shift!(0x73, 6, int::shift_left64),
    shift!(0x73, 7, int::shift_left_bytes),
    Entry::xmm(P66, 0x70, |_, s, imm, _| Ok(permute::shuffle32(s, imm))).with_immediate(),
    Entry::xmm(F2, 0x70, |_, s, imm, _| Ok(permute::shuffle_low16(s, imm))).with_immediate(),
    Entry::xmm(F3, 0x70, |_, s, imm, _| Ok(permute::shuffle_high16(s, imm))).with_immediate(),
    Entry::xmm(NP, 0xc6, |d, s, imm, _| Ok(permute::shuffle_two(d, s, imm))).with_immediate(),
    Entry::xmm(P66, 0xc6, |d, s, imm, _| Ok(permute::shuffle64(d, s, imm))).with_immediate(),
    Entry::xmm(P66, 0xc4, |d, s, imm, _| {
        Ok(permute::insert16(d, s, imm, 8))
    })
    .between(Place::Reg(File::Xmm), Place::Rm(File::Gpr32))
    .memory(2)
    .with_immediate(),
    to_gpr(Entry::xmm(P66, 0xc5, |_, s, imm, _| {
        Ok(permute::extract16(s, imm, 8))
    }))
    .with_immediate(),
    to_gpr(Entry::xmm(P66, 0xd7, |_, s, _, _| Ok(int::sign_bits8(s)))),
    to_gpr(Entry::xmm(NP, 0x50, |_, s, _, _| Ok(int::sign_bits32(s)))),
    to_gpr(Entry::xmm(P66, 0x50, |_, s, _, _| Ok(int::sign_bits64(s)))),
];
