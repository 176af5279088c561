//! Which page sizes the second stage can use for a slot, and what stands against larger ones.
//!
//! KVM uses a large page where guest and host address agree modulo its size, the whole page lies
//! in one slot, the slot's writes are not logged, and the host's own page is that large. What is
//! here follows from the first three and from the backing; whether the host really has a large
//! page there is known only afterwards, from the engine's counts.

use std::fmt;

use crate::{Gpa, Memslot, PAGE_SIZE};

/// The page sizes, largest first.
pub const PAGE_SIZES: [u64; 3] = [1 << 30, 2 << 20, PAGE_SIZE];

/// What forbids a larger page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageLimit {
    /// Nothing: the page is of the largest size.
    None,
    /// The backing gives no larger pages.
    Backing,
    /// Guest and host address differ modulo the larger size.
    Misaligned,
    /// A larger page would reach out of the slot, into a hole or another slot.
    Hole,
    /// Writes are logged, page by page.
    DirtyLog,
}

impl PageLimit {
    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            PageLimit::None => "none",
            PageLimit::Backing => "backing",
            PageLimit::Misaligned => "misaligned",
            PageLimit::Hole => "hole",
            PageLimit::DirtyLog => "dirty log",
        }
    }
}

impl fmt::Display for PageLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The pages that the second stage can use for one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagePlan {
    /// The slot.
    pub slot: Memslot,
    /// The largest page the backing gives.
    pub backing: u64,
    /// Pages of 1 GiB, 2 MiB and 4 KiB.
    pub pages: [u64; 3],
    /// What forbids a page larger than the largest in use.
    pub limit: PageLimit,
    /// The smaller pages at the ends are there because larger ones would reach out of the slot.
    pub cut: bool,
}

impl PagePlan {
    /// The plan for `slot` on a backing whose largest page is `backing` bytes.
    pub fn new(slot: &Memslot, backing: u64) -> PagePlan {
        let end = slot.gpa.0.saturating_add(slot.len);
        let (mut pages, mut covered) = ([0; 3], 0);
        for (size, count) in PAGE_SIZES.into_iter().zip(&mut pages) {
            let inside = whole_pages(slot.gpa.0, end, size) * size;
            if inside > covered && obstacle(slot, size, backing).is_none() {
                *count = (inside - covered) / size;
                covered = inside;
            }
        }
        let used = PAGE_SIZES.into_iter().zip(pages);
        let sizes = used.clone().filter(|(_, count)| *count > 0).count();
        let largest = used.clone().find(|(_, count)| *count > 0);
        let largest = largest.map_or(PAGE_SIZE, |(size, _)| size);
        PagePlan {
            slot: *slot,
            backing,
            pages,
            limit: limit(slot, largest, backing, |size| {
                whole_pages(slot.gpa.0, end, size) > 0
            }),
            cut: sizes > 1,
        }
    }

    /// The largest page in use.
    pub fn largest(&self) -> u64 {
        let used = PAGE_SIZES.into_iter().zip(self.pages);
        used.filter(|(_, count)| *count > 0)
            .map(|(size, _)| size)
            .next()
            .unwrap_or(PAGE_SIZE)
    }

    /// The page that can hold `gpa`, an address of the slot, and what forbids a larger one.
    pub fn at(&self, gpa: Gpa) -> (u64, PageLimit) {
        let slot = &self.slot;
        let end = slot.gpa.0.saturating_add(slot.len);
        let inside = |size: u64| {
            let page = gpa.align_down(size).0;
            page >= slot.gpa.0 && page.checked_add(size).is_some_and(|last| last <= end)
        };
        let fits = |size: &u64| obstacle(slot, *size, self.backing).is_none() && inside(*size);
        let size = PAGE_SIZES.into_iter().find(fits).unwrap_or(PAGE_SIZE);
        (size, limit(slot, size, self.backing, inside))
    }
}

/// Whole pages of `size` between two addresses.
fn whole_pages(first: u64, end: u64, size: u64) -> u64 {
    (end / size).saturating_sub(first.div_ceil(size))
}

/// What forbids pages of `size` anywhere in `slot`.
fn obstacle(slot: &Memslot, size: u64, backing: u64) -> Option<PageLimit> {
    if size == PAGE_SIZE {
        None
    } else if slot.log_dirty {
        Some(PageLimit::DirtyLog)
    } else if slot.gpa.0 % size != slot.hva.0 % size {
        Some(PageLimit::Misaligned)
    } else if size > backing {
        Some(PageLimit::Backing)
    } else {
        None
    }
}

/// What forbids the size above `used`, where `inside` says whether such a page lies in the slot.
fn limit(slot: &Memslot, used: u64, backing: u64, inside: impl Fn(u64) -> bool) -> PageLimit {
    let next = PAGE_SIZES.into_iter().rev().find(|size| *size > used);
    match next {
        None => PageLimit::None,
        Some(size) if size > backing && !slot.log_dirty => PageLimit::Backing,
        Some(size) => match obstacle(slot, size, backing) {
            Some(limit) => limit,
            None if inside(size) => PageLimit::None,
            None => PageLimit::Hole,
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Hva, SlotId};

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn slot(gpa: u64, hva: u64, len: u64) -> Memslot {
        Memslot {
            id: SlotId(0),
            gpa: Gpa(gpa),
            len,
            hva: Hva(hva),
            readonly: false,
            log_dirty: false,
        }
    }

    #[test]
    fn an_aligned_gibibyte_of_gibibyte_pages_is_one_page() {
        let plan = PagePlan::new(&slot(GIB, 2 * GIB, GIB), GIB);
        assert_eq!((plan.pages, plan.limit), ([1, 0, 0], PageLimit::None));
        assert_eq!(plan.at(Gpa(GIB + 5)), (GIB, PageLimit::None));
    }

    #[test]
    fn a_host_address_one_page_off_is_misaligned() {
        let plan = PagePlan::new(&slot(0, GIB + 4096, 4 * MIB), 2 * MIB);
        assert_eq!(
            (plan.pages, plan.limit),
            ([0, 0, 1024], PageLimit::Misaligned)
        );
    }

    #[test]
    fn ends_that_cut_a_page_use_smaller_ones() {
        let plan = PagePlan::new(&slot(MIB, 2 * GIB + MIB, 4 * MIB), 2 * MIB);
        assert_eq!((plan.pages, plan.cut), ([0, 1, 512], true));
        assert_eq!(plan.at(Gpa(MIB)), (4096, PageLimit::Hole));
        assert_eq!(plan.at(Gpa(2 * MIB)), (2 * MIB, PageLimit::Backing));
        assert_eq!(plan.at(Gpa(4 * MIB)), (4096, PageLimit::Hole));
    }

    #[test]
    fn a_logged_slot_has_small_pages() {
        let mut logged = slot(0, GIB, 4 * MIB);
        logged.log_dirty = true;
        let plan = PagePlan::new(&logged, 2 * MIB);
        assert_eq!(
            (plan.pages, plan.limit),
            ([0, 0, 1024], PageLimit::DirtyLog)
        );
    }

    #[test]
    fn a_short_slot_is_limited_by_its_ends() {
        let plan = PagePlan::new(&slot(0, GIB, MIB), 2 * MIB);
        assert_eq!((plan.pages, plan.limit), ([0, 0, 256], PageLimit::Hole));
    }

    #[test]
    fn transparent_huge_pages_stop_at_two_mebibytes() {
        let plan = PagePlan::new(&slot(GIB, 2 * GIB, GIB), 2 * MIB);
        assert_eq!((plan.pages, plan.limit), ([0, 512, 0], PageLimit::Backing));
        assert_eq!(plan.largest(), 2 * MIB);
    }

    proptest! {
        #[test]
        fn the_pages_of_a_plan_are_those_of_its_addresses(
            gpa in 0u64..2048, shift in prop_oneof![Just(0u64), Just(1), Just(512)], len in 1u64..4096,
        ) {
            let (gpa, len) = (gpa * 4096, len * 4096);
            let plan = PagePlan::new(&slot(gpa, GIB + gpa + shift * 4096, len), GIB);
            let small = (gpa..gpa + len).step_by(4096);
            let mut found = [0u64; 3];
            for at in small {
                let (size, _) = plan.at(Gpa(at));
                let index = PAGE_SIZES.iter().position(|s| *s == size).unwrap();
                found[index] += 4096;
            }
            let bytes: Vec<u64> = PAGE_SIZES.iter().zip(plan.pages).map(|(s, n)| s * n).collect();
            prop_assert_eq!(&found[..], &bytes[..]);
            prop_assert_eq!(found.iter().sum::<u64>(), len);
        }
    }
}
