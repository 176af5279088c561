//! The device's configuration (virtio 1.2, section 5.2.4).

use super::spec::SECTOR;

/// Bytes of the structure, without what secure erase and zones add.
const LEN: usize = 60;
/// Where `writeback` lies: the one field that a driver writes.
pub(super) const WRITEBACK: u64 = 32;

/// Sectors that one segment of discard or write-zeroes takes: 1 GiB.
pub(super) const MOST_SECTORS: u32 = 2 << 20;
/// Segments of one such request.
pub(super) const MOST_SEGMENTS: u32 = 16;

/// What the structure says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config {
    pub(super) bytes: u64,
    pub(super) segments: u32,
    pub(super) block: u32,
    pub(super) queues: u16,
    pub(super) writeback: bool,
}

/// The host's page: what is written without being read first.
const PHYSICAL_BLOCK: u32 = 4096;

impl Config {
    pub(super) fn image(&self) -> [u8; LEN] {
        let mut image = [0; LEN];
        let mut put = |at: usize, bytes: &[u8]| {
            let place = image.iter_mut().skip(at);
            place.zip(bytes).for_each(|(to, from)| *to = *from);
        };
        let physical = PHYSICAL_BLOCK.max(self.block);
        let exponent = (physical / self.block.max(1)).trailing_zeros();
        let least = u16::try_from(physical / self.block.max(1)).unwrap_or(1);
        put(0, &(self.bytes / SECTOR).to_le_bytes());
        put(12, &self.segments.to_le_bytes());
        put(20, &self.block.to_le_bytes());
        put(24, &[u8::try_from(exponent).unwrap_or(0), 0]);
        put(26, &least.to_le_bytes());
        put(32, &[u8::from(self.writeback)]);
        put(34, &self.queues.to_le_bytes());
        put(36, &MOST_SECTORS.to_le_bytes());
        put(40, &MOST_SEGMENTS.to_le_bytes());
        put(44, &(physical / 512).to_le_bytes());
        put(48, &MOST_SECTORS.to_le_bytes());
        put(52, &MOST_SEGMENTS.to_le_bytes());
        put(56, &[1]);
        image
    }
}
