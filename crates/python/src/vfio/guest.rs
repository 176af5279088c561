//! Devices of the host that guests drive.

use pyo3::prelude::*;

use crate::{
    gateway,
    machine::{Machine, start_thread},
};

/// A device of the host; gives its root port.
#[pyfunction]
#[pyo3(signature = (machine, port, *, address, iommu))]
pub(crate) fn attach_vfio(
    py: Python<'_>,
    machine: &Machine,
    port: Option<u8>,
    address: &str,
    iommu: Option<&str>,
) -> PyResult<u8> {
    gateway::call(py, || {
        machine
            .core()
            .attach_vfio(address, iommu, port, &start_thread)
    })
}
