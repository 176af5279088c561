//! The two-dimensional walk: every access of the guest's own walk goes through the second stage.
//!
//! With four levels in each dimension a translation that no TLB holds takes 24 reads: each of the
//! guest's four entries costs a second-stage walk of four reads and its own read, and the page it
//! ends at costs four more.

use std::cell::RefCell;

use super::{
    guest::{PagingContext, Walk, WalkFault, walk},
    stage::{Access, StageFault, StageFormat, StageWalk, walk_stage},
};
use crate::{Gpa, Hpa};

/// A guest-physical address that a walk accessed, and the second stage behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageAccess {
    /// The guest-physical address: of a table's entry, or at last of the page.
    pub gpa: Gpa,
    /// The second-stage walk.
    pub stage: StageWalk,
}

/// Where a linear address leads through both stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedTranslation {
    /// Guest-physical address.
    pub gpa: Gpa,
    /// Host-physical address.
    pub hpa: Hpa,
    /// Bytes that one TLB entry can cover: the smaller of both pages.
    pub page_size: u64,
}

/// Why a two-dimensional walk ends without a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NestedFault {
    /// The guest's tables: a page fault in the guest.
    Guest(WalkFault),
    /// The second stage, at this guest-physical address: an exit.
    Stage {
        /// The address.
        gpa: Gpa,
        /// The fault.
        fault: StageFault,
    },
}

/// A two-dimensional walk with both traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NestedWalk {
    /// The guest's entries.
    pub guest: Walk,
    /// What the second stage did for each of them, and at last for the page.
    pub accesses: Vec<StageAccess>,
    /// The end.
    pub result: Result<NestedTranslation, NestedFault>,
}

impl NestedWalk {
    /// Entries read in both dimensions: what the walk costs where nothing is cached.
    pub fn reads(&self) -> usize {
        let stage = self.accesses.iter().map(|access| access.stage.steps.len());
        self.guest.steps.len() + stage.sum::<usize>()
    }
}

/// Walks the guest's tables for `linear` and, for each address on the way, the tables of `format`.
/// `read` gives an aligned 64-bit word of host memory, `None` where no memory is.
pub fn walk_nested(
    context: &PagingContext,
    format: &dyn StageFormat,
    linear: u64,
    access: Access,
    read: &dyn Fn(Hpa) -> Option<u64>,
) -> NestedWalk {
    let accesses = RefCell::new(Vec::new());
    let through = |gpa: Gpa, access: Access| {
        let stage = walk_stage(format, gpa, access, read);
        let result = stage.result;
        accesses.borrow_mut().push(StageAccess { gpa, stage });
        result
    };
    let guest = walk(context, linear, &|gpa| {
        through(gpa, Access::Table).ok().and_then(|t| read(t.hpa))
    });
    let result = match guest.result {
        Ok(found) => through(found.gpa, access)
            .map(|stage| NestedTranslation {
                gpa: found.gpa,
                hpa: stage.hpa,
                page_size: found.page_size.min(stage.page_size),
            })
            .map_err(|fault| NestedFault::Stage {
                gpa: found.gpa,
                fault,
            }),
        Err(fault) => Err(second_stage_fault(&accesses.borrow())
            .filter(|_| matches!(fault, WalkFault::OutsideMemory { .. }))
            .unwrap_or(NestedFault::Guest(fault))),
    };
    NestedWalk {
        guest,
        accesses: accesses.into_inner(),
        result,
    }
}

/// The fault of the last access, if it has one.
fn second_stage_fault(accesses: &[StageAccess]) -> Option<NestedFault> {
    let last = accesses.last()?;
    let fault = last.stage.result.err()?;
    Some(NestedFault::Stage {
        gpa: last.gpa,
        fault,
    })
}

#[cfg(test)]
mod tests;
