//! A board's I/O space: any accesses, any width, to the small devices and beside them. Only the
//! registers that end a run end it; what nobody claims is counted and reads as all ones.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vmlet_bus::{Device, Flow, IoSpace, StopRequest};
use vmlet_devices::{
    power::{PmTimer, SleepControl},
    pvpanic::PvPanic,
    reset::{KeyboardController, ResetControl},
    rtc::Rtc,
};
use vmlet_fuzz::{Input, MemoryCap, guest::Nobody, seeds};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

const KEYBOARD: u64 = 0x64;
const RTC: u64 = 0x70;
const PVPANIC: u64 = 0x505;
const SLEEP: u64 = 0x600;
const PM_TIMER: u64 = 0x608;
const RESET: u64 = 0xcf9;

fn ports() -> IoSpace {
    let devices: [(u64, u64, Arc<dyn Device>); 6] = [
        (KEYBOARD, 1, Arc::new(KeyboardController)),
        (RTC, Rtc::LEN, Arc::new(Rtc::new(1 << 20, 0))),
        (PVPANIC, PvPanic::LEN, Arc::new(PvPanic)),
        (SLEEP, SleepControl::LEN, Arc::new(SleepControl)),
        (PM_TIMER, PmTimer::LEN, Arc::new(PmTimer::default())),
        (RESET, 1, Arc::new(ResetControl::default())),
    ];
    let space = IoSpace::new();
    for (start, len, device) in devices {
        space.add(start, len, device).expect("no overlaps");
    }
    space
}

fn claimed(addr: u64, len: usize) -> bool {
    let end = addr.checked_add(len as u64);
    let ranges = [
        (KEYBOARD, 1),
        (RTC, 2),
        (PVPANIC, 1),
        (SLEEP, 2),
        (PM_TIMER, 4),
        (RESET, 1),
    ];
    let inside = |(start, size): &(u64, u64)| {
        *start <= addr && addr < start + size && end.is_some_and(|end| end <= start + size)
    };
    ranges.iter().any(inside)
}

fuzz_target!(init: seeds::plant("io_ports"), |data: &[u8]| {
    let (space, mut input, mut unclaimed) = (ports(), Input::new(data), 0);
    // An access has at least one byte.
    while input.rest().len() > 32 {
        let kind = input.byte();
        let near = input.choose(&[KEYBOARD, RTC, PVPANIC, SLEEP, PM_TIMER, RESET, 0, u64::MAX]);
        let addr = near
            .wrapping_add(u64::from(input.byte() % 8))
            .wrapping_sub(2);
        let len = 1 + usize::from(kind >> 4) % 8;
        match kind % 4 {
            0 => {
                let mut data = vec![0; len];
                assert_eq!(space.read(&Nobody, addr, &mut data), Flow::Continue);
                if !claimed(addr, len) {
                    unclaimed += 1;
                    assert!(data.iter().all(|byte| *byte == 0xff));
                }
            }
            1 => {
                let bytes = input.bytes(len);
                check(addr, bytes, &space.write(&Nobody, addr, bytes));
                unclaimed += u64::from(!claimed(addr, bytes.len()));
            }
            2 => {
                let size = 1 << (input.byte() % 3);
                let bytes = input.bytes(len.min(2) * size);
                let flow = space.write_string(&Nobody, addr, size, bytes);
                let wide = bytes
                    .chunks(size)
                    .map(|element| u64::from(!claimed(addr, element.len())));
                let count: u64 = wide.sum();
                if !claimed(addr, size) {
                    unclaimed += count;
                }
                assert!(matches!(flow, Flow::Continue) || claimed(addr, 1));
            }
            _ => space.reset(),
        }
        let seen = space.unclaimed();
        assert_eq!(seen.total, unclaimed);
        assert!(seen.recent.len() <= 1024);
    }
});

fn check(addr: u64, bytes: &[u8], flow: &Flow) {
    let Flow::Stop(request) = flow else {
        return;
    };
    let expected = match request {
        StopRequest::Reset { source } if *source == "keyboard-controller" => (KEYBOARD, 0xfe, 0xff),
        StopRequest::Reset { .. } => (RESET, 4, 4),
        StopRequest::PowerOff { .. } => (SLEEP, 0x34, 0xff),
        StopRequest::Panic { .. } => (PVPANIC, 1, 1),
        StopRequest::Fault { detail } => panic!("a device gave up: {detail}"),
    };
    let (port, value, mask) = expected;
    assert_eq!(
        (addr, bytes.first().map(|byte| byte & mask)),
        (port, Some(value))
    );
}
