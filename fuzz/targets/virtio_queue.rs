//! A virtqueue over any memory: chains stay within bounds, and what is taken is given back once.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vmlet_bus::{SavedError, SavedState};
use vmlet_devices::virtio::{Activation, VirtioDevice};
use vmlet_fuzz::{MemoryCap, queue_image, seeds};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

/// Copies what it reads to where it may write.
#[derive(Debug, Default)]
struct Copier(std::sync::Mutex<Option<Activation>>);

impl VirtioDevice for Copier {
    fn id(&self) -> u32 {
        1
    }

    fn name(&self) -> &'static str {
        "copier"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![16, 16]
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn activate(&self, active: Activation) {
        *self.0.lock().unwrap() = Some(active);
    }

    fn queue_ready(&self, index: u16) {
        let active = self.0.lock().unwrap().clone().unwrap();
        let queue = Arc::clone(&active.queues[usize::from(index)]);
        let view = active.dma.view();
        queue.drain(&view, |chain| {
            let sum = |buffers: &[vmlet_devices::virtio::Buffer]| {
                buffers.iter().map(|b| u64::from(b.len)).sum::<u64>()
            };
            assert!(chain.readable().len() + chain.writable().len() <= 16);
            assert_eq!(sum(chain.readable()), chain.readable_len());
            assert_eq!(sum(chain.writable()), chain.writable_len());
            let mut data = [0; 4096];
            let read = chain.read(&view, 3, &mut data);
            let read = read.unwrap_or(0);
            let written = chain.write(&view, 5, &data[..read]).unwrap_or(0);
            assert!(written <= read);
            queue.push(&view, chain.head(), written as u32);
            true
        });
        queue.notify(&view);
    }

    fn reset(&self) {
        *self.0.lock().unwrap() = None;
    }

    fn pause(&self) {}

    fn resume(&self) {}

    fn restore(&self, _: &SavedState) -> Result<(), SavedError> {
        Ok(())
    }
}

fuzz_target!(init: seeds::plant("virtio_queue"), |data: &[u8]| queue_image::drive(&Copier::default(), data));
