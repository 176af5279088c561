//! Virtual functions are made, given to VFIO's driver and removed.
//!
//! Whatever is changed is noted in `/run/vmlet/sriov` before. Where a process is killed half way, the
//! next that makes or removes virtual functions of the same physical one puts all back first.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use vmlet_host::{HostRoot, PciAddress, PciDevice};

use super::{
    note::{Lock, Note, Owner},
    nvme::AdminQueue,
    sharing::{Sharing, numbers},
};
use crate::{
    VfioError,
    binding::Binding,
    noted::Noted,
    sysfs::{Attributes, Function, Sysfs},
};

/// Drivers make them before the write to `sriov_numvfs` returns, as a rule.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// The virtual functions that somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VfRequest {
    /// How many.
    pub count: u32,
    /// They are given to `vfio-pci`; else they have no driver.
    pub bind: bool,
    /// They are removed when this process has ended, by the next use of the physical function or by
    /// [`mend`](crate::mend); else they stay.
    pub lent: bool,
    /// Queues of each, of an NVMe controller with virtualization management; else as many as if all
    /// that there can be were made.
    pub queues: Option<u16>,
    /// Interrupts of each, likewise.
    pub interrupts: Option<u16>,
}

impl VfRequest {
    /// So many, given to VFIO's driver, that stay.
    pub fn new(count: u32) -> VfRequest {
        VfRequest {
            count,
            bind: true,
            lent: false,
            queues: None,
            interrupts: None,
        }
    }
}

/// Makes virtual functions of the physical function at `address`, which has none. No driver of the
/// host gets any. After an error there are none.
pub fn create_vfs(
    root: &HostRoot,
    address: PciAddress,
    request: VfRequest,
) -> Result<Vec<PciAddress>, VfioError> {
    PhysicalFunction::new(root, address, &Sysfs).create(request)
}

/// Removes those that [`create_vfs`] has made, in this process or another. Where there are none
/// nothing is done, and where somebody has one open neither.
pub fn remove_vfs(root: &HostRoot, address: PciAddress) -> Result<(), VfioError> {
    PhysicalFunction::new(root, address, &Sysfs).remove()
}

/// The virtual functions there are, in the order of their numbers.
pub fn virtual_functions(root: &HostRoot, address: PciAddress) -> Vec<PciAddress> {
    PhysicalFunction::new(root, address, &Sysfs).functions()
}

pub(crate) struct PhysicalFunction<'a> {
    pub(super) function: Function<'a>,
    /// Where it is an NVMe controller.
    pub(super) queue: &'a dyn AdminQueue,
}

impl<'a> PhysicalFunction<'a> {
    pub(crate) fn new<K: Attributes + AdminQueue>(
        root: &'a HostRoot,
        address: PciAddress,
        kernel: &'a K,
    ) -> Self {
        PhysicalFunction {
            function: Function {
                root,
                address,
                kernel,
            },
            queue: kernel,
        }
    }

    pub(super) fn create(&self, request: VfRequest) -> Result<Vec<PciAddress>, VfioError> {
        self.check(&self.function.device()?, request.count)?;
        let _lock = Lock::take(self.function.root, self.function.address)?;
        self.mend_locked()?;
        let device = self.function.device()?;
        let enabled = enabled(&device);
        if enabled != 0 {
            return Err(self.there(&device, enabled)?);
        }
        let sharing = self.sharing(&device, request)?;
        let mut note = Note::new(&device, self.value("sriov_drivers_autoprobe"), self.this()?);
        if let Some(sharing) = &sharing {
            note.nvme = Some(sharing.controller.primary()?);
        }
        note.write(self.function.root, self.function.address)?;
        self.make(request, &note, sharing).inspect_err(|_| {
            if let Err(error) = self.undo(&note) {
                let address = self.function.address;
                log::warn!("virtual functions of {address} are left half made: {error}");
            }
        })
    }

    pub(super) fn remove(&self) -> Result<(), VfioError> {
        let before = self.function.device()?;
        if enabled(&before) == 0 && Note::read(self.function.root, &before)?.is_none() {
            return Ok(());
        }
        let _lock = Lock::take(self.function.root, self.function.address)?;
        let device = self.function.device()?;
        let Some(mut note) = Note::read(self.function.root, &device)? else {
            return match enabled(&device) {
                0 => Ok(()),
                enabled => Err(VfioError::VfsNotOurs {
                    address: self.function.address,
                    enabled,
                }),
            };
        };
        self.check_owner(&note)?;
        self.check_unused()?;
        // Whoever is killed from here on has begun to remove them.
        note.owner = Some(self.this()?);
        note.write(self.function.root, self.function.address)?;
        self.undo(&note)
    }

    /// Removes what a process has left that is gone; whether there was something. What somebody is at
    /// work on is not left.
    pub(crate) fn mend(&self) -> Result<bool, VfioError> {
        if PciDevice::read(self.function.root, self.function.address).is_none() {
            return Note::drop_of(self.function.root, self.function.address).map(|()| true);
        }
        match Lock::take(self.function.root, self.function.address) {
            Err(VfioError::VfsChanging { .. }) => Ok(false),
            Err(error) => Err(error),
            Ok(_lock) => self.mend_locked(),
        }
    }

    fn mend_locked(&self) -> Result<bool, VfioError> {
        let device = self.function.device()?;
        let Some(note) = Note::read(self.function.root, &device)? else {
            return Ok(false);
        };
        let left = match &note.owner {
            Some(owner) => !owner.lives(self.function.root),
            None => enabled(&device) == 0,
        };
        if left {
            self.check_unused()?;
            self.undo(&note)?;
        }
        Ok(left)
    }

    fn check(&self, device: &PciDevice, asked: u32) -> Result<(), VfioError> {
        let address = self.function.address;
        let functions = device.virtual_functions;
        let total = functions.ok_or(VfioError::NoSriov { address })?.total;
        if device.driver.is_none() {
            let driver = None;
            return Err(VfioError::NoVfDriver { address, driver });
        }
        if asked == 0 || asked > u32::from(total) {
            return Err(VfioError::VfCount {
                address,
                asked,
                total,
            });
        }
        Ok(())
    }

    fn there(&self, device: &PciDevice, enabled: u16) -> Result<VfioError, VfioError> {
        match Note::read(self.function.root, device)? {
            None => Ok(VfioError::VfsNotOurs {
                address: self.function.address,
                enabled,
            }),
            Some(note) => {
                self.check_owner(&note)?;
                Ok(VfioError::VfsThere {
                    address: self.function.address,
                    enabled,
                })
            }
        }
    }

    fn check_owner(&self, note: &Note) -> Result<(), VfioError> {
        match &note.owner {
            Some(owner) if !owner.is_this() && owner.lives(self.function.root) => {
                Err(VfioError::VfsHeld {
                    address: self.function.address,
                    pid: owner.pid,
                })
            }
            _ => Ok(()),
        }
    }

    /// The kernel waits without end for who has one open.
    fn check_unused(&self) -> Result<(), VfioError> {
        self.functions()
            .into_iter()
            .try_for_each(|vf| self.binding(vf).check_unused())
    }

    fn make(
        &self,
        request: VfRequest,
        note: &Note,
        sharing: Option<Sharing<'_>>,
    ) -> Result<Vec<PciAddress>, VfioError> {
        if let Some(Sharing { controller, share }) = &sharing {
            // A reset takes virtual functions away: before there are any.
            controller.make_room(request.count, *share)?;
        }
        if note.autoprobe.is_some() {
            self.write("sriov_drivers_autoprobe", "0")?;
        }
        self.enable(request.count)?;
        let made = self.wait(request.count)?;
        self.restore_autoprobe(note)?;
        if let Some(Sharing { controller, share }) = &sharing {
            numbers(&made).try_for_each(|number| controller.give(number, *share))?;
        }
        if request.bind {
            made.iter().try_for_each(|vf| self.binding(*vf).bind())?;
        }
        if !request.lent {
            let mut kept = note.clone();
            kept.owner = None;
            kept.write(self.function.root, self.function.address)?;
        }
        Ok(made)
    }

    fn enable(&self, count: u32) -> Result<(), VfioError> {
        self.write("sriov_numvfs", &count.to_string())
            .map_err(|error| match error {
                // The kernel's word for a driver without `sriov_configure`, and for none at all.
                VfioError::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                    VfioError::NoVfDriver {
                        address: self.function.address,
                        driver: self.function.device().ok().and_then(|device| device.driver),
                    }
                }
                other => other,
            })
    }

    fn wait(&self, asked: u32) -> Result<Vec<PciAddress>, VfioError> {
        let end = Instant::now() + PATIENCE;
        loop {
            let functions = self.functions();
            let made = functions.len();
            if u32::try_from(made) == Ok(asked) {
                return Ok(functions);
            }
            if Instant::now() >= end {
                return Err(VfioError::VfsMissing {
                    address: self.function.address,
                    asked,
                    made,
                });
            }
            thread::sleep(PAUSE);
        }
    }

    /// Takes virtual functions away, puts back what was there, and forgets it.
    fn undo(&self, note: &Note) -> Result<(), VfioError> {
        let shared = match note.nvme {
            Some(before) => Some((self.noted_controller()?, before)),
            None => None,
        };
        for vf in self.functions() {
            match self.binding(vf).release() {
                // Somebody gave it to VFIO by hand; it goes all the same.
                Ok(()) | Err(VfioError::NotOurs { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if let Some((controller, _)) = &shared {
            controller.take_back()?;
        }
        if enabled(&self.function.device()?) != 0 {
            self.write("sriov_numvfs", "0")?;
        }
        if let Some((controller, before)) = &shared {
            controller.restore(*before)?;
        }
        self.restore_autoprobe(note)?;
        Note::drop_of(self.function.root, self.function.address)
    }

    fn restore_autoprobe(&self, note: &Note) -> Result<(), VfioError> {
        match &note.autoprobe {
            Some(before) => self.write("sriov_drivers_autoprobe", before),
            None => Ok(()),
        }
    }

    /// By the kernel's links `virtfn0`, `virtfn1`, ...
    pub(super) fn functions(&self) -> Vec<PciAddress> {
        let link = |number: u32| {
            let path = self.function.attribute(&format!("virtfn{number}"));
            let target = fs::read_link(path).ok()?;
            target.file_name()?.to_str()?.parse().ok()
        };
        (0..).map_while(link).collect()
    }

    fn binding(&self, address: PciAddress) -> Binding<'a> {
        Binding::new(self.function.root, address, self.function.kernel)
    }

    fn this(&self) -> Result<Owner, VfioError> {
        Owner::this(self.function.root)
    }

    fn value(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.function.attribute(name)).ok()?;
        Some(text.trim().to_owned())
    }

    fn write(&self, name: &str, text: &str) -> Result<(), VfioError> {
        self.function.write(&self.function.attribute(name), text)
    }
}

fn enabled(device: &PciDevice) -> u16 {
    device
        .virtual_functions
        .map_or(0, |functions| functions.enabled)
}
