//! Requests that the kernel runs by itself (io_uring).
//!
//! Invariant: what the kernel was given of a request, its pieces and their memory, stays in the
//! table of this ring until the kernel has said that it is done; the ring goes after the table is
//! empty.

#![expect(
    unsafe_code,
    reason = "entries of io_uring point to memory and descriptors"
)]

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use io_uring::{IoUring, opcode, squeue, types};
use vmlet_memory::fork::{self, Watch};
use vmlet_reactor::{Interest, Reactor, Ready, Registration, Source};

use super::{Client, Done, Image, Job, Operation, RawImage};

/// Requests that the kernel has at once; more wait here.
const ENTRIES: u32 = 256;
/// To copy so many bytes takes longer than to wake up a thread of the kernel's for it.
const LARGE: u64 = 256 << 10;

#[derive(Debug, Default)]
struct Table {
    /// By number; the kernel tells by it what is done.
    under_way: Vec<Option<Job>>,
    free: Vec<usize>,
    waiting: VecDeque<Job>,
    /// The request that a thread of the kernel's copies.
    aside: Option<usize>,
}

struct Ring {
    ring: IoUring,
    table: Table,
}

/// A ring of one image.
pub(super) struct Uring {
    image: Arc<dyn Image>,
    client: Weak<dyn Client>,
    ring: Mutex<Ring>,
    waits: Mutex<Option<Registration>>,
    _watched: Option<Watch>,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").finish_non_exhaustive()
    }
}

/// The ring's descriptor: readable while something is done.
struct Completions(RawFd);

impl AsRawFd for Completions {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Uring {
    /// A ring whose completions `reactor` waits for. `None` for images that are no plain files, and
    /// where the host does not permit it.
    pub(super) fn start(
        image: &Arc<dyn Image>,
        client: &Weak<dyn Client>,
        reactor: &Reactor,
    ) -> Option<Arc<Uring>> {
        image.raw()?;
        let ring = IoUring::builder()
            .setup_clamp()
            .dontfork()
            .build(ENTRIES)
            .inspect_err(|error| {
                log::info!(target: "vmlet.disk", "no io_uring ({error}): requests run on threads");
            })
            .ok()?;
        let fd = ring.as_raw_fd();
        let made = Arc::new(Uring {
            image: Arc::clone(image),
            client: Weak::clone(client),
            ring: Mutex::new(Ring {
                ring,
                table: Table::default(),
            }),
            waits: Mutex::default(),
            _watched: fork::watch_fd(fd),
        });
        let weak = Arc::downgrade(&made);
        let handler = move |_: Ready| {
            if let Some(ring) = weak.upgrade() {
                ring.reap();
            }
        };
        let source: Arc<dyn Source> = Arc::new(Completions(fd));
        let waits = reactor
            .add(source, Interest::READ, Arc::new(handler))
            .ok()?;
        *made.waits.lock().unwrap_or_else(PoisonError::into_inner) = Some(waits);
        Some(made)
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins what of `jobs` the kernel takes; gives back the others. What is done at once, as it is
    /// where the host has it in memory, the client hears of here.
    pub(super) fn submit(&self, jobs: Vec<Job>) -> Vec<Job> {
        let Some(raw) = self.image.raw() else {
            return jobs;
        };
        let mut others = Vec::new();
        let mut ring = self.lock();
        for job in jobs {
            if suits(&job, raw) {
                ring.table.waiting.push_back(job);
            } else {
                others.push(job);
            }
        }
        ring.push_waiting(raw);
        drop(ring);
        self.reap();
        others
    }

    /// Takes what is done.
    fn reap(&self) {
        let Some(raw) = self.image.raw() else {
            return;
        };
        let mut ring = self.lock();
        let done = ring.completed();
        ring.push_waiting(raw);
        drop(ring);
        if !done.is_empty()
            && let Some(client) = self.client.upgrade()
        {
            client.completed(done);
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Nobody waits for completions any more; then the kernel lets go of all memory.
        *self.waits.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        let ring = self.ring.get_mut().unwrap_or_else(PoisonError::into_inner);
        ring.table.waiting.clear();
        while ring.table.is_busy() {
            if ring.ring.submit_and_wait(1).is_err() {
                // Memory that the kernel may still use is never let go of.
                std::mem::forget(std::mem::take(&mut ring.table));
                return;
            }
            ring.completed();
        }
    }
}

/// The kernel runs reads, writes and flushes; the rest is rare.
fn suits(job: &Job, raw: &RawImage) -> bool {
    match job.operation {
        Operation::Read | Operation::Write { .. } => raw.takes(job.offset, &job.memory).is_some(),
        Operation::Flush => true,
        Operation::Discard | Operation::WriteZeroes { .. } => false,
    }
}

impl Table {
    fn is_busy(&self) -> bool {
        self.free.len() < self.under_way.len()
    }

    fn put(&mut self, job: Job) -> usize {
        let number = self.free.pop().unwrap_or_else(|| {
            self.under_way.push(None);
            self.under_way.len() - 1
        });
        if let Some(place) = self.under_way.get_mut(number) {
            *place = Some(job);
        }
        number
    }

    fn get(&self, number: usize) -> Option<&Job> {
        self.under_way.get(number)?.as_ref()
    }

    /// Whether large request `number` goes to a thread of the kernel's, so that another which waits
    /// is copied at the same time. One does: more would take the processors of the guest.
    fn goes_aside(&mut self, number: usize) -> bool {
        let is_large = |job: &Job| job.memory.len() >= LARGE;
        let goes = self.aside.is_none()
            && self.get(number).is_some_and(is_large)
            && self.waiting.front().is_some_and(is_large);
        if goes {
            self.aside = Some(number);
        }
        goes
    }

    fn take(&mut self, number: usize) -> Option<Job> {
        let job = self.under_way.get_mut(number)?.take()?;
        self.free.push(number);
        self.aside = self.aside.filter(|aside| *aside != number);
        Some(job)
    }
}

impl Ring {
    /// Gives the kernel what waits, as far as it takes it.
    fn push_waiting(&mut self, raw: &RawImage) {
        let mut any = false;
        while self.table.under_way.len() - self.table.free.len() < ENTRIES as usize {
            let Some(job) = self.table.waiting.pop_front() else {
                break;
            };
            let number = self.table.put(job);
            let entry = self.table.get(number).map(|job| entry(job, raw));
            let Some(entry) = entry else {
                break;
            };
            let mut entry = entry.user_data(number as u64);
            if self.table.goes_aside(number) {
                entry = entry.flags(squeue::Flags::ASYNC);
            }
            // SAFETY: the entry's pieces belong to the job in the table, which stays there until its
            // completion is taken, and the descriptor to the image, which outlives the ring.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_err() {
                if let Some(job) = self.table.take(number) {
                    self.table.waiting.push_front(job);
                }
                break;
            }
            any = true;
        }
        if any {
            self.enter();
        }
    }

    fn enter(&self) {
        loop {
            match self.ring.submit() {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // Busy: what was pushed goes with the next call, when completions were taken.
                _ => return,
            }
        }
    }

    /// What is done. Requests that were done in part go on.
    fn completed(&mut self) -> Vec<Done> {
        let mut done = Vec::new();
        let ended: Vec<(u64, i32)> = self
            .ring
            .completion()
            .map(|entry| (entry.user_data(), entry.result()))
            .collect();
        for (number, result) in ended {
            let number = usize::try_from(number).unwrap_or(usize::MAX);
            let Some(mut job) = self.table.take(number) else {
                continue;
            };
            match outcome(&mut job, result) {
                Some(result) => done.push(Done {
                    token: job.token,
                    result,
                }),
                None => self.table.waiting.push_front(job),
            }
        }
        done
    }
}

fn entry(job: &Job, raw: &RawImage) -> squeue::Entry {
    let fd = types::Fd(raw.file().as_raw_fd());
    let pieces = job.memory.pieces();
    let count = u32::try_from(pieces.len()).unwrap_or(0);
    // One piece goes without a list, which the kernel would have to copy.
    let single = match pieces {
        [piece] => u32::try_from(piece.iov_len).ok().map(|len| (piece, len)),
        _ => None,
    };
    match (job.operation, single) {
        (Operation::Read, Some((piece, len))) => {
            let entry = opcode::Read::new(fd, piece.iov_base.cast(), len);
            entry.offset(job.offset).build()
        }
        (Operation::Read, None) => {
            let entry = opcode::Readv::new(fd, pieces.as_ptr(), count);
            entry.offset(job.offset).build()
        }
        (Operation::Write { through }, Some((piece, len))) => {
            let entry = opcode::Write::new(fd, piece.iov_base.cast(), len).offset(job.offset);
            entry.rw_flags(flags(through)).build()
        }
        (Operation::Write { through }, None) => {
            let entry = opcode::Writev::new(fd, pieces.as_ptr(), count).offset(job.offset);
            entry.rw_flags(flags(through)).build()
        }
        _ => opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
    }
}

fn flags(through: bool) -> i32 {
    if through { libc::RWF_DSYNC } else { 0 }
}

/// How a request ended; `None` if it goes on.
fn outcome(job: &mut Job, result: i32) -> Option<io::Result<()>> {
    match result {
        error if error < 0 => match -error {
            libc::EINTR | libc::EAGAIN => None,
            errno => Some(Err(io::Error::from_raw_os_error(errno))),
        },
        _ if job.operation == Operation::Flush => Some(Ok(())),
        // The file ends here.
        0 if !job.memory.is_empty() => Some(Err(io::ErrorKind::UnexpectedEof.into())),
        count => {
            let count = u64::from(count.unsigned_abs());
            job.memory.advance(count);
            job.offset += count;
            job.memory.is_empty().then_some(Ok(()))
        }
    }
}
