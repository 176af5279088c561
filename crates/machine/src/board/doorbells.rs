//! Doorbells of devices, hung up at the engine.

use std::{io, sync::Arc};

use vmlet_bus::{Doorbell, Doorbells};
use vmlet_vcpu::{IoEvent, SpaceId, Vm};
use vmm_sys_util::eventfd::EventFd;

/// Has the engine signal eventfds.
#[derive(Debug)]
pub(crate) struct EngineBells(pub(crate) Arc<dyn Vm>);

fn event(bell: &Doorbell) -> IoEvent {
    IoEvent {
        space: SpaceId::MMIO,
        addr: bell.addr,
        len: bell.len,
        value: bell.value,
    }
}

impl Doorbells for EngineBells {
    fn attach(&self, bell: &Doorbell, fd: &EventFd) -> io::Result<()> {
        let done = self.0.attach_ioevent(fd, &event(bell));
        done.map_err(io::Error::other)
    }

    fn detach(&self, bell: &Doorbell, fd: &EventFd) {
        let _ = self.0.detach_ioevent(fd, &event(bell));
    }
}
