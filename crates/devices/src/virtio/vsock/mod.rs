//! The socket device (virtio 1.2, section 5.10): streams between guest and host.
//!
//! A host's end is a Unix stream socket. A host program connects at the device's path and says
//! `CONNECT port\n`, which is answered by `OK port\n`; the guest's connections to port N of the host
//! (context id 2) go to the socket at the path with `_N` behind. This process needs no path:
//! [`Vsock::connect`] and [`Vsock::listen`].
//!
//! * `device.rs`: [`Vsock`]. `packet.rs`: headers. `saved.rs`: saved state.
//! * `muxer.rs`: all connections. `connection.rs`: one, with its credit.
//! * `stream.rs`, `calls.rs`: the host's end. `wait.rs`: what is waited for.
//!
//! Not supported: seqpacket sockets, work on the guest's thread, connections that survive a restore.

mod calls;
mod connection;
mod device;
mod error;
mod muxer;
mod packet;
mod saved;
mod stream;
mod wait;

#[cfg(test)]
mod tests;

pub use device::{Vsock, VsockConfig};
pub use error::VsockError;
