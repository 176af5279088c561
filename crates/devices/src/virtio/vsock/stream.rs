//! The host's end of a connection.

use std::{
    io,
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::net::UnixStream,
    },
};

use vmlet_memory::fork::{self, ParentOnly, Watch};

use super::calls::{self, Piece};

/// A stream socket. Nothing here waits, and a forked child does not keep it open.
#[derive(Debug)]
pub(super) struct HostStream {
    _watch: Option<Watch>,
    socket: ParentOnly<UnixStream>,
}

impl HostStream {
    pub(super) fn new(socket: UnixStream) -> HostStream {
        HostStream {
            _watch: fork::watch_fd(socket.as_raw_fd()),
            socket: ParentOnly::new(socket),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Fills `pieces`, as far as there are bytes; 0 at the end of the stream.
    pub(super) fn receive(&self, pieces: &[Piece<'_>]) -> io::Result<usize> {
        calls::receive(self.fd(), pieces)
    }

    pub(super) fn receive_byte(&self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        let count = calls::receive_bytes(self.fd(), &mut byte, 0)?;
        Ok((count > 0).then_some(byte[0]))
    }

    /// Whether the other side has closed, without bytes left to read.
    pub(super) fn is_at_end(&self) -> bool {
        matches!(
            calls::receive_bytes(self.fd(), &mut [0], libc::MSG_PEEK),
            Ok(0)
        )
    }

    pub(super) fn send(&self, pieces: &[Piece<'_>]) -> io::Result<usize> {
        calls::send(self.fd(), pieces)
    }

    pub(super) fn send_bytes(&self, bytes: &[u8]) -> io::Result<usize> {
        calls::send_bytes(self.fd(), bytes)
    }

    /// The other side reads the end once it has read what was sent.
    pub(super) fn end_sending(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// The other side's writes fail from now on.
    pub(super) fn end_receiving(&self) {
        let _ = self.socket.shutdown(Shutdown::Read);
    }

    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }
}

impl AsRawFd for HostStream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
