//! Networking without privileges: the program passt (<https://passt.top>), which speaks for the guest
//! through the host's sockets.
//!
//! It gets one end of a socket pair and lives as long as the other: when the VM or its process goes,
//! however that happens, it reads the end of the stream and ends too.

use std::{
    fs,
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use vmlet_memory::fork::ParentOnly;
use vmlet_reactor::Source;

use super::{FrameStream, NetBackend, NetError, Piece};

const PROGRAM: &str = "passt";
/// It says within this time that it cannot work, or works.
const SETTLE: Duration = Duration::from_secs(5);
/// It says so within this one where the kernel does not tell how many filters it has.
const SETTLE_UNSEEN: Duration = Duration::from_millis(100);
const STEP: Duration = Duration::from_millis(5);
/// The most that is kept of what it says.
const SAID: u64 = 16 << 10;

/// A running passt.
#[derive(Debug)]
pub struct Passt {
    stream: FrameStream,
    child: ParentOnly<Process>,
}

/// Ends with its handle, and leaves nothing to be waited for.
#[derive(Debug)]
struct Process(Mutex<Child>);

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Passt {
    /// Starts passt with `arguments` beside what it needs.
    pub fn start(arguments: &[String]) -> Result<Passt, NetError> {
        let failed = |action| {
            move |source| NetError::Passt {
                action,
                remedy: "",
                source,
            }
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed("given a socket"))?;
        // Its standard input is the socket: so no other program inherits that, whenever it is started.
        let spawned = Command::new(PROGRAM)
            .args(["--foreground", "--quiet", "--fd", "0"])
            .args(arguments)
            // Ctrl-C in a terminal is the VM's business.
            .process_group(0)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let child = spawned.map_err(|source| NetError::Passt {
            action: "started",
            remedy: match source.kind() {
                io::ErrorKind::NotFound => {
                    "Install it: apt install passt, or dnf install passt, or from https://passt.top."
                }
                _ => "Have a passt that may be run in PATH.",
            },
            source,
        })?;
        let id = child.id();
        let process = Process(Mutex::new(child));
        settle(&process, id)?;
        Ok(Passt {
            stream: FrameStream::new(ours.into()),
            child: ParentOnly::new(process),
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        let child = self.child.0.lock();
        child.unwrap_or_else(PoisonError::into_inner).id()
    }
}

/// The filters of system calls that a process has (Linux 5.9); `None`: not told.
fn filters(process: &str) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let count = |line: &str| line.strip_prefix("Seccomp_filters:")?.trim().parse().ok();
    status.lines().find_map(count)
}

/// Waits until it is through its beginnings, where it ends if it cannot work. What it does last is to
/// filter its own system calls.
fn settle(process: &Process, id: u32) -> Result<(), NetError> {
    let (begun, inherited) = (Instant::now(), filters("self"));
    let limit = inherited.map_or(SETTLE_UNSEEN, |_| SETTLE);
    while begun.elapsed() < limit {
        let settled = filters(&id.to_string()) > inherited;
        let mut child = process.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(Some(_)) = child.try_wait() {
            let mut said = String::new();
            if let Some(output) = child.stderr.take() {
                let _ = output.take(SAID).read_to_string(&mut said);
            }
            let said = said.trim().replace('\n', "; ");
            return Err(NetError::PasstEnded { said });
        }
        drop(child);
        if settled {
            break;
        }
        thread::sleep(STEP);
    }
    let mut child = process.0.lock().unwrap_or_else(PoisonError::into_inner);
    // What it says later must not fill a pipe that nobody reads.
    drop(child.stderr.take());
    Ok(())
}

impl NetBackend for Passt {
    fn has_header(&self) -> bool {
        false
    }

    fn source(&self) -> Option<Arc<dyn Source>> {
        self.stream.source()
    }

    fn send(&self, frame: &[Piece<'_>]) -> io::Result<()> {
        self.stream.send(frame)
    }

    fn unsent(&self) -> bool {
        self.stream.unsent()
    }

    fn flush(&self) -> io::Result<()> {
        self.stream.flush()
    }

    fn receive(&self, room: &[Piece<'_>], tail: &mut [u8]) -> io::Result<usize> {
        self.stream.receive(room, tail)
    }
}
