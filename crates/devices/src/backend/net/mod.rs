//! Where a network device's frames go.
//!
//! * `tap.rs`: [`Tap`], an interface of the host, with the kernel's offloads.
//! * `socket.rs`: [`PacketSocket`], a socket that keeps frames apart: another VM, or what the user
//!   made of it.
//! * `stream.rs`: [`FrameStream`], a stream of frames with their lengths before them.
//! * `passt.rs`: [`Passt`], networking without privileges by a program of that name.
//! * `vhost.rs`: [`VhostNet`], the kernel works on the queues itself.
//! * `pieces.rs`: [`Piece`], where frames lie in guest memory.
//! * `calls.rs`: system calls; `error.rs`: [`NetError`].

mod calls;
mod error;
mod passt;
mod pieces;
mod socket;
mod stream;
mod tap;
mod vhost;

use std::{
    fmt::Debug,
    io,
    os::fd::{OwnedFd, RawFd},
    sync::Arc,
};

use vmlet_memory::fork::{ParentOnly, Watch, watch_fd};
use vmlet_reactor::Source;

pub use error::NetError;
pub use passt::Passt;
pub use pieces::{Piece, gather, scatter};
pub use socket::PacketSocket;
pub use stream::FrameStream;
pub use tap::Tap;
pub use vhost::{Ring, VhostNet};

/// The longest frame: 64 KiB that the kernel cuts later, an Ethernet header, and virtio-net's.
pub const LONGEST: usize = 65_536 + 14 + 12;

/// Where a network device's frames go and come from. No call waits.
pub trait NetBackend: Send + Sync + Debug {
    /// Frames have a `struct virtio_net_hdr_v1` of 12 bytes before them on the way; without, a frame
    /// is whole, with its checksums.
    fn has_header(&self) -> bool;

    /// What it can do of virtio-net's offloads, as feature bits.
    fn offloads(&self) -> u64 {
        0
    }

    /// Frames may come with these offloads of the driver's from now on.
    fn set_offloads(&self, features: u64) -> io::Result<()> {
        let _ = features;
        Ok(())
    }

    /// What to wait for; `None` if nothing ever comes.
    fn source(&self) -> Option<Arc<dyn Source>>;

    /// Sends a frame. `WouldBlock`: not now, again when there is room. Other errors lose the frame.
    fn send(&self, frame: &[Piece<'_>]) -> io::Result<()>;

    /// Whether a part of what was sent waits for room.
    fn unsent(&self) -> bool {
        false
    }

    /// Goes on with what waits for room.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Takes a frame into `room`, and what is too long for that into `tail`; gives its length.
    /// `WouldBlock`: there is none. Other errors: nothing comes any more.
    fn receive(&self, room: &[Piece<'_>], tail: &mut [u8]) -> io::Result<usize>;

    /// What the kernel's vhost-net can take over.
    fn descriptor(&self) -> Option<Arc<OwnedFd>> {
        None
    }
}

/// A descriptor that is closed in forked children.
#[derive(Debug)]
struct Descriptor {
    fd: Arc<OwnedFd>,
    _watch: ParentOnly<Option<Watch>>,
}

impl Descriptor {
    fn new(fd: OwnedFd) -> Descriptor {
        let watch = watch_fd(std::os::fd::AsRawFd::as_raw_fd(&fd));
        Descriptor {
            fd: Arc::new(fd),
            _watch: ParentOnly::new(watch),
        }
    }

    fn source(&self) -> Arc<dyn Source> {
        Arc::<OwnedFd>::clone(&self.fd)
    }
}

/// The back end that fits what the number `fd` stands for, by a descriptor of its own.
pub fn of_number(fd: RawFd) -> Result<Arc<dyn NetBackend>, NetError> {
    of_descriptor(calls::duplicate(fd).map_err(|source| NetError::Call {
        call: "dup of the descriptor",
        source,
    })?)
}

/// The back end that fits `fd`: a tap interface, a socket that keeps frames apart, or a stream.
pub fn of_descriptor(fd: OwnedFd) -> Result<Arc<dyn NetBackend>, NetError> {
    use std::os::fd::AsFd;
    match calls::socket_type(fd.as_fd()) {
        Ok(libc::SOCK_SEQPACKET | libc::SOCK_DGRAM) => Ok(Arc::new(PacketSocket::new(fd))),
        Ok(libc::SOCK_STREAM) => Ok(Arc::new(FrameStream::new(fd))),
        Ok(_) => Err(NetError::Descriptor),
        Err(_) => Ok(Arc::new(Tap::of_descriptor(fd)?)),
    }
}
