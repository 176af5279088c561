//! The system calls of host ends that have no safe wrapper.
//!
//! Invariant: every pointer given to the kernel comes from a slice or a structure that lives until
//! the call returns. Guest memory may change meanwhile, which the kernel's copies allow for; nothing
//! here makes a reference to it.

#![expect(
    unsafe_code,
    reason = "vectored reads and writes of guest memory, and a connect that does not wait"
)]

use std::{
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::Path,
};

use libc::{iovec, msghdr};
use vm_memory::{VolatileSlice, bitmap::Bitmap};
use vmlet_memory::Written;

/// A piece of guest memory; what is written to it counts as written.
pub(super) type Piece<'a> = VolatileSlice<'a, Written<'a>>;

/// The kernel takes no more pieces at once (`UIO_MAXIOV`).
const MOST_PIECES: usize = 1024;

/// A number of bytes, or the error that a negative one stands for.
fn count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn message(vectors: &mut [iovec]) -> msghdr {
    // SAFETY: a message without addresses and control data is all zeros.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len();
    message
}

/// Sends what the socket takes of `pieces`; never waits.
pub(super) fn send(fd: BorrowedFd<'_>, pieces: &[Piece<'_>]) -> io::Result<usize> {
    let pieces = pieces.iter().take(MOST_PIECES);
    let mut vectors: Vec<iovec> = pieces
        .map(|piece| iovec {
            iov_base: piece.ptr_guard().as_ptr().cast_mut().cast(),
            iov_len: piece.len(),
        })
        .collect();
    let message = message(&mut vectors);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message leads to slices that outlive the call.
    count(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) })
}

/// Sends what the socket takes of `bytes`; never waits.
pub(super) fn send_bytes(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the slice is as long as said and outlives the call.
    count(unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// Receives into `pieces`; never waits.
pub(super) fn receive(fd: BorrowedFd<'_>, pieces: &[Piece<'_>]) -> io::Result<usize> {
    let pieces = pieces.get(..MOST_PIECES).unwrap_or(pieces);
    let mut vectors: Vec<iovec> = pieces
        .iter()
        .map(|piece| iovec {
            iov_base: piece.ptr_guard_mut().as_ptr().cast(),
            iov_len: piece.len(),
        })
        .collect();
    let mut message = message(&mut vectors);
    // SAFETY: the message leads to slices that outlive the call.
    let received =
        count(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) })?;
    mark(pieces, received);
    Ok(received)
}

/// Receives into `bytes`; never waits.
pub(super) fn receive_bytes(fd: BorrowedFd<'_>, bytes: &mut [u8], flags: i32) -> io::Result<usize> {
    let (at, len) = (bytes.as_mut_ptr().cast(), bytes.len());
    // SAFETY: the slice is as long as said, and exclusively the call's.
    count(unsafe { libc::recv(fd.as_raw_fd(), at, len, flags | libc::MSG_DONTWAIT) })
}

/// Notes that the first `len` bytes of `pieces` were written.
fn mark(pieces: &[Piece<'_>], mut len: usize) {
    for piece in pieces {
        let part = len.min(piece.len());
        piece.bitmap().mark_dirty(0, part);
        len -= part;
        if len == 0 {
            return;
        }
    }
}

/// Connects to the socket at `path`, or fails at once: with `WouldBlock` where its queue is full.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let path = path.as_os_str().as_bytes();
    // SAFETY: an address of zeros is one without a name.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).map_err(io::Error::other)?;
    if path.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let name = address.sun_path.iter_mut().zip(path);
    name.for_each(|(to, from)| *to = libc::c_char::from_ne_bytes([*from]));
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: makes a descriptor.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, for nobody else.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let len = size_of::<libc::sockaddr_un>();
    let len = libc::socklen_t::try_from(len).map_err(io::Error::other)?;
    // SAFETY: the address is a valid structure of that length.
    let done = unsafe { libc::connect(fd, (&raw const address).cast(), len) };
    (done == 0)
        .then_some(socket)
        .ok_or_else(io::Error::last_os_error)
}
