//! Feature bits that belong to no device type (virtio 1.2, section 6).

/// Chains may be in a table of their own (`VIRTIO_F_INDIRECT_DESC`).
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Notifications are asked for by index (`VIRTIO_F_EVENT_IDX`).
pub const EVENT_IDX: u64 = 1 << 29;
/// The device follows this version of the specification (`VIRTIO_F_VERSION_1`).
pub const VERSION_1: u64 = 1 << 32;
/// Addresses are translated by an IOMMU (`VIRTIO_F_ACCESS_PLATFORM`).
pub const ACCESS_PLATFORM: u64 = 1 << 33;

/// What every transport here offers beside the device's own bits.
pub(super) const OFFERED: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;
/// Bits for device types (section 2.2): 0 to 23 and 50 to 127.
pub(super) const DEVICE_TYPE: u64 = 0x00ff_ffff | !((1 << 50) - 1);
