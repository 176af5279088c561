//! The system calls of network back ends that have no safe wrapper.
//!
//! Invariant: every pointer given to the kernel comes from a slice that lives until the call returns.
//! Guest memory may change meanwhile, which the kernel's copies allow for; nothing here makes a
//! reference to it.

#![expect(
    unsafe_code,
    reason = "vectored reads and writes of guest memory, and ioctls of tap devices and vhost"
)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use libc::{c_int, c_ulong, c_void, iovec, msghdr};
use vhost::vhost_kern::vhost_binding::{VHOST_SET_VRING_ADDR, vhost_vring_addr};
use vm_memory::bitmap::Bitmap;

use super::Piece;

/// The kernel takes no more pieces at once (`UIO_MAXIOV`).
const MOST_PIECES: usize = 1024;

/// `struct ifreq` of the calls about interfaces: the name, and flags.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct InterfaceRequest {
    pub(super) name: [u8; libc::IFNAMSIZ],
    pub(super) flags: u16,
    rest: [u8; 22],
}

impl InterfaceRequest {
    pub(super) fn new(name: [u8; libc::IFNAMSIZ], flags: u16) -> InterfaceRequest {
        InterfaceRequest {
            name,
            flags,
            rest: [0; 22],
        }
    }
}

/// A number of bytes, or the error that a negative one stands for.
fn count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn done(result: c_int) -> io::Result<c_int> {
    (result >= 0)
        .then_some(result)
        .ok_or_else(io::Error::last_os_error)
}

fn of_bytes(bytes: &[u8]) -> iovec {
    iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

/// `head`, then `pieces`; nothing where those are too many.
fn gathered(head: &[u8], pieces: &[Piece<'_>]) -> io::Result<Vec<iovec>> {
    if pieces.len() >= MOST_PIECES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut vectors = Vec::with_capacity(pieces.len() + 1);
    if !head.is_empty() {
        vectors.push(of_bytes(head));
    }
    vectors.extend(pieces.iter().map(|piece| iovec {
        iov_base: piece.ptr_guard().as_ptr().cast_mut().cast::<c_void>(),
        iov_len: piece.len(),
    }));
    Ok(vectors)
}

/// `pieces`, then `tail`, to be written to.
fn scattered(pieces: &[Piece<'_>], tail: &mut [u8]) -> io::Result<Vec<iovec>> {
    if pieces.len() >= MOST_PIECES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut vectors = Vec::with_capacity(pieces.len() + 1);
    vectors.extend(pieces.iter().map(|piece| iovec {
        iov_base: piece.ptr_guard_mut().as_ptr().cast::<c_void>(),
        iov_len: piece.len(),
    }));
    vectors.push(iovec {
        iov_base: tail.as_mut_ptr().cast(),
        iov_len: tail.len(),
    });
    Ok(vectors)
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

/// Writes `pieces` as one frame.
pub(super) fn write(fd: BorrowedFd<'_>, pieces: &[Piece<'_>]) -> io::Result<usize> {
    let vectors = gathered(&[], pieces)?;
    let len = c_int::try_from(vectors.len()).unwrap_or(c_int::MAX);
    // SAFETY: the vectors lead to slices that outlive the call.
    count(unsafe { libc::writev(fd.as_raw_fd(), vectors.as_ptr(), len) })
}

/// Reads one frame into `pieces` and what is too long for them into `tail`.
pub(super) fn read(fd: BorrowedFd<'_>, pieces: &[Piece<'_>], tail: &mut [u8]) -> io::Result<usize> {
    let vectors = scattered(pieces, tail)?;
    let len = c_int::try_from(vectors.len()).unwrap_or(c_int::MAX);
    // SAFETY: the vectors lead to slices that outlive the call, `tail` exclusively.
    let read = count(unsafe { libc::readv(fd.as_raw_fd(), vectors.as_ptr(), len) })?;
    mark(pieces, read);
    Ok(read)
}

fn message(vectors: &mut [iovec]) -> msghdr {
    // SAFETY: a message without addresses and control data is all zeros.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len();
    message
}

/// Sends `head` and `pieces` as one message, or as much as fits of a stream.
pub(super) fn send(fd: BorrowedFd<'_>, head: &[u8], pieces: &[Piece<'_>]) -> io::Result<usize> {
    let mut vectors = gathered(head, pieces)?;
    let message = message(&mut vectors);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message leads to slices that outlive the call.
    count(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) })
}

/// Receives one message into `pieces` and what is too long for them into `tail`.
pub(super) fn receive(
    fd: BorrowedFd<'_>,
    pieces: &[Piece<'_>],
    tail: &mut [u8],
) -> io::Result<usize> {
    let mut vectors = scattered(pieces, tail)?;
    let mut message = message(&mut vectors);
    // SAFETY: the message leads to slices that outlive the call, `tail` exclusively.
    let received =
        count(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) })?;
    mark(pieces, received);
    Ok(received)
}

/// A descriptor of our own for what `fd` is; an error where that is not open.
pub(super) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes any number.
    let own = done(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the descriptor was just made, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}

/// What kind of socket `fd` is (`SO_TYPE`); an error where it is none.
pub(super) fn socket_type(fd: BorrowedFd<'_>) -> io::Result<c_int> {
    let (mut kind, mut len): (c_int, _) = (0, 4);
    // SAFETY: `kind` and `len` are valid places of the sizes given.
    done(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &raw mut len,
        )
    })?;
    Ok(kind)
}

/// Two connected sockets that keep frames apart, with `buffer` bytes of room on each way if the kernel
/// allows that.
pub(super) fn seqpacket_pair(buffer: c_int) -> io::Result<[OwnedFd; 2]> {
    let mut fds = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: `fds` is a valid place for two descriptors.
    done(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    for fd in fds {
        let value = (&raw const buffer).cast();
        // SAFETY: the value is a valid place of the size given.
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, value, 4) };
    }
    // SAFETY: the descriptors were just made, for nobody else.
    Ok(fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Reads and writes of `fd` do not wait any more.
pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: asks for flags.
    let flags = done(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: sets flags.
    done(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

/// `TUNSETIFF` or `TUNGETIFF`.
pub(super) fn interface(
    fd: BorrowedFd<'_>,
    call: c_ulong,
    request: &mut InterfaceRequest,
) -> io::Result<()> {
    // SAFETY: the request has the size of `struct ifreq`.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), call, ptr::from_mut(request)) }).map(drop)
}

/// A tap call that takes a number (`TUNSETOFFLOAD`).
pub(super) fn tap_number(fd: BorrowedFd<'_>, call: c_ulong, value: c_ulong) -> io::Result<()> {
    // SAFETY: the call takes a plain number.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), call, value) }).map(drop)
}

/// A tap call that takes a pointer to a number (`TUNSETVNETHDRSZ`, `TUNSETSNDBUF`).
pub(super) fn tap_value(fd: BorrowedFd<'_>, call: c_ulong, value: c_int) -> io::Result<()> {
    // SAFETY: the call reads one int.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), call, &raw const value) }).map(drop)
}

/// Where vhost finds a ring, by addresses in this process.
pub(super) fn vring_address(vhost: RawFd, address: &vhost_vring_addr) -> io::Result<()> {
    // SAFETY: the call reads one structure; the kernel checks each address when it uses it.
    done(unsafe { libc::ioctl(vhost, VHOST_SET_VRING_ADDR(), ptr::from_ref(address)) }).map(drop)
}
