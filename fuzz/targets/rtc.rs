//! The clock and its memory: any accesses. Memory keeps what was written; times are times.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmlet_bus::Device;
use vmlet_devices::rtc::Rtc;
use vmlet_fuzz::{Input, MemoryCap, guest::Nobody, seeds};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

fuzz_target!(init: seeds::plant("rtc"), |data: &[u8]| {
    let mut input = Input::new(data);
    let rtc = Rtc::new(input.word(), input.word());
    let mut kept: [Option<u8>; 128] = [None; 128];
    let mut format = 1 << 1;
    while !input.is_empty() {
        let (kind, value) = (input.byte(), input.byte());
        let index = usize::from(value & 0x7f);
        match kind % 4 {
            0 => {
                let written = input.byte();
                write(&rtc, value, written);
                kept[index] = Some(written);
                if index == 0x0b {
                    format = written & 0b110;
                }
            }
            1 => {
                rtc.write(&Nobody, 0, &[value]);
                check(index, read(&rtc), kept[index], format);
            }
            2 => {
                let len = usize::from(value) % 9;
                rtc.read(&Nobody, u64::from(kind >> 7), &mut vec![0; len]);
            }
            _ => {
                rtc.reset();
                kept = [None; 128];
                rtc.write(&Nobody, 0, &[0x0b]);
                format = read(&rtc) & 0b110;
            }
        }
    }
});

fn write(rtc: &Rtc, index: u8, value: u8) {
    rtc.write(&Nobody, 0, &[index]);
    rtc.write(&Nobody, 1, &[value]);
}

fn read(rtc: &Rtc) -> u8 {
    let mut data = [0];
    rtc.read(&Nobody, 1, &mut data);
    data[0]
}

/// MC146818 data sheet, table 3 "Time, Calendar and Alarm Data Modes".
fn check(index: usize, value: u8, kept: Option<u8>, format: u8) {
    let binary = format & 4 != 0;
    let number = |value: u8| {
        if binary {
            return value;
        }
        assert!(value & 15 < 10 && value >> 4 < 10, "{value:#x} is no BCD");
        (value >> 4) * 10 + (value & 15)
    };
    match index {
        0x00 | 0x02 => assert!(number(value) < 60),
        0x04 if format & 2 != 0 => assert!(number(value) < 24),
        0x04 => assert!((1..=12).contains(&number(value & 0x7f))),
        0x06 => assert!((1..=7).contains(&number(value))),
        0x07 => assert!((1..=31).contains(&number(value))),
        0x08 => assert!((1..=12).contains(&number(value))),
        0x09 => assert!(number(value) < 100),
        0x32 => assert!((19..=29).contains(&number(value))),
        0x0a => assert_eq!(value & 0x80, 0, "an update in progress"),
        0x0b => assert_eq!(value, format),
        0x0c => assert_eq!(value, 0),
        0x0d => assert_eq!(value, 0x80),
        0x01 | 0x03 | 0x05 => {}
        _ => assert!(kept.is_none_or(|kept| kept == value), "{index:#x}"),
    }
}
