//! The device.

use std::{
    fmt,
    io::ErrorKind,
    os::unix::{ffi::OsStrExt, net::UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use vmlet_bus::{SavedError, SavedState};
use vmlet_memory::fork::Origin;
use vmlet_reactor::{Reactor, Ready};

use super::{
    VsockError,
    muxer::{Acceptor, Muxer, Queues},
    saved::Saved,
    wait::{Waits, Who},
};
use crate::virtio::{Activation, VirtioDevice, read_image};

const NAME: &str = "virtio-vsock";
const VERSION: u16 = 1;
/// The queues of section 5.10.2: bytes to the guest, from the guest, events.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// Bytes of a socket's path, with the zero behind.
const PATH_ROOM: usize = 108;
/// Bytes of `_` and a port.
const PORT_ROOM: usize = 11;

/// Feature bit: streams (section 5.10.3).
const F_STREAM: u64 = 1 << 0;

/// What a device is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's context id.
    pub cid: u64,
    /// Where host programs connect: at this path to the guest's ports; they serve the guest's
    /// connections to port N at this path with `_N` behind.
    pub path: Option<PathBuf>,
}

/// What handlers lead to.
pub(super) struct Shared {
    muxer: Mutex<Muxer>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Muxer> {
        self.muxer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ready(&self, who: Who, ready: Ready) {
        self.lock().ready(who, ready);
    }
}

/// A socket device.
#[derive(Debug)]
pub struct Vsock {
    pub(super) shared: Arc<Shared>,
    origin: Origin,
}

impl Vsock {
    /// A device that works on `reactor`'s thread; without one it works where it is called, and
    /// host's ends are never looked at by themselves.
    pub fn new(
        config: &VsockConfig,
        reactor: Option<Arc<Reactor>>,
    ) -> Result<Arc<Vsock>, VsockError> {
        if config.cid < 3 || config.cid >= u64::from(u32::MAX) {
            return Err(VsockError::Cid { cid: config.cid });
        }
        let acceptor = config.path.as_deref().map(bind).transpose()?;
        let shared = Arc::new_cyclic(|device: &Weak<Shared>| {
            let device = Weak::clone(device);
            let waits = Waits { reactor, device };
            let mut muxer = Muxer::new(config.cid, config.path.clone(), waits);
            muxer.acceptor = acceptor;
            Shared {
                muxer: Mutex::new(muxer),
            }
        });
        shared.lock().begin_waits();
        let origin = Origin::here();
        Ok(Arc::new(Vsock { shared, origin }))
    }

    /// A stream to the guest, which begins as one at the path does: `CONNECT port\n` is answered by
    /// `OK port\n`, or by the stream's end.
    pub fn connect(&self) -> Result<UnixStream, VsockError> {
        self.check()?;
        let (ours, theirs) = UnixStream::pair().map_err(VsockError::call("socketpair"))?;
        let greeted = self.shared.lock().greet(ours);
        greeted.map_err(VsockError::call("epoll_ctl"))?;
        Ok(theirs)
    }

    /// Takes the guest's connections to `port`: each comes through the socket that this gives, as a
    /// descriptor (`SCM_RIGHTS`) and the guest's port in four bytes, lowest first. The port is free
    /// again when the socket is closed.
    pub fn listen(&self, port: u32) -> Result<UnixStream, VsockError> {
        self.check()?;
        let (ours, theirs) = UnixStream::pair().map_err(VsockError::call("socketpair"))?;
        let free = self.shared.lock().take_port(port, ours);
        free.then_some(theirs).ok_or(VsockError::PortTaken { port })
    }

    /// Looks at every host's end, as a reactor's thread does: for who has none.
    pub fn look(&self) {
        self.shared.lock().look(false);
    }

    /// Ends every connection, and takes no more: the host's ends read the end.
    pub fn close(&self) {
        if self.origin.is_here() {
            let ended = self.shared.lock().close();
            drop(ended);
        }
    }

    /// The guest's context id.
    pub fn cid(&self) -> u64 {
        self.shared.lock().cid
    }

    fn check(&self) -> Result<(), VsockError> {
        let here = self.origin.is_here();
        here.then_some(()).ok_or(VsockError::Closed)
    }
}

fn bind(path: &Path) -> Result<Acceptor, VsockError> {
    let most = PATH_ROOM - 1 - PORT_ROOM;
    let path = path.to_owned();
    if path.as_os_str().as_bytes().len() > most {
        return Err(VsockError::PathTooLong { path, most });
    }
    Acceptor::bind(&path).map_err(|source| match source.kind() {
        ErrorKind::AddrInUse => VsockError::PathTaken { path },
        _ => VsockError::Path { path, source },
    })
}

impl VirtioDevice for Vsock {
    fn id(&self) -> u32 {
        19
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_sizes(&self) -> Vec<u16> {
        QUEUE_SIZES.to_vec()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_image(&self.cid().to_le_bytes(), offset, data);
    }

    fn activate(&self, active: Activation) {
        self.shared.lock().activate(Queues::of(&active));
    }

    fn queue_ready(&self, index: u16) {
        let mut muxer = self.shared.lock();
        match index {
            0 => muxer.receive(),
            1 => muxer.transmit(),
            _ => muxer.events(),
        }
    }

    fn reset(&self) {
        let ended = self.shared.lock().reset();
        drop(ended);
    }

    fn unplug(&self) {
        self.close();
    }

    fn pause(&self) {
        let ended = self.shared.lock().pause();
        drop(ended);
    }

    fn resume(&self) {
        self.shared.lock().resume();
    }

    fn save(&self) -> Option<SavedState> {
        let saved = Saved { cid: self.cid() };
        Some(SavedState::new(NAME, VERSION, &saved))
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        let saved: Saved = saved.read(NAME, VERSION)?;
        let mut muxer = self.shared.lock();
        if saved.cid != muxer.cid {
            return Err(SavedError::Damaged {
                kind: NAME,
                detail: format!("the guest has context id {}, not {}", saved.cid, muxer.cid),
            });
        }
        muxer.transport_reset = true;
        Ok(())
    }
}
