//! Network devices, from arguments by name.

use std::sync::Arc;

use pyo3::prelude::*;
use vmlet_machine::{NetDevice, NetLink, ThreadStarter};

use crate::{
    gateway,
    machine::{Machine, start_thread},
};

/// A network device; gives its root port. One of `user`, `tap` and `fd` is given; `fd` stays its
/// owner's.
#[pyfunction]
#[pyo3(signature = (machine, port, *, user, tap, fd, mac, mtu, vhost))]
#[expect(
    clippy::too_many_arguments,
    reason = "one argument a setting, all by name"
)]
pub(crate) fn attach_net(
    py: Python<'_>,
    machine: &Machine,
    port: Option<u8>,
    user: Option<Vec<String>>,
    tap: Option<String>,
    fd: Option<i32>,
    mac: Option<String>,
    mtu: Option<u16>,
    vhost: Option<bool>,
) -> PyResult<u8> {
    let link = match (user, tap, fd) {
        (Some(arguments), _, _) => NetLink::User(arguments),
        (_, Some(name), _) => NetLink::Tap(name),
        (_, _, number) => NetLink::Descriptor(number.unwrap_or(-1)),
    };
    let device = NetDevice {
        link,
        mac,
        mtu,
        vhost,
    };
    let spawn: Arc<ThreadStarter> = Arc::new(start_thread);
    gateway::call(py, || machine.core().attach_net(&device, port, &spawn))
}
