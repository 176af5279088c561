//! A VM descriptor: memory slots, interrupts, eventfds.

use std::{
    os::fd::{AsRawFd, BorrowedFd},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_clock_data,
    kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, DeviceFd, VmFd};
use vmlet_memory::{
    Memslot, PAGE_SIZE, SlotId,
    fork::{Origin, ParentOnly, Watch, watch_fd},
};
use vmlet_vcpu::{
    EngineError, IoEvent, Limits, MsiMessage, MsiRoute, SlotChange, Stat, Vcpu, Vm,
    cpuid::CpuidTable, x86_64::MsrPolicy,
};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    convert, ext, msr_filter, reaper, rings::Rings, routes, state, stats, system::call,
    vcpu::KvmVcpu,
};

/// Four pages below the reset vector's that KVM needs on Intel hosts without unrestricted guests.
const IDENTITY_MAP: u64 = 0xfffb_c000;
const TSS: usize = 0xfffb_d000;

/// A VM of `/dev/kvm`.
#[derive(Debug)]
pub(crate) struct KvmVm {
    shared: Option<Arc<Shared>>,
    limits: Limits,
    run_size: usize,
    vfio: Mutex<Option<ParentOnly<DeviceFd>>>,
    msr_policy: OnceLock<&'static MsrPolicy>,
}

/// What a VM and its vCPUs share: the descriptor, closed by whoever is last.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) fd: ParentOnly<VmFd>,
    pub(crate) origin: Origin,
    pub(crate) msr_indices: Arc<[u32]>,
    pub(crate) rings: Rings,
    _watch: Option<Watch>,
}

impl Shared {
    /// Whether the processor can run a guest's time-stamp counter at any rate.
    pub(crate) fn tsc_scales(&self) -> bool {
        self.fd.check_extension(Cap::TscControl)
    }
}

impl KvmVm {
    pub(crate) fn new(
        fd: VmFd,
        run_size: usize,
        limits: Limits,
        msr_indices: Arc<[u32]>,
    ) -> Result<KvmVm, EngineError> {
        fd.set_identity_map_address(IDENTITY_MAP)
            .map_err(call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(TSS).map_err(call("KVM_SET_TSS_ADDR"))?;
        let watch = watch_fd(fd.as_raw_fd());
        let (fd, origin) = (ParentOnly::new(fd), Origin::here());
        let shared = Some(Arc::new(Shared {
            fd,
            origin,
            msr_indices,
            rings: Rings::default(),
            _watch: watch,
        }));
        Ok(KvmVm {
            shared,
            limits,
            run_size,
            vfio: Mutex::new(None),
            msr_policy: OnceLock::new(),
        })
    }

    fn shared(&self) -> Result<&Arc<Shared>, EngineError> {
        let shared = self.shared.as_ref().ok_or(EngineError::Forked)?;
        shared.origin.check().map_err(|_| EngineError::Forked)?;
        Ok(shared)
    }

    fn fd(&self) -> Result<&VmFd, EngineError> {
        Ok(&self.shared()?.fd)
    }

    fn set_region(&self, slot: &Memslot, memory_size: u64) -> Result<(), EngineError> {
        let mut flags = 0;
        if slot.readonly {
            flags |= KVM_MEM_READONLY;
        }
        if slot.log_dirty {
            flags |= KVM_MEM_LOG_DIRTY_PAGES;
        }
        let region = kvm_userspace_memory_region {
            slot: slot.id.0,
            flags,
            guest_phys_addr: slot.gpa.0,
            memory_size,
            userspace_addr: slot.hva.0,
        };
        ext::set_memory_region(self.fd()?, region).map_err(|source| EngineError::Slot {
            slot: slot.id.0,
            gpa: slot.gpa.0,
            size: memory_size,
            errno: source.raw_os_error().unwrap_or(0),
            source,
        })
    }
}

impl Drop for KvmVm {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take()
            && shared.origin.is_here()
        {
            reaper::bury(Box::new(shared));
        }
    }
}

impl Vm for KvmVm {
    fn change_slot(&self, change: SlotChange<'_>) -> Result<(), EngineError> {
        let Shared { fd, rings, .. } = &**self.shared()?;
        match change {
            SlotChange::Set(slot) if slot.log_dirty => {
                rings.watch(slot.id, slot.len);
                self.set_region(slot, slot.len)
            }
            SlotChange::Set(slot) => {
                self.set_region(slot, slot.len)?;
                rings.forget(fd, slot.id)
            }
            SlotChange::Remove(slot) => {
                self.set_region(slot, 0)?;
                rings.forget(fd, slot.id)
            }
        }
    }

    fn create_irqchip(&self, pins: u32) -> Result<(), EngineError> {
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            ..kvm_enable_cap::default()
        };
        cap.args = [u64::from(pins), 0, 0, 0];
        self.fd()?
            .enable_cap(&cap)
            .map_err(call("KVM_CAP_SPLIT_IRQCHIP"))
    }

    fn set_msr_policy(&self, policy: &'static MsrPolicy) -> Result<(), EngineError> {
        msr_filter::set(self.fd()?, policy)?;
        self.msr_policy.get_or_init(|| policy);
        Ok(())
    }

    fn create_vcpu(&self, id: u32, cpuid: &CpuidTable) -> Result<Box<dyn Vcpu>, EngineError> {
        if id >= self.limits.vcpus {
            return Err(EngineError::TooManyVcpus {
                id,
                max: self.limits.vcpus,
            });
        }
        let shared = self.shared()?;
        let fd = shared
            .fd
            .create_vcpu(u64::from(id))
            .map_err(call("KVM_CREATE_VCPU"))?;
        fd.set_cpuid2(&convert::cpuid_to_kvm(cpuid)?)
            .map_err(call("KVM_SET_CPUID2"))?;
        shared.rings.add(&fd)?;
        if let Some(policy) = self.msr_policy.get() {
            state::set_or_find_msrs(&fd, &policy.fixed().collect::<Vec<_>>())?;
        }
        let mut vcpu = KvmVcpu::new(id, fd, self.run_size, Arc::clone(shared));
        vcpu.cpuid = cpuid.clone();
        Ok(Box::new(vcpu))
    }

    fn set_routes(&self, all: &[MsiRoute]) -> Result<(), EngineError> {
        let table = routes::table(all)?;
        self.fd()?
            .set_gsi_routing(&table)
            .map_err(call("KVM_SET_GSI_ROUTING"))
    }

    fn signal_msi(&self, message: MsiMessage) -> Result<bool, EngineError> {
        let taken = self.fd()?.signal_msi(routes::message(message));
        taken.map(|count| count > 0).map_err(call("KVM_SIGNAL_MSI"))
    }

    fn attach_irqfd(&self, fd: &EventFd, gsi: u32) -> Result<(), EngineError> {
        self.fd()?
            .register_irqfd(fd, gsi)
            .map_err(call("KVM_IRQFD"))
    }

    fn detach_irqfd(&self, fd: &EventFd, gsi: u32) -> Result<(), EngineError> {
        self.fd()?
            .unregister_irqfd(fd, gsi)
            .map_err(call("KVM_IRQFD"))
    }

    fn attach_ioevent(&self, fd: &EventFd, event: &IoEvent) -> Result<(), EngineError> {
        ext::ioeventfd(self.fd()?, fd, event, true)
    }

    fn detach_ioevent(&self, fd: &EventFd, event: &IoEvent) -> Result<(), EngineError> {
        ext::ioeventfd(self.fd()?, fd, event, false)
    }

    fn use_dirty_ring(&self, entries: u32) -> Result<(), EngineError> {
        let shared = self.shared()?;
        shared.rings.enable(&shared.fd, entries)
    }

    fn dirty_log(&self, slot: SlotId, pages: u64) -> Result<Vec<u64>, EngineError> {
        let Shared { fd, rings, .. } = &**self.shared()?;
        if rings.are_used() {
            return rings.collect(fd, slot, pages);
        }
        let bytes = usize::try_from(pages.saturating_mul(PAGE_SIZE)).unwrap_or(usize::MAX);
        fd.get_dirty_log(slot.0, bytes)
            .map_err(call("KVM_GET_DIRTY_LOG"))
    }

    fn stats(&self) -> Result<Vec<Stat>, EngineError> {
        stats::read(&ext::stats_file(self.fd()?)?)
    }

    fn clock(&self) -> Result<u64, EngineError> {
        Ok(self.fd()?.get_clock().map_err(call("KVM_GET_CLOCK"))?.clock)
    }

    fn set_clock(&self, nanoseconds: u64) -> Result<(), EngineError> {
        let clock = kvm_clock_data {
            clock: nanoseconds,
            ..kvm_clock_data::default()
        };
        self.fd()?.set_clock(&clock).map_err(call("KVM_SET_CLOCK"))
    }

    fn attach_vfio_fd(&self, fd: BorrowedFd<'_>) -> Result<(), EngineError> {
        let mut vfio = self.vfio.lock().unwrap_or_else(PoisonError::into_inner);
        if vfio.is_none() {
            let mut new = kvm_create_device {
                type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
                ..kvm_create_device::default()
            };
            let device = self
                .fd()?
                .create_device(&mut new)
                .map_err(call("KVM_CREATE_DEVICE"))?;
            *vfio = Some(ParentOnly::new(device));
        }
        vfio.as_ref().map_or(Err(EngineError::Forked), |device| {
            ext::vfio_device(device, fd)
        })
    }
}
