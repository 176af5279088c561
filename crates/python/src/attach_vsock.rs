//! The socket device, from arguments by name, and its streams as descriptors.

use std::{
    os::fd::{IntoRawFd, RawFd},
    path::PathBuf,
    sync::Arc,
};

use pyo3::prelude::*;
use vmlet_machine::{ThreadStarter, VsockConfig};

use crate::{
    gateway,
    machine::{Machine, start_thread},
};

/// A socket device; gives its root port.
#[pyfunction]
#[pyo3(signature = (machine, port, *, cid, path))]
pub(crate) fn attach_vsock(
    py: Python<'_>,
    machine: &Machine,
    port: Option<u8>,
    cid: u64,
    path: Option<PathBuf>,
) -> PyResult<u8> {
    let (config, spawn): (_, Arc<ThreadStarter>) =
        (VsockConfig { cid, path }, Arc::new(start_thread));
    gateway::call(py, || machine.core().attach_vsock(&config, port, &spawn))
}

/// A descriptor of a stream to the guest, for the caller to close.
#[pyfunction]
pub(crate) fn connect_vsock(py: Python<'_>, machine: &Machine) -> PyResult<RawFd> {
    gateway::call(py, || machine.core().connect_vsock()).map(IntoRawFd::into_raw_fd)
}

/// A descriptor through which the guest's connections to `port` come, for the caller to close.
#[pyfunction]
pub(crate) fn listen_vsock(py: Python<'_>, machine: &Machine, port: u32) -> PyResult<RawFd> {
    gateway::call(py, || machine.core().listen_vsock(port)).map(IntoRawFd::into_raw_fd)
}
