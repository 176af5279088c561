//! The console: any output in any pieces. The newest bytes are kept, lost ones counted, and a
//! kernel's panic is found in whole lines only.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::time::Duration;
use vmlet_bus::Flow;
use vmlet_devices::serial::SerialOut;
use vmlet_fuzz::{Input, MemoryCap, seeds};
use vmlet_machine::{Console, ConsoleFeed};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

/// The longest part of a line that is looked at.
const LINE: usize = 1024;

fuzz_target!(init: seeds::plant("console"), |data: &[u8]| {
    let mut input = Input::new(data);
    let limit = usize::from(input.half()) % 2048;
    let console = Console::new(limit);
    let mut feed = ConsoleFeed::new(&console);
    let (mut all, mut stopped) = (Vec::new(), false);
    while !input.is_empty() {
        let len = usize::from(input.byte());
        let piece = input.bytes(len);
        all.extend_from_slice(piece);
        stopped = feed.send(piece) != Flow::Continue;
    }
    let end = all.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    let ended = all[..end].split(|byte| *byte == b'\n').any(|line| {
        let seen = &line[..line.len().min(LINE)];
        seen.windows(16).any(|window| window == b"end Kernel panic")
    });
    assert_eq!(stopped, ended);
    let kept = console.read(usize::MAX, Duration::ZERO);
    assert_eq!(kept, all[all.len().saturating_sub(limit)..]);
    assert_eq!(console.dropped(), (all.len() - kept.len()) as u64);
});
