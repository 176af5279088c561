//! The device.

use std::sync::{Mutex, MutexGuard, PoisonError};

use vmlet_bus::{DmaView, SavedError, SavedState};

use super::Entropy;
use crate::virtio::{Activation, Chain, QueueFault, VirtQueue, VirtioDevice};

const NAME: &str = "virtio-rng";
const VERSION: u16 = 1;
const QUEUE_SIZE: u16 = 64;
/// Bytes a buffer gets at once: a driver that asks for gigabytes does not hold others up.
const MOST: usize = 64 << 10;
const PIECE: usize = 4096;

/// An entropy device.
#[derive(Debug)]
pub struct Rng {
    source: Box<dyn Entropy>,
    active: Mutex<Option<Activation>>,
}

impl Rng {
    /// A device that hands out `source`'s bytes.
    pub fn new(source: Box<dyn Entropy>) -> Rng {
        Rng {
            source,
            active: Mutex::default(),
        }
    }

    fn active(&self) -> MutexGuard<'_, Option<Activation>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, queue: &VirtQueue, view: &DmaView) {
        queue.drain(view, |chain| {
            match self.fill(&chain, view) {
                Ok(len) => queue.push(view, chain.head(), len),
                Err(fault) => queue.fail(&fault),
            }
            true
        });
        queue.notify(view);
    }

    /// Fills the chain's writable bytes; gives how many.
    fn fill(&self, chain: &Chain, view: &DmaView) -> Result<u32, QueueFault> {
        let head = chain.head();
        if chain.readable_len() > 0 || chain.writable_len() == 0 {
            let detail = "a buffer for random bytes is writable, and not empty";
            return Err(QueueFault::Request { head, detail });
        }
        let wanted = usize::try_from(chain.writable_len()).map_or(MOST, |len| len.min(MOST));
        let (mut done, mut piece) = (0, [0; PIECE]);
        while done < wanted {
            let part = piece
                .get_mut(..(wanted - done).min(PIECE))
                .unwrap_or_default();
            let detail = "the host gives no random bytes";
            self.source
                .fill(part)
                .map_err(|_| QueueFault::Request { head, detail })?;
            done += chain.write(view, done as u64, part)?;
        }
        Ok(u32::try_from(done).unwrap_or(0))
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        4
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&self, active: Activation) {
        *self.active() = Some(active);
    }

    fn queue_ready(&self, index: u16) {
        let active = self.active();
        if let Some((queue, view)) = active.as_ref().and_then(|active| active.queue(index)) {
            self.serve(&queue, &view);
        }
    }

    fn reset(&self) {
        *self.active() = None;
        self.source.rewind();
    }

    fn pause(&self) {}

    fn resume(&self) {}

    fn save(&self) -> Option<SavedState> {
        Some(SavedState::new(NAME, VERSION, &self.source.position()))
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        self.source.seek(saved.read(NAME, VERSION)?);
        Ok(())
    }
}
