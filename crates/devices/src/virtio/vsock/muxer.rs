//! All connections of a device, and the three queues between them and the guest.
//!
//! * `from_guest.rs`: packets of the guest.
//! * `to_guest.rs`: packets to the guest, and bytes read straight into its buffers.
//! * `host.rs`: how connections begin on the host's side, and what its descriptors report.
//!
//! Bounded: connections by [`MOST`], each one's backlog by [`connection::BUFFER`], answers by
//! [`OUTBOX`]. When the guest leaves so many answers unread, its packets wait (section 5.10.6.1.2).

mod from_guest;
mod host;
mod to_guest;

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    sync::Arc,
};

use vmlet_bus::{Dma, DmaView};
use vmlet_reactor::Registration;

use super::{
    connection::Connection,
    packet::Header,
    wait::{Waits, Who},
};
use crate::virtio::{Activation, Chain, VirtQueue, late::Late};

pub(super) use host::{Acceptor, Greeter, Inbox, Orphan};

/// The most connections, those that begin and those that end among them.
pub(super) const MOST: usize = 1024;
/// Answers that may wait for the guest's buffers.
const OUTBOX: usize = 256;

/// Which connection: a port on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// A packet without bytes that waits for one of the guest's buffers. Its credit is that of when it
/// goes.
#[derive(Clone, Copy, Debug)]
enum Out {
    /// An answer that belongs to no connection.
    Bare(Header),
    /// Operation and flags.
    Of(Key, u16, u32),
}

/// The queues of an active device.
#[derive(Debug)]
pub(super) struct Queues {
    rx: Arc<VirtQueue>,
    tx: Arc<VirtQueue>,
    events: Arc<VirtQueue>,
    dma: Dma,
}

/// One batch of work.
#[derive(Debug)]
struct Batch {
    queues: Arc<Queues>,
    view: DmaView,
}

/// The connections.
#[derive(Debug)]
pub(super) struct Muxer {
    pub(super) cid: u64,
    /// Where host programs that serve ports listen: at this path, `_` and the port.
    pub(super) path: Option<PathBuf>,
    pub(super) acceptor: Option<Acceptor>,
    waits: Waits,
    queues: Option<Arc<Queues>>,
    paused: bool,
    connections: HashMap<Key, Connection>,
    greeters: HashMap<u64, Greeter>,
    orphans: HashMap<u64, Orphan>,
    inboxes: HashMap<u32, Inbox>,
    outbox: VecDeque<Out>,
    /// Connections to look at when the guest has buffers or credit.
    waiting: VecDeque<Key>,
    /// Packets of the guest wait until it reads its answers.
    stalled: bool,
    /// The guest has to hear that its connections are gone (section 5.10.6.7).
    pub(super) transport_reset: bool,
    next_id: u64,
    next_port: u32,
    /// The interrupt for packets that the guest sent.
    late: Late,
    /// That interrupt is due.
    tells: bool,
}

/// Ports of the host's side that are given to its programs begin here.
const FIRST_PORT: u32 = 1 << 30;

impl Queues {
    /// The queues of section 5.10.2.
    pub(super) fn of(active: &Activation) -> Option<Queues> {
        let [rx, tx, events] = &active.queues[..] else {
            return None;
        };
        Some(Queues {
            rx: Arc::clone(rx),
            tx: Arc::clone(tx),
            events: Arc::clone(events),
            dma: active.dma.clone(),
        })
    }
}

impl Batch {
    /// A buffer of the receive queue; if there is none, the driver's notification is asked for.
    fn room(&self) -> Option<Chain> {
        let rx = &self.queues.rx;
        rx.pop(&self.view).or_else(|| {
            let more = rx.enable_notifications(&self.view);
            more.then(|| rx.pop(&self.view)).flatten()
        })
    }
}

impl Muxer {
    pub(super) fn new(cid: u64, path: Option<PathBuf>, waits: Waits) -> Muxer {
        let late = Late::default();
        late.begin(waits.later(Muxer::tell));
        Muxer {
            cid,
            path,
            acceptor: None,
            waits,
            queues: None,
            paused: false,
            connections: HashMap::new(),
            greeters: HashMap::new(),
            orphans: HashMap::new(),
            inboxes: HashMap::new(),
            outbox: VecDeque::new(),
            waiting: VecDeque::new(),
            stalled: false,
            transport_reset: false,
            next_id: 0,
            next_port: FIRST_PORT,
            late,
            tells: false,
        }
    }

    pub(super) fn activate(&mut self, queues: Option<Queues>) {
        self.queues = queues.map(Arc::new);
    }

    /// Forgets the driver and every connection. What comes back is to be dropped without the lock.
    pub(super) fn reset(&mut self) -> Vec<Registration> {
        let ended = self.end_waits();
        self.queues = None;
        self.connections.clear();
        self.greeters.clear();
        self.resume();
        self.outbox.clear();
        self.waiting.clear();
        self.stalled = false;
        self.transport_reset = false;
        self.tells = false;
        self.late.take();
        ended
    }

    /// No descriptor leads to work until [`Muxer::resume`].
    pub(super) fn pause(&mut self) -> Vec<Registration> {
        self.tell();
        self.paused = true;
        let mut ended = self.end_waits();
        ended.extend(self.end_accepting());
        ended
    }

    pub(super) fn resume(&mut self) {
        if std::mem::take(&mut self.paused) {
            self.begin_waits();
        }
    }

    fn batch(&self) -> Option<Batch> {
        let queues = Arc::clone(self.queues.as_ref().filter(|_| !self.paused)?);
        let view = queues.dma.view();
        Some(Batch { queues, view })
    }

    fn is_full(&self) -> bool {
        self.connections.len() + self.greeters.len() + self.orphans.len() >= MOST
    }

    /// Makes room, if a connection that only waits for the guest's last word can go.
    fn make_room(&mut self) -> bool {
        if !self.is_full() {
            return true;
        }
        let lingering = self.connections.iter().find(|(_, c)| c.lingers());
        let found = lingering.map(|(key, _)| *key);
        found.map(|key| self.refuse(key)).is_some()
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Ends a connection; the guest hears that by `RST`.
    fn refuse(&mut self, key: Key) {
        if let Some(mut gone) = self.connections.remove(&key) {
            let header = gone.header(self.cid, key, super::packet::RST);
            self.outbox.push_back(Out::Bare(header));
        }
    }

    fn wait_for(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key)
            && !std::mem::replace(&mut connection.waiting, true)
        {
            self.waiting.push_back(key);
        }
    }

    /// Tells the guest what it should know of a connection, and waits for what can happen next.
    fn settle(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        if connection.has_news() {
            connection.update_due = true;
            let update = Out::Of(key, super::packet::CREDIT_UPDATE, 0);
            self.outbox.push_back(update);
        }
        let flags = connection.shutdown();
        if flags & !connection.shutdown_told != 0 && connection.is_open() {
            connection.shutdown_told = flags;
            self.outbox
                .push_back(Out::Of(key, super::packet::SHUTDOWN, flags));
        }
        connection.wait.set(connection.interest());
    }
}

impl Connection {
    fn is_open(&self) -> bool {
        self.stage == super::connection::Stage::Open
    }

    fn who(&self, key: Key) -> Who {
        Who::Connection(key, self.id)
    }
}
