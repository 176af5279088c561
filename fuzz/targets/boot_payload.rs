//! Compressed kernels: gzip, xz with its filters, lz4, zstd. A small payload may announce any size;
//! what unpacking it takes stays below the cap of 1 GiB and the growth of its buffer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmlet_fuzz::{MemoryCap, boot, images, seeds};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(2048);

fuzz_target!(init: seeds::plant("boot_payload"), |data: &[u8]| {
    let options = &data[..data.len().min(boot::OPTIONS)];
    let mut payload = data[options.len()..].to_vec();
    images::mend_xz(&mut payload);
    boot::boot(&[options, &images::bzimage(&payload)].concat());
});
