//! The host's side: how connections begin there, and what its descriptors report.

use std::{
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use vmlet_memory::fork::{self, ParentOnly, Watch};
use vmlet_reactor::{Interest, Ready, Registration, Timer};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::{FIRST_PORT, Key, Muxer, Out};
use crate::virtio::vsock::{
    calls,
    connection::{Connection, Stage},
    packet::{Header, REQUEST, RESPONSE},
    stream::HostStream,
    wait::{Wait, Waits, Who},
};

/// Bytes of `CONNECT 4294967295\n` and a little more.
const LONGEST_LINE: usize = 32;
/// Connections taken at once.
const ACCEPTS: usize = 64;
/// How long connections wait when the host has no descriptors left.
const REST: Duration = Duration::from_millis(100);

/// A host program that has yet to say which port it wants.
#[derive(Debug)]
pub(in crate::virtio::vsock) struct Greeter {
    stream: Arc<HostStream>,
    wait: Wait,
    line: Vec<u8>,
}

/// The end of a connection that the guest has closed, with bytes for the host's end.
#[derive(Debug)]
pub(in crate::virtio::vsock) struct Orphan(Connection);

/// Where this process takes connections to a port: their descriptors are sent through it.
#[derive(Debug)]
pub(in crate::virtio::vsock) struct Inbox(HostStream);

/// The socket that host programs connect to. Its path goes with it.
#[derive(Debug)]
pub(in crate::virtio::vsock) struct Acceptor {
    _watch: Option<Watch>,
    listener: Arc<UnixListener>,
    wait: Wait,
    rest: Option<Timer>,
    _file: ParentOnly<SocketFile>,
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Acceptor {
    pub(in crate::virtio::vsock) fn bind(path: &Path) -> std::io::Result<Acceptor> {
        let listener = UnixListener::bind(path)?;
        let file = ParentOnly::new(SocketFile(path.to_owned()));
        listener.set_nonblocking(true)?;
        Ok(Acceptor {
            _watch: fork::watch_fd(listener.as_raw_fd()),
            listener: Arc::new(listener),
            wait: Wait::default(),
            rest: None,
            _file: file,
        })
    }
}

impl Inbox {
    pub(in crate::virtio::vsock) fn new(socket: UnixStream) -> Inbox {
        Inbox(HostStream::new(socket))
    }

    /// Nobody takes connections from it any more.
    pub(in crate::virtio::vsock) fn is_closed(&self) -> bool {
        self.0.is_at_end()
    }

    /// Sends the guest's port and one end of a new stream; gives the other.
    fn offer(&self, guest: u32) -> std::io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let socket = self.0.socket();
        socket.set_nonblocking(true)?;
        let bytes = guest.to_le_bytes();
        socket.send_with_fd(&bytes[..], theirs.as_raw_fd())?;
        Ok(ours)
    }
}

impl Muxer {
    /// A host program's new stream, which begins with the port it wants.
    pub(in crate::virtio::vsock) fn greet(&mut self, socket: UnixStream) -> std::io::Result<()> {
        if self.is_full() {
            return Err(std::io::ErrorKind::QuotaExceeded.into());
        }
        let id = self.next_id();
        let mut greeter = Greeter {
            stream: Arc::new(HostStream::new(socket)),
            wait: Wait::default(),
            line: Vec::new(),
        };
        if !self.paused {
            greeter.listen(&self.waits, id)?;
        }
        self.greeters.insert(id, greeter);
        Ok(())
    }

    /// Connections of the guest to `port` go through `inbox`; false if they go elsewhere already.
    pub(in crate::virtio::vsock) fn take_port(&mut self, port: u32, inbox: UnixStream) -> bool {
        let taken = self.inboxes.get(&port);
        if taken.is_some_and(|taken| !taken.is_closed()) {
            return false;
        }
        self.inboxes.insert(port, Inbox::new(inbox));
        true
    }

    /// Bytes, room or an end at a descriptor.
    pub(in crate::virtio::vsock) fn ready(&mut self, who: Who, ready: Ready) {
        match who {
            Who::Acceptor => self.accept(),
            Who::Greeter(id) => self.hear(id),
            Who::Orphan(id) => {
                let orphan = self.orphans.get_mut(&id);
                if orphan.is_some_and(|orphan| orphan.is_done(ready)) {
                    self.orphans.remove(&id);
                }
            }
            Who::Connection(key, id) => {
                if self.connections.get(&key).is_some_and(|c| c.id == id) {
                    self.host_ready(key, ready);
                }
            }
        }
    }

    /// Looks at every host's end; `closed`: as if each were closed on both ways.
    pub(in crate::virtio::vsock) fn look(&mut self, closed: bool) {
        let connections = self.connections.iter().map(|(key, c)| c.who(*key));
        let greeters = self.greeters.keys().map(|id| Who::Greeter(*id));
        let orphans = self.orphans.keys().map(|id| Who::Orphan(*id));
        let acceptor = [Who::Acceptor].into_iter();
        let all: Vec<Who> = connections
            .chain(greeters)
            .chain(orphans)
            .chain(acceptor)
            .collect();
        let ready = Ready {
            read: true,
            write: true,
            closed,
        };
        all.into_iter().for_each(|who| self.ready(who, ready));
    }

    fn host_ready(&mut self, key: Key, ready: Ready) {
        let (Some(batch), Some(connection)) = (self.batch(), self.connections.get_mut(&key)) else {
            return;
        };
        if ready.closed {
            if connection.stage == Stage::Asked {
                self.refuse(key);
                return self.finish(&batch);
            }
            connection.ended = true;
            connection.lose_host();
            drop(connection.wait.end());
        } else if ready.write {
            connection.flush();
        }
        self.pump(&batch, key);
        self.finish(&batch);
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            let Some(acceptor) = &mut self.acceptor else {
                return;
            };
            match acceptor.listener.accept() {
                Ok((socket, _)) => {
                    self.make_room();
                    if let Err(error) = self.greet(socket) {
                        log::warn!(target: "vmlet.virtio", "a vsock connection is refused: {error}");
                    }
                }
                Err(error) if crate::virtio::vsock::connection::is_passing(&error) => return,
                Err(error) => {
                    log::warn!(target: "vmlet.virtio", "vsock connections wait: {error}");
                    acceptor.wait.set(Interest::NONE);
                    acceptor.rest.iter().for_each(|timer| timer.arm(REST));
                    return;
                }
            }
        }
    }

    /// Takes connections again.
    pub(in crate::virtio::vsock) fn accept_again(&mut self) {
        if let Some(acceptor) = &mut self.acceptor {
            acceptor.wait.set(Interest::READ);
        }
    }

    fn hear(&mut self, id: u64) {
        let Some(greeter) = self.greeters.get_mut(&id) else {
            return;
        };
        let Some(heard) = greeter.hear() else {
            return;
        };
        let Some(greeter) = self.greeters.remove(&id) else {
            return;
        };
        // Without a driver, or a sensible line, the stream just ends.
        if let (Some(port), Some(batch)) = (heard, self.batch()) {
            self.ask_guest(port, greeter);
            self.finish(&batch);
        }
    }

    fn ask_guest(&mut self, guest: u32, mut greeter: Greeter) {
        drop(greeter.wait.end());
        let key = Key {
            host: self.free_port(guest),
            guest,
        };
        self.begin(key, greeter.stream, Stage::Asked, REQUEST);
    }

    /// A port that no connection to `guest` has; there are more ports than connections.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = host.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.connections.contains_key(&Key { host, guest }) {
                return host;
            }
        }
    }

    fn begin(&mut self, key: Key, stream: Arc<HostStream>, stage: Stage, op: u16) -> bool {
        let id = self.next_id();
        let mut connection = Connection::new(id, stream, stage);
        if let Err(error) = connection.listen(&self.waits, key) {
            log::warn!(target: "vmlet.virtio", "a vsock connection is refused: {error}");
            return false;
        }
        self.connections.insert(key, connection);
        self.outbox.push_back(Out::Of(key, op, 0));
        true
    }

    /// The guest has accepted; who asked hears of it.
    pub(super) fn answered(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        connection.stage = Stage::Open;
        let line = format!("OK {}\n", key.host);
        if !matches!(connection.stream.send_bytes(line.as_bytes()), Ok(sent) if sent == line.len())
        {
            self.refuse(key);
        }
    }

    /// The guest asks for a connection: to this process, or to the program at the port's path.
    pub(super) fn open_for_guest(&mut self, key: Key, header: &Header) {
        let host = if self.make_room() {
            self.find_host(key)
        } else {
            None
        };
        let opened = host.is_some_and(|socket| {
            let stream = Arc::new(HostStream::new(socket));
            self.begin(key, stream, Stage::Open, RESPONSE)
        });
        match self.connections.get_mut(&key).filter(|_| opened) {
            Some(connection) => connection.take_credit(header),
            None => self.outbox.push_back(Out::Bare(header.refusal())),
        }
        self.settle(key);
    }

    fn find_host(&mut self, key: Key) -> Option<UnixStream> {
        if let Some(inbox) = self.inboxes.get(&key.host) {
            match inbox.offer(key.guest) {
                Ok(stream) => return Some(stream),
                Err(error) => {
                    log::debug!(target: "vmlet.virtio", "vsock port {}: {error}", key.host);
                    if !inbox.is_closed() {
                        return None;
                    }
                }
            }
            self.inboxes.remove(&key.host);
        }
        let mut path = self.path.clone()?.into_os_string();
        path.push(format!("_{}", key.host));
        calls::connect(Path::new(&path)).ok()
    }

    /// Keeps the bytes that the host's end has not taken, until it does or is gone.
    pub(super) fn keep_orphan(&mut self, mut gone: Connection) {
        gone.guest_sends = false;
        gone.flush();
        if gone.backlog() == 0 {
            return;
        }
        let id = self.next_id();
        drop(gone.wait.end());
        let stream = Arc::clone(&gone.stream);
        if let Ok(wait) = self.waits.begin(Who::Orphan(id), stream, Interest::WRITE) {
            gone.wait = wait;
            self.orphans.insert(id, Orphan(gone));
        }
    }

    /// Does not wait for connections any more, nor for those that begin.
    pub(super) fn end_waits(&mut self) -> Vec<Registration> {
        let connections = self.connections.values_mut().map(|c| &mut c.wait);
        let greeters = self.greeters.values_mut().map(|g| &mut g.wait);
        connections.chain(greeters).filter_map(Wait::end).collect()
    }

    pub(super) fn end_accepting(&mut self) -> Option<Registration> {
        self.acceptor.as_mut()?.wait.end()
    }

    /// Waits for all there is.
    pub(in crate::virtio::vsock) fn begin_waits(&mut self) {
        let Muxer { waits, .. } = self;
        if let Some(acceptor) = &mut self.acceptor
            && !acceptor.wait.is_on()
        {
            let source = Arc::<UnixListener>::clone(&acceptor.listener);
            let wait = waits.begin(Who::Acceptor, source, Interest::READ);
            acceptor.wait = wait.unwrap_or_default();
            acceptor.rest = acceptor
                .rest
                .take()
                .or_else(|| waits.later(Muxer::accept_again));
        }
        self.greeters
            .retain(|id, greeter| greeter.listen(waits, *id).is_ok());
        self.connections
            .retain(|key, connection| connection.listen(waits, *key).is_ok());
    }

    /// Gives up everything of the host's side. What comes back is to be dropped without the lock.
    pub(in crate::virtio::vsock) fn close(&mut self) -> (Vec<Registration>, Option<Acceptor>) {
        let mut ended = self.reset();
        let orphans = self.orphans.drain();
        ended.extend(orphans.filter_map(|(_, mut orphan)| orphan.0.wait.end()));
        self.inboxes.clear();
        self.path = None;
        (ended, self.acceptor.take())
    }
}

impl Greeter {
    fn listen(&mut self, waits: &Waits, id: u64) -> std::io::Result<()> {
        if !self.wait.is_on() {
            let source = Arc::<HostStream>::clone(&self.stream);
            let wait = waits.begin(Who::Greeter(id), source, Interest::READ);
            self.wait = wait.map_err(std::io::Error::other)?;
        }
        Ok(())
    }

    /// The port in the line, when it is whole; `None` inside where it names none or the stream ended.
    #[expect(clippy::option_option, reason = "not yet, and nothing, are two things")]
    fn hear(&mut self) -> Option<Option<u32>> {
        loop {
            match self.stream.receive_byte() {
                Ok(Some(b'\n')) => return Some(port(&self.line)),
                Ok(Some(byte)) if self.line.len() < LONGEST_LINE => self.line.push(byte),
                Err(error) if crate::virtio::vsock::connection::is_passing(&error) => return None,
                _ => return Some(None),
            }
        }
    }
}

/// The port in `CONNECT port`.
fn port(line: &[u8]) -> Option<u32> {
    let line = str::from_utf8(line).ok()?;
    let port = line.strip_prefix("CONNECT ")?.trim_end_matches('\r');
    port.parse().ok()
}

impl Orphan {
    fn is_done(&mut self, ready: Ready) -> bool {
        self.0.flush();
        ready.closed || self.0.backlog() == 0
    }
}

impl Connection {
    fn listen(&mut self, waits: &Waits, key: Key) -> Result<(), vmlet_reactor::ReactorError> {
        if !self.wait.is_on() && !self.ended {
            let source = Arc::<HostStream>::clone(&self.stream);
            self.wait = waits.begin(self.who(key), source, self.interest())?;
        }
        Ok(())
    }
}
