//! Moves between XMM registers, memory and general registers.

use super::{Entry, File, Forms, Operation, Place, Prefix};
use crate::fp::bits::low64;
use crate::fp::sse::lanes::{first32, with_low32, with_low64};
use Prefix::{F2, F3, None as NP, P66};

const COPY: Operation = |_, s, _, _| Ok(s);
const LOW_HALF: Operation = |d, s, _, _| Ok(with_low64(d, low64(s)));
const HIGH_HALF: Operation = |d, s, _, _| Ok(d & u128::from(u64::MAX) | s << 64);
const UPPER: Operation = |_, s, _, _| Ok(s >> 64);

/// A store: `xmm(rm) or memory <- xmm(reg)`.
const fn store(prefix: Prefix, opcode: u8, operation: Operation) -> Entry {
    Entry::xmm(prefix, opcode, operation).between(Place::Rm(File::Xmm), Place::Reg(File::Xmm))
}

pub(super) const ENTRIES: &[Entry] = &[
    // MOVUPS, MOVUPD, MOVDQU, MOVAPS, MOVAPD, MOVDQA
    Entry::xmm(NP, 0x10, COPY).memory(16),
    Entry::xmm(P66, 0x10, COPY).memory(16),
    store(NP, 0x11, COPY).memory(16),
    store(P66, 0x11, COPY).memory(16),
    Entry::xmm(NP, 0x28, COPY),
    Entry::xmm(P66, 0x28, COPY),
    store(NP, 0x29, COPY),
    store(P66, 0x29, COPY),
    Entry::xmm(P66, 0x6f, COPY),
    Entry::xmm(F3, 0x6f, COPY).memory(16),
    store(P66, 0x7f, COPY),
    store(F3, 0x7f, COPY).memory(16),
    // MOVNTPS, MOVNTPD, MOVNTDQ
    store(NP, 0x2b, COPY).only(Forms::Memory),
    store(P66, 0x2b, COPY).only(Forms::Memory),
    store(P66, 0xe7, COPY).only(Forms::Memory),
    // MOVSS, MOVSD: a load clears the rest, a move between registers keeps it
    Entry::xmm(F3, 0x10, COPY).memory(4).only(Forms::Memory),
    Entry::xmm(F2, 0x10, COPY).memory(8).only(Forms::Memory),
    Entry::xmm(F3, 0x10, |d, s, _, _| Ok(with_low32(d, first32(s)))).only(Forms::Register),
    Entry::xmm(F2, 0x10, LOW_HALF).only(Forms::Register),
    store(F3, 0x11, |d, s, _, _| Ok(with_low32(d, first32(s)))).memory(4),
    store(F2, 0x11, LOW_HALF).memory(8),
    // MOVLPS and MOVHLPS, MOVLPD, MOVHPS and MOVLHPS, MOVHPD
    Entry::xmm(NP, 0x12, LOW_HALF).memory(8).only(Forms::Memory),
    Entry::xmm(NP, 0x12, |d, s, _, _| Ok(with_low64(d, low64(s >> 64)))).only(Forms::Register),
    Entry::xmm(P66, 0x12, LOW_HALF)
        .memory(8)
        .only(Forms::Memory),
    store(NP, 0x13, COPY).memory(8).only(Forms::Memory),
    store(P66, 0x13, COPY).memory(8).only(Forms::Memory),
    Entry::xmm(NP, 0x16, HIGH_HALF).memory(8),
    Entry::xmm(P66, 0x16, HIGH_HALF)
        .memory(8)
        .only(Forms::Memory),
    store(NP, 0x17, UPPER).memory(8).only(Forms::Memory),
    store(P66, 0x17, UPPER).memory(8).only(Forms::Memory),
    // MOVQ
    Entry::xmm(F3, 0x7e, |_, s, _, _| Ok(s & u64::MAX as u128)).memory(8),
    store(P66, 0xd6, |_, s, _, _| Ok(s & u64::MAX as u128)).memory(8),
    // MOVD and MOVQ with general registers
    Entry::xmm(P66, 0x6e, COPY)
        .between(Place::Reg(File::Xmm), Place::Rm(File::Gpr32))
        .memory(4)
        .wide(false),
    Entry::xmm(P66, 0x6e, COPY)
        .between(Place::Reg(File::Xmm), Place::Rm(File::Gpr64))
        .memory(8)
        .wide(true),
    Entry::xmm(P66, 0x7e, COPY)
        .between(Place::Rm(File::Gpr32), Place::Reg(File::Xmm))
        .memory(4)
        .wide(false),
    Entry::xmm(P66, 0x7e, COPY)
        .between(Place::Rm(File::Gpr64), Place::Reg(File::Xmm))
        .memory(8)
        .wide(true),
    // MASKMOVDQU and MASKMOVQ store by bytes through DI and are left to the core.
];
