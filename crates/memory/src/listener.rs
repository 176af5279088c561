//! Who is told when the map of guest memory changes.

use std::fmt::Debug;

use crate::{Mapping, Memslot};

/// One change of the map, all of it or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapChange {
    /// Slots that go.
    pub removed: Vec<Memslot>,
    /// Slots that come.
    pub added: Vec<Memslot>,
    /// Slots whose flags change: before and after.
    pub changed: Vec<(Memslot, Memslot)>,
    /// Mappings that come; slots may join several.
    pub mapped: Vec<Mapping>,
    /// Mappings that go.
    pub unmapped: Vec<Mapping>,
}

impl MapChange {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        let mappings = self.mapped.is_empty() && self.unmapped.is_empty();
        mappings && self.removed.is_empty() && self.added.is_empty() && self.changed.is_empty()
    }
}

/// A listener's refusal, with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

/// Somebody who keeps a copy of the map: memory slots, DMA domains, a software TLB.
///
/// A change runs in two phases. In [`MapListener::prepare`] a listener takes up what is added and
/// may refuse; then either every listener gets [`MapListener::commit`], where it lets go of what is
/// removed, or those that have prepared get [`MapListener::rollback`]. Listeners prepare in the
/// order they were registered and commit in reverse: so a memory slot exists before it is mapped
/// for DMA, and is unmapped for DMA before it is deleted.
pub trait MapListener: Send + Sync + Debug {
    /// The listener's name in error messages.
    fn name(&self) -> &str;

    /// Takes up what is added and changed; a refusal leaves the listener as it was.
    fn prepare(&self, change: &MapChange) -> Result<(), Refusal>;

    /// Lets go of what is removed.
    fn commit(&self, change: &MapChange);

    /// Undoes [`MapListener::prepare`].
    fn rollback(&self, change: &MapChange);
}
