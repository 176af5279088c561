//! The decoder against the crate `iced-x86`: lengths, operands, and which opcodes are there.
//!
//! iced knows every instruction set; of the CPU model here, [`HERE`] says which. What iced finds in
//! others must be #UD here, except what is a hint without effect on processors that lack it
//! ([`is_hint`]).
#![allow(
    clippy::cast_possible_truncation,
    reason = "operands are cut to their sizes"
)]

use std::collections::BTreeMap;

use iced_x86::{
    Code, CpuidFeature, Decoder as Iced, DecoderOptions, Instruction, OpCodeOperandKind as Kind,
    OpKind, Register,
};

use super::{Decoded, LONGEST, Short, decode};
use crate::{
    cpu::Width,
    exec::{system, x87},
    fp::x87::{EnvironmentFormat, X87},
    op::{HIGH, Handler, NO_REG, Op, kind},
    random::{Random, cases},
};

/// What the CPU model has.
const HERE: [CpuidFeature; 25] = [
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL8086_ONLY,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
    CpuidFeature::CPUID,
    CpuidFeature::MSR,
    CpuidFeature::TSC,
    CpuidFeature::CMOV,
    CpuidFeature::CX8,
    CpuidFeature::CMPXCHG16B,
    CpuidFeature::FXSR,
    CpuidFeature::MMX,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::CLFSH,
    CpuidFeature::SYSCALL,
    CpuidFeature::SEP,
    CpuidFeature::PAUSE,
    CpuidFeature::MULTIBYTENOP,
];

/// Hints, and prefixes that mean nothing to a processor without the set.
fn is_hint(features: &[CpuidFeature]) -> bool {
    features.iter().all(|feature| {
        matches!(
            feature,
            CpuidFeature::CET_IBT
                | CpuidFeature::CET_SS
                | CpuidFeature::PREFETCHW
                | CpuidFeature::PREFETCHWT1
                | CpuidFeature::CLDEMOTE
                | CpuidFeature::MPX
                | CpuidFeature::WBNOINVD
                | CpuidFeature::RDPMC
                | CpuidFeature::D3NOW
                | CpuidFeature::PREFETCHITI
        )
    })
}

fn options() -> u32 {
    DecoderOptions::NO_MPFX_0FBC | DecoderOptions::NO_MPFX_0FBD | DecoderOptions::FORCE_RESERVED_NOP
}

fn bits(width: Width) -> u32 {
    match width {
        Width::Bits16 => 16,
        Width::Bits32 => 32,
        Width::Bits64 => 64,
    }
}

/// The instruction raises #UD, or its handler does so for this encoding.
fn is_undefined(op: &Op) -> bool {
    let is = |f: Handler| std::ptr::fn_addr_eq(op.f, f);
    if is(x87::run) {
        let (opcode, modrm) = (op.imm as u8, (op.imm >> 8) as u8);
        let format = EnvironmentFormat::Protected32;
        return X87::default().begin(opcode, modrm, format).is_err();
    }
    if is(system::from_cr) || is(system::to_cr) {
        return !matches!(op.reg, 0 | 2 | 3 | 4 | 8);
    }
    if is(system::from_dr) || is(system::to_dr) {
        return op.reg > 7;
    }
    is(system::ud)
}

/// What differs, and the first instruction where it does.
#[derive(Debug)]
struct Difference {
    kind: String,
    text: String,
}

/// Compares one instruction; gives its length.
fn compare(bytes: &[u8], rip: u64, width: Width) -> Result<usize, Difference> {
    let mut iced = Iced::with_ip(bits(width), bytes, rip, options());
    let theirs = iced.decode();
    let ours = decode(bytes, rip, width);
    let about = |what: &str| {
        let shown = &bytes[..bytes.len().min(LONGEST)];
        let kind = format!("{what}: {} bits {:?}", bits(width), theirs.code());
        let text = format!("{shown:02x?} {:?}, here {ours:?}", theirs.cpuid_features());
        Err(Difference { kind, text })
    };
    let Decoded { op, .. } = match &ours {
        Ok(decoded) => *decoded,
        Err(Short::TooLong) if theirs.is_invalid() => return Ok(1),
        Err(_) => return about("no instruction here"),
    };
    if theirs.is_invalid() {
        return if is_undefined(&op) {
            Ok(1)
        } else {
            about("there is no such instruction")
        };
    }
    let features = theirs.cpuid_features();
    let known = features.iter().all(|feature| HERE.contains(feature));
    if is_undefined(&op) {
        let lacks = !known || is_absent(theirs.code());
        return if lacks {
            Ok(theirs.len())
        } else {
            about("not here")
        };
    }
    if !known && !is_hint(features) {
        return about("of another processor");
    }
    if usize::from(op.len()) != theirs.len() {
        return about("lengths differ");
    }
    match operands(&op, &theirs, width) {
        Ok(()) => Ok(theirs.len()),
        Err(what) => about(&what),
    }
}

/// Opcodes that raise #UD on every processor with the set, or outside a mode that is not here.
fn is_absent(code: Code) -> bool {
    matches!(
        code,
        Code::Ud0
            | Code::Ud0_r16_rm16
            | Code::Ud0_r32_rm32
            | Code::Ud0_r64_rm64
            | Code::Ud1_r16_rm16
            | Code::Ud1_r32_rm32
            | Code::Ud1_r64_rm64
            | Code::Ud2
            | Code::Rsm
    )
}

fn operands(op: &Op, theirs: &Instruction, width: Width) -> Result<(), String> {
    let info = theirs.op_code();
    for index in 0..theirs.op_count() {
        let place = info.op_kind(index);
        let same = match theirs.op_kind(index) {
            OpKind::Register => same_register(op, place, theirs.op_register(index)),
            // XLAT adds AL when it is carried out.
            OpKind::Memory if theirs.code() == Code::Xlat_m8 => true,
            OpKind::Memory => same_address(op, theirs, width),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                op.imm == theirs.near_branch_target()
            }
            OpKind::FarBranch16 => {
                op.imm == u64::from(theirs.far_branch16())
                    && op.disp == u64::from(theirs.far_branch_selector())
            }
            OpKind::FarBranch32 => {
                op.imm == u64::from(theirs.far_branch32())
                    && op.disp == u64::from(theirs.far_branch_selector())
            }
            OpKind::Immediate8_2nd => u64::from(op.reg) == theirs.immediate(index),
            _ => match mask(theirs.op_kind(index)) {
                Some(mask) if place != Kind::imm8_const_1 => {
                    let mask = if is_shift(theirs) { 0x1f } else { mask };
                    (op.imm ^ theirs.immediate(index)) & mask == 0
                }
                _ => true,
            },
        };
        if !same {
            return Err(format!("operand {index} differs"));
        }
    }
    Ok(())
}

/// Shifts by a constant, whose counts are cut by the decoder.
fn is_shift(theirs: &Instruction) -> bool {
    matches!(theirs.op_code().op_code(), 0xc0 | 0xc1)
}

/// The bits of an immediate; none for what is not one.
fn mask(kind: OpKind) -> Option<u64> {
    Some(match kind {
        OpKind::Immediate8 => 0xff,
        OpKind::Immediate16 | OpKind::Immediate8to16 => 0xffff,
        OpKind::Immediate32 | OpKind::Immediate8to32 => 0xffff_ffff,
        OpKind::Immediate64 | OpKind::Immediate8to64 | OpKind::Immediate32to64 => u64::MAX,
        _ => return None,
    })
}

/// A register as operands here number it.
fn number(register: Register) -> u8 {
    match register {
        Register::AH => HIGH,
        Register::CH => HIGH + 1,
        Register::DH => HIGH + 2,
        Register::BH => HIGH + 3,
        _ if register.is_gpr() => register.full_register().number() as u8,
        _ => register.number() as u8,
    }
}

fn same_register(op: &Op, place: Kind, register: Register) -> bool {
    let wanted = number(register);
    match place {
        Kind::r8_reg
        | Kind::r16_reg
        | Kind::r32_reg
        | Kind::r64_reg
        | Kind::r16_reg_mem
        | Kind::r32_reg_mem
        | Kind::r64_reg_mem
        | Kind::xmm_reg
        | Kind::seg_reg
        | Kind::cr_reg
        | Kind::dr_reg => op.reg == wanted,
        Kind::mm_reg => op.reg & 7 == wanted,
        Kind::r8_or_mem
        | Kind::r16_or_mem
        | Kind::r32_or_mem
        | Kind::r64_or_mem
        | Kind::r16_rm
        | Kind::r32_rm
        | Kind::r64_rm
        | Kind::r8_opcode
        | Kind::r16_opcode
        | Kind::r32_opcode
        | Kind::r64_opcode
        | Kind::xmm_or_mem
        | Kind::xmm_rm => op.rm == wanted,
        Kind::mm_or_mem | Kind::mm_rm => op.rm & 7 == wanted,
        // Those that the opcode names.
        _ => true,
    }
}

fn same_address(op: &Op, theirs: &Instruction, width: Width) -> bool {
    let relative = theirs.is_ip_rel_memory_operand();
    let register = |register: Register| match register {
        Register::None | Register::RIP | Register::EIP => NO_REG,
        _ => register.number() as u8,
    };
    let mask = match op.kind() {
        kind::FLAT | kind::BASED => u64::MAX,
        kind::LEGACY16 => 0xffff,
        _ => 0xffff_ffff,
    };
    let displacement = if relative {
        theirs.ip_rel_memory_address()
    } else {
        theirs.memory_displacement64()
    };
    let segment = number(theirs.memory_segment());
    let segment_same = if width == Width::Bits64 {
        let based = matches!(theirs.memory_segment(), Register::FS | Register::GS);
        based == (op.segment() >= 4) && (!based || op.segment() == segment)
    } else {
        op.segment() == segment
    };
    op.is_mem()
        && op.base == register(theirs.memory_base())
        && op.index == register(theirs.memory_index())
        && (op.index == NO_REG || 1 << (op.ea & 3) == theirs.memory_index_scale())
        && (op.disp ^ displacement) & mask == 0
        && segment_same
}

const WIDTHS: [Width; 3] = [Width::Bits16, Width::Bits32, Width::Bits64];
/// Collects what differs.
#[derive(Default)]
struct Tally {
    compared: u64,
    differ: BTreeMap<String, String>,
}

impl Tally {
    fn add(&mut self, result: Result<usize, Difference>) -> usize {
        self.compared += 1;
        match result {
            Ok(length) => length,
            Err(Difference { kind, text }) => {
                self.differ.entry(kind).or_insert(text);
                1
            }
        }
    }

    fn end(self, name: &str) {
        println!("{name}: {} instructions compared", self.compared);
        for (kind, text) in &self.differ {
            println!("{kind}: {text}");
        }
        assert!(self.differ.is_empty(), "{name}: differences");
    }
}

/// Random bytes, prefixes more often than by chance.
fn soup(random: &mut Random) -> [u8; 16] {
    const PREFIXES: [u8; 16] = [
        0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x41, 0x48, 0x44,
        0x4d,
    ];
    let mut bytes = [0; 16];
    for half in bytes.chunks_exact_mut(8) {
        half.copy_from_slice(&random.next().to_le_bytes());
    }
    let prefixes = random.below(4).saturating_sub(1) as usize;
    for byte in bytes.iter_mut().take(prefixes) {
        *byte = PREFIXES[random.below(16) as usize];
    }
    if random.one_in(2) {
        bytes[prefixes] = 0x0f;
    }
    bytes
}

#[test]
fn random_bytes_decode_as_iced_decodes_them() {
    let mut random = Random::from_environment("iced");
    let mut tally = Tally::default();
    for width in WIDTHS {
        for _ in 0..40 * cases() {
            let mut rip = random.next();
            rip = match width {
                Width::Bits16 => rip & 0xffff,
                Width::Bits32 => rip & 0xffff_ffff,
                Width::Bits64 => rip,
            };
            tally.add(compare(&soup(&mut random), rip, width));
        }
    }
    tally.end("random bytes");
}

#[test]
fn every_opcode_decodes_as_iced_decodes_it() {
    let mut tally = Tally::default();
    let prefixes: [&[u8]; 5] = [&[], &[0x66], &[0xf2], &[0xf3], &[0x48]];
    for width in WIDTHS {
        for prefix in prefixes {
            for map in [&[][..], &[0x0f]] {
                for rest in 0..=u16::MAX {
                    let mut bytes = [prefix, map, &rest.to_be_bytes()].concat();
                    bytes.resize(16, 0x11);
                    tally.add(compare(&bytes, 0x1000, width));
                }
            }
        }
    }
    tally.end("every opcode");
}

/// The executable segments of a 64-bit ELF file.
fn code(file: &[u8]) -> Vec<&[u8]> {
    let word = |at: usize| -> usize {
        let bytes = file.get(at..at + 8).unwrap_or(&[0; 8]);
        u64::from_le_bytes(bytes.try_into().unwrap()) as usize
    };
    if !file.starts_with(b"\x7fELF\x02") {
        return Vec::new();
    }
    let (headers, count) = (word(32), word(56) & 0xffff);
    (0..count)
        .map(|number| headers + 56 * number)
        .filter(|at| word(*at) & 0x1_ffff_ffff == 1 | 1 << 32)
        .filter_map(|at| file.get(word(at + 8)..word(at + 8) + word(at + 32)))
        .collect()
}

/// Instructions of a file that are compared at most; VMLET_CASES moves it.
fn code_limit() -> u64 {
    cases() * 20
}

/// This program, the C library and BusyBox if they are there, and the files of VMLET_CODE.
#[test]
fn programs_decode_as_iced_decodes_them() {
    let more = std::env::var("VMLET_CODE").unwrap_or_default();
    let names = [
        "/proc/self/exe",
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/bin/busybox",
    ];
    let names = names.into_iter().chain(more.split(':'));
    let mut tally = Tally::default();
    for name in names.filter(|name| !name.is_empty()) {
        let Ok(file) = std::fs::read(name) else {
            println!("{name}: not here, not compared");
            continue;
        };
        let before = tally.compared;
        for segment in code(&file) {
            for width in WIDTHS {
                let mut at = 0;
                let until = tally.compared + code_limit();
                while at + 16 <= segment.len() && tally.compared < until {
                    at += tally.add(compare(&segment[at..at + 16], at as u64, width));
                }
            }
        }
        println!("{name}: {} instructions", tally.compared - before);
    }
    assert!(tally.compared > 3 * code_limit());
    tally.end("programs");
}
