//! Resets of a whole slot or bus, for functions that cannot be reset alone (the kernel's "hot reset").
//!
//! The kernel tells which functions such a reset touches, and does it where whoever asks has them all:
//! for type1 by the files of their groups, for iommufd by the iommufd that they are bound to. All have
//! to be with VFIO's drivers (`drivers/vfio/pci/vfio_pci_core.c`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    os::fd::{AsRawFd, RawFd},
};

use vmlet_host::{HostRoot, IommuGroup, PciAddress, serves_vfio};

use crate::{
    VfioError,
    group::{self, Group, Owner},
};

/// What the kernel says of a function that would be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// By type1: its group.
    Group(u32),
    /// By iommufd: whether it is the asking one's.
    Owned(bool),
}

/// A function that would be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Affected {
    pub(crate) address: PciAddress,
    pub(crate) claim: Claim,
}

/// A function that keeps others from being reset, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// Where it is.
    pub address: PciAddress,
    /// Who has it.
    pub holder: Holder,
}

/// Who has a function that others would be reset with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The asking one itself, which uses it.
    InUse,
    /// Somebody else, in a few words.
    Other(String),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Holder::InUse => "in use",
            Holder::Other(who) => who,
        })
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking<'a> {
    pub(crate) root: &'a HostRoot,
    pub(crate) address: PciAddress,
    pub(crate) owner: &'a Owner,
    /// Others that are in use are not reset with it.
    pub(crate) sparing: bool,
}

impl Asking<'_> {
    /// Calls `work` with the files of the groups that `affected` functions are in, none by iommufd,
    /// where all of them may be reset. Nobody opens one meanwhile.
    pub(crate) fn with_all<T>(
        &self,
        affected: &[Affected],
        work: impl FnOnce(&[RawFd]) -> Result<T, VfioError>,
    ) -> Result<T, VfioError> {
        let groups: BTreeMap<PciAddress, u32> = affected
            .iter()
            .filter_map(|one| Some((one.address, self.group(one)?)))
            .collect();
        let numbers: BTreeSet<u32> = groups.values().copied().collect();
        group::with(self.root, &numbers, |open| {
            let of = |one: &Affected| open.get(groups.get(&one.address)?).copied();
            let touched = affected
                .iter()
                .filter_map(|one| self.obstacle(one, of(one)));
            let touched: Vec<Touched> = touched.collect();
            if !touched.is_empty() {
                let address = self.address;
                return Err(VfioError::HotReset { address, touched });
            }
            let files = open.values().filter_map(|group| group.shared.domain.file());
            let files = files.map(|file| file.call("a group's file", |file| Ok(file.as_raw_fd())));
            work(&files.collect::<Result<Vec<RawFd>, VfioError>>()?)
        })
    }

    fn group(&self, one: &Affected) -> Option<u32> {
        match one.claim {
            Claim::Group(number) => Some(number),
            Claim::Owned(_) => Some(IommuGroup::of(self.root, one.address)?.number),
        }
    }

    /// Who keeps that function, of a group that is open here, from being reset.
    fn obstacle(&self, one: &Affected, group: Option<&Group>) -> Option<Touched> {
        let driver = format!("sys/bus/pci/devices/{}/driver", one.address);
        let driver = self.root.link(driver);
        let group = group.filter(|group| group.is_of(self.owner));
        let other = match (driver, group) {
            (None, _) => "no driver".to_owned(),
            (Some(driver), _) if !serves_vfio(&driver) => driver,
            (Some(driver), None) => format!("{driver}, of a group that is not open here"),
            (Some(_), Some(_)) if one.claim == Claim::Owned(false) => "another iommufd".to_owned(),
            (Some(_), Some(group)) => {
                let spared = self.sparing && self.in_use(one, group);
                let (address, holder) = (one.address, Holder::InUse);
                return spared.then_some(Touched { address, holder });
            }
        };
        let (address, holder) = (one.address, Holder::Other(other));
        Some(Touched { address, holder })
    }

    fn in_use(&self, one: &Affected, group: &Group) -> bool {
        one.address != self.address && group.uses(one.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        IommuBackend,
        group::Membership,
        testing::{FakeGroup, Tree},
    };

    const FIRST: &str = "0000:01:00.0";
    const SECOND: &str = "0000:01:00.1";

    fn at(address: &str) -> PciAddress {
        address.parse().unwrap()
    }

    fn affected(all: &[(&str, Claim)]) -> Vec<Affected> {
        let one = |(address, claim): &(&str, Claim)| Affected {
            address: at(address),
            claim: *claim,
        };
        all.iter().map(one).collect()
    }

    /// Two functions of group 7, with VFIO's driver.
    fn host() -> Tree {
        let tree = Tree::new();
        for address in [FIRST, SECOND] {
            tree.function(address, ["0x1234", "0x11e8", "0x00ff00"], 7);
            tree.set_driver(address, Some("vfio-pci"));
        }
        tree
    }

    fn open(tree: &Tree, address: &str, owner: &Owner, backend: IommuBackend) -> Membership {
        let fake = FakeGroup::new(backend);
        fake.admit(tree, address, owner, None).unwrap()
    }

    /// How many files a reset of the first function is done with.
    fn reset(
        tree: &Tree,
        owner: &Owner,
        sparing: bool,
        affected: &[Affected],
    ) -> Result<usize, VfioError> {
        let asking = Asking {
            root: &tree.root(),
            address: at(FIRST),
            owner,
            sparing,
        };
        asking.with_all(affected, |files| Ok(files.len()))
    }

    const ONE_GROUP: [(&str, Claim); 2] = [(FIRST, Claim::Group(7)), (SECOND, Claim::Group(7))];

    #[test]
    fn a_group_that_is_held_is_given_once_whoever_of_it_is_open() {
        let (tree, vm) = (host(), Owner::new("a VM"));
        let _first = open(&tree, FIRST, &vm, IommuBackend::Type1);
        assert_eq!(reset(&tree, &vm, true, &affected(&ONE_GROUP)).unwrap(), 1);
    }

    #[test]
    fn a_function_that_the_host_has_is_named_with_its_driver_and_the_remedy() {
        let (tree, vm) = (host(), Owner::new("a VM"));
        let _first = open(&tree, FIRST, &vm, IommuBackend::Type1);
        for (driver, told) in [(None, "no driver"), (Some("igb"), "igb")] {
            tree.set_driver(SECOND, driver);
            let text = reset(&tree, &vm, false, &affected(&ONE_GROUP)).unwrap_err();
            let text = text.to_string();
            assert!(text.contains(&format!("{SECOND} ({told})")), "{text}");
            assert!(
                text.contains(&format!("vmlet vfio bind {SECOND}")),
                "{text}"
            );
        }
    }

    #[test]
    fn a_function_of_a_group_that_somebody_else_has_is_not_reset() {
        let (tree, vm, other) = (host(), Owner::new("a VM"), Owner::new("another"));
        tree.function("0000:01:00.2", ["0x1234", "0x11e8", "0x00ff00"], 8);
        tree.set_driver("0000:01:00.2", Some("vfio-pci"));
        let _first = open(&tree, FIRST, &vm, IommuBackend::Type1);
        let all = [&ONE_GROUP[..], &[("0000:01:00.2", Claim::Group(8))]].concat();
        let refused = |text: &VfioError| {
            text.to_string()
                .contains("0000:01:00.2 (vfio-pci, of a group")
        };
        let error = reset(&tree, &vm, false, &affected(&all)).unwrap_err();
        assert!(refused(&error), "{error}");
        let theirs = open(&tree, "0000:01:00.2", &other, IommuBackend::Type1);
        assert!(refused(
            &reset(&tree, &vm, false, &affected(&all)).unwrap_err()
        ));
        drop(theirs);
        let _ours = open(&tree, "0000:01:00.2", &vm, IommuBackend::Type1);
        assert_eq!(reset(&tree, &vm, false, &affected(&all)).unwrap(), 2);
    }

    #[test]
    fn others_that_are_in_use_are_spared_until_they_are_quiet() {
        let (tree, vm) = (host(), Owner::new("a VM"));
        let _first = open(&tree, FIRST, &vm, IommuBackend::Type1);
        let second = open(&tree, SECOND, &vm, IommuBackend::Type1);
        let all = affected(&ONE_GROUP);
        let error = reset(&tree, &vm, true, &all).unwrap_err();
        assert!(
            error.to_string().contains("0000:01:00.1 (in use)"),
            "{error}"
        );
        assert!(reset(&tree, &vm, false, &all).is_ok());
        second.set_quiet(true);
        assert!(reset(&tree, &vm, true, &all).is_ok());
    }

    #[test]
    fn by_iommufd_the_kernel_says_whose_they_are_and_no_file_is_given() {
        let (tree, vm) = (host(), Owner::new("a VM"));
        let _first = open(&tree, FIRST, &vm, IommuBackend::Iommufd);
        let both = |owned| affected(&[(FIRST, Claim::Owned(true)), (SECOND, Claim::Owned(owned))]);
        assert_eq!(reset(&tree, &vm, true, &both(true)).unwrap(), 0);
        let error = reset(&tree, &vm, true, &both(false)).unwrap_err();
        assert!(error.to_string().contains("(another iommufd)"), "{error}");
    }
}
