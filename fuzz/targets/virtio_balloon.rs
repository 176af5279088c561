//! The balloon: any queues, any pages, targets and questions in between. Nothing grows, and never
//! more bytes go back than there is memory for each time.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmlet_devices::virtio::balloon::{Balloon, BalloonOptions};
use vmlet_fuzz::{Input, MemoryCap, seeds, virtio};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

fuzz_target!(init: seeds::plant("virtio_balloon"), |data: &[u8]| {
    let balloon = Balloon::new(BalloonOptions::default());
    virtio::drive(&balloon, &mut Input::new(data), |kind, bytes| match kind % 3 {
        0 => balloon.set_target(u64::from(kind) << 10),
        1 => {
            balloon.ask_statistics();
        }
        _ => assert!(balloon.statistics().figures.len() <= bytes.len() + 64),
    });
});
