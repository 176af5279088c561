//! Sockets that keep frames apart.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use vmlet_reactor::Source;

use super::{Descriptor, NetBackend, NetError, Piece, calls};

/// Frames of some bursts.
const BUFFER: i32 = 1 << 20;

/// A socket whose messages are frames: `SEQPACKET` or `DGRAM`.
#[derive(Debug)]
pub struct PacketSocket {
    descriptor: Descriptor,
    /// An empty message is the end of the other side.
    ends: bool,
}

impl PacketSocket {
    /// Frames through `fd`.
    pub fn new(fd: OwnedFd) -> PacketSocket {
        let kind = calls::socket_type(fd.as_fd());
        PacketSocket {
            descriptor: Descriptor::new(fd),
            ends: matches!(kind, Ok(libc::SOCK_SEQPACKET)),
        }
    }

    /// The two ends of a link.
    pub fn pair() -> Result<[OwnedFd; 2], NetError> {
        let failed = |source| NetError::Call {
            call: "socketpair",
            source,
        };
        calls::seqpacket_pair(BUFFER).map_err(failed)
    }
}

impl NetBackend for PacketSocket {
    fn has_header(&self) -> bool {
        false
    }

    fn source(&self) -> Option<Arc<dyn Source>> {
        Some(self.descriptor.source())
    }

    fn send(&self, frame: &[Piece<'_>]) -> io::Result<()> {
        calls::send(self.descriptor.fd.as_fd(), &[], frame).map(drop)
    }

    fn receive(&self, room: &[Piece<'_>], tail: &mut [u8]) -> io::Result<usize> {
        match calls::receive(self.descriptor.fd.as_fd(), room, tail) {
            Ok(0) if self.ends => Err(io::ErrorKind::UnexpectedEof.into()),
            // What a peer that is gone leaves behind once; another may take its place.
            Err(error) if !self.ends && is_passing(&error) => Err(io::ErrorKind::WouldBlock.into()),
            other => other,
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> [PacketSocket; 2] {
        PacketSocket::pair().unwrap().map(PacketSocket::new)
    }

    fn take(from: &PacketSocket) -> io::Result<Vec<u8>> {
        let mut tail = [0; 64];
        let len = from.receive(&[], &mut tail)?;
        Ok(tail[..len].to_vec())
    }

    #[test]
    fn an_ended_peer_is_an_end_and_not_an_empty_frame() {
        let [left, right] = pair();
        assert_eq!(take(&left).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(right);
        let error = take(&left).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
