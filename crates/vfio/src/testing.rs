//! A tree of files in sysfs's shape, and a group without a kernel.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tempfile::TempDir;
use vmlet_host::{HostRoot, IommuGroup, PciAddress};
use vmlet_memory::{Iova, Lease};

use crate::{
    Access, DomainLimits, IommuBackend, IommuDomain, IovaRange, Owner, VfioError,
    descriptor::Descriptor,
    group::{self, Membership, OpenGroup, Wanted},
};

pub(crate) struct Tree(TempDir);

impl Tree {
    pub(crate) fn new() -> Tree {
        Tree(tempfile::tempdir().unwrap())
    }

    pub(crate) fn root(&self) -> HostRoot {
        HostRoot::new(self.0.path())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Where in the tree `path` is.
    pub(crate) fn name<'p>(&self, path: &'p Path) -> &'p str {
        path.strip_prefix(self.0.path()).unwrap().to_str().unwrap()
    }

    pub(crate) fn file(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A function in a group of its own; vendor, device and class as sysfs has them.
    pub(crate) fn function(&self, address: &str, [vendor, device, class]: [&str; 3], group: u32) {
        let folder = format!("sys/bus/pci/devices/{address}");
        for (name, text) in [
            ("vendor", vendor),
            ("device", device),
            ("class", class),
            ("driver_override", "(null)"),
        ] {
            self.file(&format!("{folder}/{name}"), text);
        }
        let member = format!("sys/kernel/iommu_groups/{group}/devices/{address}/x");
        self.file(&member, "");
        let link = self.path(&format!("{folder}/iommu_group"));
        symlink(format!("../groups/{group}"), link).unwrap();
    }

    pub(crate) fn set_driver(&self, address: &str, driver: Option<&str>) {
        let link = self.path(&format!("sys/bus/pci/devices/{address}/driver"));
        let _ = fs::remove_file(&link);
        if let Some(driver) = driver {
            symlink(format!("../../drivers/{driver}"), link).unwrap();
        }
    }
}

/// A group without a kernel: notes which functions it opens, and how often it is closed.
#[derive(Clone, Debug)]
pub(crate) struct FakeGroup {
    backend: IommuBackend,
    limits: DomainLimits,
    file: Arc<Descriptor>,
    log: Arc<Mutex<Log>>,
}

#[derive(Debug, Default)]
struct Log {
    opened: Vec<String>,
    closed: usize,
    /// Where something is mapped.
    mapped: Vec<u64>,
    refuses: bool,
}

impl FakeGroup {
    pub(crate) fn new(backend: IommuBackend) -> FakeGroup {
        let everything = IovaRange {
            first: 0,
            last: u64::MAX,
        };
        FakeGroup {
            backend,
            limits: DomainLimits {
                page: 4096,
                usable: vec![everything],
            },
            file: Arc::new(Descriptor::new(tempfile::tempfile().unwrap())),
            log: Arc::default(),
        }
    }

    /// Opens that function of `tree` into the group that it is in, or that is made of this.
    pub(crate) fn admit(
        &self,
        tree: &Tree,
        address: &str,
        owner: &Owner,
        backend: Option<IommuBackend>,
    ) -> Result<Membership, VfioError> {
        let root = tree.root();
        let wanted = Wanted {
            root: &root,
            address: address.parse().unwrap(),
            owner,
            backend,
        };
        let first = || {
            let file = self.open(&root, wanted.address)?;
            Ok((Arc::new(self.clone()) as Arc<dyn OpenGroup>, file))
        };
        let group = IommuGroup::of(&root, wanted.address).unwrap();
        Ok(group::open(&group, &wanted, first)?.0)
    }

    pub(crate) fn opened(&self) -> Vec<String> {
        self.log.lock().unwrap().opened.clone()
    }

    pub(crate) fn closed(&self) -> usize {
        self.log.lock().unwrap().closed
    }

    pub(crate) fn mapped(&self) -> Vec<u64> {
        self.log.lock().unwrap().mapped.clone()
    }

    /// Whether functions cannot be opened from now on.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.log.lock().unwrap().refuses = refuses;
    }
}

impl IommuDomain for FakeGroup {
    fn backend(&self) -> IommuBackend {
        self.backend
    }

    fn limits(&self) -> &DomainLimits {
        &self.limits
    }

    fn map(&self, iova: Iova, _: &Lease, _: Access) -> Result<(), VfioError> {
        self.log.lock().unwrap().mapped.push(iova.0);
        Ok(())
    }

    fn unmap(&self, iova: Iova, _: u64) -> Result<(), VfioError> {
        let mapped = &mut self.log.lock().unwrap().mapped;
        mapped.retain(|one| *one != iova.0);
        Ok(())
    }

    fn close(&self) {
        self.log.lock().unwrap().closed += 1;
    }
}

impl OpenGroup for FakeGroup {
    fn open(&self, _: &HostRoot, address: PciAddress) -> Result<File, VfioError> {
        let mut log = self.log.lock().unwrap();
        if log.refuses {
            return Err(VfioError::NotViable { group: 0 });
        }
        log.opened.push(address.to_string());
        Ok(tempfile::tempfile().unwrap())
    }

    fn file(&self) -> Option<&Descriptor> {
        (self.backend == IommuBackend::Type1).then_some(&*self.file)
    }
}
