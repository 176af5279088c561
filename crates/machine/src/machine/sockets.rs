//! The socket device: streams between the guest and this process.

use std::{os::fd::OwnedFd, sync::Arc};

use vmlet_devices::virtio::{
    Place,
    vsock::{Vsock, VsockConfig},
};

use super::{
    Machine, Parts,
    reach::{missing, only_one},
};
use crate::{MachineError, ThreadStarter, devices::shared_reactor};

impl Machine {
    /// Makes a socket device and puts it into root port `port`, or into the first that is free;
    /// gives which. The device's thread is started by `spawn`.
    pub fn attach_vsock(
        &self,
        config: &VsockConfig,
        port: Option<u8>,
        spawn: &Arc<ThreadStarter>,
    ) -> Result<u8, MachineError> {
        if self.is_counted()? {
            return Err(MachineError::Config {
                what: "devices",
                detail: "Vsock with clock=\"icount\"".to_owned(),
                remedy: "Leave it out, or the clock.",
            });
        }
        let parts = self.open()?;
        only_one(&parts.sockets, parts.board.pci.as_ref(), "Vsock")?;
        let reactor = shared_reactor(&**spawn)?;
        let device = Vsock::new(config, Some(Arc::clone(&reactor)))?;
        self.attach_reached(&device, &parts.sockets, Place::Reactor(reactor), port)
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
        let device = self.sockets.device(self.board.pci.as_ref());
        device.ok_or_else(|| missing("vsock", "Make the VM with devices=[vmlet.Vsock()]."))
    }
}
