//! The images of FNSTENV and FNSAVE in their four formats (SDM vol. 1, 8.1.10).

use super::control::ControlWord;
use super::register::F80;
use super::state::{Pointers, X87};
use crate::fp::bits::{low16, low32};
use crate::fp::soft::Value;

/// Layout by operand size and by protected against real or virtual-8086 mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvironmentFormat {
    /// 14 bytes, selectors and offsets.
    Protected16,
    /// 28 bytes, selectors and offsets; that of 64-bit mode.
    Protected32,
    /// 14 bytes, linear addresses of 20 bits.
    Real16,
    /// 28 bytes, linear addresses.
    Real32,
}

impl EnvironmentFormat {
    /// Bytes of the environment.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Protected16 | Self::Real16 => 14,
            Self::Protected32 | Self::Real32 => 28,
        }
    }

    /// Bytes of the whole state.
    #[must_use]
    pub const fn state_bytes(self) -> usize {
        self.bytes() + 80
    }
}

/// The seven fields of an environment; 16-bit formats keep their lower halves.
type Fields = [u32; 7];

fn pointer_fields(pointers: &Pointers, format: EnvironmentFormat) -> [u32; 4] {
    let (instruction, data) = (low32(pointers.instruction), low32(pointers.data));
    let opcode = u32::from(pointers.opcode & 0x7ff);
    let code = u32::from(pointers.code_segment);
    let segment = u32::from(pointers.data_segment);
    match format {
        EnvironmentFormat::Protected16 => [instruction, code, data, segment],
        EnvironmentFormat::Protected32 => [
            instruction,
            opcode << 16 | code,
            data,
            0xffff_0000 | segment,
        ],
        EnvironmentFormat::Real16 => [
            instruction,
            instruction >> 4 & 0xf000 | opcode,
            data,
            data >> 4 & 0xf000,
        ],
        EnvironmentFormat::Real32 => [
            0xffff_0000 | instruction & 0xffff,
            instruction >> 4 & 0x0fff_f000 | opcode,
            0xffff_0000 | data & 0xffff,
            data >> 4 & 0x0fff_f000,
        ],
    }
}

fn pointers(fields: [u32; 4], format: EnvironmentFormat) -> Pointers {
    let [ip, code, dp, data] = fields;
    let half = |value: u32| low16(u64::from(value));
    let mut pointers = Pointers {
        instruction: ip.into(),
        data: dp.into(),
        ..Pointers::default()
    };
    match format {
        EnvironmentFormat::Protected16 => {
            pointers.code_segment = half(code);
            pointers.data_segment = half(data);
        }
        EnvironmentFormat::Protected32 => {
            pointers.code_segment = half(code);
            pointers.opcode = half(code >> 16) & 0x7ff;
            pointers.data_segment = half(data);
        }
        EnvironmentFormat::Real16 | EnvironmentFormat::Real32 => {
            let upper = |value: u32| u64::from(value & 0x0fff_f000) << 4;
            pointers.instruction = u64::from(ip & 0xffff) | upper(code);
            pointers.opcode = half(code) & 0x7ff;
            pointers.data = u64::from(dp & 0xffff) | upper(data);
        }
    }
    pointers
}

impl X87 {
    /// The two-bit tags of the physical registers.
    #[must_use]
    pub fn tag_word(&self) -> u16 {
        self.registers
            .iter()
            .enumerate()
            .rev()
            .fold(0, |word, (index, register)| {
                let tag = if self.used >> index & 1 == 0 {
                    3
                } else {
                    tag(*register)
                };
                word << 2 | tag
            })
    }

    pub(super) fn set_tag_word(&mut self, word: u16) {
        self.used = (0..8)
            .filter(|index| word >> (2 * index) & 3 != 3)
            .fold(0, |used, index| used | 1 << index);
    }

    pub(super) fn environment(&self, format: EnvironmentFormat) -> Fields {
        let words = [self.control.bits(), self.status_word(), self.tag_word()];
        let [control, status, tags] = words.map(|word| 0xffff_0000 | u32::from(word));
        let [a, b, c, d] = pointer_fields(&self.pointers, format);
        [control, status, tags, a, b, c, d]
    }

    /// FNSTENV: stores, then masks every exception.
    pub(super) fn store_environment(&mut self, format: EnvironmentFormat, out: &mut [u8]) {
        let fields = self.environment(format);
        write_fields(&fields, format, out);
        self.control = ControlWord::new(self.control.bits() | 0x3f);
    }

    /// FLDENV.
    pub(super) fn load_environment(&mut self, format: EnvironmentFormat, bytes: &[u8]) {
        let [control, status, tags, a, b, c, d] = read_fields(format, bytes);
        let half = |value: u32| low16(u64::from(value));
        self.control = ControlWord::new(half(control));
        self.set_status_word(half(status));
        self.set_tag_word(half(tags));
        self.pointers = pointers([a, b, c, d], format);
    }

    /// FNSAVE: stores environment and registers, then initializes.
    pub(super) fn store_state(&mut self, format: EnvironmentFormat, out: &mut [u8]) {
        let fields = self.environment(format);
        write_fields(&fields, format, out);
        let registers = out.get_mut(format.bytes()..).unwrap_or_default();
        for (index, chunk) in (0..8).zip(registers.chunks_exact_mut(10)) {
            chunk.copy_from_slice(&self.st(index).to_bytes());
        }
        self.initialize();
    }

    /// FRSTOR.
    pub(super) fn load_state(&mut self, format: EnvironmentFormat, bytes: &[u8]) {
        self.load_environment(format, bytes);
        let used = self.used;
        let registers = bytes.get(format.bytes()..).unwrap_or_default();
        for (index, chunk) in (0..8).zip(registers.as_chunks::<10>().0) {
            self.set_st(index, F80::from_bytes(*chunk));
        }
        self.used = used;
    }
}

fn tag(register: F80) -> u16 {
    match register.unpack() {
        Value::Zero(_) => 1,
        Value::Finite(_) if !register.is_denormal() => 0,
        _ => 2,
    }
}

fn write_fields(fields: &Fields, format: EnvironmentFormat, out: &mut [u8]) {
    if format.bytes() == 14 {
        for (field, chunk) in fields.iter().zip(out.as_chunks_mut::<2>().0) {
            *chunk = low16(u64::from(*field)).to_le_bytes();
        }
    } else {
        for (field, chunk) in fields.iter().zip(out.as_chunks_mut::<4>().0) {
            *chunk = field.to_le_bytes();
        }
    }
}

fn read_fields(format: EnvironmentFormat, bytes: &[u8]) -> Fields {
    let mut fields = [0; 7];
    if format.bytes() == 14 {
        for (field, chunk) in fields.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *field = u16::from_le_bytes(*chunk).into();
        }
    } else {
        for (field, chunk) in fields.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *field = u32::from_le_bytes(*chunk);
        }
    }
    fields
}
