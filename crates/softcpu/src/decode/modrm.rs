//! ModRM, SIB and displacements.

use super::{Decoder, Short};
use crate::{
    cpu::{DS, SS, Width},
    op::{HIGH, NO_REG, kind},
};

impl Decoder<'_> {
    /// Reads ModRM and what follows. Register numbers are those of `size`-sized operands.
    pub(super) fn read_modrm(&mut self) -> Result<(), Short> {
        self.modrm = self.byte()?;
        self.op.reg = self.modrm >> 3 & 7 | (self.rex & 4) << 1;
        let rm = self.modrm & 7;
        if self.modrm >> 6 == 3 {
            self.op.rm = rm | (self.rex & 1) << 3;
            self.op.ea = kind::REGISTER << 2;
            return Ok(());
        }
        if self.address() == 1 {
            self.address16(rm)
        } else {
            self.address32(rm)
        }
    }

    /// The number of a byte register as an operand.
    pub(super) fn byte_register(&self, number: u8) -> u8 {
        if !self.has_rex && (4..8).contains(&number) {
            HIGH + number - 4
        } else {
            number
        }
    }

    /// ModRM with byte operands.
    pub(super) fn read_modrm_bytes(&mut self) -> Result<(), Short> {
        self.read_modrm()?;
        self.op.reg = self.byte_register(self.op.reg);
        if !self.mem() {
            self.op.rm = self.byte_register(self.op.rm);
        }
        Ok(())
    }

    /// ModRM with operands of `size`.
    pub(super) fn read_modrm_sized(&mut self, size: u8) -> Result<(), Short> {
        if size == 0 {
            self.read_modrm_bytes()
        } else {
            self.read_modrm()
        }
    }

    /// The opcode extension in ModRM.reg.
    pub(super) fn extension(&self) -> u8 {
        self.modrm >> 3 & 7
    }

    fn address16(&mut self, rm: u8) -> Result<(), Short> {
        const BX: u8 = 3;
        const BP: u8 = 5;
        const SI: u8 = 6;
        const DI: u8 = 7;
        let mode = self.modrm >> 6;
        let (base, index) = match rm {
            0 => (BX, SI),
            1 => (BX, DI),
            2 => (BP, SI),
            3 => (BP, DI),
            4 => (SI, NO_REG),
            5 => (DI, NO_REG),
            6 if mode == 0 => (NO_REG, NO_REG),
            6 => (BP, NO_REG),
            _ => (BX, NO_REG),
        };
        self.op.disp = match mode {
            0 if base == NO_REG => self.number(2)?,
            1 => self.signed(1)?,
            2 => self.number(2)?,
            _ => 0,
        };
        (self.op.base, self.op.index) = (base, index);
        self.set_ea(0, base == BP);
        Ok(())
    }

    fn address32(&mut self, rm: u8) -> Result<(), Short> {
        let mode = self.modrm >> 6;
        let mut scale = 0;
        let mut base = rm | (self.rex & 1) << 3;
        // R12 and R13 are of the data segment.
        let mut stack = base == 5 && mode != 0;
        if rm == 4 {
            let sib = self.byte()?;
            scale = sib >> 6;
            let index = sib >> 3 & 7 | (self.rex & 2) << 2;
            self.op.index = if index == 4 { NO_REG } else { index };
            base = sib & 7 | (self.rex & 1) << 3;
            stack = matches!(sib & 7, 4 | 5) && base < 8;
            if sib & 7 == 5 && mode == 0 {
                base = NO_REG;
                stack = false;
            }
        } else if rm == 5 && mode == 0 {
            base = NO_REG;
            self.relative = self.long();
        }
        self.op.base = base;
        self.op.disp = match mode {
            1 => self.signed(1)?,
            2 => self.signed(4)?,
            _ if base == NO_REG => self.signed(4)?,
            _ => 0,
        };
        self.set_ea(scale, stack && base != NO_REG);
        Ok(())
    }

    /// Kind and segment of the address.
    pub(super) fn set_ea(&mut self, scale: u8, stack: bool) {
        let default = if stack { SS } else { DS } as u8;
        let segment = self.segment.unwrap_or(default);
        let kind = match (self.width, self.address()) {
            (Width::Bits64, 3) if self.segment.is_some() => kind::BASED,
            (Width::Bits64, 3) => kind::FLAT,
            (Width::Bits64, _) => kind::SHORT,
            (_, 2) => kind::LEGACY32,
            _ => kind::LEGACY16,
        };
        self.op.ea = scale | kind << 2 | segment << 5;
    }
}
