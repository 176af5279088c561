//! Memory slots and the planner that makes them of mappings.

use crate::{Gpa, Hva, Mapping, RegionKind};

/// Number of a memory slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

/// A range of guest-physical addresses backed by host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memslot {
    /// Number.
    pub id: SlotId,
    /// Guest-physical start, a multiple of 4 KiB.
    pub gpa: Gpa,
    /// Bytes, a multiple of 4 KiB.
    pub len: u64,
    /// Host-virtual start, a multiple of 4 KiB.
    pub hva: Hva,
    /// Guest writes are not memory writes but reach the board as MMIO.
    pub readonly: bool,
    /// Guest writes are logged.
    pub log_dirty: bool,
}

/// A slot before it has a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) gpa: Gpa,
    pub(crate) len: u64,
    pub(crate) hva: Hva,
    pub(crate) readonly: bool,
    pub(crate) log_dirty: bool,
}

impl Plan {
    fn matches(&self, slot: &Memslot) -> bool {
        (self.gpa, self.len, self.hva, self.readonly)
            == (slot.gpa, slot.len, slot.hva, slot.readonly)
    }

    fn numbered(&self, id: SlotId) -> Memslot {
        let Plan {
            gpa,
            len,
            hva,
            readonly,
            log_dirty,
        } = *self;
        Memslot {
            id,
            gpa,
            len,
            hva,
            readonly,
            log_dirty,
        }
    }

    /// Whether `next` goes on where this slot ends, in the guest and in the host.
    fn continues_in(&self, next: &Plan) -> bool {
        self.gpa.0 + self.len == next.gpa.0
            && self.hva.0 + self.len == next.hva.0
            && (self.readonly, self.log_dirty) == (next.readonly, next.log_dirty)
    }
}

/// The fewest slots for mappings sorted by address.
pub(crate) fn plan(mappings: &[Mapping], log_dirty: bool) -> Vec<Plan> {
    let mut plans: Vec<Plan> = Vec::new();
    for mapping in mappings {
        let next = Plan {
            gpa: mapping.gpa,
            len: mapping.len,
            hva: Hva(mapping.ram.hva().0 + mapping.offset),
            readonly: mapping.readonly,
            log_dirty: log_dirty && !mapping.readonly && mapping.kind == RegionKind::Ram,
        };
        match plans.last_mut() {
            Some(last) if last.continues_in(&next) => last.len += next.len,
            _ => plans.push(next),
        }
    }
    plans
}

/// Numbers `plans`: a slot that is there already keeps its number, others take the lowest that no
/// slot of `current` has, so that a removed slot's number is free for the next change only.
pub(crate) fn number(plans: &[Plan], current: &[Memslot]) -> Vec<Memslot> {
    let mut free = (0..)
        .map(SlotId)
        .filter(|id| current.iter().all(|slot| slot.id != *id));
    plans
        .iter()
        .filter_map(|plan| {
            let kept = current
                .iter()
                .find(|slot| plan.matches(slot))
                .map(|slot| slot.id);
            kept.or_else(|| free.next()).map(|id| plan.numbered(id))
        })
        .collect()
}
