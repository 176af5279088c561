//! An address space of devices.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use thiserror::Error;

use crate::{AccessContext, Device, Flow, SavedError, SavedState};

/// Unclaimed accesses kept for the user.
const KEPT: usize = 1024;

/// Why a range cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpaceError {
    /// Two devices at one address.
    #[error("{device} at {start:#x}+{len:#x} overlaps {other} at {other_start:#x}+{other_len:#x}")]
    Overlap {
        /// The device to be added.
        device: &'static str,
        /// Its first address.
        start: u64,
        /// Its length.
        len: u64,
        /// The device that is there.
        other: &'static str,
        /// Its first address.
        other_start: u64,
        /// Its length.
        other_len: u64,
    },
    /// A range that is empty or wraps around.
    #[error("{device} at {start:#x}+{len:#x}: the range is empty or wraps around")]
    BadRange {
        /// The device.
        device: &'static str,
        /// Its first address.
        start: u64,
        /// Its length.
        len: u64,
    },
}

/// A range and its device.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) device: Arc<dyn Device>,
}

impl Claim {
    fn last(&self) -> u64 {
        self.start + (self.len - 1)
    }
}

/// An access nobody claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnclaimedAccess {
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub len: usize,
    /// A write, or a read that gave all ones.
    pub write: bool,
    /// What was written, little-endian, the first eight bytes.
    pub value: u64,
}

/// The last accesses nobody claimed, and how many there were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unclaimed {
    /// Accesses in all.
    pub total: u64,
    /// The last 1,024, oldest first.
    pub recent: VecDeque<UnclaimedAccess>,
}

/// An address space: ranges, each claimed by one device.
///
/// An access goes to a device when it lies wholly in the device's range. Any other reads as all
/// ones, ignores writes and is noted.
#[derive(Debug, Default)]
pub struct IoSpace {
    claims: RwLock<Arc<Vec<Claim>>>,
    /// How often ranges were added or removed.
    changes: AtomicU64,
    unclaimed: Mutex<Unclaimed>,
}

impl IoSpace {
    /// An empty space.
    pub fn new() -> IoSpace {
        IoSpace::default()
    }

    /// Gives `start..start + len` to `device`.
    pub fn add(&self, start: u64, len: u64, device: Arc<dyn Device>) -> Result<(), SpaceError> {
        let name = device.name();
        if len == 0 || start.checked_add(len - 1).is_none() {
            return Err(SpaceError::BadRange {
                device: name,
                start,
                len,
            });
        }
        let claim = Claim { start, len, device };
        let mut claims = self.claims.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(c) = claims
            .iter()
            .find(|c| c.start <= claim.last() && start <= c.last())
        {
            let (other, other_start, other_len) = (c.device.name(), c.start, c.len);
            return Err(SpaceError::Overlap {
                device: name,
                start,
                len,
                other,
                other_start,
                other_len,
            });
        }
        let mut changed = Vec::clone(&claims);
        let at = changed.partition_point(|c| c.start < start);
        changed.insert(at, claim);
        self.replace(&mut claims, changed);
        Ok(())
    }

    /// Takes the range that begins at `start` from `device`; whether it had it. Accesses that are
    /// under way are finished.
    pub fn remove(&self, start: u64, device: &Arc<dyn Device>) -> bool {
        let mut claims = self.claims.write().unwrap_or_else(PoisonError::into_inner);
        let mut left = Vec::clone(&claims);
        left.retain(|c| c.start != start || !Arc::ptr_eq(&c.device, device));
        let had = left.len() < claims.len();
        self.replace(&mut claims, left);
        had
    }

    fn replace(&self, claims: &mut Arc<Vec<Claim>>, by: Vec<Claim>) {
        *claims = Arc::new(by);
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// A number that is another after ranges were added or removed.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The guest reads.
    pub fn read(&self, cx: &dyn AccessContext, addr: u64, data: &mut [u8]) -> Flow {
        match self.find(addr, data.len()) {
            Some(claim) => claim.device.read(cx, addr - claim.start, data),
            None => self.read_unclaimed(addr, data),
        }
    }

    /// The guest writes.
    pub fn write(&self, cx: &dyn AccessContext, addr: u64, data: &[u8]) -> Flow {
        match self.find(addr, data.len()) {
            Some(claim) => claim.device.write(cx, addr - claim.start, data),
            None => self.write_unclaimed(addr, data),
        }
    }

    /// The guest writes a string of elements of `size` bytes to one address.
    pub fn write_string(
        &self,
        cx: &dyn AccessContext,
        addr: u64,
        size: usize,
        data: &[u8],
    ) -> Flow {
        match self.find(addr, size) {
            Some(claim) => {
                let offset = addr - claim.start;
                claim.device.write_string(cx, offset, size, data)
            }
            None => data
                .chunks(size.max(1))
                .fold(Flow::Continue, |_, one| self.write(cx, addr, one)),
        }
    }

    pub(crate) fn read_unclaimed(&self, addr: u64, data: &mut [u8]) -> Flow {
        data.fill(0xff);
        self.note(UnclaimedAccess {
            addr,
            len: data.len(),
            write: false,
            value: 0,
        });
        Flow::Continue
    }

    pub(crate) fn write_unclaimed(&self, addr: u64, data: &[u8]) -> Flow {
        let value = data
            .iter()
            .take(8)
            .rev()
            .fold(0, |v, b| (v << 8) | u64::from(*b));
        self.note(UnclaimedAccess {
            addr,
            len: data.len(),
            write: true,
            value,
        });
        Flow::Continue
    }

    /// Resets every device, each once.
    pub fn reset(&self) {
        let claims = Arc::clone(&self.claims.read().unwrap_or_else(PoisonError::into_inner));
        for (index, claim) in claims.iter().enumerate() {
            let before = claims.iter().take(index);
            if before
                .into_iter()
                .all(|c| !Arc::ptr_eq(&c.device, &claim.device))
            {
                claim.device.reset();
            }
        }
    }

    /// The states of all devices, each with the first address of its range.
    pub fn save(&self) -> Vec<(u64, SavedState)> {
        let claims = Arc::clone(&self.claims.read().unwrap_or_else(PoisonError::into_inner));
        let states = claims.iter();
        states
            .filter_map(|claim| Some((claim.start, claim.device.save()?)))
            .collect()
    }

    /// Gives devices the states that [`IoSpace::save`] had of them.
    pub fn restore(&self, states: &[(u64, SavedState)]) -> Result<(), SavedError> {
        let claims = Arc::clone(&self.claims.read().unwrap_or_else(PoisonError::into_inner));
        for (start, state) in states {
            let claim = claims.iter().find(|claim| claim.start == *start);
            let claim = claim.ok_or_else(|| SavedError::NoDevice {
                kind: state.kind.clone(),
                start: *start,
            })?;
            claim.device.restore(state)?;
        }
        Ok(())
    }

    /// What nobody claimed so far.
    pub fn unclaimed(&self) -> Unclaimed {
        self.unclaimed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The range that `len` bytes at `addr` lie in.
    pub(crate) fn find(&self, addr: u64, len: usize) -> Option<Claim> {
        let claims = self.claims.read().unwrap_or_else(PoisonError::into_inner);
        let at = claims.partition_point(|c| c.start <= addr).checked_sub(1)?;
        let claim = claims.get(at)?;
        fits(claim.start, claim.len, addr, len).then(|| claim.clone())
    }

    fn note(&self, access: UnclaimedAccess) {
        let mut unclaimed = self
            .unclaimed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        unclaimed.total += 1;
        if unclaimed.recent.len() == KEPT {
            unclaimed.recent.pop_front();
        }
        unclaimed.recent.push_back(access);
    }
}

/// Whether `len` bytes at `addr` lie in the range of `range` bytes at `start`.
pub(crate) fn fits(start: u64, range: u64, addr: u64, len: usize) -> bool {
    let end = addr.checked_sub(start).zip(u64::try_from(len).ok());
    end.and_then(|(offset, len)| offset.checked_add(len))
        .is_some_and(|end| end <= range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Nobody;

    #[derive(Debug, Default)]
    struct Register(Mutex<Vec<u8>>);

    impl Device for Register {
        fn name(&self) -> &'static str {
            "register"
        }
        fn read(&self, _: &dyn AccessContext, offset: u64, data: &mut [u8]) -> Flow {
            data.fill(offset.to_le_bytes()[0]);
            Flow::Continue
        }
        fn write(&self, _: &dyn AccessContext, _: u64, data: &[u8]) -> Flow {
            self.0.lock().unwrap().extend(data);
            Flow::Continue
        }
        fn reset(&self) {
            self.0.lock().unwrap().clear();
        }
    }

    #[test]
    fn an_access_reaches_the_device_with_its_offset() {
        let space = IoSpace::new();
        space.add(0x100, 8, Arc::new(Register::default())).unwrap();
        let mut data = [0; 2];
        assert_eq!(space.read(&Nobody, 0x106, &mut data), Flow::Continue);
        assert_eq!(data, [6, 6]);
    }

    #[test]
    fn a_removed_range_is_free_and_only_its_owner_gives_it_up() {
        let space = IoSpace::new();
        let device = || Arc::new(Register::default()) as Arc<dyn Device>;
        let (owner, other) = (device(), device());
        space.add(0x100, 8, Arc::clone(&owner)).unwrap();
        assert!(!space.remove(0x100, &other) && !space.remove(0x101, &owner));
        assert!(space.remove(0x100, &owner) && !space.remove(0x100, &owner));
        let mut data = [0; 1];
        space.read(&Nobody, 0x100, &mut data);
        assert_eq!(data, [0xff]);
        space.add(0x104, 8, other).unwrap();
    }

    #[test]
    fn an_access_across_the_end_of_a_range_is_unclaimed() {
        let space = IoSpace::new();
        space.add(0x100, 8, Arc::new(Register::default())).unwrap();
        let mut data = [0; 4];
        space.read(&Nobody, 0x106, &mut data);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(space.unclaimed().total, 1);
    }

    #[test]
    fn overlapping_devices_are_both_named() {
        let space = IoSpace::new();
        space.add(0x100, 8, Arc::new(Register::default())).unwrap();
        for (start, len) in [(0x107, 1), (0xff, 2), (0, 0x1000)] {
            let error = space
                .add(start, len, Arc::new(Register::default()))
                .unwrap_err();
            assert!(matches!(
                error,
                SpaceError::Overlap {
                    other_start: 0x100,
                    ..
                }
            ));
        }
        assert!(space.add(0x108, 8, Arc::new(Register::default())).is_ok());
    }

    #[test]
    fn empty_and_wrapping_ranges_are_refused() {
        let space = IoSpace::new();
        assert!(space.add(5, 0, Arc::new(Register::default())).is_err());
        assert!(
            space
                .add(u64::MAX, 2, Arc::new(Register::default()))
                .is_err()
        );
        assert!(
            space
                .add(u64::MAX, 1, Arc::new(Register::default()))
                .is_ok()
        );
    }

    #[test]
    fn unclaimed_accesses_are_counted_and_the_last_ones_kept() {
        let space = IoSpace::new();
        for value in 0..2000u16 {
            space.write(&Nobody, 7, &value.to_le_bytes());
        }
        let unclaimed = space.unclaimed();
        assert_eq!((unclaimed.total, unclaimed.recent.len()), (2000, 1024));
        assert_eq!(unclaimed.recent.back().unwrap().value, 1999);
    }

    #[test]
    fn string_writes_keep_their_order() {
        let (space, register) = (IoSpace::new(), Arc::new(Register::default()));
        space
            .add(0, 1, Arc::clone(&register) as Arc<dyn Device>)
            .unwrap();
        space.write_string(&Nobody, 0, 1, b"abc");
        assert_eq!(*register.0.lock().unwrap(), b"abc");
    }
}
