//! What an instruction is to the tests: its encoding, its operands, and what its cases need.

use super::undefined::Undefined;

/// What the ModRM byte's reg field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reg {
    /// No ModRM byte.
    None,
    /// No ModRM byte; a register in the opcode's low bits.
    InOpcode,
    /// Any register.
    Any,
    /// A part of the opcode.
    Extension(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Immediate {
    None,
    Byte,
    /// A byte; of 16-bit operands at most 16 places, because more are undefined.
    Count,
    /// Three bits of a byte.
    Predicate,
    Half,
    /// Two bytes, then one.
    HalfByte,
    /// Of the operand size, at most four bytes.
    Full,
    /// Of the operand size.
    Whole,
    /// An absolute address of the address size.
    Address,
    /// The distance to the branch target in one byte.
    Near,
    /// The distance to the branch target in four bytes.
    Far,
}

/// The sizes an operand may have beside bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sizes {
    /// The opcode has one size: prefixes for it are not tried.
    Fixed(u8),
    /// A byte; 66 and REX.W change nothing.
    Byte,
    /// 2, 4 or 8 bytes by prefixes.
    Any,
    /// 8 bytes; vendors differ in what 66 does, so it is not tried.
    Branch,
    /// 8 bytes or, with 66, 2.
    Stack,
    /// With this REX.W.
    Wide(bool),
}

/// What the inputs of a case need beside random registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Nothing,
    /// The bit offset in ModRM.reg stays near.
    BitOffset,
    /// RSP points into the data.
    Stack,
    /// The word on the stack is an image of RFLAGS.
    StackFlags,
    /// The word on the stack is a branch target.
    StackTarget,
    /// RBP points into the data.
    Frame,
    /// The operand is a branch target; RSP points into the data.
    Target,
    /// RSI and RDI point into the data; RCX is small.
    Text,
    /// The dividend often fits.
    Dividend,
    /// The accumulator often equals the operand.
    Equal,
    /// RDX:RAX often equals the operand.
    EqualPair,
    /// RBX with AL points into the data.
    Table,
    /// CL shifts 16-bit operands by at most 16 places.
    Count,
    /// RCX is often zero or one.
    Counter,
    /// The operand is an image of MXCSR.
    Mxcsr,
    /// The operand is an FXSAVE image.
    Image,
    /// RDI points into the data.
    Masked,
}

/// Which registers beside the general ones take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Integer,
    Vector,
    X87,
}

/// What ModRM.rm is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    None,
    Register,
    Memory,
    /// Memory at the ends of pages and in pages that refuse it.
    Edge,
}

/// An instruction with one kind of operand.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    /// A prefix that is part of the opcode.
    pub(crate) prefix: Option<u8>,
    pub(crate) opcode: Vec<u8>,
    pub(crate) reg: Reg,
    pub(crate) operand: Operand,
    pub(crate) immediate: Immediate,
    pub(crate) sizes: Sizes,
    /// With LOCK.
    pub(crate) lock: bool,
    pub(crate) need: Need,
    pub(crate) unit: Unit,
    /// Bytes of a memory operand; 0: those of the operand size.
    pub(crate) bytes: u8,
    /// Of a memory operand, in bytes.
    pub(crate) aligned: u64,
    pub(crate) undefined: Undefined,
    /// Register numbers that stand for bytes.
    pub(crate) byte_registers: bool,
    /// A prefix that repeats, or is ignored.
    pub(crate) repeat: Option<u8>,
    /// The memory operand is an FXSAVE image.
    pub(crate) whole_image: bool,
}

impl Template {
    /// An instruction without ModRM byte.
    pub(crate) fn plain(opcode: &[u8]) -> Template {
        Template {
            prefix: None,
            opcode: opcode.to_vec(),
            reg: Reg::None,
            operand: Operand::None,
            immediate: Immediate::None,
            sizes: Sizes::Any,
            lock: false,
            need: Need::Nothing,
            unit: Unit::Integer,
            bytes: 0,
            aligned: 1,
            undefined: Undefined::NONE,
            byte_registers: false,
            repeat: None,
            whole_image: false,
        }
    }

    /// One with ModRM byte, any register in it.
    pub(crate) fn modrm(opcode: &[u8]) -> Template {
        Template {
            reg: Reg::Any,
            operand: Operand::Register,
            ..Template::plain(opcode)
        }
    }

    /// One whose ModRM.reg extends the opcode.
    pub(crate) fn group(opcode: &[u8], extension: u8) -> Template {
        Template {
            reg: Reg::Extension(extension),
            ..Template::modrm(opcode)
        }
    }

    /// With byte operands.
    pub(crate) fn of_bytes(self) -> Template {
        Template {
            sizes: Sizes::Byte,
            byte_registers: true,
            ..self
        }
    }

    pub(crate) fn immediate(self, immediate: Immediate) -> Template {
        Template { immediate, ..self }
    }

    pub(crate) fn sizes(self, sizes: Sizes) -> Template {
        Template { sizes, ..self }
    }

    pub(crate) fn need(self, need: Need) -> Template {
        Template { need, ..self }
    }

    pub(crate) fn undefined(self, undefined: Undefined) -> Template {
        Template { undefined, ..self }
    }

    pub(crate) fn operand(self, operand: Operand) -> Template {
        Template { operand, ..self }
    }

    /// A memory operand of a size of its own.
    pub(crate) fn bytes(self, bytes: u8) -> Template {
        Template { bytes, ..self }
    }

    /// The template with memory operands: ordinary ones, those at the edges of pages and, where
    /// `lock` allows it, both with LOCK.
    pub(crate) fn in_memory(&self, lock: bool) -> Vec<Template> {
        let with = |operand, lock| Template {
            operand,
            lock,
            ..self.clone()
        };
        let mut all = vec![with(Operand::Memory, false), with(Operand::Edge, false)];
        if lock {
            all.extend([with(Operand::Memory, true), with(Operand::Edge, true)]);
        }
        all
    }

    /// The memory operand is one of many parts: which byte of it a page fault names, and in which
    /// of two pages that refuse it, is not architectural.
    pub(crate) fn has_parts(&self) -> bool {
        self.bytes > 16 || self.whole_image || self.need == Need::Masked
    }

    /// `cmps`: which of two operands that fault is named depends on the processor.
    pub(crate) fn compares_strings(&self) -> bool {
        matches!(self.opcode[..], [0xa6 | 0xa7])
    }

    /// Register and memory forms.
    pub(crate) fn everywhere(self, lock: bool) -> Vec<Template> {
        let memory = self.in_memory(lock);
        [vec![self], memory].concat()
    }
}
