//! Packets of the guest.

use std::time::Duration;

use vm_memory::{GuestAddress, GuestMemory, Permissions};

use super::{Batch, Key, Muxer, OUTBOX, Out};
use crate::virtio::{
    Chain, QueueFault,
    late::Bounds,
    vsock::{
        calls::Piece,
        connection::{Connection, Stage},
        packet::{
            CREDIT_REQUEST, CREDIT_UPDATE, HEADER, HOST, Header, REQUEST, RESPONSE, RST, RW,
            SHUTDOWN, STREAM,
        },
    },
};

/// Bytes of a packet that the guest need not hear of at once: it waits for none of these, and has the
/// memory of a few to spare. Readers send news of their credit for every few packets of a stream.
const SHORT: u32 = 1 << 10;
/// How long it does not hear of such packets.
const WHILE: Duration = Duration::from_millis(50);

impl Muxer {
    /// Takes what the guest sent, and answers.
    pub(in crate::virtio::vsock) fn transmit(&mut self) {
        if let Some(batch) = self.batch() {
            self.take_packets(&batch);
            self.finish(&batch);
        }
    }

    pub(super) fn take_packets(&mut self, batch: &Batch) {
        self.stalled = false;
        let (mut short, mut others) = (0, false);
        let (tx, view) = (&batch.queues.tx, &batch.view);
        tx.drain(view, |chain| {
            if self.outbox.len() >= OUTBOX && !self.send_outbox(batch) {
                self.stalled = true;
                tx.undo_pop();
                return false;
            }
            match self.take_packet(batch, &chain) {
                Ok(can_wait) => {
                    tx.push(view, chain.head(), 0);
                    short = u32::saturating_add(short, can_wait.into());
                    others |= !can_wait;
                }
                Err(fault) => tx.fail(&fault),
            }
            true
        });
        let bounds = Bounds {
            buffers: u32::from(tx.size()) / 2,
            time: WHILE,
        };
        self.tells |= others || short > 0 && !self.late.keeps(short, bounds);
    }

    /// The guest hears now what was kept back.
    pub(super) fn tell(&mut self) {
        if let Some(batch) = self.batch()
            && self.late.take()
        {
            batch.queues.tx.notify(&batch.view);
        }
    }

    /// Takes a packet; true where the guest may hear of that later.
    fn take_packet(&mut self, batch: &Batch, chain: &Chain) -> Result<bool, QueueFault> {
        let head = chain.head();
        let mut bytes = [0; 44];
        if chain.read(&batch.view, 0, &mut bytes)? < bytes.len() {
            let detail = "it is shorter than a packet's header";
            return Err(QueueFault::Request { head, detail });
        }
        let header = Header::parse(&bytes);
        let there = chain.readable_len() - u64::from(HEADER);
        if header.op == RW && u64::from(header.len) > there {
            let detail = "its packet is longer than its buffers";
            return Err(QueueFault::Request { head, detail });
        }
        let known = header.src_cid == self.cid && header.dst_cid == HOST;
        if !known || header.kind != STREAM {
            self.answer_stranger(&header);
            return Ok(false);
        }
        self.take_op(batch, chain, &header)
    }

    /// A packet for nobody: a reset, unless it is one.
    fn answer_stranger(&mut self, header: &Header) {
        if header.op != RST && header.src_cid == self.cid {
            self.outbox.push_back(Out::Bare(header.refusal()));
        }
    }

    fn take_op(
        &mut self,
        batch: &Batch,
        chain: &Chain,
        header: &Header,
    ) -> Result<bool, QueueFault> {
        let key = Key {
            host: header.dst_port,
            guest: header.src_port,
        };
        let Some(connection) = self.connections.get_mut(&key) else {
            match header.op {
                REQUEST => self.open_for_guest(key, header),
                _ => self.answer_stranger(header),
            }
            return Ok(false);
        };
        let can_wait = matches!(header.op, RW | CREDIT_UPDATE) && header.len <= SHORT;
        connection.take_credit(header);
        let open = connection.stage == Stage::Open;
        match header.op {
            RW if open => {
                let pieces = pieces(batch, chain, header.len)?;
                if connection.deliver(&pieces).is_err() {
                    self.refuse(key);
                }
            }
            RESPONSE if !open => self.answered(key),
            RST => self.guest_reset(key),
            SHUTDOWN if open => self.guest_shutdown(key, header.flags),
            CREDIT_UPDATE => {}
            CREDIT_REQUEST if open => self.outbox.push_back(Out::Of(key, CREDIT_UPDATE, 0)),
            _ => self.refuse(key),
        }
        if self
            .connections
            .get(&key)
            .is_some_and(Connection::is_held_up)
        {
            self.wait_for(key);
        }
        self.settle(key);
        Ok(can_wait)
    }

    /// The guest's last word. Bytes it sent before it closed still reach the host's end.
    fn guest_reset(&mut self, key: Key) {
        if let Some(gone) = self.connections.remove(&key)
            && !gone.guest_sends
        {
            self.keep_orphan(gone);
        }
    }

    fn guest_shutdown(&mut self, key: Key, flags: u32) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        connection.shut(flags);
        if connection.guest_sends || connection.guest_receives {
            return;
        }
        let header = connection.header(self.cid, key, RST);
        self.outbox.push_back(Out::Bare(header));
        if let Some(gone) = self.connections.remove(&key) {
            self.keep_orphan(gone);
        }
    }
}

impl Connection {
    /// It has bytes that waited for the guest's credit, which is there.
    fn is_held_up(&self) -> bool {
        self.starved && self.flows() && self.credit() > 0
    }
}

/// The first `len` bytes behind a packet's header, where they lie.
fn pieces<'a>(batch: &'a Batch, chain: &Chain, len: u32) -> Result<Vec<Piece<'a>>, QueueFault> {
    let mut pieces = Vec::new();
    for buffer in chain.readable_range(HEADER.into(), len.into()) {
        let addr = GuestAddress(buffer.addr.0);
        let len = usize::try_from(buffer.len).map_err(|_| QueueFault::Memory)?;
        let slices = batch.view.get_slices(addr, len, Permissions::Read);
        for slice in slices.map_err(|_| QueueFault::Memory)? {
            pieces.push(slice.map_err(|_| QueueFault::Memory)?);
        }
    }
    Ok(pieces)
}
