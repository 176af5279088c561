//! A disk over any queue memory: nothing but its image is touched, and every request ends.

#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use vmlet_devices::{
    backend::block::{Image, Overlay, RawImage},
    virtio::{
        Place,
        blk::{Blk, BlkOptions},
    },
};
use vmlet_fuzz::{Input, MemoryCap, queue_image, seeds, virtio};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

const BYTES: u64 = 64 * 512;

fn disks() -> &'static [Arc<Blk>; 2] {
    static MADE: OnceLock<[Arc<Blk>; 2]> = OnceLock::new();
    MADE.get_or_init(|| {
        let raw = || {
            let file = tempfile::tempfile().expect("a file");
            file.set_len(BYTES).expect("room for 32 KiB");
            Arc::new(RawImage::new(file, BYTES, false, false)) as Arc<dyn Image>
        };
        let file = tempfile::tempfile().expect("a file");
        let overlay = Arc::new(Overlay::new(raw(), file).expect("room for 32 KiB"));
        [raw(), overlay as Arc<dyn Image>].map(|image| {
            let options = BlkOptions {
                queues: 2,
                serial: "fuzz".to_owned(),
            };
            let spawn = Arc::new(|_, _| Err(std::io::ErrorKind::Unsupported.into()));
            Blk::new(image, &options, &Place::Guest, &(spawn as _))
        })
    })
}

fuzz_target!(init: seeds::plant("virtio_blk"), |data: &[u8]| {
    let options = data.first().copied().unwrap_or(0);
    let disk = &disks()[usize::from(options >> 7)];
    if options & 0x40 == 0 {
        queue_image::drive(&**disk, data);
    } else {
        virtio::drive(&**disk, &mut Input::new(data), |_, _| {});
    }
});
