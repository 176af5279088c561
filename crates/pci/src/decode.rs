//! Which addresses BARs answer to.
//!
//! BARs come and go in the board's address space as the guest moves them and switches decoding. Two
//! at one place is a guest's mistake: the one that came first answers, the other waits until there
//! is room.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vmlet_bus::{Device, IoSpace};

/// Registers that the guest moves.
pub(crate) trait Movable: Device {
    /// Where it answers now.
    fn moved(&self, at: Option<u64>);
}

#[derive(Debug)]
struct Claim {
    range: Range<u64>,
    device: Arc<dyn Movable>,
    answers: bool,
}

/// The decoder of one board.
#[derive(Debug)]
pub(crate) struct Decoder {
    space: Arc<IoSpace>,
    claims: Mutex<Vec<Claim>>,
}

fn is(claim: &Claim, device: &Arc<dyn Movable>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(&claim.device), Arc::as_ptr(device))
}

impl Decoder {
    pub(crate) fn new(space: Arc<IoSpace>) -> Decoder {
        Decoder {
            space,
            claims: Mutex::default(),
        }
    }

    /// `device` is to answer to `range`, and to nothing else.
    pub(crate) fn set(&self, device: &Arc<dyn Movable>, range: Option<Range<u64>>) {
        let mut claims = self.lock();
        let known = claims.iter().position(|claim| is(claim, device));
        if known
            .and_then(|at| claims.get(at))
            .map(|claim| &claim.range)
            == range.as_ref()
        {
            return;
        }
        let old = known.map(|at| claims.swap_remove(at));
        if let Some(old) = old.filter(|old| old.answers) {
            self.space
                .remove(old.range.start, &(old.device as Arc<dyn Device>));
            // Before it answers elsewhere: doorbells at the old place are gone by then.
            device.moved(None);
        }
        claims.extend(range.map(|range| Claim {
            range,
            device: Arc::clone(device),
            answers: false,
        }));
        self.place(&mut claims);
    }

    /// Has everything answer that can.
    fn place(&self, claims: &mut [Claim]) {
        for claim in claims.iter_mut().filter(|claim| !claim.answers) {
            let Range { start, end } = claim.range;
            let device = Arc::clone(&claim.device) as Arc<dyn Device>;
            claim.answers = self
                .space
                .add(start, end.saturating_sub(start), device)
                .is_ok();
            if claim.answers {
                claim.device.moved(Some(start));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Claim>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use vmlet_bus::{AccessContext, Flow};

    use super::*;
    use crate::testing::Nobody;

    #[derive(Debug, Default)]
    struct Page {
        number: u8,
        places: Mutex<Vec<Option<u64>>>,
    }

    impl Device for Page {
        fn name(&self) -> &'static str {
            "page"
        }
        fn read(&self, _: &dyn AccessContext, _: u64, data: &mut [u8]) -> Flow {
            data.fill(self.number);
            Flow::Continue
        }
        fn write(&self, _: &dyn AccessContext, _: u64, _: &[u8]) -> Flow {
            Flow::Continue
        }
        fn reset(&self) {}
    }

    impl Movable for Page {
        fn moved(&self, at: Option<u64>) {
            self.places.lock().unwrap().push(at);
        }
    }

    fn page(number: u8) -> (Arc<Page>, Arc<dyn Movable>) {
        let page = Arc::new(Page {
            number,
            ..Page::default()
        });
        (Arc::clone(&page), page)
    }

    fn read(space: &IoSpace, at: u64) -> u8 {
        let mut data = [0; 1];
        space.read(&Nobody, at, &mut data);
        data[0]
    }

    #[test]
    fn a_move_is_told_as_gone_and_there() {
        let decoder = Decoder::new(Arc::new(IoSpace::new()));
        let (page, movable) = page(1);
        decoder.set(&movable, Some(0x1000..0x2000));
        decoder.set(&movable, Some(0x1000..0x2000));
        decoder.set(&movable, Some(0x1800..0x2800));
        decoder.set(&movable, None);
        let places = [Some(0x1000), None, Some(0x1800), None];
        assert_eq!(*page.places.lock().unwrap(), places);
        assert_eq!(read(&decoder.space, 0x1800), 0xff);
    }

    #[test]
    fn a_bar_over_another_waits_until_that_one_has_gone() {
        let decoder = Decoder::new(Arc::new(IoSpace::new()));
        let ((_, a), (second, b)) = (page(1), page(2));
        decoder.set(&a, Some(0x1000..0x2000));
        decoder.set(&b, Some(0x1800..0x2800));
        assert_eq!(read(&decoder.space, 0x1900), 1);
        assert!(second.places.lock().unwrap().is_empty());
        decoder.set(&a, None);
        assert_eq!(read(&decoder.space, 0x1900), 2);
        assert_eq!(*second.places.lock().unwrap(), [Some(0x1800)]);
    }

    #[test]
    fn a_range_that_wraps_or_is_empty_answers_nowhere() {
        let decoder = Decoder::new(Arc::new(IoSpace::new()));
        let (page, movable) = page(1);
        decoder.set(&movable, Some(0x1000..0x1000));
        assert!(page.places.lock().unwrap().is_empty());
    }
}
