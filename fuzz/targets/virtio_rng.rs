//! The entropy device: any queues.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmlet_devices::virtio::rng::{Rng, SeededEntropy};
use vmlet_fuzz::{Input, MemoryCap, seeds, virtio};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

fuzz_target!(init: seeds::plant("virtio_rng"), |data: &[u8]| {
    let device = Rng::new(Box::new(SeededEntropy::default()));
    virtio::drive(&device, &mut Input::new(data), |_, _| {});
});
