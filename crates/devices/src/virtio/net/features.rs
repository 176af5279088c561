//! Feature bits of a network device (virtio 1.2, section 5.1.3).

/// The device finishes checksums (`VIRTIO_NET_F_CSUM`).
pub const CSUM: u64 = 1 << 0;
/// The driver finishes checksums.
pub const GUEST_CSUM: u64 = 1 << 1;
/// The driver changes what it takes while it runs.
pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// The configuration holds the largest frame to use.
pub const MTU: u64 = 1 << 3;
/// The configuration holds an address.
pub const MAC: u64 = 1 << 5;
/// The driver takes TCP segments of IPv4 that are to be cut.
pub const GUEST_TSO4: u64 = 1 << 7;
/// The driver takes TCP segments of IPv6 that are to be cut.
pub const GUEST_TSO6: u64 = 1 << 8;
/// Those with explicit congestion notification too.
pub const GUEST_ECN: u64 = 1 << 9;
/// The driver takes UDP datagrams that are to be cut.
pub const GUEST_UFO: u64 = 1 << 10;
/// The device cuts TCP segments of IPv4.
pub const HOST_TSO4: u64 = 1 << 11;
/// The device cuts TCP segments of IPv6.
pub const HOST_TSO6: u64 = 1 << 12;
/// Those with explicit congestion notification too.
pub const HOST_ECN: u64 = 1 << 13;
/// The device cuts UDP datagrams.
pub const HOST_UFO: u64 = 1 << 14;
/// A frame can use several buffers.
pub const MRG_RXBUF: u64 = 1 << 15;
/// The configuration says whether the link is up.
pub const STATUS: u64 = 1 << 16;
/// There is a queue for commands.
pub const CTRL_VQ: u64 = 1 << 17;
/// Commands say which frames are wanted.
pub const CTRL_RX: u64 = 1 << 18;
/// And which are not.
pub const CTRL_RX_EXTRA: u64 = 1 << 20;
/// A command sets the address.
pub const CTRL_MAC_ADDR: u64 = 1 << 23;

/// What a driver takes of what a back end leaves to it.
pub const GUEST_OFFLOADS: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO;
/// Frames longer than an Ethernet frame can come.
pub const GUEST_LONG: u64 = GUEST_TSO4 | GUEST_TSO6 | GUEST_UFO;

/// What each bit needs (section 5.1.3.1): any of the second.
const NEEDS: [(u64, u64); 12] = [
    (GUEST_TSO4, GUEST_CSUM),
    (GUEST_TSO6, GUEST_CSUM),
    (GUEST_ECN, GUEST_TSO4 | GUEST_TSO6),
    (GUEST_UFO, GUEST_CSUM),
    (HOST_TSO4, CSUM),
    (HOST_TSO6, CSUM),
    (HOST_ECN, HOST_TSO4 | HOST_TSO6),
    (HOST_UFO, CSUM),
    (CTRL_RX, CTRL_VQ),
    (CTRL_RX_EXTRA, CTRL_VQ),
    (CTRL_MAC_ADDR, CTRL_VQ),
    (CTRL_GUEST_OFFLOADS, CTRL_VQ),
];

/// Whether every bit of `features` has what it needs.
pub fn are_complete(features: u64) -> bool {
    let missing = |(bit, needs): &(u64, u64)| features & bit != 0 && features & needs == 0;
    !NEEDS.iter().any(missing)
}
