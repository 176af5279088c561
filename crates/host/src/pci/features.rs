//! What a function can do about translation, sharing and isolation, and whether it is switched on.

use serde::Serialize;

use super::config::{ConfigSpace, HEADER};

/// Extended capability ids (PCIe 6.0, section 7; PCI Code and ID Assignment 1.15).
const ACS: u16 = 0x0d;
const ATS: u16 = 0x0f;
const SRIOV: u16 = 0x10;
const PRI: u16 = 0x13;
const PASID: u16 = 0x1b;

/// Whether there is a capability, and its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// Its part of config space may not be read.
    Unknown,
    /// The function has no such capability.
    Absent,
    /// It has, and it is off.
    Off,
    /// It has, and it is on.
    On,
}

/// The capabilities that matter when a function is handed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Features {
    /// Address Translation Services: it keeps translations in a cache of its own (section 10.5.1).
    pub ats: Switch,
    /// Page Request Interface: it asks for pages that are missing (section 10.5.2).
    pub pri: Switch,
    /// Process address spaces (section 7.8.9).
    pub pasid: Switch,
    /// Access Control Services (section 7.7.11): on when requests of what lies below cannot go
    /// around the IOMMU (request redirect, completion redirect and upstream forwarding).
    pub acs: Switch,
    /// Virtual functions (section 9.3.3).
    pub sriov: Switch,
    /// Why some are unknown.
    pub unknown_because: Option<&'static str>,
}

/// Where the control register is in the capability, and the bits that all have to be set.
const CONTROLS: [(u16, usize, u16); 5] = [
    (ATS, 6, 1 << 15),
    (PRI, 4, 1),
    (PASID, 6, 1),
    (ACS, 6, 1 << 2 | 1 << 3 | 1 << 4),
    (SRIOV, 8, 1),
];

impl Features {
    pub(crate) fn of(config: &ConfigSpace) -> Features {
        let reason = unread(config);
        let [ats, pri, pasid, acs, sriov] = CONTROLS.map(|(id, control, bits)| {
            let found = config
                .extended(id)
                .and_then(|at| config.u16(at.checked_add(control)?));
            match found {
                _ if reason.is_some() => Switch::Unknown,
                None => Switch::Absent,
                Some(value) if value & bits == bits => Switch::On,
                Some(_) => Switch::Off,
            }
        });
        Features {
            ats,
            pri,
            pasid,
            acs,
            sriov,
            unknown_because: reason,
        }
    }
}

/// Why the extended part may not be read. A conventional PCI device has 256 bytes and no such part.
fn unread(config: &ConfigSpace) -> Option<&'static str> {
    match config.len() {
        0 => Some("config space cannot be read"),
        len if len <= HEADER => Some("only root may read capabilities"),
        // The vendor alone says nothing: of a virtual function it is all ones (section 9.3.4.1.1).
        _ if [0, 4].map(|at| config.u16(at)) == [Some(0xffff); 2] => {
            Some("the device does not answer")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::config::testing::with_extended, *};

    #[test]
    fn a_switch_follows_its_control_register() {
        let bytes = with_extended(&[
            (ATS, &[0x20, 0, 0, 0x80]),
            (PRI, &[0, 0, 0, 0]),
            (ACS, &[0x5f, 0, 0x1d, 0]),
            (SRIOV, &[0, 0, 0, 0, 1, 0]),
        ]);
        let found = Features::of(&ConfigSpace::new(bytes));
        assert_eq!(
            (found.ats, found.pri, found.pasid),
            (Switch::On, Switch::Off, Switch::Absent)
        );
        assert_eq!((found.acs, found.sriov), (Switch::On, Switch::On));
        assert_eq!(found.unknown_because, None);
    }

    #[test]
    fn access_control_without_redirection_is_off() {
        let bytes = with_extended(&[(ACS, &[0x5f, 0, 0x01, 0])]);
        assert_eq!(Features::of(&ConfigSpace::new(bytes)).acs, Switch::Off);
    }

    #[test]
    fn what_a_user_may_not_read_is_unknown_and_not_absent() {
        let found = Features::of(&ConfigSpace::new(vec![0; HEADER]));
        assert_eq!(found.ats, Switch::Unknown);
        assert_eq!(
            found.unknown_because,
            Some("only root may read capabilities")
        );
    }

    #[test]
    fn a_virtual_function_answers_and_a_device_that_is_gone_does_not() {
        let mut bytes = with_extended(&[(ATS, &[0x20, 0, 0, 0x80])]);
        bytes[..4].fill(0xff);
        let found = Features::of(&ConfigSpace::new(bytes));
        assert_eq!((found.ats, found.unknown_because), (Switch::On, None));
        let found = Features::of(&ConfigSpace::new(vec![0xff; 4096]));
        assert_eq!(found.unknown_because, Some("the device does not answer"));
    }

    #[test]
    fn a_conventional_device_has_none() {
        let found = Features::of(&ConfigSpace::new(vec![0; 256]));
        assert_eq!((found.ats, found.sriov), (Switch::Absent, Switch::Absent));
    }
}
