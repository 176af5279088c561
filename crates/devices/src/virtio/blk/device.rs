//! The device.

use std::{
    num::NonZero,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use vmlet_bus::{DmaView, SavedError, SavedState};
use vmlet_reactor::Spawner;

use super::{
    config::{Config, WRITEBACK},
    pending::{Pending, UnderWay},
    request::{Limits, Request, Step, parse, room},
    spec::{ID, Status, feature},
};
use crate::{
    backend::block::{Client, Done, Image, Job, Operation, Runner},
    virtio::{Activation, Batches, Chain, Place, VirtQueue, VirtioDevice, read_image},
};

const NAME: &str = "virtio-blk";
const VERSION: u16 = 1;
/// Entries of a queue. With two for header and status, a request of 2 MiB in pages fits one chain.
const QUEUE_SIZE: u16 = 512;
/// The most queues: more than any guest has vCPUs for.
const MOST_QUEUES: u16 = 64;

/// A batch has no more chains, and begins once it has this many bytes.
const MOST_CHAINS: usize = 8;
const MOST_BYTES: u64 = 64 << 10;

/// What a user says of a disk.
#[derive(Clone, Debug, Default)]
pub struct BlkOptions {
    /// Request queues, one at least.
    pub queues: u16,
    /// What the guest reads as the disk's serial number, 20 bytes at most.
    pub serial: String,
}

/// A block device.
#[derive(Debug)]
pub struct Blk {
    image: Arc<dyn Image>,
    runner: OnceLock<Runner>,
    queues: u16,
    /// Requests run on a thread of their own, on a processor that the guest does not need for it.
    lingers: bool,
    id: [u8; ID],
    writeback: AtomicBool,
    active: Mutex<Option<Arc<Activation>>>,
    under_way: UnderWay,
    /// An error was logged since the device was activated.
    complained: AtomicBool,
}

impl Blk {
    /// A disk of `image`'s bytes, whose requests run at `place`; threads are started by `spawn`.
    pub fn new(
        image: Arc<dyn Image>,
        options: &BlkOptions,
        place: &Place,
        spawn: &Arc<Spawner>,
    ) -> Arc<Blk> {
        let mut id = [0; ID];
        let bytes = options.serial.bytes();
        id.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        let device = Arc::new(Blk {
            runner: OnceLock::new(),
            queues: options.queues.clamp(1, MOST_QUEUES),
            lingers: matches!(place, Place::Reactor(_)) && processors() > 1,
            id,
            writeback: AtomicBool::new(true),
            active: Mutex::default(),
            under_way: UnderWay::default(),
            complained: AtomicBool::new(false),
            image: Arc::clone(&image),
        });
        let client: Weak<dyn Client> = Arc::downgrade(&device) as Weak<dyn Client>;
        let _ = device.runner.set(Runner::new(image, client, place, spawn));
        device
    }

    fn active(&self) -> MutexGuard<'_, Option<Arc<Activation>>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self) -> Config {
        Config {
            bytes: self.image.len(),
            segments: u32::from(QUEUE_SIZE) - 2,
            block: self.image.block_size(),
            queues: self.queues,
            writeback: self.writeback.load(Ordering::Acquire),
        }
    }

    fn limits(&self, active: &Activation) -> Limits {
        // Without flushes a driver cannot ask for anything to be on the medium (5.2.6.2).
        let flushes = active.has(feature::FLUSH);
        let back = !active.has(feature::CONFIG_WCE) || self.writeback.load(Ordering::Acquire);
        Limits {
            bytes: self.image.len(),
            readonly: self.image.is_readonly(),
            through: !(flushes && back),
            can_flush: flushes,
            can_discard: active.has(feature::DISCARD),
            can_zero: active.has(feature::WRITE_ZEROES),
        }
    }

    /// Begins what queue `queue` has, in batches: the driver gets on with the answers to one while
    /// the next is read.
    fn serve(&self, active: &Activation, queue: &VirtQueue) {
        let (view, limits) = (active.dma.view(), self.limits(active));
        let mut begin = |chains: Vec<Chain>| {
            let (mut jobs, mut answered) = (Vec::with_capacity(chains.len()), false);
            for chain in &chains {
                match parse(chain, &view, &limits, &self.id) {
                    Ok(Request::Run { steps, written }) if !steps.is_empty() => {
                        jobs.extend(self.begin(queue.index(), chain, steps, written));
                        continue;
                    }
                    Ok(Request::Run { written, .. }) => {
                        answer(queue, &view, chain, written, Status::Ok);
                    }
                    Ok(Request::Answered(written, status)) => {
                        answer(queue, &view, chain, written, status);
                    }
                    Err(fault) => queue.fail(&fault),
                }
                answered = true;
            }
            if answered {
                queue.notify(&view);
            }
            if !jobs.is_empty()
                && let Some(runner) = self.runner.get()
            {
                runner.submit(jobs);
            }
        };
        let batches = Batches {
            is_full: &is_full,
            may_wait: &|| self.lingers && !self.under_way.is_busy(),
            each: &mut begin,
        };
        queue.drain_batches(&view, batches);
    }

    fn begin(&self, queue: u16, chain: &Chain, steps: Vec<Step>, written: u32) -> Vec<Job> {
        let token = self.under_way.add(Pending {
            queue,
            head: chain.head(),
            status_at: status_at(chain),
            written,
            left: steps.len(),
            status: Status::Ok,
            what: steps.first().map_or("request", |step| name(step.operation)),
        });
        let job = |step: Step| Job {
            operation: step.operation,
            offset: step.offset,
            len: step.len,
            memory: step.memory,
            token,
        };
        steps.into_iter().map(job).collect()
    }

    /// A failure is the guest's to see; the host hears of the first.
    fn complain(&self, what: &str, error: &std::io::Error) {
        if !self.complained.swap(true, Ordering::AcqRel) {
            log::error!(target: "vmlet.disk", "a {what} failed, the guest sees an I/O error: {error}");
        }
    }
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Whether a batch is large enough to begin.
fn is_full(batch: &[Chain]) -> bool {
    let bytes = |chain: &Chain| chain.readable_len() + chain.writable_len();
    // Large ones go by two, which may be copied at the same time.
    batch.len() >= MOST_CHAINS
        || batch.len() > 1 && batch.iter().map(bytes).sum::<u64>() >= MOST_BYTES
}

fn name(operation: Operation) -> &'static str {
    match operation {
        Operation::Read => "read",
        Operation::Write { .. } => "write",
        Operation::Flush => "flush",
        Operation::Discard => "discard",
        Operation::WriteZeroes { .. } => "write of zeros",
    }
}

/// The last writable byte.
fn status_at(chain: &Chain) -> u64 {
    chain
        .writable()
        .last()
        .map_or(0, |last| last.addr.0.wrapping_add(u64::from(last.len) - 1))
}

/// Answers at once.
fn answer(queue: &VirtQueue, view: &DmaView, chain: &Chain, written: u32, status: Status) {
    match chain.write(view, room(chain).into(), &[status as u8]) {
        Ok(_) => queue.push(view, chain.head(), written + 1),
        Err(fault) => queue.fail(&fault),
    }
}

impl Client for Blk {
    fn completed(&self, done: Vec<Done>) {
        let active = self.active().clone();
        let view = active.as_ref().map(|active| active.dma.view());
        let mut finished = Vec::with_capacity(done.len());
        for Done { token, result } in done {
            let failed = result.is_err();
            let Some(request) = self.under_way.step_done(token, failed) else {
                continue;
            };
            if let Err(error) = &result {
                self.complain(request.what, error);
            }
            finished.push((token, request));
        }
        if let Some((active, view)) = active.zip(view) {
            for of_one in finished.chunk_by(|(_, one), (_, other)| one.queue == other.queue) {
                let number = of_one.first().map_or(0, |(_, request)| request.queue);
                if let Some(queue) = active.queues.get(usize::from(number)) {
                    let requests = of_one.iter().map(|(_, request)| request);
                    finish(queue, &view, requests);
                }
            }
        }
        self.under_way
            .finish(finished.iter().map(|(token, _)| *token));
    }
}

/// The status first: a driver that sees the chain as used reads it (2.7.8.2).
fn finish<'a>(queue: &VirtQueue, view: &DmaView, requests: impl Iterator<Item = &'a Pending>) {
    use vm_memory::{Bytes, GuestAddress};

    let mut used = Vec::new();
    for request in requests {
        let status = [request.status as u8];
        match view.write_slice(&status, GuestAddress(request.status_at)) {
            Ok(()) => used.push((request.head, request.written + 1)),
            Err(_) => queue.fail(&crate::virtio::QueueFault::Memory),
        }
    }
    queue.push_together(view, &used);
    queue.notify(view);
}

impl VirtioDevice for Blk {
    fn id(&self) -> u32 {
        2
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> [u8; 3] {
        [1, 0x80, 0]
    }

    fn features(&self) -> u64 {
        let always = feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::FLUSH
            | feature::TOPOLOGY
            | feature::CONFIG_WCE;
        let many = if self.queues > 1 { feature::MQ } else { 0 };
        let writable = if self.image.is_readonly() {
            feature::RO
        } else {
            feature::DISCARD | feature::WRITE_ZEROES
        };
        always | many | writable
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queues.into()]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_image(&self.config().image(), offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (WRITEBACK, [value @ (0 | 1)]) = (offset, data) {
            self.writeback.store(*value == 1, Ordering::Release);
        }
    }

    fn activate(&self, active: Activation) {
        self.complained.store(false, Ordering::Release);
        // Without flushes there is no write-back (5.2.5.2).
        if active.has(feature::CONFIG_WCE) && !active.has(feature::FLUSH) {
            self.writeback.store(false, Ordering::Release);
        }
        *self.active() = Some(Arc::new(active));
    }

    fn queue_ready(&self, index: u16) {
        let active = self.active().clone();
        if let Some(active) = active
            && let Some(queue) = active.queues.get(usize::from(index))
        {
            self.serve(&active, queue);
        }
    }

    fn reset(&self) {
        self.under_way.wait();
        *self.active() = None;
        self.writeback.store(true, Ordering::Release);
    }

    fn unplug(&self) {
        if let Err(error) = self.image.close() {
            self.complain("last flush", &error);
        }
    }

    fn pause(&self) {
        self.under_way.wait();
    }

    fn resume(&self) {}

    fn save(&self) -> Option<SavedState> {
        let writeback = self.writeback.load(Ordering::Acquire);
        Some(SavedState::new(
            NAME,
            VERSION,
            &(self.image.len(), writeback),
        ))
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        let (len, writeback): (u64, bool) = saved.read(NAME, VERSION)?;
        if len != self.image.len() {
            return Err(SavedError::Damaged {
                kind: NAME,
                detail: format!("a disk of {len} bytes, this one has {}", self.image.len()),
            });
        }
        self.writeback.store(writeback, Ordering::Release);
        Ok(())
    }
}
