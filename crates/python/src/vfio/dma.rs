//! Memory that a device can reach.

use std::sync::{Arc, Weak};

use pyo3::prelude::*;
use vmlet_vfio::{Access, Device, DmaMap};

use crate::{gateway, view::View};

/// Memory that a device can reach until it is unmapped or its device is closed.
#[pyclass(frozen, module = "vmlet._core")]
#[derive(Debug)]
pub(crate) struct DmaBuffer {
    device: Weak<Device>,
    map: Arc<DmaMap>,
}

impl DmaBuffer {
    pub(crate) fn new(device: Weak<Device>, map: Arc<DmaMap>) -> DmaBuffer {
        DmaBuffer { device, map }
    }
}

#[pymethods]
impl DmaBuffer {
    /// Where the device finds it.
    #[getter]
    fn iova(&self) -> u64 {
        self.map.iova().0
    }

    /// Bytes.
    #[getter]
    fn size(&self) -> u64 {
        self.map.ram().len()
    }

    /// The device may only read.
    #[getter]
    fn readonly(&self) -> bool {
        self.map.access() == Access::Read
    }

    /// Whether the device can reach it.
    #[getter]
    fn mapped(&self) -> bool {
        self.map.is_mapped()
    }

    /// The memory itself.
    fn view(&self, py: Python<'_>) -> PyResult<View> {
        let lease = gateway::call(py, || Ok(self.map.view()?))?;
        Ok(View::new(lease, true))
    }

    /// Takes it from the device.
    fn unmap(&self, py: Python<'_>) -> PyResult<()> {
        gateway::call(py, || match self.device.upgrade() {
            Some(device) => Ok(device.take_back(&self.map)?),
            None => Ok(self.map.unmap()?),
        })
    }
}
