//! The Python module `vmlet._core`: conversion, the interpreter's lock and errors, nothing else.
//!
//! * `machine.rs`: the class `Machine`, a thin handle on [`vmlet_machine::Machine`].
//! * `devices/`: devices written in Python; `slots.rs`: devices that come and go.
//! * `attach.rs`, `attach_net.rs`, `attach_vsock.rs`, `attach_balloon.rs`: devices that the core makes.
//! * `console.rs`, `terminal.rs`: what the guest prints, and the class `Terminal`, a virtio console.
//! * `view.rs`: the class `View`, memory and registers by the buffer protocol.
//! * `vfio/`: devices of the host, driven from Python or by guests.
//! * `inspect.rs`: walks, page sizes and statistics as dictionaries.
//! * `registers.rs`: registers to and from dictionaries.
//! * `host.rs`: what this host offers, as JSON; the initramfs builder.
//! * `inventory.rs`: the host's PCI functions, as JSON.
//! * `kernel.rs`: kernel images in files.
//! * `gateway.rs`: every call that can block goes through it.
//! * `finalization.rs`: no thread comes back to an interpreter that is ending.
//! * `logging.rs`: what the crates log reaches Python's `logging`.
//! * `interpreter.rs`: the main interpreter alone may load it.
//! * `errors.rs`: which exception an error becomes.

use pyo3::prelude::*;

mod attach;
mod attach_balloon;
mod attach_net;
mod attach_vsock;
mod console;
mod devices;
mod errors;
mod finalization;
mod gateway;
mod host;
mod inspect;
mod interpreter;
mod inventory;
mod kernel;
mod logging;
mod machine;
mod registers;
mod slots;
mod terminal;
mod thread_state;
mod vfio;
mod view;

/// The module's content.
#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    interpreter::check(module.py())?;
    finalization::install(module.py())?;
    logging::install(module.py())?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<machine::Machine>()?;
    module.add_class::<view::View>()?;
    module.add_class::<kernel::KernelImage>()?;
    module.add_function(wrap_pyfunction!(kernel::open_kernel, module)?)?;
    module.add_class::<devices::WriteBatch>()?;
    module.add_class::<devices::DeviceLink>()?;
    module.add_class::<devices::IrqLine>()?;
    module.add_function(wrap_pyfunction!(attach::attach_disk, module)?)?;
    module.add_function(wrap_pyfunction!(attach::attach_rng, module)?)?;
    module.add_function(wrap_pyfunction!(attach_net::attach_net, module)?)?;
    module.add_function(wrap_pyfunction!(attach_balloon::attach_balloon, module)?)?;
    module.add_function(wrap_pyfunction!(attach_balloon::balloon_state, module)?)?;
    module.add_function(wrap_pyfunction!(attach_balloon::inflate_balloon, module)?)?;
    module.add_function(wrap_pyfunction!(attach_balloon::ask_balloon, module)?)?;
    module.add_function(wrap_pyfunction!(
        attach_balloon::balloon_statistics,
        module
    )?)?;
    module.add_function(wrap_pyfunction!(terminal::attach_console, module)?)?;
    module.add_class::<terminal::Terminal>()?;
    module.add_class::<devices::Queue>()?;
    module.add_class::<devices::Chain>()?;
    module.add_function(wrap_pyfunction!(devices::attach_pci, module)?)?;
    module.add_function(wrap_pyfunction!(devices::attach_virtio, module)?)?;
    module.add_function(wrap_pyfunction!(attach_vsock::attach_vsock, module)?)?;
    module.add_function(wrap_pyfunction!(attach_vsock::connect_vsock, module)?)?;
    module.add_function(wrap_pyfunction!(attach_vsock::listen_vsock, module)?)?;
    module.add_function(wrap_pyfunction!(slots::detach, module)?)?;
    module.add_function(wrap_pyfunction!(slots::plugged, module)?)?;
    module.add_function(wrap_pyfunction!(host::host_findings, module)?)?;
    module.add_function(wrap_pyfunction!(host::kvm_probe, module)?)?;
    module.add_function(wrap_pyfunction!(inventory::host_pci, module)?)?;
    module.add_class::<vfio::VfioDevice>()?;
    module.add_class::<vfio::DmaBuffer>()?;
    module.add_class::<vfio::VfioVector>()?;
    module.add_function(wrap_pyfunction!(vfio::open_vfio, module)?)?;
    module.add_function(wrap_pyfunction!(vfio::attach_vfio, module)?)?;
    module.add_function(wrap_pyfunction!(vfio::bind_vfio, module)?)?;
    module.add_function(wrap_pyfunction!(vfio::release_vfio, module)?)?;
    module.add_function(wrap_pyfunction!(vfio::mend_vfio, module)?)?;
    module.add_function(wrap_pyfunction!(vfio::create_vfs, module)?)?;
    module.add_function(wrap_pyfunction!(vfio::nvme_function, module)?)?;
    module.add_function(wrap_pyfunction!(vfio::remove_vfs, module)?)?;
    module.add_function(wrap_pyfunction!(vfio::virtual_functions, module)?)?;
    module.add_function(wrap_pyfunction!(host::choose_engine, module)?)?;
    module.add_function(wrap_pyfunction!(host::linux_cmdline, module)?)?;
    module.add_function(wrap_pyfunction!(host::build_initramfs, module)?)?;
    module.add_function(wrap_pyfunction!(host::drain, module)?)?;
    module.add_function(wrap_pyfunction!(logging::log_level, module)?)?;
    module.add_function(wrap_pyfunction!(logging::take_logs, module)?)?;
    module.add_function(wrap_pyfunction!(logging::wait_for_logs, module)?)?;
    Ok(())
}
