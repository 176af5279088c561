//! How much a virtual function gets of what its card can part with.

use vmlet_host::PciAddress;

use super::command::{Pool, Resource};
use crate::VfioError;

/// A queue for administration and one for requests; an interrupt for both.
const fn least(resource: Resource) -> u16 {
    match resource {
        Resource::Queues => 2,
        Resource::Interrupts => 1,
    }
}

/// Queues and interrupts of one virtual function, or of the physical one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Share {
    pub(crate) queues: u16,
    pub(crate) interrupts: u16,
}

impl Share {
    pub(super) fn each(number: impl Fn(Resource) -> u16) -> Share {
        Share {
            queues: number(Resource::Queues),
            interrupts: number(Resource::Interrupts),
        }
    }

    pub(crate) fn of(&self, resource: Resource) -> u16 {
        match resource {
            Resource::Queues => self.queues,
            Resource::Interrupts => self.interrupts,
        }
    }
}

/// The virtual functions that are to have shares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crowd {
    pub(super) address: PciAddress,
    /// How many are made.
    pub(super) count: u16,
    /// The most there can be.
    pub(super) total: u16,
}

impl Crowd {
    /// How much of one resource each gets: `asked`, or as if all that there can be were made.
    pub(super) fn share(
        &self,
        resource: Resource,
        pool: &Pool,
        asked: Option<u16>,
    ) -> Result<u16, VfioError> {
        let least = least(resource).next_multiple_of(pool.step);
        let most = self.most(pool);
        let each = match asked {
            Some(asked) => asked,
            None => whole(pool.total / u32::from(self.total.max(1)), pool.step)
                .min(most)
                .max(least),
        };
        if each < least || each > most || !each.is_multiple_of(pool.step) {
            return Err(VfioError::NvmeShare {
                address: self.address,
                what: resource.name(),
                asked: each,
                least,
                most,
                step: pool.step,
            });
        }
        Ok(each)
    }

    fn most(&self, pool: &Pool) -> u16 {
        let free = pool.total.saturating_sub(pool.assigned);
        let each = whole(free / u32::from(self.count.max(1)), pool.step);
        match pool.most {
            0 => each,
            most => each.min(most),
        }
    }
}

/// `number` rounded down to steps.
fn whole(number: u32, step: u16) -> u16 {
    let number = u16::try_from(number).unwrap_or(u16::MAX);
    number - number % step
}

/// What the primary controller has to come down to, so that `wanted` are free; none where they are.
pub(super) fn room(pool: &Pool, wanted: u32) -> Option<u16> {
    let others = pool.assigned.saturating_add(wanted);
    let left = whole(pool.total.saturating_sub(others), pool.step);
    (pool.primary > left).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: Pool = Pool {
        total: 12,
        assigned: 0,
        primary: 12,
        private: 1,
        most: 8,
        step: 1,
    };

    fn share(count: u16, pool: &Pool, asked: Option<u16>) -> Result<u16, VfioError> {
        let address = "0000:01:00.0".parse().unwrap();
        let crowd = Crowd {
            address,
            count,
            total: 4,
        };
        crowd.share(Resource::Queues, pool, asked)
    }

    #[test]
    fn each_gets_an_equal_part_unless_another_is_asked_for() {
        assert_eq!(share(1, &POOL, None).unwrap(), 3);
        assert_eq!(share(1, &POOL, Some(8)).unwrap(), 8);
        let coarse = Pool { step: 2, ..POOL };
        assert_eq!(share(1, &coarse, None).unwrap(), 2);
    }

    #[test]
    fn what_is_not_there_is_refused_with_what_is() {
        for (count, asked) in [(1, 9), (2, 7), (1, 1)] {
            let error = share(count, &POOL, Some(asked)).unwrap_err();
            assert!(matches!(error, VfioError::NvmeShare { .. }), "{error}");
        }
        let taken = Pool {
            assigned: 11,
            ..POOL
        };
        let error = share(1, &taken, None).unwrap_err();
        assert!(
            matches!(error, VfioError::NvmeShare { most: 1, .. }),
            "{error}"
        );
    }

    #[test]
    fn the_primary_controller_gives_up_no_more_than_is_needed() {
        assert_eq!(room(&POOL, 4), Some(8));
        let left = Pool { primary: 8, ..POOL };
        assert_eq!(room(&left, 4), None);
        assert_eq!(room(&POOL, 99), Some(0));
    }
}
