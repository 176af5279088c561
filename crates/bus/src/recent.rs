//! Accesses that go where the last one went.

use std::sync::{Arc, Weak};

use crate::{AccessContext, Device, Flow, IoSpace, space::fits};

/// One vCPU's way into a space. It remembers the device that has served last, so that the next
/// access there spares the lock and the search; it does not keep that device.
#[derive(Clone, Debug)]
pub struct Recent {
    space: Arc<IoSpace>,
    last: Option<Last>,
}

#[derive(Clone, Debug)]
struct Last {
    /// The space's number of changes when it was found.
    changes: u64,
    start: u64,
    len: u64,
    device: Weak<dyn Device>,
}

impl Recent {
    /// A way into `space`.
    pub fn new(space: Arc<IoSpace>) -> Recent {
        Recent { space, last: None }
    }

    /// Where it leads.
    pub fn space(&self) -> &Arc<IoSpace> {
        &self.space
    }

    /// [`IoSpace::read`].
    #[inline]
    pub fn read(&mut self, cx: &dyn AccessContext, addr: u64, data: &mut [u8]) -> Flow {
        match self.find(addr, data.len()) {
            Some((device, offset)) => device.read(cx, offset, data),
            None => self.space.read_unclaimed(addr, data),
        }
    }

    /// [`IoSpace::write`].
    #[inline]
    pub fn write(&mut self, cx: &dyn AccessContext, addr: u64, data: &[u8]) -> Flow {
        match self.find(addr, data.len()) {
            Some((device, offset)) => device.write(cx, offset, data),
            None => self.space.write_unclaimed(addr, data),
        }
    }

    #[inline]
    fn find(&mut self, addr: u64, len: usize) -> Option<(Arc<dyn Device>, u64)> {
        if let Some(last) = &self.last
            && last.changes == self.space.changes()
            && fits(last.start, last.len, addr, len)
            && let Some(device) = last.device.upgrade()
        {
            return Some((device, addr - last.start));
        }
        self.search(addr, len)
    }

    fn search(&mut self, addr: u64, len: usize) -> Option<(Arc<dyn Device>, u64)> {
        // Before the search: a change after it is seen at the next access.
        let changes = self.space.changes();
        let claim = self.space.find(addr, len)?;
        self.last = Some(Last {
            changes,
            start: claim.start,
            len: claim.len,
            device: Arc::downgrade(&claim.device),
        });
        Some((claim.device, addr - claim.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Nobody;

    #[derive(Debug)]
    struct Constant(u8);

    impl Device for Constant {
        fn name(&self) -> &'static str {
            "constant"
        }
        fn read(&self, _: &dyn AccessContext, offset: u64, data: &mut [u8]) -> Flow {
            data.fill(self.0 + offset.to_le_bytes()[0]);
            Flow::Continue
        }
        fn write(&self, _: &dyn AccessContext, _: u64, _: &[u8]) -> Flow {
            Flow::Continue
        }
        fn reset(&self) {}
    }

    fn with(device: &Arc<dyn Device>) -> Recent {
        let space = Arc::new(IoSpace::new());
        space.add(0x100, 8, Arc::clone(device)).unwrap();
        Recent::new(space)
    }

    fn read(recent: &mut Recent, addr: u64) -> u8 {
        let mut data = [0];
        assert_eq!(recent.read(&Nobody, addr, &mut data), Flow::Continue);
        data[0]
    }

    #[test]
    fn accesses_in_and_beside_the_range_of_the_last_go_where_they_belong() {
        let device: Arc<dyn Device> = Arc::new(Constant(10));
        let mut recent = with(&device);
        let other = Arc::new(Constant(50));
        recent.space().add(0x108, 1, other).unwrap();
        let seen = [0x100, 0x107, 0x108, 0x109, 0xff, 0x100].map(|at| read(&mut recent, at));
        assert_eq!(seen, [10, 17, 50, 0xff, 0xff, 10]);
        let mut across = [0; 2];
        recent.read(&Nobody, 0x107, &mut across);
        assert_eq!(across, [0xff; 2]);
        assert_eq!(recent.space().unclaimed().total, 3);
    }

    #[test]
    fn a_device_that_is_removed_or_replaced_is_forgotten_and_not_kept() {
        let device: Arc<dyn Device> = Arc::new(Constant(10));
        let mut recent = with(&device);
        assert_eq!(read(&mut recent, 0x100), 10);
        assert!(recent.space().remove(0x100, &device));
        assert_eq!(Arc::strong_count(&device), 1);
        assert_eq!(read(&mut recent, 0x100), 0xff);
        let next = Arc::new(Constant(20));
        recent.space().add(0x100, 8, next).unwrap();
        assert_eq!(read(&mut recent, 0x100), 20);
    }
}
