//! Which frames the driver wants (virtio 1.2, sections 5.1.6.5.1 and 5.1.6.5.2).

use super::MacAddress;

/// The most addresses a driver can name on each list; with more, every frame is wanted.
pub(super) const MOST_ADDRESSES: usize = 64;

/// What commands have set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) promiscuous: bool,
    pub(super) all_multicast: bool,
    pub(super) all_unicast: bool,
    pub(super) no_multicast: bool,
    pub(super) no_unicast: bool,
    pub(super) no_broadcast: bool,
    /// Addresses beside the device's own; `None`: too many to be kept.
    pub(super) unicast: Option<Vec<MacAddress>>,
    pub(super) multicast: Option<Vec<MacAddress>>,
}

impl Filter {
    /// After reset: everything, until the driver says what it wants.
    pub(super) fn new() -> Filter {
        Filter {
            promiscuous: true,
            unicast: Some(Vec::new()),
            multicast: Some(Vec::new()),
            ..Filter::default()
        }
    }

    /// Whether a frame to `to` is for the driver of a device with the address `own`.
    pub(super) fn wants(&self, own: MacAddress, to: MacAddress) -> bool {
        let listed = |list: &Option<Vec<MacAddress>>| {
            list.as_ref()
                .is_none_or(|addresses| addresses.contains(&to))
        };
        if self.promiscuous {
            return true;
        }
        if to.is_broadcast() {
            return !self.no_broadcast;
        }
        if to.is_multicast() {
            return !self.no_multicast && (self.all_multicast || listed(&self.multicast));
        }
        !self.no_unicast && (self.all_unicast || to == own || listed(&self.unicast))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
    const GROUP: MacAddress = MacAddress([1, 0, 0x5e, 0, 0, 1]);
    const ALL: MacAddress = MacAddress([0xff; 6]);

    fn wanted(filter: &Filter) -> [bool; 4] {
        [OWN, OTHER, GROUP, ALL].map(|to| filter.wants(OWN, to))
    }

    #[test]
    fn after_reset_every_frame_is_wanted() {
        assert_eq!(wanted(&Filter::new()), [true; 4]);
    }

    #[test]
    fn commands_choose_among_own_other_multicast_and_broadcast_addresses() {
        let mut filter = Filter {
            promiscuous: false,
            ..Filter::new()
        };
        assert_eq!(wanted(&filter), [true, false, false, true]);
        filter.unicast = Some(vec![OTHER]);
        filter.all_multicast = true;
        assert_eq!(wanted(&filter), [true; 4]);
        filter.no_unicast = true;
        filter.no_broadcast = true;
        assert_eq!(wanted(&filter), [false, false, true, false]);
        filter.multicast = None;
        filter.all_multicast = false;
        assert!(filter.wants(OWN, GROUP));
    }
}
