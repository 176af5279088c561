//! A device of the host, driven by this process.

use std::{
    fs::File,
    ops::Range,
    os::fd::{AsRawFd, RawFd},
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_NORESIZE, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};
use vmlet_host::{HostRoot, IommuGroup, Obstacle, PciAddress};
use vmlet_memory::{Backing, LeaseKind, Ram};

use crate::{
    Access, DmaMap, DomainLimits, InterruptKind, IommuBackend, Owner, RegionInfo, RegionMap,
    Vector, VfioError, backend, calls, config,
    descriptor::Descriptor,
    group::{self, Membership, Shared, Wanted},
    info,
    reset::Asking,
};

/// The most regions that are asked for; PCI has nine, and a driver of its own may add some.
const MOST_REGIONS: u32 = 64;

/// What was given out and ends with the device.
#[derive(Debug, Default)]
struct Given {
    maps: Vec<Weak<RegionMap>>,
    /// Held: a device that was told an address may use it until it is taken back.
    dma: Vec<Arc<DmaMap>>,
    vectors: Option<(InterruptKind, Vec<Arc<Vector>>)>,
    /// What the kernel has to say.
    news: Vec<Arc<Vector>>,
}

/// An open device. Closed, and all it gave out with it, when it is dropped.
#[derive(Debug)]
pub struct Device {
    address: PciAddress,
    descriptor: Descriptor,
    membership: Membership,
    regions: Vec<RegionInfo>,
    interrupts: Vec<(InterruptKind, u32)>,
    resets_alone: bool,
    power_control: Option<u64>,
    given: Mutex<Given>,
}

impl Device {
    /// Opens the device at `address`, which VFIO's driver has to have: its memory and its right to
    /// do DMA are switched on, and it can reach what others of its group can that `owner` has open.
    /// Without a wish for a back end, by that of those others, else by iommufd where its files can be
    /// opened, else by type1.
    pub fn open(
        root: &HostRoot,
        address: PciAddress,
        backend: Option<IommuBackend>,
        owner: &Owner,
    ) -> Result<Device, VfioError> {
        if let Some(obstacle) = Obstacle::all(root, address).into_iter().next() {
            return Err(VfioError::Obstacle { address, obstacle });
        }
        let group = IommuGroup::of(root, address);
        let group = group.ok_or(VfioError::Obstacle {
            address,
            obstacle: Obstacle::NoIommu,
        })?;
        let wanted = Wanted {
            root,
            address,
            owner,
            backend,
        };
        let first = || backend::open(root, address, group.number, backend);
        Device::with(group::open(&group, &wanted, first)?)
    }

    fn with((membership, file): (Membership, File)) -> Result<Device, VfioError> {
        let failed = |call| move |source| VfioError::Call { call, source };
        let told = calls::device_info(&file).map_err(failed("VFIO_DEVICE_GET_INFO"))?;
        // An index that the device has not got is refused, and left out.
        let regions = (0..told.num_regions.min(MOST_REGIONS))
            .filter_map(|index| info::region(&calls::region_info(&file, index).ok()?))
            .filter(|region| region.size > 0)
            .collect();
        let interrupts = InterruptKind::ALL
            .into_iter()
            .filter_map(|kind| Some((kind, calls::irq_info(&file, kind.index()).ok()?.count)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let mut device = Device {
            address: membership.address,
            descriptor: Descriptor::new(file),
            membership,
            regions,
            interrupts,
            resets_alone: told.flags & VFIO_DEVICE_FLAGS_RESET != 0,
            power_control: None,
            given: Mutex::default(),
        };
        device.power_control = config::power_control(|at| device.config_byte(at));
        device.wake()?;
        device.listen()?;
        Ok(device)
    }

    /// Memory decoding and bus mastering on.
    fn wake(&self) -> Result<(), VfioError> {
        let now = self.command();
        self.set_command(now | config::MEMORY | config::MASTER)
    }

    /// The command register.
    fn command(&self) -> u16 {
        self.config_word(config::COMMAND).unwrap_or(0)
    }

    fn set_command(&self, wanted: u16) -> Result<(), VfioError> {
        let range = config::COMMAND..config::COMMAND + 2;
        let region = self.region(VFIO_PCI_CONFIG_REGION_INDEX, &range)?;
        self.put(region, config::COMMAND, &wanted.to_le_bytes())
    }

    /// Has the kernel tell of failures and of the host's wish to have the device back, where it can.
    fn listen(&self) -> Result<(), VfioError> {
        let mut given = self.given();
        for kind in [InterruptKind::Failure, InterruptKind::Removal] {
            let told = self
                .descriptor
                .with(|file| calls::irq_info(file, kind.index()))?;
            if told.is_ok_and(|told| told.count > 0) {
                let vector = Vector::new(kind, 0).map_err(|source| VfioError::Call {
                    call: "eventfd",
                    source,
                })?;
                self.wire(kind, 0, &[vector.raw_fd()?])?;
                given.news.push(vector);
            }
        }
        Ok(())
    }

    /// What the kernel has to say: [`InterruptKind::Failure`], [`InterruptKind::Removal`].
    pub fn news(&self) -> Vec<Arc<Vector>> {
        self.given().news.clone()
    }

    fn put(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> Result<(), VfioError> {
        let at = region.offset.saturating_add(offset);
        self.descriptor
            .call("pwrite of a region", |file| file.write_all_at(data, at))
    }

    fn config_byte(&self, offset: u64) -> Option<u8> {
        let mut byte = [0];
        self.read(VFIO_PCI_CONFIG_REGION_INDEX, offset, &mut byte)
            .ok()?;
        Some(u8::from_le_bytes(byte))
    }

    fn config_word(&self, offset: u64) -> Option<u16> {
        let mut word = [0; 2];
        self.read(VFIO_PCI_CONFIG_REGION_INDEX, offset, &mut word)
            .ok()?;
        Some(u16::from_le_bytes(word))
    }

    /// Where it is.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Whom it was opened for: others of its group can be opened for the same one.
    pub fn owner(&self) -> Result<&Owner, VfioError> {
        self.descriptor.call("its file", |_| Ok(()))?;
        Ok(&self.membership.owner)
    }

    /// What it has in common with others of its group.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.membership.shared
    }

    /// How it was opened.
    pub fn backend(&self) -> IommuBackend {
        self.shared().domain.backend()
    }

    /// Its regions, by index; those it has not got are left out.
    pub fn regions(&self) -> &[RegionInfo] {
        &self.regions
    }

    /// How many interrupts of each kind it has; kinds it has not got are left out.
    pub fn interrupts(&self) -> &[(InterruptKind, u32)] {
        &self.interrupts
    }

    /// Which device addresses can be mapped.
    pub fn dma_limits(&self) -> &DomainLimits {
        self.shared().domain.limits()
    }

    fn region(&self, index: u32, range: &Range<u64>) -> Result<&RegionInfo, VfioError> {
        let found = self.regions.iter().find(|region| region.index == index);
        let region = found.ok_or(VfioError::NoRegion {
            address: self.address,
            index,
        })?;
        if range.start > range.end || range.end > region.size {
            return Err(VfioError::OutsideRegion {
                index,
                offset: range.start,
                len: range.end.saturating_sub(range.start),
                size: region.size,
            });
        }
        Ok(region)
    }

    /// Reads from a region: one access where `data` has 1, 2, 4 or 8 bytes at a multiple of that.
    pub fn read(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<(), VfioError> {
        let end = offset.saturating_add(data.len() as u64);
        let region = self.region(index, &(offset..end))?;
        if region.flags & VFIO_REGION_INFO_FLAG_READ == 0 {
            return Err(VfioError::NoAccess {
                index,
                write: false,
            });
        }
        let at = region.offset.saturating_add(offset);
        self.descriptor
            .call("pread of a region", |file| file.read_exact_at(data, at))
    }

    /// Reads `len` bytes of a region.
    pub fn read_vec(&self, index: u32, offset: u64, len: usize) -> Result<Vec<u8>, VfioError> {
        // Before memory is allocated for them.
        self.region(index, &(offset..offset.saturating_add(len as u64)))?;
        let mut data = vec![0; len];
        self.read(index, offset, &mut data)?;
        Ok(data)
    }

    /// Writes to a region, as [`Device::read`] reads.
    pub fn write(&self, index: u32, offset: u64, data: &[u8]) -> Result<(), VfioError> {
        let end = offset.saturating_add(data.len() as u64);
        let region = self.region(index, &(offset..end))?;
        if region.flags & VFIO_REGION_INFO_FLAG_WRITE == 0 {
            return Err(VfioError::NoAccess { index, write: true });
        }
        if index != VFIO_PCI_CONFIG_REGION_INDEX {
            return self.put(region, offset, data);
        }
        // Held until it is written: nobody maps a region between the check and the write.
        let given = self.given();
        if given.maps.iter().any(|map| map.strong_count() > 0) {
            let read = |register| self.config_word(register);
            if let Some(what) = config::fatal(offset, data, self.power_control, read) {
                return Err(VfioError::SwitchesOff { what });
            }
        }
        self.put(region, offset, data)
    }

    /// Maps a part of a region, which has to lie in one of its areas. Ends at `close`, where zeros
    /// take its place.
    pub fn map(&self, index: u32, range: Range<u64>) -> Result<Arc<RegionMap>, VfioError> {
        let region = self.region(index, &range)?;
        let inside = |(first, len): &&(u64, u64)| {
            *first <= range.start && range.end <= first.saturating_add(*len)
        };
        let whole_pages =
            (range.start | range.end).is_multiple_of(vmlet_memory::PAGE_SIZE) && !range.is_empty();
        if !whole_pages || !region.areas.iter().any(|area| inside(&area)) {
            return Err(VfioError::NotMappable {
                index,
                offset: range.start,
                len: range.end.saturating_sub(range.start),
                areas: region.areas.clone(),
            });
        }
        let at = region.offset.saturating_add(range.start);
        let mut given = self.given();
        if self.config_word(config::COMMAND).unwrap_or(0) & config::MEMORY == 0 {
            self.wake()?;
        }
        let map = self.descriptor.call("mmap of a region", |file| {
            RegionMap::new(file, at, index, range)
        })?;
        let map = Arc::new(map);
        given.maps.retain(|map| map.strong_count() > 0);
        given.maps.push(Arc::downgrade(&map));
        Ok(map)
    }

    /// Memory of `len` bytes, zeros at first, that the device can reach at `iova`, or at an address
    /// that is chosen; until it is unmapped or the device closed, whoever has it.
    pub fn dma(
        &self,
        len: u64,
        iova: Option<u64>,
        access: Access,
    ) -> Result<Arc<DmaMap>, VfioError> {
        let page = self.dma_limits().page;
        if len == 0 || !len.is_multiple_of(page) {
            let iova = iova.unwrap_or(0);
            return Err(VfioError::NotPages { iova, len, page });
        }
        let ram = Ram::new(len, Backing::Anon)?;
        let holder = format!("the device {}", self.address);
        let memory = ram.lease(LeaseKind::DmaMap, 0..len, holder)?;
        let map = Arc::new(self.shared().table.map(memory, iova, access)?);
        self.given().dma.push(Arc::clone(&map));
        Ok(map)
    }

    /// Takes memory back, as [`DmaMap::unmap`] does; it goes with the last who has it.
    pub fn take_back(&self, map: &DmaMap) -> Result<(), VfioError> {
        let done = map.unmap();
        let mut given = self.given();
        let (kept, unmapped) = given.dma.drain(..).partition(|map| map.is_mapped());
        given.dma = kept;
        drop(given);
        // Without the lock: this may give much memory back to the kernel.
        drop::<Vec<Arc<DmaMap>>>(unmapped);
        done
    }

    /// Has the interrupts of `kind` from number `first` on written to these eventfds (-1: to none),
    /// and switches the kind on with them. Who does this enables none otherwise.
    pub(crate) fn wire(
        &self,
        kind: InterruptKind,
        first: u32,
        eventfds: &[RawFd],
    ) -> Result<(), VfioError> {
        self.descriptor.call("VFIO_DEVICE_SET_IRQS", |file| {
            calls::set_eventfds(file, kind.index(), first, eventfds)
        })
    }

    /// Switches the interrupts of `kind` off.
    pub(crate) fn unwire(&self, kind: InterruptKind) -> Result<(), VfioError> {
        self.wire(kind, 0, &[])
    }

    /// Whether interrupts of `kind` can be added one by one.
    pub(crate) fn grows(&self, kind: InterruptKind) -> bool {
        let told = self.descriptor.call("VFIO_DEVICE_GET_IRQ_INFO", |file| {
            calls::irq_info(file, kind.index())
        });
        told.is_ok_and(|told| told.flags & VFIO_IRQ_INFO_NORESIZE == 0)
    }

    /// Lets the device do DMA and send messages, or not.
    pub(crate) fn set_master(&self, on: bool) -> Result<(), VfioError> {
        let now = self.command();
        let wanted = now & !config::MASTER | if on { config::MASTER } else { 0 };
        if wanted == now {
            return Ok(());
        }
        self.set_command(wanted)
    }

    /// Switches `count` interrupts of `kind` on. One kind at a time can be.
    pub fn enable(&self, kind: InterruptKind, count: u32) -> Result<Vec<Arc<Vector>>, VfioError> {
        let most = self.interrupts.iter().find(|(known, _)| *known == kind);
        let most = most.map_or(0, |(_, count)| *count);
        if count == 0 || count > most {
            return Err(VfioError::NoInterrupt {
                address: self.address,
                kind,
                count,
                most,
            });
        }
        let mut given = self.given();
        if let Some((kind, _)) = given.vectors {
            return Err(VfioError::InterruptsOn {
                address: self.address,
                kind,
            });
        }
        let vectors: Vec<Arc<Vector>> = (0..count)
            .map(|number| Vector::new(kind, number))
            .collect::<Result<_, _>>()
            .map_err(|source| VfioError::Call {
                call: "eventfd",
                source,
            })?;
        let fds: Vec<i32> = vectors
            .iter()
            .map(|vector| vector.raw_fd())
            .collect::<Result<_, _>>()?;
        self.wire(kind, 0, &fds)?;
        given.vectors = Some((kind, vectors.clone()));
        Ok(vectors)
    }

    /// Switches interrupts off. Those that were given out end.
    pub fn disable(&self) -> Result<(), VfioError> {
        self.disable_in(&mut self.given())
    }

    fn disable_in(&self, given: &mut Given) -> Result<(), VfioError> {
        let Some((kind, vectors)) = given.vectors.take() else {
            return Ok(());
        };
        let done = self.unwire(kind);
        vectors.iter().for_each(|vector| vector.close());
        done
    }

    /// Lets the line come again, which is masked when it comes in.
    pub fn unmask(&self) -> Result<(), VfioError> {
        self.descriptor.call("VFIO_DEVICE_SET_IRQS", |file| {
            calls::unmask(file, InterruptKind::Intx.index())
        })
    }

    /// Nobody has used it since it was reset; or somebody does, and it is not reset with others.
    pub(crate) fn set_quiet(&self, quiet: bool) {
        self.membership.set_quiet(quiet);
    }

    /// Whether it can be reset: alone, or with all that is reset with it.
    pub fn resets(&self) -> bool {
        self.resets_alone || self.hot_reset(false, |_| Ok(())).is_ok()
    }

    /// Resets it. What it can reach, its interrupts and its mapped regions stay as they are. Where it
    /// cannot be reset alone, its slot or bus is, with others on it that are open for its owner.
    pub fn reset(&self) -> Result<(), VfioError> {
        self.reset_with(false)
    }

    /// The same; others that are in use are spared, and it is not reset then.
    pub(crate) fn reset_sparing(&self) -> Result<(), VfioError> {
        self.reset_with(true)
    }

    fn reset_with(&self, sparing: bool) -> Result<(), VfioError> {
        let alone = self
            .resets_alone
            .then(|| self.descriptor.call("VFIO_DEVICE_RESET", calls::reset));
        let refused = match alone {
            Some(done @ (Ok(()) | Err(VfioError::Closed | VfioError::Forked))) => return done,
            Some(Err(refused)) => Some(refused),
            None => None,
        };
        let call = "VFIO_DEVICE_PCI_HOT_RESET";
        let done = self.hot_reset(sparing, |groups| {
            let work = |file: &File| calls::hot_reset(file, groups);
            self.descriptor.call(call, work)
        });
        match done {
            Ok(()) => log::debug!("{} is reset with its slot or bus", self.address),
            Err(none @ VfioError::NoReset { .. }) => return Err(refused.unwrap_or(none)),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether the kernel resets it alone, as it does when it is opened.
    pub(crate) fn resets_alone(&self) -> bool {
        self.resets_alone
    }

    /// Calls `work` with the files of the groups of all that a reset of its slot or bus touches.
    fn hot_reset<T>(
        &self,
        sparing: bool,
        work: impl FnOnce(&[RawFd]) -> Result<T, VfioError>,
    ) -> Result<T, VfioError> {
        let address = self.address;
        let told = self.descriptor.with(calls::hot_reset_info)?;
        let affected = told.ok().and_then(|told| info::hot_reset(&told));
        let affected = affected.ok_or(VfioError::NoReset { address })?;
        let asking = Asking {
            root: &self.membership.root,
            address,
            owner: &self.membership.owner,
            sparing,
        };
        asking.with_all(&affected, work)
    }

    /// Closes it: interrupts end, memory cannot be reached any more, mapped regions read as zeros,
    /// and others can open it. A second time is nothing.
    pub fn close(&self) {
        if self.descriptor.with(|file| Ok(file.as_raw_fd())).is_err() {
            return;
        }
        let mut given = self.given();
        if let Err(error) = self.disable_in(&mut given) {
            log::warn!("interrupts of {}: {error}", self.address);
        }
        for vector in given.news.drain(..) {
            vector.close();
        }
        for map in given.dma.drain(..) {
            if let Err(error) = map.unmap() {
                log::warn!("DMA of {}: {error}", self.address);
            }
        }
        for map in given.maps.drain(..).filter_map(|map| map.upgrade()) {
            map.sever();
        }
        self.descriptor.close();
        self.membership.leave();
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.close();
    }
}
