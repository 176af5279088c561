//! An open device of the host.

use std::sync::Arc;

use pyo3::{prelude::*, types::PyBytes};
use vmlet_host::{HostRoot, PciAddress};
use vmlet_machine::MachineError;
use vmlet_vfio::{Access, Device, InterruptKind, IommuBackend, Owner, VfioError};

use super::{DmaBuffer, VfioVector};
use crate::{gateway, view::View};

/// `VFIO_REGION_INFO_FLAG_READ` and `..._WRITE`.
const READ: u32 = 1;
const WRITE: u32 = 2;

/// Index, bytes, readable, writable, and offset and length of what can be mapped.
type Region = (u32, u64, bool, bool, Vec<(u64, u64)>);

/// A device of the host that this process drives.
#[pyclass(frozen, module = "vmlet._core")]
#[derive(Debug)]
pub(crate) struct VfioDevice {
    device: Arc<Device>,
}

pub(super) fn address(text: &str) -> Result<PciAddress, MachineError> {
    Ok(text.parse().map_err(VfioError::from)?)
}

fn kind(name: &str) -> Result<InterruptKind, MachineError> {
    let mut all = InterruptKind::ALL.into_iter();
    let found = all.find(|kind| kind.to_string() == name);
    found.ok_or_else(|| MachineError::Config {
        what: "kind",
        detail: format!("{name:?}"),
        remedy: "Give \"INTx\", \"MSI\" or \"MSI-X\".",
    })
}

/// Opens the device at `address`, which has to be bound, by this of the kernel's interfaces; `beside`
/// another one, where it may share that one's group.
#[pyfunction]
#[pyo3(name = "open_vfio")]
pub(crate) fn open_vfio(
    py: Python<'_>,
    address: &str,
    iommu: Option<&str>,
    beside: Option<&VfioDevice>,
) -> PyResult<VfioDevice> {
    let device = gateway::call(py, || {
        let address = self::address(address)?;
        let wanted = iommu.map(str::parse::<IommuBackend>).transpose()?;
        let owner = match beside {
            Some(other) => other.device.owner()?.clone(),
            None => Owner::new("vmlet.vfio.open in this process"),
        };
        Ok(Device::open(&HostRoot::default(), address, wanted, &owner)?)
    })?;
    Ok(VfioDevice {
        device: Arc::new(device),
    })
}

/// Gives the device at `address` to VFIO's driver.
#[pyfunction]
pub(crate) fn bind_vfio(py: Python<'_>, address: &str) -> PyResult<()> {
    gateway::call(py, || {
        let address = self::address(address)?;
        Ok(vmlet_vfio::bind(&HostRoot::default(), address)?)
    })
}

/// Gives it back to the driver it had.
#[pyfunction]
pub(crate) fn release_vfio(py: Python<'_>, address: &str) -> PyResult<()> {
    gateway::call(py, || {
        let address = self::address(address)?;
        Ok(vmlet_vfio::release(&HostRoot::default(), address)?)
    })
}

#[pymethods]
impl VfioDevice {
    /// By which interface it was opened: `iommufd` or `type1`.
    #[getter]
    fn iommu(&self) -> String {
        self.device.backend().to_string()
    }

    /// Its regions.
    fn regions(&self) -> Vec<Region> {
        let all = self.device.regions().iter();
        all.map(|one| {
            let (read, write) = (one.flags & READ != 0, one.flags & WRITE != 0);
            (one.index, one.size, read, write, one.areas.clone())
        })
        .collect()
    }

    /// How many interrupts of each kind it has.
    fn interrupts(&self) -> Vec<(String, u32)> {
        let all = self.device.interrupts().iter();
        all.map(|(kind, count)| (kind.to_string(), *count))
            .collect()
    }

    /// Bytes of the smallest page, and first and last device addresses that can be mapped.
    fn dma_limits(&self) -> (u64, Vec<(u64, u64)>) {
        let limits = self.device.dma_limits();
        let ranges = limits.usable.iter().map(|one| (one.first, one.last));
        (limits.page, ranges.collect())
    }

    /// Bytes of a region.
    fn read_region<'py>(
        &self,
        py: Python<'py>,
        index: u32,
        offset: u64,
        length: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let data = gateway::call(py, || Ok(self.device.read_vec(index, offset, length)?))?;
        Ok(PyBytes::new(py, &data))
    }

    /// Writes bytes of a region.
    fn write_region(&self, py: Python<'_>, index: u32, offset: u64, data: &[u8]) -> PyResult<()> {
        gateway::call(py, || Ok(self.device.write(index, offset, data)?))
    }

    /// Maps a part of a region.
    fn map_region(&self, py: Python<'_>, index: u32, offset: u64, length: u64) -> PyResult<View> {
        let map = gateway::call(py, || {
            let end = offset.saturating_add(length);
            Ok(self.device.map(index, offset..end)?)
        })?;
        Ok(View::of_registers(map, true))
    }

    /// Memory that the device can reach.
    fn dma(
        &self,
        py: Python<'_>,
        length: u64,
        iova: Option<u64>,
        readonly: bool,
    ) -> PyResult<DmaBuffer> {
        let access = if readonly {
            Access::Read
        } else {
            Access::ReadWrite
        };
        let map = gateway::call(py, || Ok(self.device.dma(length, iova, access)?))?;
        Ok(DmaBuffer::new(Arc::downgrade(&self.device), map))
    }

    /// Switches interrupts on.
    fn enable(&self, py: Python<'_>, kind: &str, count: u32) -> PyResult<Vec<VfioVector>> {
        let vectors = gateway::call(py, || Ok(self.device.enable(self::kind(kind)?, count)?))?;
        Ok(vectors.into_iter().map(VfioVector::new).collect())
    }

    /// What the kernel has to say of it: `failure`, `removal`.
    fn news(&self) -> Vec<VfioVector> {
        let all = self.device.news().into_iter();
        all.map(VfioVector::new).collect()
    }

    /// Switches interrupts off.
    fn disable(&self, py: Python<'_>) -> PyResult<()> {
        gateway::call(py, || Ok(self.device.disable()?))
    }

    /// Lets the line come again.
    fn unmask(&self, py: Python<'_>) -> PyResult<()> {
        gateway::call(py, || Ok(self.device.unmask()?))
    }

    /// Whether it can be reset.
    #[getter]
    fn resets(&self) -> bool {
        self.device.resets()
    }

    /// Resets it.
    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        gateway::call(py, || Ok(self.device.reset()?))
    }

    /// Closes it.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        gateway::call(py, || {
            self.device.close();
            Ok(())
        })
    }
}
