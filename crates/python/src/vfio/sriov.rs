//! Virtual functions of the host's cards.

use pyo3::prelude::*;
use vmlet_host::{HostRoot, PciAddress};
use vmlet_vfio::VfRequest;

use super::device::address;
use crate::gateway;

fn texts(found: &[PciAddress]) -> Vec<String> {
    found.iter().map(ToString::to_string).collect()
}

/// Makes virtual functions of the physical function; their addresses. `share` is what each gets of
/// an NVMe controller's queues and interrupts.
#[pyfunction]
pub(crate) fn create_vfs(
    py: Python<'_>,
    physical: &str,
    count: u32,
    bind: bool,
    lent: bool,
    share: (Option<u16>, Option<u16>),
) -> PyResult<Vec<String>> {
    let (queues, interrupts) = share;
    let request = VfRequest {
        count,
        bind,
        lent,
        queues,
        interrupts,
    };
    gateway::call(py, || {
        let physical = address(physical)?;
        let made = vmlet_vfio::create_vfs(&HostRoot::default(), physical, request)?;
        Ok(texts(&made))
    })
}

/// Removes them.
#[pyfunction]
pub(crate) fn remove_vfs(py: Python<'_>, physical: &str) -> PyResult<()> {
    gateway::call(py, || {
        let physical = address(physical)?;
        Ok(vmlet_vfio::remove_vfs(&HostRoot::default(), physical)?)
    })
}

/// Their addresses, in the order of their numbers.
#[pyfunction]
pub(crate) fn virtual_functions(py: Python<'_>, physical: &str) -> PyResult<Vec<String>> {
    gateway::call(py, || {
        let physical = address(physical)?;
        let found = vmlet_vfio::virtual_functions(&HostRoot::default(), physical);
        Ok(texts(&found))
    })
}

/// What an NVMe controller that shares has, or a virtual function of it: number, online, queues,
/// interrupts.
#[pyfunction]
pub(crate) fn nvme_function(py: Python<'_>, function: &str) -> PyResult<(u16, bool, u16, u16)> {
    gateway::call(py, || {
        let function = address(function)?;
        let found = vmlet_vfio::nvme_function(&HostRoot::default(), function)?;
        Ok((
            found.controller,
            found.online,
            found.queues,
            found.interrupts,
        ))
    })
}

/// Puts back what killed processes have left; the addresses of what was mended.
#[pyfunction]
pub(crate) fn mend_vfio(py: Python<'_>) -> PyResult<Vec<String>> {
    gateway::call(py, || {
        let mended = vmlet_vfio::mend(&HostRoot::default())?;
        Ok(texts(&mended))
    })
}
