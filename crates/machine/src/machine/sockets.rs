//! The socket device: streams between the guest and this process.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use vmlet_devices::virtio::{
    Place, VirtioPci,
    vsock::{Vsock, VsockConfig},
};

use super::{Machine, Parts};
use crate::{MachineError, ThreadStarter, devices::shared_reactor};

/// The socket device, while it is attached.
#[derive(Debug, Default)]
pub(super) struct Sockets(Mutex<Weak<Vsock>>);

impl Sockets {
    fn lock(&self) -> MutexGuard<'_, Weak<Vsock>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn device(&self) -> Option<Arc<Vsock>> {
        self.lock().upgrade()
    }
}

impl Machine {
    /// Makes a socket device and puts it into root port `port`, or into the first that is free;
    /// gives which. The device's thread is started by `spawn`.
    pub fn attach_vsock(
        &self,
        config: &VsockConfig,
        port: Option<u8>,
        spawn: &Arc<ThreadStarter>,
    ) -> Result<u8, MachineError> {
        let refuse = |detail: &str, remedy| MachineError::Config {
            what: "devices",
            detail: detail.to_owned(),
            remedy,
        };
        if self.is_counted()? {
            let remedy = "Leave it out, or the clock.";
            return Err(refuse("Vsock with clock=\"icount\"", remedy));
        }
        let parts = self.open()?;
        if parts.sockets.device().is_some() {
            let remedy = "A guest has one; it serves any number of streams.";
            return Err(refuse("a second Vsock", remedy));
        }
        let reactor = shared_reactor(&**spawn)?;
        let device = Vsock::new(config, Some(Arc::clone(&reactor)))?;
        let made = Arc::clone(&device);
        let function = VirtioPci::new(made, Place::Reactor(reactor));
        let port = self.attach(function, port)?;
        *parts.sockets.lock() = Arc::downgrade(&device);
        Ok(port)
    }

    /// A stream to the guest: `CONNECT port\n` is answered by `OK port\n`, or by the stream's end.
    pub fn connect_vsock(&self) -> Result<OwnedFd, MachineError> {
        Ok(self.open()?.vsock()?.connect()?.into())
    }

    /// Takes the guest's connections to `port`: each comes through this socket, as a descriptor and
    /// the guest's port in four bytes, lowest first.
    pub fn listen_vsock(&self, port: u32) -> Result<OwnedFd, MachineError> {
        Ok(self.open()?.vsock()?.listen(port)?.into())
    }
}

impl Parts {
    fn vsock(&self) -> Result<Arc<Vsock>, MachineError> {
        let device = self.sockets.device();
        device.ok_or_else(|| MachineError::Config {
            what: "vsock",
            detail: "used without a device".to_owned(),
            remedy: "Make the VM with devices=[vmlet.Vsock()].",
        })
    }
}
