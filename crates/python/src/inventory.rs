//! The PCI functions of this host.

use pyo3::prelude::*;
use serde_json::json;
use vmlet_host::{HostRoot, PciDevice};

use crate::finalization;

/// All PCI functions of this host with what keeps each from being handed on: a JSON list.
#[pyfunction]
pub(crate) fn host_pci(py: Python<'_>) -> String {
    finalization::detach(py, || {
        json!(PciDevice::all(&HostRoot::default())).to_string()
    })
}
