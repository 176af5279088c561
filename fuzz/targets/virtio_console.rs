//! The virtio console: any queues, input in between. What was typed and not read is what waits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmlet_bus::Flow;
use vmlet_devices::{serial::SerialOut, virtio::console::VirtioConsole};
use vmlet_fuzz::{Input, MemoryCap, seeds, virtio};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

#[derive(Debug)]
struct Nowhere;

impl SerialOut for Nowhere {
    fn send(&mut self, bytes: &[u8]) -> Flow {
        assert!(!bytes.is_empty());
        Flow::Continue
    }
}

fuzz_target!(init: seeds::plant("virtio_console"), |data: &[u8]| {
    let console = VirtioConsole::new(Box::new(Nowhere));
    let mut typed = 0;
    virtio::drive(&console, &mut Input::new(data), |kind, bytes| {
        if kind % 4 == 0 {
            console.resize([u16::from(kind), 25]);
        } else {
            typed += console.push_input(bytes);
        }
        assert!(console.unread() <= typed);
    });
});
