//! An interface of the host (Linux, Documentation/networking/tuntap.rst).

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    sync::Arc,
};

use libc::c_ulong;
use vmlet_reactor::Source;

use super::{
    Descriptor, NetBackend, NetError, Piece,
    calls::{self, InterfaceRequest},
};
use crate::virtio::net::features as bit;

const DEVICE: &str = "/dev/net/tun";

const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;
const TUNGETIFF: c_ulong = 0x8004_54d2;
const TUNSETSNDBUF: c_ulong = 0x4004_54d4;
const TUNSETVNETHDRSZ: c_ulong = 0x4004_54d8;

const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// `TUN_F_*`: what of a frame the reader finishes.
const CSUM: c_ulong = 0x01;
const TSO4: c_ulong = 0x02;
const TSO6: c_ulong = 0x04;
const ECN: c_ulong = 0x08;
const UFO: c_ulong = 0x10;

/// `struct virtio_net_hdr_v1`.
const HEADER: i32 = 12;

/// What the kernel finishes of the guest's frames: it always can.
const SENDING: u64 = bit::CSUM | bit::HOST_TSO4 | bit::HOST_TSO6 | bit::HOST_ECN;
/// What a driver may have to finish, if it wants to.
const RECEIVING: u64 = bit::GUEST_CSUM | bit::GUEST_TSO4 | bit::GUEST_TSO6 | bit::GUEST_ECN;

/// A tap interface.
#[derive(Debug)]
pub struct Tap {
    descriptor: Descriptor,
    header: bool,
    offloads: u64,
}

impl Tap {
    /// Opens the interface called `name`. One that does not exist is made, with the privilege for
    /// that, and goes with the VM.
    pub fn open(name: &str) -> Result<Tap, NetError> {
        let (mut request, file) = (request(name)?, device(name)?);
        let attached = calls::interface(file.as_fd(), TUNSETIFF, &mut request);
        attached.map_err(|source| NetError::Interface {
            name: name.to_owned(),
            action: "opened",
            remedy: remedy(&source),
            source,
        })?;
        Tap::configured(file, name, true)
    }

    /// The interface that `fd` is attached to already.
    pub fn of_descriptor(fd: OwnedFd) -> Result<Tap, NetError> {
        let mut found = InterfaceRequest::new([0; libc::IFNAMSIZ], 0);
        let asked = calls::interface(fd.as_fd(), TUNGETIFF, &mut found);
        if asked.is_err() || found.flags & IFF_TAP == 0 || found.flags & IFF_NO_PI == 0 {
            return Err(NetError::Descriptor);
        }
        let name = found.name.split(|byte| *byte == 0).next();
        let name = String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
        let header = found.flags & IFF_VNET_HDR != 0;
        calls::set_nonblocking(fd.as_fd()).map_err(|source| NetError::Call {
            call: "fcntl",
            source,
        })?;
        Tap::configured(fd, &name, header)
    }

    fn configured(fd: OwnedFd, name: &str, header: bool) -> Result<Tap, NetError> {
        let mut offloads = 0;
        if header {
            let failed = |source| NetError::Interface {
                name: name.to_owned(),
                action: "configured",
                remedy: "",
                source,
            };
            calls::tap_value(fd.as_fd(), TUNSETVNETHDRSZ, HEADER).map_err(failed)?;
            offloads = probe(&fd);
        }
        // Frames that the guest has sent are not held up by what others have not read yet.
        let _ = calls::tap_value(fd.as_fd(), TUNSETSNDBUF, i32::MAX);
        Ok(Tap {
            descriptor: Descriptor::new(fd),
            header,
            offloads,
        })
    }
}

fn device(name: &str) -> Result<OwnedFd, NetError> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true);
    let opened = options.custom_flags(libc::O_NONBLOCK).open(DEVICE);
    opened.map(OwnedFd::from).map_err(|source| {
        let remedy = match source.kind() {
            io::ErrorKind::NotFound => "The kernel has no /dev/net/tun: load the module tun.",
            _ => "Have the administrator let you open /dev/net/tun, or give an open one as fd=.",
        };
        NetError::Interface {
            name: name.to_owned(),
            action: "opened",
            remedy,
            source,
        }
    })
}

fn request(name: &str) -> Result<InterfaceRequest, NetError> {
    let bad = |byte: u8| byte == 0 || byte == b'/' || byte.is_ascii_whitespace();
    let fits = !name.is_empty() && name.len() < libc::IFNAMSIZ && !name.bytes().any(bad);
    // The kernel takes these as patterns.
    if !fits || name.contains('%') {
        return Err(NetError::Name {
            name: name.to_owned(),
        });
    }
    let mut padded = [0; libc::IFNAMSIZ];
    padded
        .iter_mut()
        .zip(name.bytes())
        .for_each(|(to, from)| *to = from);
    Ok(InterfaceRequest::new(
        padded,
        IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
    ))
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => {
            "Another program uses it. End that, or give each VM its own interface."
        }
        Some(libc::EPERM | libc::EACCES) => {
            "Have the administrator make it for you: ip tuntap add dev NAME mode tap user USER; ip \
             link set NAME up."
        }
        Some(libc::EINVAL) => {
            "It is no tap interface, or one for several queues: ip tuntap add dev NAME mode tap."
        }
        _ => "",
    }
}

/// Which offloads the kernel knows; none are on afterwards.
fn probe(fd: &OwnedFd) -> u64 {
    let set = |flags| calls::tap_number(fd.as_fd(), TUNSETOFFLOAD, flags).is_ok();
    let mut offloads = SENDING;
    if set(CSUM | TSO4 | TSO6 | ECN | UFO) {
        offloads |= RECEIVING | bit::GUEST_UFO | bit::HOST_UFO;
    } else if set(CSUM | TSO4 | TSO6 | ECN) {
        offloads |= RECEIVING;
    }
    set(0);
    offloads
}

fn flags(features: u64) -> c_ulong {
    let pairs = [
        (bit::GUEST_CSUM, CSUM),
        (bit::GUEST_TSO4, TSO4),
        (bit::GUEST_TSO6, TSO6),
        (bit::GUEST_ECN, ECN),
        (bit::GUEST_UFO, UFO),
    ];
    let wanted = pairs.iter().filter(|(bit, _)| features & bit != 0);
    wanted.fold(0, |flags, (_, flag)| flags | flag)
}

impl NetBackend for Tap {
    fn has_header(&self) -> bool {
        self.header
    }

    fn offloads(&self) -> u64 {
        self.offloads
    }

    fn set_offloads(&self, features: u64) -> io::Result<()> {
        if !self.header {
            return Ok(());
        }
        calls::tap_number(self.descriptor.fd.as_fd(), TUNSETOFFLOAD, flags(features))
    }

    fn source(&self) -> Option<Arc<dyn Source>> {
        Some(self.descriptor.source())
    }

    fn send(&self, frame: &[Piece<'_>]) -> io::Result<()> {
        calls::write(self.descriptor.fd.as_fd(), frame).map(drop)
    }

    fn receive(&self, room: &[Piece<'_>], tail: &mut [u8]) -> io::Result<usize> {
        calls::read(self.descriptor.fd.as_fd(), room, tail)
    }

    fn descriptor(&self) -> Option<Arc<OwnedFd>> {
        self.header.then(|| Arc::clone(&self.descriptor.fd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_interface_can_have_is_refused() {
        for name in ["", "a/b", "sixteen-bytes-xx", "tap%d", "a b"] {
            assert!(
                matches!(request(name), Err(NetError::Name { .. })),
                "{name}"
            );
        }
        assert!(request("fifteen-bytes-x").is_ok());
    }

    #[test]
    fn a_descriptor_that_is_no_tap_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let refused = Tap::of_descriptor(file.into());
        assert!(matches!(refused, Err(NetError::Descriptor)));
    }
}
