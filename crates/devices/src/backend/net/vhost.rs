//! The kernel's vhost-net: it works on the queues of a device by itself, between a tap interface and
//! guest memory.

use std::{
    fmt,
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use ::vhost::{
    Error, VhostBackend, VhostUserMemoryRegionInfo,
    net::VhostNet as _,
    vhost_kern::{net::Net, vhost_binding::vhost_vring_addr},
};
use vm_memory::GuestMemoryMmap;
use vmlet_memory::{
    Gpa, Lease, LeaseKind, MemoryView,
    fork::{ParentOnly, Watch, watch_fd},
};
use vmm_sys_util::eventfd::EventFd;

use super::{NetError, calls};

/// A queue as the kernel gets it.
#[derive(Debug)]
pub struct Ring {
    /// Entries.
    pub size: u16,
    /// Where the descriptor table is, guest-physical.
    pub desc: Gpa,
    /// Where the available ring is.
    pub avail: Gpa,
    /// Where the used ring is.
    pub used: Gpa,
    /// Position in the available ring.
    pub next: u16,
    /// Signalled when there are buffers.
    pub kick: Arc<EventFd>,
    /// Signalled to interrupt the driver.
    pub call: EventFd,
}

/// The kernel's side of one device.
pub struct VhostNet {
    kernel: ParentOnly<Net<Arc<GuestMemoryMmap>>>,
    _watch: ParentOnly<Option<Watch>>,
}

impl fmt::Debug for VhostNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostNet").finish_non_exhaustive()
    }
}

fn failed(action: &'static str) -> impl Fn(Error) -> NetError {
    move |error| {
        let source = match error {
            Error::IoctlError(source) | Error::IOError(source) | Error::VhostOpen(source) => source,
            other => io::Error::other(other.to_string()),
        };
        let remedy = match source.kind() {
            io::ErrorKind::NotFound => {
                "The host has no /dev/vhost-net: load the module vhost_net, or leave vhost out."
            }
            io::ErrorKind::PermissionDenied => {
                "Have the administrator let you open /dev/vhost-net, or leave vhost out."
            }
            _ => "",
        };
        NetError::Vhost {
            action,
            remedy,
            source,
        }
    }
}

impl VhostNet {
    /// A device of the kernel's, for this process's memory.
    pub fn open() -> Result<VhostNet, NetError> {
        // Addresses are given as they are: it needs no memory to look them up.
        let kernel = Net::new(Arc::new(GuestMemoryMmap::new())).map_err(failed("opening"))?;
        kernel.set_owner().map_err(failed("taking it"))?;
        let watch = watch_fd(kernel.as_raw_fd());
        Ok(VhostNet {
            kernel: ParentOnly::new(kernel),
            _watch: ParentOnly::new(watch),
        })
    }

    /// Features of queues and frames that it knows.
    pub fn features(&self) -> Result<u64, NetError> {
        self.kernel.get_features().map_err(failed("asking"))
    }

    /// Works on `rings` from now on, receiving first; the leases are the memory it uses.
    pub fn start(
        &self,
        memory: &MemoryView,
        features: u64,
        rings: &[Ring],
        tap: &OwnedFd,
    ) -> Result<Vec<Lease>, NetError> {
        let kernel = &*self.kernel;
        let known = self.features()?;
        kernel
            .set_features(features & known)
            .map_err(failed("setting features"))?;
        let leases = self.share(memory)?;
        let tap = tap
            .try_clone()
            .map(File::from)
            .map_err(|source| NetError::Call {
                call: "dup",
                source,
            })?;
        for (index, ring) in rings.iter().enumerate() {
            self.configure(memory, index, ring)?;
        }
        for index in 0..rings.len() {
            let begun = kernel.set_backend(index, Some(&tap));
            if let Err(error) = begun {
                self.stop(rings.len());
                return Err(failed("starting")(error));
            }
        }
        Ok(leases)
    }

    fn share(&self, memory: &MemoryView) -> Result<Vec<Lease>, NetError> {
        let (mut regions, mut leases) = (Vec::new(), Vec::new());
        for (gpa, ram, offset, len) in memory.mappings() {
            regions.push(VhostUserMemoryRegionInfo {
                guest_phys_addr: gpa.0,
                memory_size: len,
                userspace_addr: ram.hva().0.saturating_add(offset),
                ..VhostUserMemoryRegionInfo::default()
            });
            let range = offset..offset.saturating_add(len);
            let lease = ram.lease(LeaseKind::Vhost, range, "vhost-net".to_owned());
            leases.extend(lease.ok());
        }
        let set = self.kernel.set_mem_table(&regions);
        set.map_err(failed("setting the memory table"))?;
        Ok(leases)
    }

    fn configure(&self, memory: &MemoryView, index: usize, ring: &Ring) -> Result<(), NetError> {
        let kernel = &*self.kernel;
        kernel
            .set_vring_num(index, ring.size)
            .and_then(|()| kernel.set_vring_base(index, ring.next))
            .map_err(failed("setting up a queue"))?;
        let host = |gpa: Gpa| {
            let (ram, offset, _) = memory.find(gpa, true)?;
            Some(ram.hva().0.saturating_add(offset))
        };
        let outside = || failed("finding a queue")(Error::InvalidQueue);
        let address = vhost_vring_addr {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            flags: 0,
            desc_user_addr: host(ring.desc).ok_or_else(outside)?,
            used_user_addr: host(ring.used).ok_or_else(outside)?,
            avail_user_addr: host(ring.avail).ok_or_else(outside)?,
            log_guest_addr: 0,
        };
        calls::vring_address(kernel.as_raw_fd(), &address)
            .map_err(|error| failed("placing a queue")(Error::IoctlError(error)))?;
        kernel
            .set_vring_kick(index, &ring.kick)
            .and_then(|()| kernel.set_vring_call(index, &ring.call))
            .map_err(failed("wiring a queue"))
    }

    /// Stops: nothing is under way when this returns. Gives where each ring's available position is.
    pub fn stop(&self, rings: usize) -> Vec<u16> {
        let stopped = (0..rings).map(|index| {
            let _ = self.kernel.set_backend(index, None);
            let base = self.kernel.get_vring_base(index).unwrap_or(0);
            u16::try_from(base & 0xffff).unwrap_or(0)
        });
        stopped.collect()
    }
}
