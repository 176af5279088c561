//! How long a device waits for more requests of a driver that has several under way.
//!
//! An interrupt for each of many requests costs a guest more than the requests do, and so does a
//! notification for each. A driver that sends one after the other while it gets answers is recognized
//! by two chains that are there at once. Its interrupt is kept back until as many answers are owed as
//! waiting has brought before, or until nothing has come for twice the time that usually lies between
//! two of its chains. A driver that waits for each answer has its interrupt at once.

use std::time::Duration;

/// Where the time between two chains is taken to begin.
const FIRST: Duration = Duration::from_micros(10);
/// No interrupt is kept back longer after the last answer.
const LONGEST: Duration = Duration::from_micros(250);
/// Answers that are owed at most.
const MOST: u16 = 8;

/// After so many interrupts for as many answers as usual, one more is tried.
const TRIES_AFTER: u8 = 16;

/// What is known of a queue's driver.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Time between two chains of those that come together.
    gap: Duration,
    /// How many answers waiting brings; none: chains come one by one.
    usual: Option<u16>,
    /// Interrupts for as many since more was tried.
    since: u8,
    /// One more than what was usual is being tried.
    tries: bool,
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace {
            gap: FIRST,
            usual: None,
            since: 0,
            tries: false,
        }
    }

    /// How long an interrupt is kept back for more; `None`: not at all.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.usual.map(|_| (self.gap * 2).min(LONGEST))
    }

    /// Whether `owed` answers are as many as waiting brings.
    pub(super) fn is_enough(&self, owed: u16) -> bool {
        self.usual.is_none_or(|usual| owed >= usual)
    }

    /// `count` chains were there; `waited`: how long after the chain before, if the driver was not
    /// interrupted in between.
    pub(super) fn came(&mut self, count: u16, waited: Option<Duration>) {
        match (self.usual, waited) {
            (None, _) if count > 1 => self.usual = Some(MOST),
            (Some(_), Some(waited)) => self.gap = (self.gap * 3 + waited.min(LONGEST)) / 4,
            _ => {}
        }
    }

    /// The driver is interrupted for as many answers as waiting brings.
    pub(super) fn was_enough(&mut self) {
        self.since += 1;
        // What was tried and came is not the most yet.
        if self.tries || self.since >= TRIES_AFTER {
            self.since = 0;
            self.tries = self.usual.is_some_and(|usual| usual < MOST);
            self.usual = self.usual.map(|usual| (usual + 1).min(MOST));
        }
    }

    /// Nothing came while an interrupt for `owed` answers was kept back.
    pub(super) fn missed(&mut self, owed: u16) {
        let longer = self.gap * 2;
        match owed {
            2.. if self.tries || longer >= LONGEST => {
                self.usual = Some(owed);
                self.tries = false;
            }
            _ if longer >= LONGEST => *self = Pace::new(),
            // The guess may have been too short.
            _ => self.gap = longer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_micros(40);

    #[test]
    fn chains_one_by_one_are_never_waited_for() {
        let mut pace = Pace::new();
        for _ in 0..100 {
            pace.came(1, Some(GAP));
            assert_eq!(pace.patience(), None);
            assert!(pace.is_enough(1));
        }
    }

    #[test]
    fn the_time_between_chains_is_learned_and_waited_twice() {
        let mut pace = Pace::new();
        pace.came(2, None);
        for _ in 0..50 {
            pace.came(1, Some(GAP));
        }
        let patience = pace.patience().unwrap();
        assert!(patience > GAP && patience <= GAP * 2, "{patience:?}");
        assert!(!pace.is_enough(MOST - 1));
        assert!(pace.is_enough(MOST));
    }

    #[test]
    fn a_driver_with_few_under_way_is_not_waited_for_beyond_them() {
        let mut pace = Pace::new();
        pace.came(2, None);
        while !pace.is_enough(3) {
            pace.missed(3);
        }
        assert!(!pace.is_enough(2));
        for _ in 0..TRIES_AFTER {
            assert!(pace.is_enough(3));
            pace.was_enough();
        }
        assert!(!pace.is_enough(3), "now and then one more is tried");
        pace.missed(3);
        assert!(pace.is_enough(3), "and not for long");
    }

    #[test]
    fn a_driver_with_more_under_way_than_before_soon_gets_fewer_interrupts() {
        let mut pace = Pace::new();
        pace.came(2, None);
        while !pace.is_enough(2) {
            pace.missed(2);
        }
        for _ in 0..TRIES_AFTER + 6 {
            pace.was_enough();
        }
        assert!(!pace.is_enough(MOST - 1));
    }

    #[test]
    fn waiting_in_vain_ends_after_a_few_tries() {
        let mut pace = Pace::new();
        pace.came(2, None);
        let tries = (0..20).take_while(|_| {
            pace.missed(1);
            pace.patience().is_some()
        });
        assert!(tries.count() < 6);
        assert_eq!(pace.patience(), None);
    }

    #[test]
    fn no_interrupt_is_kept_back_longer_than_the_limit() {
        let mut pace = Pace::new();
        pace.came(2, None);
        for _ in 0..50 {
            pace.came(1, Some(Duration::from_secs(1)));
        }
        assert_eq!(pace.patience(), Some(LONGEST));
    }
}
