use super::*;
use crate::{
    testing::{FakeGroup, Tree},
    users,
};

const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:01:00.1";

struct Host {
    tree: Tree,
    fake: FakeGroup,
}

impl Host {
    fn new() -> Host {
        let tree = Tree::new();
        for address in [FIRST, SECOND] {
            tree.function(address, ["0x1234", "0x11e8", "0x00ff00"], 7);
        }
        let fake = FakeGroup::new(IommuBackend::Type1);
        Host { tree, fake }
    }

    fn open(
        &self,
        address: &str,
        owner: &Owner,
        backend: Option<IommuBackend>,
    ) -> Result<Membership, VfioError> {
        self.fake.admit(&self.tree, address, owner, backend)
    }
}

#[test]
fn functions_of_one_owner_share_the_domain_until_the_last_is_closed() {
    let (host, vm) = (Host::new(), Owner::new("a VM"));
    let first = host.open(FIRST, &vm, None).unwrap();
    let second = host.open(SECOND, &vm, None).unwrap();
    assert!(Arc::ptr_eq(&first.shared, &second.shared));
    assert_eq!(first.shared.holder, "the devices of IOMMU group 7");
    first.leave();
    first.leave();
    assert_eq!(host.fake.closed(), 0);
    // It may come back meanwhile, and the old one's end is not the new one's.
    let again = host.open(FIRST, &vm, None).unwrap();
    drop(first);
    drop(second);
    assert_eq!(host.fake.closed(), 0);
    drop(again);
    assert_eq!(host.fake.closed(), 1);
    assert_eq!(host.fake.opened(), [FIRST, SECOND, FIRST]);
}

#[test]
fn another_owner_is_told_who_has_the_group_and_gets_it_after_the_last() {
    let (host, vm, other) = (Host::new(), Owner::new("a VM"), Owner::new("a VM"));
    let first = host.open(FIRST, &vm, None).unwrap();
    let error = host.open(SECOND, &other, None).unwrap_err();
    assert!(
        matches!(error, VfioError::GroupHeld { group: 7, .. }),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("a VM has open: 0000:01:00.0") && text.contains("beside="),
        "{text}"
    );
    assert_eq!(host.fake.opened(), [FIRST]);
    assert_eq!(users::of(&host.tree.root(), 7), ["a VM"]);
    drop(first);
    assert!(users::of(&host.tree.root(), 7).is_empty());
    assert!(host.open(SECOND, &other, None).is_ok());
}

#[test]
fn a_function_is_open_once_for_its_owner_too() {
    let (host, vm) = (Host::new(), Owner::new("a VM"));
    let _first = host.open(FIRST, &vm, None).unwrap();
    for owner in [&vm, &Owner::new("another")] {
        let error = host.open(FIRST, owner, None).unwrap_err();
        assert!(matches!(error, VfioError::Busy { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("a VM has its IOMMU group 7 open"),
            "{error}"
        );
    }
}

#[test]
fn the_second_follows_the_interface_of_the_first() {
    let (host, vm) = (Host::new(), Owner::new("a VM"));
    let _first = host.open(FIRST, &vm, None).unwrap();
    let error = host
        .open(SECOND, &vm, Some(IommuBackend::Iommufd))
        .unwrap_err();
    assert!(error.to_string().contains("open by type1"), "{error}");
    assert!(host.open(SECOND, &vm, Some(IommuBackend::Type1)).is_ok());
}

#[test]
fn a_function_that_cannot_be_opened_leaves_the_group_as_it_was() {
    let (host, vm) = (Host::new(), Owner::new("a VM"));
    host.fake.refuse(true);
    assert!(host.open(FIRST, &vm, None).is_err());
    host.fake.refuse(false);
    let first = host.open(FIRST, &vm, None).unwrap();
    host.fake.refuse(true);
    assert!(host.open(SECOND, &vm, None).is_err());
    drop(first);
    assert_eq!(host.fake.closed(), 1);
}
