//! The device.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use vmlet_bus::{DmaView, SavedError, SavedState};
use vmlet_memory::Gpa;

use super::{
    Statistics,
    pages::{Given, PAGE, give_back, give_back_pages},
    statistics,
};
use crate::virtio::{Activation, Chain, QueueFault, VirtQueue, VirtioDevice, read_image};

const NAME: &str = "virtio-balloon";
const VERSION: u16 = 1;
const QUEUE_SIZE: u16 = 128;
/// Page numbers that are taken from one buffer; Linux sends 256.
const MOST_NUMBERS: usize = 4096;

/// Feature bits (section 5.5.3).
pub(super) const STATS_VQ: u64 = 1 << 1;
pub(super) const DEFLATE_ON_OOM: u64 = 1 << 2;
pub(super) const FREE_PAGE_HINT: u64 = 1 << 3;
pub(super) const PAGE_REPORTING: u64 = 1 << 5;

/// Queues (section 5.5.2).
pub(super) const INFLATE: u16 = 0;
pub(super) const DEFLATE: u16 = 1;
pub(super) const STATS: u16 = 2;
pub(super) const HINTS: u16 = 3;
pub(super) const REPORTS: u16 = 4;
const QUEUES: usize = 5;

/// Where the size lies in the configuration (section 5.5.4), behind the target. The command of free
/// page hints behind both stays at "stop", which is zero.
const ACTUAL: u64 = 4;

/// What a balloon is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonOptions {
    /// Bytes that the guest is asked to give up.
    pub target: u64,
    /// The guest may take pages back before it kills a program for want of memory.
    pub deflate_on_oom: bool,
    /// The guest tells which pages it does not use.
    pub reporting: bool,
}

impl Default for BalloonOptions {
    fn default() -> BalloonOptions {
        BalloonOptions {
            target: 0,
            deflate_on_oom: true,
            reporting: true,
        }
    }
}

/// How the balloon is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonState {
    /// Bytes that the guest is asked to give up.
    pub target: u64,
    /// Bytes that it has given up, as it says.
    pub actual: u64,
    /// Bytes that went back to the host since power-on, by the balloon and by reports of free pages.
    pub given_back: u64,
    /// Bytes that the guest gave up and the host could not take back.
    pub kept: u64,
    /// A driver is there.
    pub driver: bool,
}

#[derive(Debug, Default)]
struct Inner {
    active: Option<Activation>,
    target: u32,
    actual: u32,
    given: Given,
    statistics: Statistics,
    /// The buffer of statistics that the driver lends until figures are asked for.
    held: Option<u16>,
}

/// What is saved. A buffer that is held stays held.
#[derive(Debug, Serialize, Deserialize)]
struct Fields {
    target: u32,
    actual: u32,
    held: Option<u16>,
}

/// A memory balloon.
#[derive(Debug)]
pub struct Balloon {
    features: u64,
    inner: Mutex<Inner>,
    answered: Condvar,
}

impl Balloon {
    /// An empty balloon.
    pub fn new(options: BalloonOptions) -> Balloon {
        let features = [
            (true, STATS_VQ),
            (options.deflate_on_oom, DEFLATE_ON_OOM),
            (options.reporting, FREE_PAGE_HINT | PAGE_REPORTING),
        ];
        let offered = features.iter().filter(|(offered, _)| *offered);
        let balloon = Balloon {
            features: offered.fold(0, |all, (_, bits)| all | bits),
            inner: Mutex::default(),
            answered: Condvar::new(),
        };
        balloon.set_target(options.target);
        balloon
    }

    /// Asks the guest to have given up `bytes` in all, rounded down to 4 KiB.
    pub fn set_target(&self, bytes: u64) {
        let mut inner = self.lock();
        inner.target = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        if let Some(active) = &inner.active {
            active.interrupt.config();
        }
    }

    /// How the balloon is.
    pub fn state(&self) -> BalloonState {
        let inner = self.lock();
        BalloonState {
            target: u64::from(inner.target) * PAGE,
            actual: u64::from(inner.actual) * PAGE,
            given_back: inner.given.back,
            kept: inner.given.kept,
            driver: inner.active.is_some(),
        }
    }

    /// The guest's figures as it last gave them.
    pub fn statistics(&self) -> Statistics {
        self.lock().statistics.clone()
    }

    /// Figures that are newer than the `number`th, waiting for them up to `limit`.
    pub fn wait_statistics(&self, number: u64, limit: Duration) -> Option<Statistics> {
        let old = |inner: &mut Inner| inner.statistics.number <= number;
        let waited = self
            .answered
            .wait_timeout_while(self.lock(), limit, old)
            .unwrap_or_else(PoisonError::into_inner);
        (!waited.1.timed_out()).then(|| waited.0.statistics.clone())
    }

    /// Asks the guest for new figures. `false`: no driver that gives any is there, or the last
    /// question is still open.
    pub fn ask_statistics(&self) -> bool {
        let mut inner = self.lock();
        let Some(head) = inner.held.take() else {
            return false;
        };
        let Some((queue, view)) = inner.queue(STATS) else {
            return false;
        };
        queue.push(&view, head, 0);
        queue.notify(&view);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The numbers of pages in a chain's readable bytes.
fn numbers(chain: &Chain, view: &DmaView) -> Result<Vec<u32>, QueueFault> {
    let (head, len) = (chain.head(), chain.readable_len());
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if chain.writable_len() > 0 || !len.is_multiple_of(4) || len > MOST_NUMBERS * 4 {
        let detail = "page numbers are readable, of four bytes, and at most 4,096";
        return Err(QueueFault::Request { head, detail });
    }
    let mut bytes = vec![0; len];
    chain.read(view, 0, &mut bytes)?;
    let number = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    Ok(bytes.as_chunks().0.iter().map(number).collect())
}

impl Inner {
    fn queue(&self, index: u16) -> Option<(Arc<VirtQueue>, DmaView)> {
        self.active.as_ref()?.queue(index)
    }

    fn serve(&mut self, index: u16, chain: &Chain, view: &DmaView) -> Result<(), QueueFault> {
        match index {
            INFLATE => give_back_pages(view, numbers(chain, view)?, &mut self.given),
            // Pages that are used again need nothing: they are there, as zeros.
            DEFLATE => drop(numbers(chain, view)?),
            REPORTS => self.report(chain, view),
            _ => {}
        }
        Ok(())
    }

    /// Blocks of free pages: the buffers themselves (section 5.5.6.7).
    fn report(&mut self, chain: &Chain, view: &DmaView) {
        for buffer in chain.writable() {
            let (mut at, mut left) = (buffer.addr, u64::from(buffer.len));
            while left > 0 {
                let Ok(piece) = view.translate(at, left, true) else {
                    self.given.kept += left;
                    break;
                };
                let len = piece.len.clamp(1, left);
                give_back(view.memory(), Gpa(piece.gpa.0), len, &mut self.given);
                at.0 = at.0.wrapping_add(len);
                left -= len;
            }
        }
    }

    /// Takes figures, and holds the buffer until the next ones are asked for. A driver lends one: any
    /// before it goes back.
    fn take_figures(&mut self, queue: &VirtQueue, view: &DmaView) {
        queue.drain(view, |chain| {
            let len = usize::try_from(chain.readable_len()).unwrap_or(0);
            let mut bytes = vec![0; len.min(statistics::MOST)];
            match chain.read(view, 0, &mut bytes) {
                Ok(_) => self.statistics.take(&bytes),
                Err(fault) => queue.fail(&fault),
            }
            if let Some(before) = self.held.replace(chain.head()) {
                queue.push(view, before, 0);
            }
            true
        });
        queue.notify(view);
    }

    /// Drivers that count only the queues they have call the reports' queue by the number of hints.
    fn meaning(&self, index: u16) -> u16 {
        let hints = self
            .active
            .as_ref()
            .is_some_and(|active| active.has(FREE_PAGE_HINT));
        if index == HINTS && !hints {
            REPORTS
        } else {
            index
        }
    }
}

impl VirtioDevice for Balloon {
    fn id(&self) -> u32 {
        5
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> [u8; 3] {
        // Memory controller, other: as what stands for the guest's memory.
        [0x05, 0x80, 0]
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let inner = self.lock();
        let fields = [inner.target, inner.actual].map(u32::to_le_bytes);
        read_image(fields.as_flattened(), offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let bytes: Option<[u8; 4]> = data.try_into().ok();
        if let (ACTUAL, Some(bytes)) = (offset, bytes) {
            self.lock().actual = u32::from_le_bytes(bytes);
        }
    }

    fn activate(&self, active: Activation) {
        self.lock().active = Some(active);
    }

    fn queue_ready(&self, index: u16) {
        let mut inner = self.lock();
        let Some((queue, view)) = inner.queue(index) else {
            return;
        };
        let meaning = inner.meaning(index);
        if meaning == STATS {
            inner.take_figures(&queue, &view);
            return self.answered.notify_all();
        }
        queue.drain(&view, |chain| {
            match inner.serve(meaning, &chain, &view) {
                Ok(()) => queue.push(&view, chain.head(), 0),
                Err(fault) => queue.fail(&fault),
            }
            true
        });
        queue.notify(&view);
    }

    /// A new target, in bytes, as eight of them; nothing: a question for figures.
    fn input(&self, bytes: &[u8]) {
        match bytes.first_chunk() {
            Some(target) => self.set_target(u64::from_le_bytes(*target)),
            None => {
                self.ask_statistics();
            }
        }
    }

    fn reset(&self) {
        let mut inner = self.lock();
        inner.active = None;
        inner.actual = 0;
        inner.held = None;
    }

    fn pause(&self) {}

    fn resume(&self) {}

    fn save(&self) -> Option<SavedState> {
        let inner = self.lock();
        let fields = Fields {
            target: inner.target,
            actual: inner.actual,
            held: inner.held,
        };
        Some(SavedState::new(NAME, VERSION, &fields))
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        let fields: Fields = saved.read(NAME, VERSION)?;
        if fields.held.is_some_and(|head| head >= QUEUE_SIZE) {
            return Err(SavedError::Damaged {
                kind: NAME,
                detail: "it holds a buffer that no queue has".to_owned(),
            });
        }
        let mut inner = self.lock();
        inner.target = fields.target;
        inner.actual = fields.actual;
        inner.held = fields.held;
        Ok(())
    }
}
