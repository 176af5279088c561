//! Where requests run.

use std::{
    fmt::Debug,
    io,
    sync::{Arc, Weak},
};

use vmlet_reactor::Spawner;

use super::{GuestIo, Image, threads::Threads, uring::Uring};
use crate::virtio::Place;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reads from `offset` to the request's memory.
    Read,
    /// Writes the request's memory to `offset`.
    Write {
        /// It is on the medium when the request is done.
        through: bool,
    },
    /// What was written is on the medium.
    Flush,
    /// `len` bytes are not needed any more.
    Discard,
    /// `len` bytes read as zeros.
    WriteZeroes {
        /// They may lose their place on the medium.
        unmap: bool,
        /// They are on the medium when the request is done.
        through: bool,
    },
}

/// A request to an image.
#[derive(Debug)]
pub struct Job {
    /// What to do.
    pub operation: Operation,
    /// Where in the image.
    pub offset: u64,
    /// How many bytes, of requests without memory.
    pub len: u64,
    /// The request's memory.
    pub memory: GuestIo,
    /// How its owner knows it.
    pub token: u64,
}

/// A request that is done; its memory is let go of.
#[derive(Debug)]
pub struct Done {
    /// As in the job.
    pub token: u64,
    /// How it went.
    pub result: io::Result<()>,
}

/// Hears of requests that are done, on any thread.
pub trait Client: Send + Sync + Debug {
    /// These are done.
    fn completed(&self, done: Vec<Done>);
}

/// Runs requests.
#[derive(Debug)]
pub(super) enum Way {
    /// In the call itself.
    AtOnce,
    /// On threads of its own.
    Threads(Threads),
    /// By the kernel; what that does not take, on threads.
    Uring(Arc<Uring>, Threads),
}

/// Where requests to one image run.
#[derive(Debug)]
pub struct Runner {
    image: Arc<dyn Image>,
    client: Weak<dyn Client>,
    way: Way,
}

impl Job {
    /// Does it.
    pub(super) fn run(&self, image: &dyn Image) -> io::Result<()> {
        match self.operation {
            Operation::Read => image.read(self.offset, &self.memory),
            Operation::Write { through } => {
                image.write(self.offset, &self.memory)?;
                if through { image.flush() } else { Ok(()) }
            }
            Operation::Flush => image.flush(),
            Operation::Discard => image.discard(self.offset, self.len),
            Operation::WriteZeroes { unmap, through } => {
                image.write_zeroes(self.offset, self.len, unmap)?;
                if through { image.flush() } else { Ok(()) }
            }
        }
    }

    /// Does it, and gives its memory back.
    pub(super) fn finish(self, image: &dyn Image) -> Done {
        let result = self.run(image);
        Done {
            token: self.token,
            result,
        }
    }
}

impl Runner {
    /// Runs requests to `image` at `place`; threads are started by `spawn`. A host that does not
    /// permit io_uring gets threads.
    pub fn new(
        image: Arc<dyn Image>,
        client: Weak<dyn Client>,
        place: &Place,
        spawn: &Arc<Spawner>,
    ) -> Runner {
        let way = match place {
            Place::Guest => Way::AtOnce,
            Place::Reactor(reactor) => {
                let threads = Threads::new(&image, &client, spawn);
                match Uring::start(&image, &client, reactor) {
                    Some(ring) => Way::Uring(ring, threads),
                    None => Way::Threads(threads),
                }
            }
        };
        Runner { image, client, way }
    }

    /// How requests run, for messages.
    pub fn name(&self) -> &'static str {
        match self.way {
            Way::AtOnce => "at once",
            Way::Threads(_) => "threads",
            Way::Uring(..) => "io_uring",
        }
    }

    /// Begins `jobs`; the client hears of each once.
    pub fn submit(&self, jobs: Vec<Job>) {
        match &self.way {
            Way::AtOnce => {
                let done = jobs.into_iter().map(|job| job.finish(&*self.image));
                let done = done.collect();
                if let Some(client) = self.client.upgrade() {
                    client.completed(done);
                }
            }
            Way::Threads(threads) => jobs.into_iter().for_each(|job| threads.take(job)),
            Way::Uring(ring, threads) => {
                ring.submit(jobs)
                    .into_iter()
                    .for_each(|job| threads.take(job));
            }
        }
    }
}
