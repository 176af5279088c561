//! A connection: its credit on both ways, and how far it is closed.

use std::{collections::VecDeque, io, sync::Arc};

use vm_memory::Bytes;
use vmlet_reactor::Interest;

use super::{
    calls::Piece,
    muxer::Key,
    packet::{HOST, Header, NO_RECEIVE, NO_SEND, STREAM},
    stream::HostStream,
    wait::Wait,
};

/// Bytes that the guest may have on the way to a host program that does not read.
pub(super) const BUFFER: u32 = 256 << 10;
/// The guest hears that so many bytes were taken, if it hears nothing else meanwhile.
const NEWS: u32 = BUFFER / 4;

/// How far a connection is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The guest was asked; who asked wants to hear of the answer.
    Asked,
    /// Bytes go both ways.
    Open,
}

/// The guest broke the rules of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Breach;

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) stream: Arc<HostStream>,
    pub(super) wait: Wait,
    pub(super) stage: Stage,
    /// Bytes sent to the guest, all counts modulo 2^32 (section 5.10.6.3).
    sent: u32,
    guest_buffer: u32,
    guest_taken: u32,
    /// Bytes of the guest that the host's end has taken, and what of that the guest knows.
    taken: u32,
    told: u32,
    /// Bytes of the guest that the host's end has not taken.
    backlog: VecDeque<u8>,
    pub(super) guest_sends: bool,
    pub(super) guest_receives: bool,
    /// The host's end has not been read to its end.
    pub(super) host_sends: bool,
    /// The host's end takes bytes.
    pub(super) host_receives: bool,
    /// What the guest was told of the two, as flags of a shutdown.
    pub(super) shutdown_told: u32,
    /// It has bytes, or news of the host's end, that no buffer of the guest was free for.
    pub(super) waiting: bool,
    pub(super) update_due: bool,
    /// It has bytes, or may have, that the guest had no credit for.
    pub(super) starved: bool,
    /// The guest was asked for credit.
    pub(super) credit_asked: bool,
    /// The host's end is closed on both ways, and not waited for.
    pub(super) ended: bool,
    /// The host's end had much to read the last time.
    pub(super) streams: bool,
}

impl Connection {
    pub(super) fn new(id: u64, stream: Arc<HostStream>, stage: Stage) -> Connection {
        Connection {
            id,
            stream,
            wait: Wait::default(),
            stage,
            sent: 0,
            guest_buffer: 0,
            guest_taken: 0,
            taken: 0,
            told: 0,
            backlog: VecDeque::new(),
            guest_sends: true,
            guest_receives: true,
            host_sends: true,
            host_receives: true,
            shutdown_told: 0,
            waiting: false,
            update_due: false,
            starved: false,
            credit_asked: false,
            ended: false,
            streams: false,
        }
    }

    /// What the guest says of its buffer with every packet.
    pub(super) fn take_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_taken = header.fwd_cnt;
        if self.credit() > 0 {
            self.credit_asked = false;
        }
    }

    /// Bytes the guest has room for.
    pub(super) fn credit(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.guest_taken);
        self.guest_buffer.saturating_sub(under_way)
    }

    /// Bytes sent to the guest, modulo 2^32.
    pub(super) fn sent(&self) -> u32 {
        self.sent
    }

    /// Whether bytes of the host's end have a way to the guest at all.
    pub(super) fn flows(&self) -> bool {
        self.stage == Stage::Open && self.host_sends && self.guest_receives
    }

    /// A packet of this connection; the guest learns from it what was taken.
    pub(super) fn header(&mut self, cid: u64, key: Key, op: u16) -> Header {
        self.told = self.taken;
        self.update_due = false;
        Header {
            src_cid: HOST,
            dst_cid: cid,
            src_port: key.host,
            dst_port: key.guest,
            kind: STREAM,
            op,
            buf_alloc: BUFFER,
            fwd_cnt: self.taken,
            ..Header::default()
        }
    }

    /// The header of `len` bytes for the guest.
    pub(super) fn data(&mut self, cid: u64, key: Key, len: u32) -> Header {
        self.sent = self.sent.wrapping_add(len);
        let header = self.header(cid, key, super::packet::RW);
        Header { len, ..header }
    }

    /// Bytes of the guest for the host's end.
    pub(super) fn deliver(&mut self, pieces: &[Piece<'_>]) -> Result<(), Breach> {
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        let room = usize::try_from(BUFFER).unwrap_or(usize::MAX);
        if !self.guest_sends || self.stage != Stage::Open || self.backlog.len() + len > room {
            return Err(Breach);
        }
        if !self.host_receives {
            self.count(len);
            return Ok(());
        }
        let sent = if self.backlog.is_empty() {
            taken(self.stream.send(pieces))
        } else {
            Some(0)
        };
        if let Some(sent) = sent {
            self.count(sent);
            keep(&mut self.backlog, pieces, sent);
        } else {
            self.count(len);
            self.lose_host();
        }
        Ok(())
    }

    /// Gives the host's end what it takes of the backlog.
    pub(super) fn flush(&mut self) {
        while !self.backlog.is_empty() {
            let (first, _) = self.backlog.as_slices();
            match taken(self.stream.send_bytes(first)) {
                Some(0) => return,
                Some(sent) => {
                    self.backlog.drain(..sent);
                    self.count(sent);
                }
                None => self.lose_host(),
            }
        }
        if !self.guest_sends {
            self.stream.end_sending();
        }
    }

    fn count(&mut self, bytes: usize) {
        // At most BUFFER, or a packet of the guest.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.taken = self.taken.wrapping_add(bytes);
    }

    /// Nobody reads the host's end any more.
    pub(super) fn lose_host(&mut self) {
        self.host_receives = false;
        self.count(self.backlog.len());
        self.backlog = VecDeque::new();
    }

    /// The guest's shutdown.
    pub(super) fn shut(&mut self, flags: u32) {
        if flags & NO_RECEIVE != 0 && self.guest_receives {
            self.guest_receives = false;
            self.stream.end_receiving();
        }
        if flags & NO_SEND != 0 && self.guest_sends {
            self.guest_sends = false;
            self.flush();
        }
    }

    /// What the guest should know of the host's end, as flags of a shutdown.
    pub(super) fn shutdown(&self) -> u32 {
        let sends = if self.host_sends { 0 } else { NO_SEND };
        let receives = if self.host_receives { 0 } else { NO_RECEIVE };
        sends | receives
    }

    /// Bytes that the host's end has not taken.
    pub(super) fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// The guest has closed, or was told that the host's end has: it only has to say so.
    pub(super) fn lingers(&self) -> bool {
        self.shutdown_told == NO_SEND | NO_RECEIVE
    }

    /// So much was taken that the guest should hear of it.
    pub(super) fn has_news(&self) -> bool {
        let news = self.taken.wrapping_sub(self.told);
        news >= NEWS && self.guest_sends && !self.update_due && self.stage == Stage::Open
    }

    /// What to wait for at the host's end.
    pub(super) fn interest(&self) -> Interest {
        Interest {
            read: self.flows() && !self.waiting && self.credit() > 0,
            write: !self.backlog.is_empty(),
            ..Interest::NONE
        }
    }
}

/// The call would have waited, or was interrupted: it is made again when the socket is ready.
pub(super) fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted)
}

/// Bytes that a host's end took; `None` where it takes no more at all.
fn taken(sent: io::Result<usize>) -> Option<usize> {
    match sent {
        Err(error) if is_passing(&error) => Some(0),
        other => other.ok(),
    }
}

/// Copies `pieces` without their first `skip` bytes.
fn keep(backlog: &mut VecDeque<u8>, pieces: &[Piece<'_>], mut skip: usize) {
    for piece in pieces {
        let from = skip.min(piece.len());
        skip -= from;
        let mut bytes = vec![0; piece.len() - from];
        // The slice ends where the piece ends.
        let _ = piece.read_slice(&mut bytes, from);
        backlog.extend(bytes);
    }
}
