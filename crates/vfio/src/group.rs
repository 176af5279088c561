//! IOMMU groups that this process has open, and for whom.
//!
//! The hardware cannot keep the functions of a group apart, and the kernel gives a group to one user:
//! its file is opened once, all of its functions are translated by one table. So those that one
//! [`Owner`] opens share the group's domain, and others are refused and told who has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use vmlet_host::{HostRoot, IommuGroup, PciAddress};
use vmlet_memory::fork::{Origin, PerProcess};

use crate::{
    IommuBackend, IommuDomain, VfioError, descriptor::Descriptor, domain::Table,
    guest::GuestMemory, type1::group_path,
};

/// Whom devices are opened for, as messages call it. Those of one share what the hardware cannot keep
/// apart; clones are the same one.
#[derive(Clone, Debug)]
pub struct Owner(Arc<str>);

impl Owner {
    /// One that is no other: "a VM of this process".
    pub fn new(name: &str) -> Owner {
        Owner(name.into())
    }

    fn is(&self, other: &Owner) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A group that is open by one of the kernel's interfaces, and the domain of all its functions.
pub(crate) trait OpenGroup: IommuDomain {
    /// Opens its function at `address` into the domain.
    fn open(&self, root: &HostRoot, address: PciAddress) -> Result<File, VfioError>;

    /// Its file, where it has one.
    fn file(&self) -> Option<&Descriptor>;
}

/// What is opened for whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) root: &'a HostRoot,
    pub(crate) address: PciAddress,
    pub(crate) owner: &'a Owner,
    /// By which interface; none: by the one that can be had.
    pub(crate) backend: Option<IommuBackend>,
}

/// What the open functions of a group have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) domain: Arc<dyn OpenGroup>,
    pub(crate) table: Table,
    /// All of a guest's memory, and how many of the functions reach it.
    pub(crate) guest: Mutex<(usize, Option<Arc<GuestMemory>>)>,
    /// Who is said to hold what they reach.
    pub(crate) holder: String,
}

/// An open group.
#[derive(Debug)]
pub(crate) struct Group {
    owner: Owner,
    pub(crate) shared: Arc<Shared>,
    /// Its open functions; whether nobody has used one since it was reset.
    members: BTreeMap<PciAddress, Arc<AtomicBool>>,
}

type Slot = Mutex<Option<Group>>;

/// By the group's file. A forked child has none of them open.
static SLOTS: PerProcess<Mutex<BTreeMap<PathBuf, Arc<Slot>>>> = PerProcess::new();

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn slot(root: &HostRoot, number: u32) -> Arc<Slot> {
    let slots = SLOTS.get_or_make(|| Some(Mutex::default()));
    let slot =
        slots.map(|slots| Arc::clone(lock(slots).entry(group_path(root, number)).or_default()));
    slot.unwrap_or_default()
}

impl Group {
    fn admit(&self, number: u32, wanted: &Wanted<'_>) -> Result<(), VfioError> {
        let Wanted {
            address, backend, ..
        } = *wanted;
        if self.members.contains_key(&address) {
            return Err(VfioError::Busy {
                address,
                group: number,
                users: vec![self.owner.0.to_string()],
            });
        }
        if !self.owner.is(wanted.owner) {
            return Err(VfioError::GroupHeld {
                address,
                group: number,
                owner: self.owner.0.to_string(),
                devices: self.members.keys().copied().collect(),
            });
        }
        let open = self.shared.domain.backend();
        match backend {
            Some(wanted) if wanted != open => Err(VfioError::OtherBackend {
                address,
                group: number,
                open,
                wanted,
            }),
            _ => Ok(()),
        }
    }

    fn new(owner: &Owner, domain: Arc<dyn OpenGroup>, holder: String) -> Group {
        Group {
            owner: owner.clone(),
            shared: Arc::new(Shared {
                table: Table::new(Arc::clone(&domain) as Arc<dyn IommuDomain>),
                domain,
                guest: Mutex::default(),
                holder,
            }),
            members: BTreeMap::new(),
        }
    }

    /// Whether it is open for that one.
    pub(crate) fn is_of(&self, owner: &Owner) -> bool {
        self.owner.is(owner)
    }

    /// Whether somebody has used that function of it since it was reset.
    pub(crate) fn uses(&self, address: PciAddress) -> bool {
        let member = self.members.get(&address);
        member.is_some_and(|quiet| !quiet.load(Ordering::Acquire))
    }
}

/// Who holds what the functions of that group reach, in messages.
fn holder(group: &IommuGroup, address: PciAddress) -> String {
    match group
        .members
        .iter()
        .any(|one| one.address != address && one.driver.as_deref() != Some("pcieport"))
    {
        true => format!("the devices of IOMMU group {}", group.number),
        false => format!("the device {address}"),
    }
}

/// A function that is open; it leaves its group when this is dropped.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) root: HostRoot,
    pub(crate) address: PciAddress,
    pub(crate) owner: Owner,
    pub(crate) shared: Arc<Shared>,
    quiet: Arc<AtomicBool>,
    slot: Arc<Slot>,
    left: AtomicBool,
    origin: Origin,
}

impl Membership {
    /// Nobody has used the function since it was reset; or somebody does.
    pub(crate) fn set_quiet(&self, quiet: bool) {
        self.quiet.store(quiet, Ordering::Release);
    }

    /// The function's file is closed. The last one closes the group.
    pub(crate) fn leave(&self) {
        if !self.origin.is_here() || self.left.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut open = lock(&self.slot);
        let Some(group) = open.as_mut() else {
            return;
        };
        group.members.remove(&self.address);
        if group.members.is_empty() {
            group.shared.domain.close();
            *open = None;
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Opens a function of `group`: into the domain that its owner has for the group, or into a new one
/// that `first` opens with it.
pub(crate) fn open(
    group: &IommuGroup,
    wanted: &Wanted<'_>,
    first: impl FnOnce() -> Result<(Arc<dyn OpenGroup>, File), VfioError>,
) -> Result<(Membership, File), VfioError> {
    let Wanted {
        root,
        address,
        owner,
        ..
    } = *wanted;
    let slot = slot(root, group.number);
    // Held meanwhile, as it is where the last one closes the group: the kernel refuses who comes between.
    let mut open = lock(&slot);
    let (file, found) = match &mut *open {
        Some(found) => {
            found.admit(group.number, wanted)?;
            (found.shared.domain.open(root, address)?, found)
        }
        none => {
            let (domain, file) = first()?;
            (
                file,
                none.insert(Group::new(owner, domain, holder(group, address))),
            )
        }
    };
    let quiet = Arc::default();
    found.members.insert(address, Arc::clone(&quiet));
    let shared = Arc::clone(&found.shared);
    drop(open);
    let membership = Membership {
        root: root.clone(),
        address,
        owner: owner.clone(),
        shared,
        quiet,
        slot,
        left: AtomicBool::new(false),
        origin: Origin::here(),
    };
    Ok((membership, file))
}

/// Who in this process has that group open, unless somebody opens or leaves it at the moment.
pub(crate) fn owner_of(root: &HostRoot, number: u32) -> Option<String> {
    let slot = slot(root, number);
    let open = slot.try_lock().ok()?;
    Some(open.as_ref()?.owner.0.to_string())
}

/// Hands `work` those of the groups that are open, which nobody opens or leaves meanwhile.
pub(crate) fn with<T>(
    root: &HostRoot,
    numbers: &BTreeSet<u32>,
    work: impl FnOnce(&BTreeMap<u32, &Group>) -> T,
) -> T {
    let slots: Vec<_> = numbers
        .iter()
        .map(|number| (*number, slot(root, *number)))
        .collect();
    // In the order of their numbers: no two that do this wait for each other.
    let open: Vec<_> = slots
        .iter()
        .map(|(number, slot)| (*number, lock(slot)))
        .collect();
    let open = open
        .iter()
        .filter_map(|(number, group)| Some((*number, group.as_ref()?)));
    work(&open.collect())
}

#[cfg(test)]
mod tests;
