//! The setup header of a bzImage, and images of no known format.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmlet_fuzz::{MemoryCap, boot, seeds};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

fuzz_target!(init: seeds::plant("boot_bzimage"), |data: &[u8]| boot::boot(data));
