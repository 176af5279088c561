//! Replies of the kernel that end in a list of capabilities.
//!
//! A reply is little-endian words: a structure, then capabilities that lead to each other by their
//! offsets (`struct vfio_info_cap_header`: id, version, offset of the next).

use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_PCI_DEVID_NOT_OWNED, VFIO_PCI_HOT_RESET_FLAG_DEV_ID,
    VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
};
use vmlet_host::PciAddress;

use crate::{
    DomainLimits, IovaRange,
    reset::{Affected, Claim},
};

/// `flags` of `struct vfio_iommu_type1_info`: page sizes, capabilities.
const INFO_PGSIZES: u32 = 1;
const INFO_CAPS: u32 = 2;
/// More capabilities, or entries of one, are not looked at.
const MOST: u64 = 64;

/// A reply as bytes.
#[derive(Clone, Copy, Debug)]
struct Reply<'a>(&'a [u8]);

impl<'a> Reply<'a> {
    fn u32(self, offset: usize) -> Option<u32> {
        let bytes = self.0.get(offset..offset.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    fn u64(self, offset: usize) -> Option<u64> {
        let bytes = self.0.get(offset..offset.checked_add(8)?)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    /// The capability `id` of the list that starts where `start` says, with its header.
    fn capability(self, start: usize, id: u32) -> Option<Reply<'a>> {
        let mut at = self.u32(start)?;
        for _ in 0..MOST {
            let rest = Reply(
                self.0
                    .get(usize::try_from(at).ok().filter(|at| *at != 0)?..)?,
            );
            if rest.u32(0)? & 0xffff == id {
                return Some(rest);
            }
            at = rest.u32(4)?;
        }
        None
    }

    /// Pairs of 64-bit words from `offset` on.
    fn pairs(self, offset: usize, count: u32) -> impl Iterator<Item = (u64, u64)> {
        let count = usize::try_from(u64::from(count).min(MOST)).unwrap_or(0);
        let pair = move |at: usize| Some((self.u64(at)?, self.u64(at + 8)?));
        (0..count).map_while(move |number| pair(offset + 16 * number))
    }
}

/// One region of a device (`struct vfio_region_info`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// BARs are 0 to 5, the expansion ROM 6, config space 7.
    pub index: u32,
    /// `VFIO_REGION_INFO_FLAG_...`.
    pub flags: u32,
    /// Bytes; 0 where the device has no such region.
    pub size: u64,
    /// Where it is in the device's file.
    pub(crate) offset: u64,
    /// Offset and length of the parts that can be mapped.
    pub areas: Vec<(u64, u64)>,
}

/// None for a reply that is too short.
pub(crate) fn region(bytes: &[u8]) -> Option<RegionInfo> {
    let reply = Reply(bytes);
    let (flags, index) = (reply.u32(4)?, reply.u32(8)?);
    let (size, offset) = (reply.u64(16)?, reply.u64(24)?);
    let sparse = (flags & VFIO_REGION_INFO_FLAG_CAPS != 0)
        .then(|| reply.capability(12, VFIO_REGION_INFO_CAP_SPARSE_MMAP))
        .flatten();
    let areas = match sparse {
        _ if flags & VFIO_REGION_INFO_FLAG_MMAP == 0 || size == 0 => Vec::new(),
        None => vec![(0, size)],
        Some(sparse) => {
            let inside = |(first, len): &(u64, u64)| {
                *len > 0 && first.checked_add(*len).is_some_and(|end| end <= size)
            };
            let pairs = sparse.pairs(16, sparse.u32(8)?);
            pairs.filter(inside).collect()
        }
    };
    Some(RegionInfo {
        index,
        flags,
        size,
        offset,
        areas,
    })
}

/// The functions that a reset of a slot or bus touches (`struct vfio_pci_hot_reset_info`): group, or
/// number at iommufd's, segment, bus, device and function. None for a reply that is too short.
pub(crate) fn hot_reset(bytes: &[u8]) -> Option<Vec<Affected>> {
    const FIRST: usize = 12;
    let reply = Reply(bytes);
    let (flags, count) = (reply.u32(4)?, usize::try_from(reply.u32(8)?).ok()?);
    let one = |number: usize| {
        let at = FIRST.checked_add(number.checked_mul(8)?)?;
        let (claim, place) = (reply.u32(at)?, reply.u32(at + 4)?.to_le_bytes());
        let [low, high, bus, devfn] = place;
        let segment = u16::from_le_bytes([low, high]).into();
        let claim = match flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID {
            0 => Claim::Group(claim),
            _ => Claim::Owned(claim.cast_signed() != VFIO_PCI_DEVID_NOT_OWNED),
        };
        Some(Affected {
            address: PciAddress::new(segment, bus, devfn >> 3, devfn & 7),
            claim,
        })
    };
    (0..count).map(one).collect()
}

/// What a container of type1 can map (`struct vfio_iommu_type1_info`). A kernel that names no
/// ranges (before 5.4) allows all addresses and refuses some when they are mapped.
pub(crate) fn limits(bytes: &[u8]) -> Option<DomainLimits> {
    let reply = Reply(bytes);
    let (flags, sizes) = (reply.u32(4)?, reply.u64(8)?);
    let sizes = if flags & INFO_PGSIZES == 0 { 0 } else { sizes };
    let ranges = (flags & INFO_CAPS != 0)
        .then(|| reply.capability(16, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE))
        .flatten();
    let everything = vec![IovaRange {
        first: 0,
        last: u64::MAX,
    }];
    let usable = match ranges {
        None => everything,
        Some(ranges) => ranges
            .pairs(16, ranges.u32(8)?)
            .map(|(first, last)| IovaRange { first, last })
            .collect(),
    };
    // Memory of this process comes in pages of 4 KiB at least.
    let smallest = 1u64.checked_shl(sizes.trailing_zeros());
    let page = smallest.unwrap_or(0).max(vmlet_memory::PAGE_SIZE);
    Some(DomainLimits { page, usable })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn pair(low: u32, high: u32) -> u64 {
        u64::from(low) | u64::from(high) << 32
    }

    /// A region of 16 KiB at 1 TiB; `flags`, and the offset of its first capability.
    fn region_words(flags: u32, first: u32) -> Vec<u64> {
        vec![pair(64, flags), pair(3, first), 0x4000, 1 << 40]
    }

    #[test]
    fn a_region_is_mapped_whole_or_not_at_all_where_nothing_else_is_said() {
        let whole = region(&words(&region_words(7, 0))).unwrap();
        assert_eq!(
            (whole.index, whole.size, whole.offset),
            (3, 0x4000, 1 << 40)
        );
        assert_eq!(whole.areas, [(0, 0x4000)]);
        assert!(
            region(&words(&region_words(3, 0)))
                .unwrap()
                .areas
                .is_empty()
        );
    }

    #[test]
    fn a_sparse_region_has_its_areas_and_no_others() {
        let mut sparse = region_words(15, 32);
        sparse.extend([pair(1 | 1 << 16, 0), pair(3, 0)]);
        sparse.extend([0, 0x1000, 0x3000, 0x1000, 0x3000, 0x2000]);
        let found = region(&words(&sparse)).unwrap();
        assert_eq!(found.areas, [(0, 0x1000), (0x3000, 0x1000)]);
    }

    #[test]
    fn lists_that_lead_nowhere_or_back_end() {
        for first in [0, 32, 4000, u32::MAX] {
            let mut broken = region_words(15, first);
            broken.extend([pair(9, 32), 0]);
            assert_eq!(region(&words(&broken)).unwrap().areas, [(0, 0x4000)]);
        }
        assert_eq!(region(&[0; 31]), None);
    }

    #[test]
    fn areas_lie_in_the_region_whatever_the_bytes_are() {
        // Numbers of a linear congruential generator.
        let mut state = 1u32;
        for _ in 0..2000 {
            let bytes: Vec<u8> = (0..128)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    state.to_le_bytes()[3] & 0x2f
                })
                .collect();
            let found = region(&bytes).unwrap();
            for (first, len) in found.areas {
                assert!(first + len <= found.size);
            }
            assert!(limits(&bytes).unwrap().page >= 4096);
        }
    }

    #[test]
    fn functions_that_are_reset_together_are_read_and_a_short_list_is_none() {
        let words = [28, 0, 2, 10, 0x0004_0000, 11, 0x0904_0001];
        let mut bytes: Vec<u8> = words
            .iter()
            .flat_map(|word: &u32| word.to_le_bytes())
            .collect();
        let places = |bytes: &[u8]| -> Vec<String> {
            let found = hot_reset(bytes).unwrap();
            found.iter().map(|one| one.address.to_string()).collect()
        };
        assert_eq!(places(&bytes), ["0000:04:00.0", "0001:04:01.1"]);
        let claims = |bytes: &[u8]| -> Vec<Claim> {
            let found = hot_reset(bytes).unwrap();
            found.iter().map(|one| one.claim).collect()
        };
        assert_eq!(claims(&bytes), [Claim::Group(10), Claim::Group(11)]);
        // By iommufd: the first is one that is open, the second not ours.
        bytes[4] = 1;
        bytes[20..24].fill(0xff);
        assert_eq!(claims(&bytes), [Claim::Owned(true), Claim::Owned(false)]);
        assert_eq!(hot_reset(&bytes[..27]), None);
    }

    #[test]
    fn the_ranges_of_a_container_are_read() {
        let mut info = vec![pair(88, 3), 0x4020_1000, pair(24, 0)];
        info.extend([pair(1 | 1 << 16, 0), pair(2, 0)]);
        info.extend([0, 0xfedf_ffff, 0xfef0_0000, 0xffff_ffff_ffff]);
        let found = limits(&words(&info)).unwrap();
        assert_eq!(found.page, 4096);
        let ends: Vec<_> = found.usable.iter().map(|one| one.last).collect();
        assert_eq!(ends, [0xfedf_ffff, 0xffff_ffff_ffff]);
    }

    #[test]
    fn a_container_that_names_no_ranges_and_no_pages_has_all_of_them() {
        let found = limits(&words(&[pair(24, 0), 0, 0])).unwrap();
        assert_eq!(found.page, 4096);
        assert_eq!(found.usable.len(), 1);
    }
}
