//! Access to the registers through config space (virtio 1.2, section 4.1.4.9), for who cannot reach
//! BARs yet.

use super::layout::BAR;

/// Where registers of the capability lie, counted from its start.
const BAR_AT: u16 = 4;
const OFFSET_AT: u16 = 8;
const LENGTH_AT: u16 = 12;
const DATA_AT: u16 = 16;
const END: u16 = 20;

/// The capability's registers.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    /// Where in config space it begins.
    at: Option<u16>,
    registers: [u8; END as usize],
}

impl Window {
    pub(super) fn place(&mut self, at: Option<u16>) {
        self.at = at;
    }

    pub(super) fn reset(&mut self) {
        self.registers = [0; END as usize];
    }

    pub(super) fn registers(&self) -> Vec<u8> {
        self.registers.to_vec()
    }

    pub(super) fn restore(&mut self, registers: &[u8]) {
        let places = self.registers.iter_mut();
        places.zip(registers).for_each(|(to, from)| *to = *from);
    }

    fn word(&self, at: u16) -> u32 {
        let bytes = self.registers.get(usize::from(at)..);
        let bytes = bytes.and_then(|bytes| bytes.first_chunk());
        bytes.copied().map_or(0, u32::from_le_bytes)
    }

    /// Which register an access of `len` bytes to the window's data reaches; `None` if it is no such
    /// access, or the window leads nowhere: lengths are 1, 2 and 4, at multiples of themselves.
    pub(super) fn target(&self, offset: u16, len: usize) -> Option<u64> {
        let wanted = self.word(LENGTH_AT);
        let start = self.word(OFFSET_AT);
        let bar = self.registers.get(usize::from(BAR_AT)).copied()?;
        let here = offset == self.at?.checked_add(DATA_AT)?;
        let whole = usize::try_from(wanted).is_ok_and(|wanted| wanted == len);
        let fits = matches!(wanted, 1 | 2 | 4) && start.is_multiple_of(wanted);
        (here && whole && fits && bar == BAR).then_some(start.into())
    }

    /// The driver writes `data` at `offset` of config space: which register that reaches.
    pub(super) fn write(&mut self, offset: u16, data: &[u8]) -> Option<u64> {
        let target = self.target(offset, data.len());
        let start = offset.checked_sub(self.at?)?;
        let places = self.registers.iter_mut().skip(usize::from(start));
        places.zip(data).for_each(|(to, from)| *to = *from);
        target
    }
}
