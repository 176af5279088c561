//! From prefix, opcode and REX.W to a function and the places of its operands.

mod float;
mod integer;
mod mmx;
mod moves;

use super::float::Outcome;
use crate::fp::mxcsr::Mxcsr;

/// What an instruction computes: old destination, source and immediate in, new destination out.
///
/// A 32- or 64-bit source comes zero-extended, one from memory too. Of the result the low bits
/// count that the destination has room for; a destination [`Place::Flags`] takes ZF, PF and CF
/// at their places in EFLAGS, and OF, AF and SF become zero.
pub type Operation = fn(dst: u128, src: u128, immediate: u8, mxcsr: &mut Mxcsr) -> Outcome;

/// The mandatory prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    /// None.
    None,
    /// 66.
    P66,
    /// F3.
    F3,
    /// F2.
    F2,
}

/// A register file; in the place of ModRM.rm it is that register or memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum File {
    /// XMM0 to XMM15.
    Xmm,
    /// MM0 to MM7: a transition to MMX state.
    Mmx,
    /// 32-bit general registers; a result is zero-extended.
    Gpr32,
    /// 64-bit general registers.
    Gpr64,
}

/// Where an operand stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The register of ModRM.reg.
    Reg(File),
    /// The register or memory of ModRM.rm.
    Rm(File),
    /// EFLAGS (a destination only; the first operand is the XMM register of ModRM.reg).
    Flags,
}

/// The forms of ModRM.rm that an entry covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forms {
    /// Register and memory.
    Any,
    /// Register only.
    Register,
    /// Memory only.
    Memory,
}

/// One instruction form.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The mandatory prefix.
    pub prefix: Prefix,
    /// The opcode after 0F.
    pub opcode: u8,
    /// The REX.W it needs; none where it does not matter.
    pub wide: Option<bool>,
    /// The ModRM.reg of a member of a group.
    pub group: Option<u8>,
    /// The destination.
    pub dst: Place,
    /// The source.
    pub src: Place,
    /// The forms covered.
    pub forms: Forms,
    /// Bytes read or written where ModRM.rm is memory.
    pub bytes: u8,
    /// Whether the memory operand must be aligned to 16 bytes (#GP).
    pub aligned: bool,
    /// Whether an immediate byte follows.
    pub immediate: bool,
    /// The computation.
    pub operation: Operation,
}

impl Entry {
    /// `xmm(reg) <- f(xmm(reg), xmm(rm) or memory)`, 16 bytes aligned.
    const fn xmm(prefix: Prefix, opcode: u8, operation: Operation) -> Self {
        Self {
            prefix,
            opcode,
            wide: None,
            group: None,
            dst: Place::Reg(File::Xmm),
            src: Place::Rm(File::Xmm),
            forms: Forms::Any,
            bytes: 16,
            aligned: true,
            immediate: false,
            operation,
        }
    }

    /// `mm(reg) <- f(mm(reg), mm(rm) or memory)`.
    const fn mmx(opcode: u8, operation: Operation) -> Self {
        Self::xmm(Prefix::None, opcode, operation)
            .between(Place::Reg(File::Mmx), Place::Rm(File::Mmx))
            .memory(8)
    }

    const fn between(self, dst: Place, src: Place) -> Self {
        Self { dst, src, ..self }
    }

    /// A memory operand of this size that need not be aligned.
    const fn memory(self, bytes: u8) -> Self {
        Self {
            bytes,
            aligned: false,
            ..self
        }
    }

    const fn with_immediate(self) -> Self {
        Self {
            immediate: true,
            ..self
        }
    }

    const fn only(self, forms: Forms) -> Self {
        Self { forms, ..self }
    }

    const fn in_group(self, reg: u8) -> Self {
        Self {
            group: Some(reg),
            ..self
        }
    }

    const fn wide(self, wide: bool) -> Self {
        Self {
            wide: Some(wide),
            ..self
        }
    }
}

const PARTS: [&[Entry]; 5] = [
    float::ENTRIES,
    moves::ENTRIES,
    integer::ENTRIES,
    float::CONVERSIONS,
    mmx::ENTRIES,
];

/// All entries, in no order that matters; their positions are what [`position`] gives.
pub fn entries() -> impl Iterator<Item = &'static Entry> {
    PARTS.into_iter().flatten()
}

/// The entry at a position.
#[must_use]
pub fn entry(position: usize) -> Option<&'static Entry> {
    let mut rest = position;
    for part in PARTS {
        if let Some(entry) = part.get(rest) {
            return Some(entry);
        }
        rest -= part.len();
    }
    None
}

/// The position of the entry for an instruction; none means #UD as far as SSE, SSE2 and MMX go.
#[must_use]
pub fn position(prefix: Prefix, opcode: u8, wide: bool, modrm: u8) -> Option<usize> {
    let form = if modrm >> 6 == 3 {
        Forms::Register
    } else {
        Forms::Memory
    };
    entries().position(|entry| {
        entry.prefix == prefix
            && entry.opcode == opcode
            && entry.wide.is_none_or(|needed| needed == wide)
            && entry.group.is_none_or(|reg| reg == (modrm >> 3) & 7)
            && (entry.forms == Forms::Any || entry.forms == form)
    })
}

/// Whether an instruction of this opcode after 0F has an immediate byte, whatever its prefix.
#[must_use]
pub const fn has_immediate(opcode: u8) -> bool {
    matches!(opcode, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6)
}

#[cfg(test)]
mod tests {
    use super::{entries, entry, has_immediate, position};

    #[test]
    fn positions_lead_to_their_entries() {
        for (index, expected) in entries().enumerate() {
            assert!(std::ptr::eq(entry(index).unwrap(), expected));
        }
        assert!(entry(entries().count()).is_none());
    }

    #[test]
    fn an_encoding_has_one_entry_at_most() {
        for (index, entry) in entries().enumerate() {
            let reg = entry.group.unwrap_or(0) << 3;
            for modrm in [reg, 0xc0 | reg] {
                let wide = entry.wide.unwrap_or(false);
                let found = position(entry.prefix, entry.opcode, wide, modrm);
                let covered = entry.forms == super::Forms::Any
                    || (entry.forms == super::Forms::Register) == (modrm >= 0xc0);
                assert_eq!(found == Some(index), covered, "{entry:?}");
            }
        }
    }

    #[test]
    fn immediates_follow_from_the_opcode() {
        assert!(entries().all(|entry| entry.immediate == has_immediate(entry.opcode)));
    }
}
