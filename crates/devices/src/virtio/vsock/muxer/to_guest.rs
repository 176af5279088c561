//! Packets to the guest.

use vm_memory::{GuestAddress, GuestMemory, Permissions};
use vmlet_bus::DmaView;

use super::{Batch, Key, Muxer, OUTBOX, Out};
use crate::virtio::{
    Chain, QueueFault,
    vsock::{
        calls::Piece,
        connection::{Connection, is_passing},
        packet::{CREDIT_REQUEST, HEADER, Header},
    },
};

/// Bytes that one connection sends before others have a turn: more than Linux has room for at once.
const TURN: u32 = 320 << 10;
/// The most buffers filled by one call.
const CHAINS: usize = 64;
/// So many at first where the host's end had [`MUCH`] the last time; else one.
const MANY: usize = 16;
/// Bytes of a stream that goes on, rather than of questions and answers.
const MUCH: u32 = 32 << 10;

/// How an attempt to read a host's end went.
enum Read {
    /// The guest has no buffer.
    NoRoom,
    /// The guest's socket has no room.
    NoCredit,
    /// So many bytes, as many as there was room for or fewer.
    Bytes(u32, bool),
    /// Nothing now.
    Later,
    /// The host's end was read to its end.
    End,
    /// The host's end is gone, with bytes that nobody will see.
    Lost,
}

impl Muxer {
    /// The guest has new buffers.
    pub(in crate::virtio::vsock) fn receive(&mut self) {
        let Some(batch) = self.batch() else {
            return;
        };
        batch.queues.rx.disable_notifications(&batch.view);
        self.finish(&batch);
        if self.stalled && self.outbox.len() < OUTBOX / 2 {
            self.take_packets(&batch);
            self.finish(&batch);
        }
    }

    /// The guest has buffers for events.
    pub(in crate::virtio::vsock) fn events(&mut self) {
        let Some(batch) = self.batch().filter(|_| self.transport_reset) else {
            return;
        };
        let (events, view) = (&batch.queues.events, &batch.view);
        let Some(chain) = events.pop(view) else {
            events.enable_notifications(view);
            return;
        };
        // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET
        match chain.write(view, 0, &0u32.to_le_bytes()) {
            Ok(4) => events.push(view, chain.head(), 4),
            _ => events.fail(&QueueFault::Memory),
        }
        self.transport_reset = false;
        events.notify(view);
    }

    /// Sends what waits, and has the guest look at its queues.
    pub(super) fn finish(&mut self, batch: &Batch) {
        let mut turns = self.waiting.len();
        while self.send_outbox(batch) && turns > 0 {
            turns -= 1;
            let Some(key) = self.waiting.pop_front() else {
                break;
            };
            if let Some(connection) = self.connections.get_mut(&key) {
                connection.waiting = false;
                self.pump(batch, key);
            }
        }
        if std::mem::take(&mut self.tells) {
            self.late.take();
            batch.queues.tx.notify(&batch.view);
        }
        batch.queues.rx.notify(&batch.view);
    }

    /// Sends packets without bytes; false when the guest has no buffers for all.
    pub(super) fn send_outbox(&mut self, batch: &Batch) -> bool {
        while let Some(out) = self.outbox.front().copied() {
            let gone = matches!(out, Out::Of(key, ..) if !self.connections.contains_key(&key));
            if !gone {
                let Some(chain) = batch.room() else {
                    return false;
                };
                self.put(batch, &chain, out);
            }
            self.outbox.pop_front();
        }
        true
    }

    fn put(&mut self, batch: &Batch, chain: &Chain, out: Out) {
        let header = match out {
            Out::Bare(header) => header,
            Out::Of(key, op, flags) => {
                let Some(connection) = self.connections.get_mut(&key) else {
                    return;
                };
                let header = connection.header(self.cid, key, op);
                Header { flags, ..header }
            }
        };
        put_packet(batch, chain, &header);
    }

    /// Reads the host's end of a connection into the guest's buffers.
    pub(super) fn pump(&mut self, batch: &Batch, key: Key) {
        if !self.outbox.is_empty() {
            self.wait_for(key);
            // Its host's end is not looked at again before the guest has buffers.
            return self.settle(key);
        }
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        match drain(batch, connection, self.cid, key) {
            Read::NoRoom => self.wait_for(key),
            Read::Lost => self.refuse(key),
            Read::NoCredit if !std::mem::replace(&mut connection.credit_asked, true) => {
                self.outbox.push_back(Out::Of(key, CREDIT_REQUEST, 0));
            }
            _ => {}
        }
        self.settle(key);
    }
}

/// Reads a connection until that has an end for now.
fn drain(batch: &Batch, connection: &mut Connection, cid: u64, key: Key) -> Read {
    let before = connection.sent();
    let read = drain_in_turn(batch, connection, cid, key);
    connection.streams = connection.sent().wrapping_sub(before) >= MUCH;
    read
}

fn drain_in_turn(batch: &Batch, connection: &mut Connection, cid: u64, key: Key) -> Read {
    // What an ended host's end has left is read at once: nothing will call again.
    let mut left = if connection.ended { u32::MAX } else { TURN };
    let mut chains = if connection.streams { MANY } else { 1 };
    connection.starved = false;
    while connection.flows() && left > 0 {
        let most = connection.credit().min(left);
        if most == 0 {
            connection.starved = true;
            return Read::NoCredit;
        }
        match fill(batch, connection, (cid, key), chains, most) {
            Read::Bytes(_, false) if !connection.ended => break,
            Read::Bytes(count, _) => left -= count.min(left),
            Read::End => connection.host_sends = false,
            other => return other,
        }
        if chains >= MANY {
            // The guest works on these while the next are filled.
            batch.queues.rx.notify(&batch.view);
        }
        chains = (chains * 4).min(CHAINS);
    }
    Read::Later
}

/// Reads up to `most` bytes into up to `chains` buffers, each with a header before its bytes.
fn fill(
    batch: &Batch,
    connection: &mut Connection,
    (cid, key): (u64, Key),
    chains: usize,
    most: u32,
) -> Read {
    let (room, rx) = (take_room(batch, chains, most), &batch.queues.rx);
    let undo = |count: usize| (0..count).for_each(|_| rx.undo_pop());
    let pieces = match pieces(&batch.view, &room) {
        Ok(pieces) => pieces,
        Err(fault) => {
            rx.fail(&fault);
            return Read::NoRoom;
        }
    };
    if room.is_empty() {
        return Read::NoRoom;
    }
    let received = match connection.stream.receive(&pieces) {
        Ok(count @ 1..) => u32::try_from(count).unwrap_or(u32::MAX),
        other => {
            undo(room.len());
            return match other {
                Ok(_) => Read::End,
                Err(error) if is_passing(&error) => Read::Later,
                Err(_) => Read::Lost,
            };
        }
    };
    let (mut left, mut used) = (received, Vec::with_capacity(room.len()));
    for (chain, len) in &room {
        if left == 0 {
            break;
        }
        let part = left.min(*len);
        left -= part;
        used.extend(lead(batch, chain, &connection.data(cid, key, part)));
    }
    undo(room.len() - used.len().min(room.len()));
    rx.push_together(&batch.view, &used);
    let offered: u32 = room.iter().map(|(_, len)| len).sum();
    Read::Bytes(received, received == offered)
}

/// Buffers for up to `most` bytes, and how many of those each is to take.
fn take_room(batch: &Batch, chains: usize, most: u32) -> Vec<(Chain, u32)> {
    let (mut room, mut left) = (Vec::new(), most);
    while room.len() < chains && left > 0 {
        let next = if room.is_empty() {
            batch.room()
        } else {
            batch.queues.rx.pop(&batch.view)
        };
        let Some(chain) = next else {
            break;
        };
        let len = chain.writable_len().saturating_sub(HEADER.into());
        let len = u32::try_from(len).unwrap_or(u32::MAX).min(left);
        if len == 0 || chain.readable_len() > 0 {
            let (head, detail) = (chain.head(), "it has no room for bytes");
            batch.queues.rx.fail(&QueueFault::Request { head, detail });
            return Vec::new();
        }
        left -= len;
        room.push((chain, len));
    }
    room
}

/// Where the bytes of `room` lie.
fn pieces<'a>(view: &'a DmaView, room: &[(Chain, u32)]) -> Result<Vec<Piece<'a>>, QueueFault> {
    let mut pieces = Vec::with_capacity(room.len());
    for (chain, len) in room {
        for buffer in chain.writable_range(HEADER.into(), (*len).into()) {
            let addr = GuestAddress(buffer.addr.0);
            let len = usize::try_from(buffer.len).map_err(|_| QueueFault::Memory)?;
            let slices = view.get_slices(addr, len, Permissions::Write);
            for slice in slices.map_err(|_| QueueFault::Memory)? {
                pieces.push(slice.map_err(|_| QueueFault::Memory)?);
            }
        }
    }
    Ok(pieces)
}

/// Gives the guest a packet without bytes.
fn put_packet(batch: &Batch, chain: &Chain, header: &Header) {
    if let Some((head, len)) = lead(batch, chain, header) {
        batch.queues.rx.push(&batch.view, head, len);
    }
}

/// Writes a header before the bytes that are in their place; gives what is used.
fn lead(batch: &Batch, chain: &Chain, header: &Header) -> Option<(u16, u32)> {
    let (rx, bytes) = (&batch.queues.rx, header.bytes());
    match chain.write(&batch.view, 0, &bytes) {
        Ok(count) if count == bytes.len() => Some((chain.head(), HEADER + header.len)),
        _ => {
            let (head, detail) = (chain.head(), "it has no room for a packet's header");
            rx.fail(&QueueFault::Request { head, detail });
            None
        }
    }
}
