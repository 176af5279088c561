//! The map from guest-physical addresses to RAM.
//!
//! Readers look at an immutable view that is replaced as a whole; changes are serialised, run
//! through the listeners in two phases and are published only when every listener agreed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use crate::{
    Extent, Gpa, MapChange, MapListener, MemoryError, MemoryView, Memslot, PAGE_SIZE, PagePlan,
    Ram, SlotId, dirty, slots,
};

/// What a mapping is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// Memory.
    Ram,
    /// Memory the guest cannot write.
    Rom,
    /// A device's registers or memory, mapped straight into the guest.
    DeviceBar,
}

/// A range of guest-physical addresses and the RAM behind it.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// First address, a multiple of 4 KiB.
    pub gpa: Gpa,
    /// Bytes, a multiple of 4 KiB.
    pub len: u64,
    /// The RAM.
    pub ram: Arc<Ram>,
    /// Where in the RAM, a multiple of 4 KiB.
    pub offset: u64,
    /// Guest writes are not memory writes.
    pub readonly: bool,
    /// What it is to the guest.
    pub kind: RegionKind,
}

impl Mapping {
    /// Writable memory: all of `ram` at `gpa`.
    pub fn ram(gpa: Gpa, ram: Arc<Ram>) -> Mapping {
        Mapping {
            gpa,
            len: ram.len(),
            ram,
            offset: 0,
            readonly: false,
            kind: RegionKind::Ram,
        }
    }

    fn end(&self) -> u64 {
        self.gpa.0.saturating_add(self.len)
    }

    fn check(&self) -> Result<(), MemoryError> {
        let aligned = (self.gpa.0 | self.len | self.offset).is_multiple_of(PAGE_SIZE);
        if !aligned || self.len == 0 || self.gpa.checked_add(self.len).is_none() {
            return Err(MemoryError::BadRange {
                gpa: self.gpa.0,
                len: self.len,
            });
        }
        match self.offset.checked_add(self.len) {
            Some(end) if end <= self.ram.len() => Ok(()),
            _ => Err(MemoryError::OutsideRam {
                offset: self.offset,
                len: self.len,
                size: self.ram.len(),
            }),
        }
    }
}

impl PartialEq for Mapping {
    /// The same part of the same RAM at the same place.
    fn eq(&self, other: &Mapping) -> bool {
        let place = |m: &Mapping| (m.gpa, m.len, m.offset, m.readonly, m.kind);
        place(self) == place(other) && Arc::ptr_eq(&self.ram, &other.ram)
    }
}

impl Eq for Mapping {}

/// A mapping as users see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// First address.
    pub gpa: Gpa,
    /// Bytes.
    pub len: u64,
    /// What it is to the guest.
    pub kind: RegionKind,
    /// Guest writes are not memory writes.
    pub readonly: bool,
}

#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) mappings: Vec<Mapping>,
    slots: Vec<Memslot>,
    log_dirty: bool,
}

/// The guest-physical address space of one VM.
#[derive(Debug)]
pub struct AddressSpace {
    // Before the view: an engine that goes with its listener need not be told of each page that goes.
    listeners: Mutex<Vec<Arc<dyn MapListener>>>,
    view: ArcSwap<View>,
    max_slots: usize,
}

impl AddressSpace {
    /// An empty space for an engine that takes `max_slots` memory slots.
    pub fn new(max_slots: usize) -> AddressSpace {
        AddressSpace {
            view: ArcSwap::default(),
            listeners: Mutex::default(),
            max_slots,
        }
    }

    /// Adds mappings, all or none.
    pub fn map(&self, new: Vec<Mapping>) -> Result<(), MemoryError> {
        let listeners = self.lock();
        let mut mappings = self.view.load().mappings.clone();
        for mapping in new {
            mapping.check()?;
            let at = mappings.partition_point(|m| m.gpa < mapping.gpa);
            let before = at.checked_sub(1).and_then(|i| mappings.get(i));
            let clash = before
                .filter(|m| m.end() > mapping.gpa.0)
                .or_else(|| mappings.get(at).filter(|m| mapping.end() > m.gpa.0));
            if let Some(other) = clash {
                let (gpa, len) = (mapping.gpa.0, mapping.len);
                return Err(MemoryError::Overlap {
                    gpa,
                    len,
                    other: other.gpa.0,
                });
            }
            mappings.insert(at, mapping);
        }
        let log_dirty = self.view.load().log_dirty;
        self.replace(&listeners, mappings, log_dirty)
    }

    /// Removes the mapping that is exactly `gpa..gpa + len`; refused while its RAM is held there.
    pub fn unmap(&self, gpa: Gpa, len: u64) -> Result<(), MemoryError> {
        let listeners = self.lock();
        let mut mappings = self.view.load().mappings.clone();
        let at = mappings.iter().position(|m| m.gpa == gpa && m.len == len);
        let gone = at.map(|at| mappings.remove(at));
        let gone = gone.ok_or(MemoryError::NoMapping { gpa: gpa.0, len })?;
        gone.ram
            .check_unleased(gone.offset..gone.offset + gone.len, "unmapping")?;
        let log_dirty = self.view.load().log_dirty;
        self.replace(&listeners, mappings, log_dirty)
    }

    /// Switches the log of guest writes on or off.
    pub fn set_dirty_logging(&self, on: bool) -> Result<(), MemoryError> {
        let listeners = self.lock();
        let mappings = self.view.load().mappings.clone();
        self.replace(&listeners, mappings, on)
    }

    /// Adds a listener and tells it the whole map; a refusal leaves it out.
    pub fn add_listener(&self, listener: Arc<dyn MapListener>) -> Result<(), MemoryError> {
        let mut listeners = self.lock();
        let view = self.view.load();
        let change = MapChange {
            added: view.slots.clone(),
            mapped: view.mappings.clone(),
            ..MapChange::default()
        };
        listener
            .prepare(&change)
            .map_err(|refusal| MemoryError::Refused {
                listener: listener.name().to_owned(),
                reason: refusal.0,
            })?;
        listener.commit(&change);
        listeners.push(listener);
        Ok(())
    }

    /// Takes a listener away, which is not told: it lets go of the map by itself.
    pub fn remove_listener(&self, listener: &Arc<dyn MapListener>) {
        let mut listeners = self.lock();
        listeners.retain(|other| !std::ptr::addr_eq(Arc::as_ptr(other), Arc::as_ptr(listener)));
    }

    /// The memory slots as they stand.
    pub fn slots(&self) -> Vec<Memslot> {
        self.view.load().slots.clone()
    }

    /// The page sizes that the second stage can use for each slot.
    pub fn page_plans(&self) -> Vec<PagePlan> {
        let view = self.view.load();
        let plan = |slot: &Memslot| {
            let inside = |m: &&Mapping| m.gpa >= slot.gpa && m.end() <= slot.gpa.0 + slot.len;
            let backings = view.mappings.iter().filter(inside);
            let smallest = backings.map(|m| m.ram.largest_page()).min();
            PagePlan::new(slot, smallest.unwrap_or(PAGE_SIZE))
        };
        view.slots.iter().map(plan).collect()
    }

    /// The map as it stands, for devices: later changes of the map are not seen through it, and it
    /// keeps the RAM mapped.
    pub fn view(&self) -> MemoryView {
        MemoryView::new(self.view.load_full())
    }

    /// The mappings as they stand, by address.
    pub fn regions(&self) -> Vec<RegionInfo> {
        let view = self.view.load();
        let info = |m: &Mapping| RegionInfo {
            gpa: m.gpa,
            len: m.len,
            kind: m.kind,
            readonly: m.readonly,
        };
        view.mappings.iter().map(info).collect()
    }

    /// The RAM behind `gpa`, the offset in it and how many bytes follow in the same mapping.
    pub fn find(&self, gpa: Gpa) -> Option<(Arc<Ram>, u64, u64)> {
        let view = self.view.load();
        let (mapping, within) = lookup(&view, gpa)?;
        Some((
            Arc::clone(&mapping.ram),
            mapping.offset + within,
            mapping.len - within,
        ))
    }

    /// Copies guest memory; nothing is copied when a part is not memory.
    pub fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), MemoryError> {
        let view = self.view.load();
        check(&view, gpa, data.len() as u64, false)?;
        let mut at = gpa;
        let mut rest = data;
        while !rest.is_empty() {
            let (mapping, within, count) = piece(&view, at, rest.len())?;
            let (now, later) = rest.split_at_mut(count);
            mapping.ram.read(mapping.offset + within, now)?;
            at = Gpa(at.0 + count as u64);
            rest = later;
        }
        Ok(())
    }

    /// Copies into guest memory; nothing is copied when a part is not writable memory.
    pub fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryError> {
        let view = self.view.load();
        check(&view, gpa, data.len() as u64, true)?;
        self.copy_in(&view, gpa, data)
    }

    /// Fills memory before the guest runs, read-only memory too.
    pub fn load(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryError> {
        let view = self.view.load();
        check(&view, gpa, data.len() as u64, false)?;
        self.copy_in(&view, gpa, data)
    }

    /// Has the host give the pages of `len` bytes now, as [`Ram::populate`] does.
    pub fn populate(&self, gpa: Gpa, len: u64) -> Result<(), MemoryError> {
        let view = self.view.load();
        check(&view, gpa, len, false)?;
        let end = gpa.0 + len;
        let mut at = gpa.0;
        while at < end {
            let rest = usize::try_from(end - at).unwrap_or(usize::MAX);
            let (mapping, within, count) = piece(&view, Gpa(at), rest)?;
            mapping
                .ram
                .populate(mapping.offset + within, count as u64)?;
            at += count as u64;
        }
        Ok(())
    }

    /// One aligned 64-bit word in one piece; `None` where no memory is.
    pub fn load_u64(&self, gpa: Gpa) -> Option<u64> {
        let view = self.view.load();
        let (mapping, within) = lookup(&view, gpa)?;
        mapping.ram.load_u64(mapping.offset + within).ok()
    }

    /// The extents written since the last call: by the guest (`log` reads a slot's log: id and
    /// pages in, bits out), by this process, and what somebody may have written unseen.
    pub fn collect_dirty(
        &self,
        log: &mut dyn FnMut(SlotId, u64) -> Result<Vec<u64>, String>,
    ) -> Result<Vec<Extent>, MemoryError> {
        let _serialised = self.lock();
        let view = self.view.load();
        let mut found: Vec<Extent> = Vec::new();
        for slot in &view.slots {
            let pages = slot.len / PAGE_SIZE;
            let mut bits = self.written(&view, slot);
            if slot.log_dirty {
                let logged = log(slot.id, pages).map_err(|reason| MemoryError::DirtyLog {
                    slot: slot.id.0,
                    reason,
                })?;
                dirty::join(&mut bits, &logged);
            }
            found.extend(dirty::extents(slot.gpa, &bits, pages));
        }
        Ok(found)
    }

    /// What this process wrote in the mappings that make up `slot`.
    fn written(&self, view: &View, slot: &Memslot) -> Vec<u64> {
        let pages = slot.len / PAGE_SIZE;
        let mut bits = vec![0u64; usize::try_from(pages.div_ceil(64)).unwrap_or(0)];
        let inside = |m: &&Mapping| m.gpa >= slot.gpa && m.end() <= slot.gpa.0 + slot.len;
        for mapping in view.mappings.iter().filter(inside) {
            let first = (mapping.gpa.0 - slot.gpa.0) / PAGE_SIZE;
            let taken = mapping.ram.take_written(mapping.offset, mapping.len);
            for extent in dirty::extents(Gpa(0), &taken, mapping.len / PAGE_SIZE) {
                let start = first + extent.gpa.0 / PAGE_SIZE;
                (start..start + extent.len / PAGE_SIZE).for_each(|p| dirty::set(&mut bits, p));
            }
        }
        bits
    }

    fn copy_in(&self, view: &View, gpa: Gpa, data: &[u8]) -> Result<(), MemoryError> {
        let mut at = gpa;
        let mut rest = data;
        while !rest.is_empty() {
            let (mapping, within, count) = piece(view, at, rest.len())?;
            let (now, later) = rest.split_at(count);
            mapping.ram.write(mapping.offset + within, now)?;
            at = Gpa(at.0 + count as u64);
            rest = later;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<dyn MapListener>>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(
        &self,
        listeners: &[Arc<dyn MapListener>],
        mappings: Vec<Mapping>,
        log_dirty: bool,
    ) -> Result<(), MemoryError> {
        let current = self.view.load_full();
        let plans = slots::plan(&mappings, log_dirty);
        if plans.len() > self.max_slots {
            return Err(MemoryError::TooManySlots {
                needed: plans.len(),
                max: self.max_slots,
            });
        }
        let slots = slots::number(&plans, &current.slots);
        let mut change = difference(&current.slots, &slots);
        let without = |these: &[Mapping], those: &[Mapping]| -> Vec<Mapping> {
            let missing = these.iter().filter(|one| !those.contains(one));
            missing.cloned().collect()
        };
        change.mapped = without(&mappings, &current.mappings);
        change.unmapped = without(&current.mappings, &mappings);
        if !change.is_empty() {
            prepare_all(listeners, &change)?;
        }
        self.view.store(Arc::new(View {
            mappings,
            slots,
            log_dirty,
        }));
        if !change.is_empty() {
            listeners
                .iter()
                .rev()
                .for_each(|listener| listener.commit(&change));
        }
        Ok(())
    }
}

fn prepare_all(listeners: &[Arc<dyn MapListener>], change: &MapChange) -> Result<(), MemoryError> {
    for (index, listener) in listeners.iter().enumerate() {
        if let Err(refusal) = listener.prepare(change) {
            let prepared = listeners.get(..index).unwrap_or_default();
            prepared
                .iter()
                .rev()
                .for_each(|listener| listener.rollback(change));
            let listener = listener.name().to_owned();
            return Err(MemoryError::Refused {
                listener,
                reason: refusal.0,
            });
        }
    }
    Ok(())
}

fn difference(old: &[Memslot], new: &[Memslot]) -> MapChange {
    let mut change = MapChange::default();
    for slot in old {
        match new.iter().find(|other| other.id == slot.id) {
            None => change.removed.push(*slot),
            Some(other) if other != slot => change.changed.push((*slot, *other)),
            Some(_) => {}
        }
    }
    change.added.extend(
        new.iter()
            .filter(|slot| old.iter().all(|other| other.id != slot.id)),
    );
    change
}

pub(crate) fn lookup(view: &View, gpa: Gpa) -> Option<(&Mapping, u64)> {
    let at = view
        .mappings
        .partition_point(|m| m.gpa <= gpa)
        .checked_sub(1)?;
    let mapping = view.mappings.get(at)?;
    let within = gpa.0 - mapping.gpa.0;
    (within < mapping.len).then_some((mapping, within))
}

/// The mapping at `gpa`, the offset in it and how many of `want` bytes it holds.
fn piece(view: &View, gpa: Gpa, want: usize) -> Result<(&Mapping, u64, usize), MemoryError> {
    let (mapping, within) = lookup(view, gpa).ok_or(MemoryError::NotMemory { gpa: gpa.0 })?;
    let there = usize::try_from(mapping.len - within).unwrap_or(usize::MAX);
    Ok((mapping, within, want.min(there)))
}

fn check(view: &View, gpa: Gpa, len: u64, write: bool) -> Result<(), MemoryError> {
    let end = gpa
        .0
        .checked_add(len)
        .ok_or(MemoryError::NotMemory { gpa: gpa.0 })?;
    let mut at = gpa.0;
    while at < end {
        let found = lookup(view, Gpa(at)).ok_or(MemoryError::NotMemory { gpa: at })?;
        if write && found.0.readonly {
            return Err(MemoryError::ReadOnly { gpa: at });
        }
        at = found.0.end();
    }
    Ok(())
}

#[cfg(test)]
mod tests;
