//! Numbers of virtio 1.2, section 5.2.

/// Feature bits (5.2.3).
pub(super) mod feature {
    pub(crate) const SEG_MAX: u64 = 1 << 2;
    pub(crate) const RO: u64 = 1 << 5;
    pub(crate) const BLK_SIZE: u64 = 1 << 6;
    pub(crate) const FLUSH: u64 = 1 << 9;
    pub(crate) const TOPOLOGY: u64 = 1 << 10;
    pub(crate) const CONFIG_WCE: u64 = 1 << 11;
    pub(crate) const MQ: u64 = 1 << 12;
    pub(crate) const DISCARD: u64 = 1 << 13;
    pub(crate) const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types (5.2.6).
pub(super) mod kind {
    pub(crate) const IN: u32 = 0;
    pub(crate) const OUT: u32 = 1;
    pub(crate) const FLUSH: u32 = 4;
    pub(crate) const GET_ID: u32 = 8;
    pub(crate) const DISCARD: u32 = 11;
    pub(crate) const WRITE_ZEROES: u32 = 13;
}

/// Bit 0 of a segment's flags: the blocks may be unmapped.
pub(super) const UNMAP: u32 = 1;

/// Status bytes (5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoErr = 1,
    Unsupp = 2,
}

/// Bytes of a sector, whatever the device's block size is.
pub(super) const SECTOR: u64 = 512;
/// Bytes of a request's header.
pub(super) const HEADER: usize = 16;
/// Bytes of a segment of discard and write-zeroes.
pub(super) const SEGMENT: usize = 16;
/// Bytes of the device's id string.
pub(super) const ID: usize = 20;
