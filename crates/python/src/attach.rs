//! Devices that the core makes, from arguments by name.

use std::{path::PathBuf, sync::Arc};

use pyo3::prelude::*;
use vmlet_machine::{DeviceConfig, DiskConfig, DiskFormat, DiskOptions, ThreadStarter};

use crate::{
    gateway,
    machine::{Machine, choose, start_thread},
};

fn attach(
    py: Python<'_>,
    machine: &Machine,
    device: &DeviceConfig,
    port: Option<u8>,
) -> PyResult<u8> {
    let spawn: Arc<ThreadStarter> = Arc::new(start_thread);
    gateway::call(py, || machine.core().attach_device(device, port, &spawn))
}

/// A disk; gives its root port.
#[pyfunction]
#[pyo3(signature = (machine, port, *, path, readonly, overlay, format, direct, queues, serial))]
#[expect(
    clippy::too_many_arguments,
    reason = "one argument a setting, all by name"
)]
pub(crate) fn attach_disk(
    py: Python<'_>,
    machine: &Machine,
    port: Option<u8>,
    path: PathBuf,
    readonly: bool,
    overlay: bool,
    format: &str,
    direct: bool,
    queues: u16,
    serial: String,
) -> PyResult<u8> {
    let formats = [DiskFormat::Raw, DiskFormat::Qcow2].map(|format| (format.name(), format));
    let image = DiskOptions {
        path,
        readonly,
        overlay,
        format: choose("format", format, &formats)?,
        direct,
    };
    let disk = DiskConfig {
        image,
        queues,
        serial,
    };
    attach(py, machine, &DeviceConfig::Disk(disk), port)
}

/// A source of random bytes; gives its root port.
#[pyfunction]
pub(crate) fn attach_rng(py: Python<'_>, machine: &Machine, port: Option<u8>) -> PyResult<u8> {
    attach(py, machine, &DeviceConfig::Rng, port)
}
