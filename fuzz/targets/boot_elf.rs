//! ELF images by every protocol: headers, segments, notes, modules, memory maps.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmlet_fuzz::{MemoryCap, boot, seeds};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

fuzz_target!(init: seeds::plant("boot_elf"), |data: &[u8]| {
    let options = &data[..data.len().min(boot::OPTIONS)];
    let image = &data[options.len()..];
    // What follows the magic number is the fuzzer's.
    boot::boot(&[options, b"\x7fELF", image].concat());
});
