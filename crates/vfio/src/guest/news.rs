//! What the host's kernel has to say of a guest's device.

use std::{
    fmt::Debug,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};

use vmlet_reactor::{Interest, Reactor, Ready, Registration};

use crate::{Device, InterruptKind, Vector, VfioError};

/// Hears what the kernel has to say; called on the reactor's thread.
pub trait DeviceNews: Send + Sync + Debug {
    /// The device called `name` is wanted back by the host ([`InterruptKind::Removal`]), or has
    /// reported an error that it does not recover from ([`InterruptKind::Failure`]).
    fn told(&self, name: &'static str, what: InterruptKind);
}

/// An eventfd of the device's, which stays open as long as it is waited for.
#[derive(Debug)]
struct Source(Arc<Vector>);

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        self.0.raw_fd().unwrap_or(-1)
    }
}

/// Has `news` hear of `device`, as long as the registrations are held; they end before the device.
pub(super) fn listen(
    device: &Device,
    name: &'static str,
    reactor: &Reactor,
    news: &Arc<dyn DeviceNews>,
) -> Result<Vec<Registration>, VfioError> {
    let registration = |vector: Arc<Vector>| {
        let (news, kind) = (Arc::clone(news), vector.kind());
        let handler = move |_: Ready| news.told(name, kind);
        let source = Arc::new(Source(vector));
        Ok(reactor.add(source, Interest::SIGNAL, Arc::new(handler))?)
    };
    device.news().into_iter().map(registration).collect()
}
