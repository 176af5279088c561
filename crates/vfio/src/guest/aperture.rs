//! Registers that a guest reaches without an exit.
//!
//! Where an engine can put a device's mapped registers into the guest, the parts of a BAR that the
//! kernel maps lie there while the BAR is decoded, and go before it is not. Pages of MSI-X's table
//! and of its pending bits are left out: they are the bus's.

use std::{
    fmt::Debug,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use vmlet_memory::{Gpa, Hva, PAGE_SIZE};

use crate::{Device, RegionMap, VfioError};

/// An engine that can show guests memory that is not RAM.
pub trait ApertureEngine: Send + Sync + Debug {
    /// Shows `len` bytes at `hva` at `gpa`, until [`ApertureEngine::hide`] is given the number that
    /// this gives. The caller keeps them mapped.
    fn show(&self, gpa: Gpa, hva: Hva, len: u64) -> Result<u32, String>;

    /// Whether the guest reaches it no more.
    fn hide(&self, number: u32) -> bool;
}

/// Registers in the guest.
#[derive(Debug)]
struct Shown {
    bar: u8,
    number: u32,
    _map: Arc<RegionMap>,
}

/// What a guest reaches of a device without an exit.
#[derive(Debug)]
pub(super) struct Apertures {
    device: Arc<Device>,
    engine: Arc<dyn ApertureEngine>,
    /// Bars and ranges that are the bus's.
    trapped: Vec<(u8, Range<u64>)>,
    shown: Mutex<Vec<Shown>>,
    /// A guest that moves a BAR to where it cannot be shown is told of once.
    told: AtomicBool,
}

impl Apertures {
    pub(super) fn new(
        device: &Arc<Device>,
        engine: &Arc<dyn ApertureEngine>,
        trapped: Vec<(u8, Range<u64>)>,
    ) -> Apertures {
        Apertures {
            device: Arc::clone(device),
            engine: Arc::clone(engine),
            trapped,
            shown: Mutex::default(),
            told: AtomicBool::new(false),
        }
    }

    /// A BAR has a new place, `None` while it is not decoded. What cannot be shown is reached by
    /// exits.
    pub(super) fn moved(&self, bar: u8, at: Option<u64>) {
        let mut shown = self.lock();
        // Memory that could not be hidden stays mapped: the guest would reach what comes after it.
        shown.retain(|one| one.bar != bar || !self.engine.hide(one.number));
        let Some(at) = at else {
            return;
        };
        for range in self.parts(bar) {
            match self.show(bar, at, range) {
                Ok(new) => shown.push(new),
                Err(error) if !self.told.swap(true, Ordering::Relaxed) => {
                    let address = self.device.address();
                    log::warn!("BAR {bar} of {address} is reached by exits: {error}");
                }
                Err(_) => {}
            }
        }
    }

    /// Takes everything from the guest.
    pub(super) fn end(&self) {
        (0..6).for_each(|bar| self.moved(bar, None));
    }

    fn show(&self, bar: u8, at: u64, range: Range<u64>) -> Result<Shown, String> {
        let map = self.device.map(bar.into(), range.clone());
        let map = map.map_err(|error: VfioError| error.to_string())?;
        let hva = Hva(map.address().expose_provenance() as u64);
        let gpa = at.checked_add(range.start).ok_or("it wraps around")?;
        let number = self.engine.show(Gpa(gpa), hva, range.end - range.start)?;
        Ok(Shown {
            bar,
            number,
            _map: map,
        })
    }

    /// The parts of `bar` that can be shown.
    fn parts(&self, bar: u8) -> Vec<Range<u64>> {
        let mut regions = self.device.regions().iter();
        let region = regions.find(|region| region.index == u32::from(bar));
        let areas = region.map_or(&[][..], |region| &region.areas);
        let trapped = self.trapped.iter().filter(|(of, _)| *of == bar);
        let trapped: Vec<_> = trapped.map(|(_, range)| range.clone()).collect();
        areas
            .iter()
            .flat_map(|(start, len)| without(*start..start.saturating_add(*len), &trapped))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Shown>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The whole pages of `area` that no range of `trapped` touches.
fn without(area: Range<u64>, trapped: &[Range<u64>]) -> Vec<Range<u64>> {
    let (first, end) = (area.start.next_multiple_of(PAGE_SIZE), page(area.end));
    let mut parts = Vec::new();
    let mut at = first;
    let mut holes: Vec<_> = trapped
        .iter()
        .map(|hole| page(hole.start)..hole.end.next_multiple_of(PAGE_SIZE))
        .collect();
    holes.sort_by_key(|hole| hole.start);
    for hole in holes {
        if at < hole.start.min(end) {
            parts.push(at..hole.start.min(end));
        }
        at = at.max(hole.end);
    }
    if at < end {
        parts.push(at..end);
    }
    parts
}

/// Where the page of `at` begins.
fn page(at: u64) -> u64 {
    at / PAGE_SIZE * PAGE_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts and ends of what is left of an area.
    fn left(area: Range<u64>, trapped: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let trapped: Vec<_> = trapped.iter().map(|(start, end)| *start..*end).collect();
        let parts = without(area, &trapped).into_iter();
        parts.map(|part| (part.start, part.end)).collect()
    }

    #[test]
    fn pages_that_are_touched_are_left_out() {
        assert_eq!(left(0..0x8000, &[]), [(0, 0x8000)]);
        let around = [(0, 0x2000), (0x4000, 0x8000)];
        assert_eq!(left(0..0x8000, &[(0x2010, 0x3040)]), around);
        let both = [(0x7000, 0x7008), (0, 0x30)];
        assert_eq!(left(0..0x8000, &both), [(0x1000, 0x7000)]);
    }

    #[test]
    fn holes_that_overlap_or_lie_elsewhere_do_no_harm() {
        let holes = [(0, 0x2000), (0x1000, 0x1010), (0x9000, 0xa000)];
        assert_eq!(left(0x1000..0x4000, &holes), [(0x2000, 0x4000)]);
        assert!(left(0x1000..0x1fff, &[]).is_empty());
        assert!(left(0..0x1000, &[(0, 0x10)]).is_empty());
    }
}
