//! Threads that run requests, for what the kernel does not take.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    thread::{self, ThreadId},
};

use vmlet_reactor::Spawner;

use super::{Client, Image, Job};

/// Requests of one image that run at once.
const MOST: usize = 4;

#[derive(Debug, Default)]
struct Line {
    jobs: VecDeque<Job>,
    threads: usize,
    /// Those that run, by their ids.
    here: Vec<ThreadId>,
    idle: usize,
    ended: bool,
}

#[derive(Debug)]
struct Shared {
    image: Weak<dyn Image>,
    client: Weak<dyn Client>,
    line: Mutex<Line>,
    more: Condvar,
    gone: Condvar,
}

/// Threads that are started when there is something to do, and end with this value once all is done.
pub(super) struct Threads {
    shared: Arc<Shared>,
    spawn: Arc<Spawner>,
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Threads").finish_non_exhaustive()
    }
}

impl Threads {
    pub(super) fn new(
        image: &Arc<dyn Image>,
        client: &Weak<dyn Client>,
        spawn: &Arc<Spawner>,
    ) -> Threads {
        Threads {
            shared: Arc::new(Shared {
                image: Arc::downgrade(image),
                client: Weak::clone(client),
                line: Mutex::default(),
                more: Condvar::new(),
                gone: Condvar::new(),
            }),
            spawn: Arc::clone(spawn),
        }
    }

    /// Runs `job` on one of the threads; where the host gives none, here.
    pub(super) fn take(&self, job: Job) {
        let mut line = self.shared.lock();
        line.jobs.push_back(job);
        let wanted = line.idle < line.jobs.len() && line.threads < MOST;
        if wanted {
            line.threads += 1;
        }
        let alone = line.threads == 1;
        drop(line);
        self.shared.more.notify_one();
        if !wanted {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let body = Box::new(move || shared.work());
        if (self.spawn)("vmlet-disk".to_owned(), body).is_err() {
            self.shared.lock().threads -= 1;
            if alone {
                self.shared.run_all();
            }
        }
    }
}

impl Drop for Threads {
    /// Waits for the threads, which hold the image; one of them cannot wait for itself.
    fn drop(&mut self) {
        let mut line = self.shared.lock();
        line.ended = true;
        self.shared.more.notify_all();
        while line.threads > 0 && !line.here.contains(&thread::current().id()) {
            let waited = self.shared.gone.wait(line);
            line = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Job> {
        let mut line = self.lock();
        loop {
            if let Some(job) = line.jobs.pop_front() {
                return Some(job);
            }
            if line.ended {
                return None;
            }
            line.idle += 1;
            line = self.more.wait(line).unwrap_or_else(PoisonError::into_inner);
            line.idle -= 1;
        }
    }

    fn work(&self) {
        let id = thread::current().id();
        self.lock().here.push(id);
        while let Some(job) = self.next() {
            self.run(job);
        }
        let mut line = self.lock();
        line.here.retain(|other| *other != id);
        line.threads -= 1;
        drop(line);
        self.gone.notify_all();
    }

    fn run_all(&self) {
        loop {
            let job = self.lock().jobs.pop_front();
            let Some(job) = job else {
                return;
            };
            self.run(job);
        }
    }

    fn run(&self, job: Job) {
        // Whoever waits for a request keeps its image.
        let Some(image) = self.image.upgrade() else {
            return;
        };
        let done = job.finish(&*image);
        drop(image);
        if let Some(client) = self.client.upgrade() {
            client.completed(vec![done]);
        }
    }
}
