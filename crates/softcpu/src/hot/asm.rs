//! Host instructions as bytes: the few forms the translator uses.
//!
//! Source: Intel SDM volume 2, chapter 2 "Instruction format". Operand sizes are 0 to 3 for 1 to 8
//! bytes; registers are their numbers, and those of byte operands are always the low ones.

/// A memory operand of the host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mem {
    pub(super) base: Option<u8>,
    pub(super) index: Option<u8>,
    pub(super) scale: u8,
    pub(super) disp: i32,
}

/// At a register plus a displacement.
pub(super) fn at(base: u8, disp: i32) -> Mem {
    Mem {
        base: Some(base),
        index: None,
        scale: 0,
        disp,
    }
}

/// A register or memory operand.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rm {
    Reg(u8),
    Mem(Mem),
}

/// A forward jump whose target comes later.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct Jump(usize);

/// A 64-bit constant whose value comes later.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct Constant(usize);

/// The two-operand operations by their numbers in opcodes 0 to 0x3f.
pub(super) mod alu {
    pub(in crate::hot) const ADD: u8 = 0;
    pub(in crate::hot) const AND: u8 = 4;
    pub(in crate::hot) const SUB: u8 = 5;
    pub(in crate::hot) const XOR: u8 = 6;
    pub(in crate::hot) const CMP: u8 = 7;
}

/// Condition codes.
pub(super) const EQUAL: u8 = 4;
pub(super) const NOT_EQUAL: u8 = 5;
pub(super) const LESS_OR_EQUAL: u8 = 14;

/// Code for the address it will stand at.
#[derive(Debug)]
pub(super) struct Assembler {
    bytes: Vec<u8>,
    start: u64,
}

impl Assembler {
    pub(super) fn new(start: u64) -> Assembler {
        Assembler {
            bytes: Vec::with_capacity(1024),
            start,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The address of what comes next.
    pub(super) fn here(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// An instruction with ModRM. `opcode` is for the size already.
    pub(super) fn op(&mut self, size: u8, opcode: &[u8], reg: u8, rm: Rm) {
        let (x, b) = match rm {
            Rm::Reg(number) => (0, number >> 3),
            Rm::Mem(mem) => (mem.index.unwrap_or(0) >> 3, mem.base.unwrap_or(0) >> 3),
        };
        if size == 1 {
            self.bytes.push(0x66);
        }
        let rex = 0x40 | u8::from(size == 3) << 3 | (reg >> 3) << 2 | x << 1 | b;
        // With REX, byte registers are the low ones.
        if rex != 0x40 || size == 0 || matches!(opcode, [0x0f, 0xb6 | 0xbe]) {
            self.bytes.push(rex);
        }
        self.raw(opcode);
        self.modrm(reg & 7, rm);
    }

    fn modrm(&mut self, reg: u8, rm: Rm) {
        let mem = match rm {
            Rm::Reg(number) => return self.bytes.push(0xc0 | reg << 3 | number & 7),
            Rm::Mem(mem) => mem,
        };
        let short = i8::try_from(mem.disp);
        let mode = match (mem.base, short) {
            (None, _) => 0,
            (Some(base), Ok(0)) if base & 7 != 5 => 0,
            (Some(_), Ok(_)) => 1,
            _ => 2,
        };
        let base = mem.base.map_or(5, |base| base & 7);
        if mem.index.is_some() || mem.base.is_none() || base == 4 {
            let index = mem.index.map_or(4, |index| index & 7);
            self.raw(&[mode << 6 | reg << 3 | 4, mem.scale << 6 | index << 3 | base]);
        } else {
            self.bytes.push(mode << 6 | reg << 3 | base);
        }
        match (mode, short) {
            (1, Ok(short)) => self.bytes.push(short.cast_unsigned()),
            (0, _) if mem.base.is_some() => {}
            _ => self.raw(&mem.disp.to_le_bytes()),
        }
    }

    /// `mov` of a whole register.
    pub(super) fn copy(&mut self, to: u8, from: u8) {
        if to != from {
            self.op(3, &[0x89], from, Rm::Reg(to));
        }
    }

    /// `mov` reg, memory; 8 and 16 bits are zero-extended.
    pub(super) fn load(&mut self, size: u8, to: u8, from: Mem) {
        match size {
            0 => self.op(2, &[0x0f, 0xb6], to, Rm::Mem(from)),
            1 => self.op(2, &[0x0f, 0xb7], to, Rm::Mem(from)),
            _ => self.op(size, &[0x8b], to, Rm::Mem(from)),
        }
    }

    /// `mov` memory, reg.
    pub(super) fn store(&mut self, size: u8, to: Mem, from: u8) {
        self.op(
            size,
            &[if size == 0 { 0x88 } else { 0x89 }],
            from,
            Rm::Mem(to),
        );
    }

    /// `mov` memory, immediate, sign-extended to 64 bits.
    pub(super) fn store_imm(&mut self, size: u8, to: Mem, value: i32) {
        self.op(size, &[if size == 0 { 0xc6 } else { 0xc7 }], 0, Rm::Mem(to));
        self.imm(size, value);
    }

    fn imm(&mut self, size: u8, value: i32) {
        let bytes = value.to_le_bytes();
        self.bytes
            .extend(bytes.iter().take(1 << size.min(2)).copied());
    }

    /// A whole register gets a constant; the flags stay.
    pub(super) fn constant(&mut self, to: u8, value: u64) {
        if let Ok(short) = u32::try_from(value) {
            if to >= 8 {
                self.bytes.push(0x41);
            }
            self.bytes.push(0xb8 | to & 7);
            self.raw(&short.to_le_bytes());
        } else if let Ok(short) = i32::try_from(value.cast_signed()) {
            self.op(3, &[0xc7], 0, Rm::Reg(to));
            self.raw(&short.to_le_bytes());
        } else {
            let _ = self.later(to, value);
        }
    }

    /// The same for a value that is set later.
    pub(super) fn later(&mut self, to: u8, value: u64) -> Constant {
        self.raw(&[0x48 | to >> 3, 0xb8 | to & 7]);
        let place = Constant(self.bytes.len());
        self.raw(&value.to_le_bytes());
        place
    }

    /// Sets a constant.
    pub(super) fn set(&mut self, place: Constant, value: u64) {
        if let Some(bytes) = self.bytes.get_mut(place.0..place.0 + 8) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Operation `number` of opcodes 0 to 0x3f, `rm` being the destination.
    pub(super) fn alu(&mut self, number: u8, size: u8, rm: Rm, reg: u8) {
        self.op(size, &[number << 3 | u8::from(size != 0)], reg, rm);
    }

    /// The same with the register as the destination.
    pub(super) fn alu_from(&mut self, number: u8, size: u8, reg: u8, rm: Rm) {
        self.op(size, &[number << 3 | 2 | u8::from(size != 0)], reg, rm);
    }

    /// The same with an immediate.
    pub(super) fn alu_imm(&mut self, number: u8, size: u8, rm: Rm, value: i32) {
        let short = i8::try_from(value);
        match (size, short) {
            (0, _) => {
                self.op(0, &[0x80], number, rm);
                self.imm(0, value);
            }
            (_, Ok(short)) => {
                self.op(size, &[0x83], number, rm);
                self.bytes.push(short.cast_unsigned());
            }
            _ => {
                self.op(size, &[0x81], number, rm);
                self.imm(size, value);
            }
        }
    }

    pub(super) fn test(&mut self, size: u8, rm: Rm, reg: u8) {
        self.op(size, &[if size == 0 { 0x84 } else { 0x85 }], reg, rm);
    }

    pub(super) fn test_imm(&mut self, size: u8, rm: Rm, value: i32) {
        self.op(size, &[if size == 0 { 0xf6 } else { 0xf7 }], 0, rm);
        self.imm(size, value);
    }

    /// Operation `which` of opcode 0xc1 by a constant.
    pub(super) fn shift(&mut self, which: u8, size: u8, reg: u8, count: u8) {
        self.op(size, &[0xc1], which, Rm::Reg(reg));
        self.bytes.push(count);
    }

    pub(super) fn lea(&mut self, size: u8, to: u8, mem: Mem) {
        self.op(size, &[0x8d], to, Rm::Mem(mem));
    }

    /// `jcc` to a place that comes later.
    pub(super) fn jump_if(&mut self, code: u8) -> Jump {
        self.raw(&[0x0f, 0x80 | code & 15]);
        self.gap()
    }

    fn gap(&mut self) -> Jump {
        self.raw(&[0; 4]);
        Jump(self.bytes.len())
    }

    /// Has a jump lead to here.
    pub(super) fn land(&mut self, jump: Jump) {
        let by = (self.bytes.len() - jump.0) as u32;
        if let Some(bytes) = self.bytes.get_mut(jump.0 - 4..jump.0) {
            bytes.copy_from_slice(&by.to_le_bytes());
        }
    }

    /// `jmp` to an address in reach.
    pub(super) fn jump_to(&mut self, address: u64) {
        self.bytes.push(0xe9);
        let by = address.wrapping_sub(self.here() + 4) as u32;
        self.raw(&by.to_le_bytes());
    }

    /// `jmp` through memory.
    pub(super) fn jump_through(&mut self, mem: Mem) {
        self.op(2, &[0xff], 4, Rm::Mem(mem));
    }
}
