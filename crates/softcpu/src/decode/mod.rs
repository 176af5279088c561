//! Bytes to [`Op`]s.
//!
//! Source: Intel SDM volume 2, chapter 2 "Instruction format" and appendix A "Opcode map".

mod modrm;
mod one;
mod two;

use crate::{
    cpu::Width,
    dispatch::{Step, plain},
    event::canonical,
    exec::{
        alu::{Form, Unary},
        system,
    },
    hot::Kind,
    op::{Handler, NO_REG, Op, kind},
    quick::{self, Flow, Multiply, Setter},
};

/// Bytes of the longest instruction.
pub(crate) const LONGEST: usize = 15;

/// What decoding gives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoded {
    pub(crate) op: Op,
    /// The instruction ends its block.
    pub(crate) ends: bool,
    /// It sets the flags and may be done together with a conditional jump behind it.
    pub(crate) setter: Option<Setter>,
    /// It is a conditional jump with a step of its own: the condition.
    pub(crate) condition: Option<u8>,
    /// What it does to the flags.
    pub(crate) flow: Flow,
    /// What it is for the translator.
    pub(crate) kind: Kind,
}

/// Why decoding gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Short {
    /// More bytes are needed.
    More,
    /// The instruction is longer than 15 bytes.
    TooLong,
}

/// A decoder over one instruction's bytes.
pub(crate) struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The instruction's address.
    rip: u64,
    width: Width,
    operand16: bool,
    address_prefix: bool,
    segment: Option<u8>,
    rep: u8,
    lock: bool,
    rex: u8,
    has_rex: bool,
    modrm: u8,
    op: Op,
    ends: bool,
    /// A RIP-relative displacement waits for the instruction's length.
    relative: bool,
    /// The instruction's own step.
    quick: Option<Step>,
    setter: Option<Setter>,
    condition: Option<u8>,
    flow: Flow,
    kind: Kind,
}

/// No instruction yet.
pub(crate) fn empty() -> Op {
    Op {
        step: plain,
        f: system::ud,
        imm: 0,
        disp: 0,
        reg: 0,
        rm: 0,
        base: NO_REG,
        index: NO_REG,
        ea: kind::REGISTER << 2,
        shape: 0,
        end: 0,
    }
}

/// Decodes the instruction at the start of `bytes`, which lies at `rip`.
pub(crate) fn decode(bytes: &[u8], rip: u64, width: Width) -> Result<Decoded, Short> {
    let mut decoder = Decoder {
        bytes,
        at: 0,
        rip,
        width,
        operand16: false,
        address_prefix: false,
        segment: None,
        rep: 0,
        lock: false,
        rex: 0,
        has_rex: false,
        modrm: 0,
        op: empty(),
        ends: false,
        relative: false,
        quick: None,
        setter: None,
        condition: None,
        flow: Flow::Other,
        kind: Kind::Other,
    };
    decoder.run()?;
    Ok(Decoded {
        op: decoder.op,
        ends: decoder.ends,
        setter: decoder.setter,
        condition: decoder.condition,
        flow: decoder.flow,
        kind: decoder.kind,
    })
}

impl Decoder<'_> {
    fn run(&mut self) -> Result<(), Short> {
        let opcode = self.prefixes()?;
        if opcode == 0x0f {
            self.two_bytes()?;
        } else {
            self.one_byte(opcode)?;
        }
        if self.at > LONGEST {
            return Err(Short::TooLong);
        }
        let end = self.rip.wrapping_add(self.at as u64);
        if self.relative {
            self.op.disp = self.op.disp.wrapping_add(end);
        }
        if self.lock && !self.lockable() {
            self.set(system::ud);
            (self.setter, self.condition, self.flow) = (None, None, Flow::Other);
        }
        self.op.step = self.quick.take().unwrap_or(plain);
        self.op.shape = self.op.shape & 0x30 | self.at as u8 | self.rep << 6;
        self.op.end = self.at as u16;
        Ok(())
    }

    fn prefixes(&mut self) -> Result<u8, Short> {
        loop {
            let byte = self.byte()?;
            match byte {
                0x26 | 0x2e | 0x36 | 0x3e => {
                    if self.width != Width::Bits64 {
                        self.segment = Some(byte >> 3 & 3);
                    }
                }
                0x64 | 0x65 => self.segment = Some(byte & 7),
                0x66 => self.operand16 = true,
                0x67 => self.address_prefix = true,
                0xf0 => self.lock = true,
                0xf2 => self.rep = crate::op::REPNE,
                0xf3 => self.rep = crate::op::REP,
                0x40..=0x4f if self.width == Width::Bits64 => {
                    self.rex = byte;
                    self.has_rex = true;
                    continue;
                }
                _ => return Ok(byte),
            }
            // REX counts only right before the opcode.
            (self.rex, self.has_rex) = (0, false);
        }
    }

    /// LOCK is allowed with a few instructions that write memory.
    fn lockable(&self) -> bool {
        let opcode = self.bytes.get(self.opcode_at()).copied().unwrap_or(0);
        let reg = self.modrm >> 3 & 7;
        let allowed = if opcode == 0x0f {
            let second = self.bytes.get(self.opcode_at() + 1).copied().unwrap_or(0);
            match second {
                0xab | 0xb3 | 0xbb | 0xb0 | 0xb1 | 0xc0 | 0xc1 => true,
                0xba => reg >= 5,
                0xc7 => reg == 1,
                _ => false,
            }
        } else {
            match opcode {
                0..=0x37 => opcode & 6 == 0,
                0x80..=0x83 => reg != 7,
                0x86 | 0x87 => true,
                0xf6 | 0xf7 => reg == 2 || reg == 3,
                0xfe | 0xff => reg < 2,
                _ => false,
            }
        };
        allowed && self.op.is_mem()
    }

    fn opcode_at(&self) -> usize {
        let long = self.width == Width::Bits64;
        self.bytes
            .iter()
            .position(|b| {
                let legacy = matches!(
                    b,
                    0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3
                );
                let rex = long && matches!(b, 0x40..=0x4f);
                !(legacy || rex)
            })
            .unwrap_or(0)
    }

    fn byte(&mut self) -> Result<u8, Short> {
        if self.at >= LONGEST {
            return Err(Short::TooLong);
        }
        let byte = self.bytes.get(self.at).copied().ok_or(Short::More)?;
        self.at += 1;
        Ok(byte)
    }

    fn number(&mut self, bytes: u32) -> Result<u64, Short> {
        (0..bytes).try_fold(0, |value, i| Ok(value | u64::from(self.byte()?) << (8 * i)))
    }

    fn signed(&mut self, bytes: u32) -> Result<u64, Short> {
        let value = self.number(bytes)?;
        let shift = 64 - 8 * bytes;
        Ok(((value << shift).cast_signed() >> shift).cast_unsigned())
    }

    fn rex_w(&self) -> bool {
        self.rex & 8 != 0
    }

    /// The operand size of instructions that are not byte-sized: 1 to 3.
    fn operand(&self) -> u8 {
        match self.width {
            Width::Bits64 if self.rex_w() => 3,
            Width::Bits16 => 1 + u8::from(self.operand16),
            _ => 2 - u8::from(self.operand16),
        }
    }

    /// The operand size of those that are 64-bit in 64-bit mode: stack and near branches.
    fn stack_operand(&self) -> u8 {
        match self.width {
            Width::Bits64 if self.operand16 && !self.rex_w() => 1,
            Width::Bits64 => 3,
            _ => self.operand(),
        }
    }

    /// Near branches ignore the operand-size prefix in 64-bit mode.
    fn branch_operand(&self) -> u8 {
        if self.width == Width::Bits64 {
            3
        } else {
            self.operand()
        }
    }

    fn address(&self) -> u8 {
        match self.width {
            Width::Bits64 => 3 - u8::from(self.address_prefix),
            Width::Bits32 => 2 - u8::from(self.address_prefix),
            Width::Bits16 => 1 + u8::from(self.address_prefix),
        }
    }

    fn set(&mut self, f: Handler) {
        self.op.f = f;
        self.quick = None;
        self.kind = Kind::Other;
    }

    fn set_size(&mut self, size: u8) {
        self.op.shape = self.op.shape & !0x30 | size << 4;
    }

    fn mem(&self) -> bool {
        self.op.is_mem()
    }

    fn long(&self) -> bool {
        self.width == Width::Bits64
    }

    /// The handler, size and end-of-block mark at once.
    fn finish(&mut self, f: Handler, size: u8) {
        self.set(f);
        self.set_size(size);
    }

    /// Gives the instruction a step of its own, after its handler.
    fn quick(&mut self, step: Option<Step>, kind: Kind) {
        self.quick = step;
        self.kind = kind;
    }

    /// The same for an instruction that neither reads nor sets flags.
    fn quick_neutral(&mut self, step: Option<Step>, kind: Kind) {
        self.quick(step, kind);
        if step.is_some() && !self.mem() {
            self.flow = Flow::Neutral;
        }
    }

    /// The same for `movzx` and its kin.
    fn quick_extension(&mut self, signed: bool, from: u8, to: u8) {
        let step = quick::extension(signed, from, to, &self.op);
        self.quick_neutral(step, Kind::Extend { signed, from, to });
    }

    /// The same for `cdqe`, `cqo` and their kin.
    fn quick_widen(&mut self, to_rdx: bool, size: u8) {
        self.quick_neutral(quick::widen(to_rdx, size), Kind::Widen { to_rdx, size });
    }

    /// The same for the stack of 64-bit code.
    fn quick_stack(&mut self, size: u8, step: Step, kind: Kind) {
        if self.long() && size == 3 {
            self.quick(Some(step), kind);
        }
    }

    /// The same for an operation on one operand.
    fn quick_unary(&mut self, which: Unary, size: u8) {
        let step = quick::unary(which, size, &self.op);
        self.quick(step, Kind::Unary(which, size));
    }

    /// The same for a multiplication.
    fn quick_multiply(&mut self, which: Multiply, size: u8) {
        let step = quick::multiply(which, size, &self.op);
        self.quick(step, Kind::Multiply(which, size));
        self.flow = quick::multiply_flow(which, size, &self.op);
    }

    /// The same for `lea`, which has an address and reads no memory.
    fn quick_lea(&mut self, size: u8) {
        self.kind = Kind::Lea(size);
        self.quick = quick::lea(size, &self.op);
        if self.quick.is_some() {
            self.flow = Flow::Neutral;
        }
    }

    /// The same for an operation of [`quick::binary`].
    fn quick_binary(&mut self, number: u8, form: Form, size: u8) {
        self.quick = quick::binary(number, form, size, &self.op);
        let setter = Setter { number, form, size };
        self.kind = Kind::Binary(setter);
        self.setter = self.quick.map(|_| setter);
        self.flow = quick::binary_flow(setter, &self.op);
    }

    /// The same for `jcc`.
    fn quick_jump(&mut self, code: u8) {
        self.quick_branch(Some(quick::jcc(code)), Kind::Branch(code & 15));
        self.condition = self.quick.map(|_| code);
    }

    /// The same for a branch in 64-bit code.
    fn quick_branch(&mut self, step: Option<Step>, kind: Kind) {
        if self.long() && canonical(self.op.imm) {
            self.quick = step;
            self.kind = kind;
        }
    }

    fn end_with(&mut self, f: Handler, size: u8) {
        self.finish(f, size);
        self.ends = true;
    }

    /// An opcode that does not exist.
    fn undefined(&mut self) {
        self.set(system::ud);
        self.ends = true;
    }

    /// An immediate of the operand size, at most 32 bits, sign-extended.
    fn immediate(&mut self, size: u8) -> Result<(), Short> {
        self.op.imm = self.signed(1 << size.min(2))?;
        Ok(())
    }

    /// A branch target.
    fn target(&mut self, bytes: u32, size: u8) -> Result<(), Short> {
        let by = self.signed(bytes)?;
        let to = self.rip.wrapping_add(self.at as u64).wrapping_add(by);
        self.op.imm = to & crate::int::mask(size);
        Ok(())
    }
}

#[cfg(test)]
mod iced;
#[cfg(test)]
mod tests;
