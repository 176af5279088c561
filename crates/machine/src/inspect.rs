//! How an address is translated, and in which pages memory is mapped.
//!
//! The second stage of `/dev/kvm`'s engine is KVM's own: its tables cannot be read. What is said of
//! it here is what the memory slots guarantee, and what KVM counts.

use vmlet_memory::{
    AddressSpace, Gpa, PAGE_SIZES, PageLimit, PagePlan,
    paging::{PagingContext, Step, WalkFault, walk},
    size_name,
};
use vmlet_vcpu::Stat;

/// The second stage behind a guest-physical address, as the memory slots say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondStage {
    /// The slot's number.
    pub slot: u32,
    /// The slot's first guest-physical address.
    pub slot_gpa: u64,
    /// The slot's bytes.
    pub slot_len: u64,
    /// Where the address lies in this process.
    pub hva: u64,
    /// The largest page that can map it.
    pub page_size: u64,
    /// What forbids a larger one.
    pub limit: PageLimit,
    /// Guest writes are not memory writes.
    pub readonly: bool,
}

/// One entry of the guest's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkStep {
    /// The architecture's name of the level's entries.
    pub name: &'static str,
    /// The entry, and what it and those above it allow.
    pub step: Step,
    /// The second stage behind the entry's address.
    pub stage: Option<SecondStage>,
}

/// Where a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkEnd {
    /// In a page.
    Page {
        /// Guest-physical address.
        gpa: u64,
        /// Bytes of the page in the guest's tables.
        page_size: u64,
        /// Writes are allowed.
        writable: bool,
        /// User mode is allowed.
        user: bool,
        /// Execution is allowed.
        executable: bool,
        /// The second stage behind it; none where no memory is.
        stage: Option<SecondStage>,
    },
    /// In a fault.
    Fault(WalkFault),
}

/// A walk of the guest's tables, explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalkReport {
    /// The linear address.
    pub address: u64,
    /// CR3 of the walk.
    pub cr3: u64,
    /// Levels of the tables: 0 without paging, 2, 3 (PAE), 4 or 5.
    pub levels: u8,
    /// The entries, from the highest level down.
    pub steps: Vec<WalkStep>,
    /// The end.
    pub end: WalkEnd,
}

/// In which pages memory can be mapped, and in which it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageReport {
    /// What each slot allows.
    pub plans: Vec<PagePlan>,
    /// Pages of 1 GiB, 2 MiB and 4 KiB that the engine has mapped; none where it does not count.
    pub achieved: Option<[u64; 3]>,
    /// Why the two differ, and why there are no larger pages.
    pub reasons: Vec<String>,
}

/// Explains the walk of `address`.
pub(crate) fn explain(space: &AddressSpace, context: &PagingContext, address: u64) -> WalkReport {
    let plans = space.page_plans();
    let found = walk(context, address, &|gpa| space.load_u64(gpa));
    let step = |step: &Step| WalkStep {
        name: name(step.level),
        step: *step,
        stage: second_stage(&plans, step.gpa),
    };
    WalkReport {
        address,
        cr3: context.cr3,
        levels: context.levels(),
        steps: found.steps.iter().map(step).collect(),
        end: match found.result {
            Err(fault) => WalkEnd::Fault(fault),
            Ok(page) => WalkEnd::Page {
                gpa: page.gpa.0,
                page_size: page.page_size,
                writable: page.writable,
                user: page.user,
                executable: page.executable,
                stage: second_stage(&plans, page.gpa),
            },
        },
    }
}

fn name(level: u8) -> &'static str {
    match level {
        5 => "PML5E",
        4 => "PML4E",
        3 => "PDPTE",
        2 => "PDE",
        _ => "PTE",
    }
}

fn second_stage(plans: &[PagePlan], gpa: Gpa) -> Option<SecondStage> {
    let holds = |plan: &&PagePlan| {
        let offset = gpa.offset_from(plan.slot.gpa);
        offset.is_some_and(|offset| offset < plan.slot.len)
    };
    let plan = plans.iter().find(holds)?;
    let (page_size, limit) = plan.at(gpa);
    let slot = plan.slot;
    Some(SecondStage {
        slot: slot.id.0,
        slot_gpa: slot.gpa.0,
        slot_len: slot.len,
        hva: slot.hva.0 + gpa.offset_from(slot.gpa)?,
        page_size,
        limit,
        readonly: slot.readonly,
    })
}

/// Compares what the slots allow with what the engine counts.
pub(crate) fn pages(plans: Vec<PagePlan>, stats: &[Stat]) -> PageReport {
    let count = |name: &str| {
        let stat = stats.iter().find(|stat| stat.name == name);
        stat.and_then(|stat| stat.values.first().copied())
    };
    let counts = ["pages_1g", "pages_2m", "pages_4k"].map(count);
    let achieved = match counts {
        [Some(large), Some(middle), Some(small)] => Some([large, middle, small]),
        _ => None,
    };
    let mut reasons: Vec<String> = plans.iter().filter_map(limit_of).collect();
    match achieved {
        Some(achieved) => reasons.extend(difference(&plans, achieved)),
        None => reasons.push("the engine does not count the pages it maps".to_owned()),
    }
    PageReport {
        plans,
        achieved,
        reasons,
    }
}

/// Why a slot has no larger pages than it has.
fn limit_of(plan: &PagePlan) -> Option<String> {
    let (slot, size) = (plan.slot.id.0, size_name(plan.largest()));
    let cause = match plan.limit {
        PageLimit::None | PageLimit::Backing => {
            return plan.cut.then(|| {
                format!("slot {slot}: its ends cut a page (hole), so smaller pages map them")
            });
        }
        PageLimit::Misaligned => "guest and host address differ modulo a larger page (misaligned)",
        PageLimit::Hole => "a larger page would reach out of the slot (hole)",
        PageLimit::DirtyLog => "writes are logged page by page (dirty log)",
    };
    Some(format!("slot {slot}: pages of {size} only: {cause}"))
}

fn bytes(pages: [u64; 3]) -> [u64; 3] {
    let [large, middle, small] = PAGE_SIZES;
    let [a, b, c] = pages;
    [
        a.saturating_mul(large),
        b.saturating_mul(middle),
        c.saturating_mul(small),
    ]
}

/// Why what is mapped is not what the slots allow.
fn difference(plans: &[PagePlan], achieved: [u64; 3]) -> Vec<String> {
    let planned = plans.iter().map(|plan| bytes(plan.pages));
    let planned = planned.fold([0u64; 3], |[a, b, c], [x, y, z]| [a + x, b + y, c + z]);
    let mapped = bytes(achieved);
    let (all, now): (u64, u64) = (planned.iter().sum(), mapped.iter().sum());
    let mut reasons = Vec::new();
    if now < all {
        reasons.push(format!(
            "{} of {} KiB are not mapped: KVM maps a page when the guest first touches it",
            (all - now) / 1024,
            all / 1024
        ));
    }
    let smaller = |level: usize| {
        let sum = |pages: [u64; 3]| pages.iter().skip(level).sum::<u64>();
        sum(mapped).saturating_sub(sum(planned))
    };
    for (level, size) in [(1, "1 GiB"), (2, "2 MiB")] {
        let excess = smaller(level);
        if excess > 0 {
            reasons.push(format!(
                "{} KiB that allow pages of {size} are mapped in smaller ones: the host's memory \
                 there is not in such pages, or it was when they were mapped",
                excess / 1024
            ));
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use vmlet_memory::{Hva, Memslot, SlotId};
    use vmlet_vcpu::{StatKind, StatUnit};

    use super::*;

    fn plan(hva: u64, log_dirty: bool) -> PagePlan {
        let slot = Memslot {
            id: SlotId(3),
            gpa: Gpa(0),
            len: 4 << 20,
            hva: Hva(hva),
            readonly: false,
            log_dirty,
        };
        PagePlan::new(&slot, 2 << 20)
    }

    fn stats(counts: [u64; 3]) -> Vec<Stat> {
        let stat = |(name, count): (&str, u64)| Stat {
            name: name.to_owned(),
            kind: StatKind::Instant,
            unit: StatUnit::None,
            base: 10,
            exponent: 0,
            bucket_size: 0,
            values: vec![count],
        };
        let names = ["pages_1g", "pages_2m", "pages_4k"];
        names.into_iter().zip(counts).map(stat).collect()
    }

    #[test]
    fn pages_as_planned_need_no_reason() {
        let report = pages(vec![plan(1 << 30, false)], &stats([0, 2, 0]));
        assert_eq!((report.achieved, report.reasons), (Some([0, 2, 0]), vec![]));
    }

    #[test]
    fn each_obstacle_is_named() {
        let reason = |plan, counts| pages(vec![plan], &stats(counts)).reasons.join("; ");
        assert!(reason(plan(4096, false), [0, 0, 1024]).contains("misaligned"));
        assert!(reason(plan(0, true), [0, 0, 1024]).contains("dirty log"));
        assert!(reason(plan(0, false), [0, 1, 0]).contains("2048 of 4096 KiB are not mapped"));
        assert!(reason(plan(0, false), [0, 1, 512]).contains("2048 KiB that allow pages of 2 MiB"));
    }

    #[test]
    fn an_engine_that_does_not_count_is_named() {
        let report = pages(vec![plan(0, false)], &[]);
        assert_eq!(report.achieved, None);
        assert!(report.reasons.join(" ").contains("does not count"));
    }

    #[test]
    fn an_address_behind_every_slot_has_no_second_stage() {
        assert_eq!(second_stage(&[plan(0, false)], Gpa(4 << 20)), None);
        let last = second_stage(&[plan(1 << 30, false)], Gpa((4 << 20) - 1)).unwrap();
        assert_eq!((last.slot, last.hva), (3, (1 << 30) + (4 << 20) - 1));
    }
}
