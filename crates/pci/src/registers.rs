//! Config space as registers: values, which bits the guest can write, which it clears by ones.

/// Bytes that have registers; the rest of the 4 KiB reads as zero: there are no extended
/// capabilities (PCIe 6.0, section 7.6.2).
const BYTES: usize = 0x100;

/// A byte of config space.
#[derive(Clone, Copy, Debug, Default)]
struct Byte {
    value: u8,
    /// Bits that take what is written.
    writable: u8,
    /// Bits that are cleared by writing one (RW1C).
    cleared: u8,
    /// Bits that change by themselves: a saved state may have them either way.
    changing: u8,
}

/// The registers of one function.
#[derive(Clone, Debug)]
pub(crate) struct Registers {
    bytes: [Byte; BYTES],
}

impl Default for Registers {
    fn default() -> Registers {
        Registers {
            bytes: [Byte::default(); BYTES],
        }
    }
}

impl Registers {
    /// Gives the registers at `offset` a value that the guest cannot change.
    pub(crate) fn fix(&mut self, offset: u16, value: &[u8]) {
        for (byte, value) in self.at(offset).zip(value) {
            byte.value = *value;
        }
    }

    /// Lets the guest write the bits of `mask` at `offset`.
    pub(crate) fn allow(&mut self, offset: u16, mask: &[u8]) {
        for (byte, mask) in self.at(offset).zip(mask) {
            byte.writable = *mask;
        }
    }

    /// Has the bits of `mask` at `offset` cleared by writing ones.
    pub(crate) fn clear_by_ones(&mut self, offset: u16, mask: &[u8]) {
        for (byte, mask) in self.at(offset).zip(mask) {
            (byte.cleared, byte.changing) = (*mask, *mask);
        }
    }

    /// Says that the device changes the bits of `mask` at `offset`.
    pub(crate) fn changes(&mut self, offset: u16, mask: &[u8]) {
        for (byte, mask) in self.at(offset).zip(mask) {
            byte.changing |= *mask;
        }
    }

    fn at(&mut self, offset: u16) -> impl Iterator<Item = &mut Byte> {
        self.bytes.iter_mut().skip(offset.into())
    }

    /// The guest reads.
    pub(crate) fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, to) in (usize::from(offset)..).zip(data.iter_mut()) {
            *to = self.bytes.get(at).map_or(0, |byte| byte.value);
        }
    }

    /// Adds bits to what a guest has read from `offset` on: those of the byte at `at` that are not
    /// kept here.
    pub(crate) fn add_bits(offset: u16, data: &mut [u8], at: u16, bits: u8) {
        let within = at.checked_sub(offset).map(usize::from);
        if let Some(byte) = within.and_then(|within| data.get_mut(within)) {
            *byte |= bits;
        }
    }

    /// The guest writes.
    pub(crate) fn write(&mut self, offset: u16, data: &[u8]) {
        for (byte, new) in self.at(offset).zip(data) {
            let kept = byte.value & !byte.writable & !(byte.cleared & new);
            byte.value = kept | (new & byte.writable);
        }
    }

    /// One byte.
    pub(crate) fn byte(&self, offset: u16) -> u8 {
        self.bytes.get(usize::from(offset)).map_or(0, |b| b.value)
    }

    /// Two bytes.
    pub(crate) fn half(&self, offset: u16) -> u16 {
        u16::from_le_bytes([self.byte(offset), self.byte(offset + 1)])
    }

    /// Four bytes.
    pub(crate) fn word(&self, offset: u16) -> u32 {
        u32::from(self.half(offset)) | u32::from(self.half(offset + 2)) << 16
    }

    /// Sets the device's bits of `mask` in a register of two bytes.
    pub(crate) fn set_bits(&mut self, offset: u16, mask: u16, on: bool) {
        let old = self.half(offset) & !mask;
        self.fix(offset, &(old | if on { mask } else { 0 }).to_le_bytes());
    }

    /// All values.
    pub(crate) fn save(&self) -> Vec<u8> {
        self.bytes.iter().map(|byte| byte.value).collect()
    }

    /// Takes over values. Those that differ from these in bits that nobody can change are refused
    /// by their offset, and nothing is changed.
    pub(crate) fn restore(&mut self, values: &[u8]) -> Result<(), usize> {
        if values.len() != BYTES {
            return Err(values.len());
        }
        let both = || self.bytes.iter().zip(values);
        let differs = |(byte, value): (&Byte, &u8)| {
            (byte.value ^ value) & !(byte.writable | byte.cleared | byte.changing) != 0
        };
        if let Some(offset) = both().position(differs) {
            return Err(offset);
        }
        for (byte, value) in self.bytes.iter_mut().zip(values) {
            byte.value = *value;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers() -> Registers {
        let mut registers = Registers::default();
        registers.fix(0x10, &[0xa5, 0x5a, 0xff, 0]);
        registers.allow(0x10, &[0x0f]);
        registers.clear_by_ones(0x12, &[0x81]);
        registers
    }

    #[test]
    fn a_write_changes_writable_bits_alone() {
        let mut registers = registers();
        registers.write(0x10, &[0, 0]);
        assert_eq!(registers.half(0x10), 0x5aa0);
    }

    #[test]
    fn ones_clear_and_zeros_keep_rw1c_bits() {
        let mut registers = registers();
        registers.write(0x12, &[0x01]);
        assert_eq!(registers.byte(0x12), 0xfe);
        registers.write(0x12, &[0xff]);
        assert_eq!(registers.byte(0x12), 0x7e);
    }

    #[test]
    fn extended_config_space_is_there_and_empty() {
        let mut data = [0xff; 4];
        registers().read(0x100, &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn a_state_of_another_function_is_refused_by_its_offset() {
        let mut registers = registers();
        let mut values = registers.save();
        values[0x10] = 0xaf;
        values[0x12] = 0x7f;
        assert_eq!(registers.restore(&values), Ok(()));
        assert_eq!(registers.byte(0x10), 0xaf);
        values[0x11] = 0;
        assert_eq!(registers.restore(&values), Err(0x11));
        assert_eq!(registers.restore(&values[1..]), Err(0xff));
    }
}
