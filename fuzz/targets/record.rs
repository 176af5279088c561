//! Records: any bytes, with sums that are right, so that what they protect is read. What is accepted
//! is written again as the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmlet_fuzz::{MemoryCap, seeds};
use vmlet_machine::journal::format;

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

fuzz_target!(init: seeds::plant("record"), |data: &[u8]| {
    check(data);
    check(&summed(data));
});

fn check(bytes: &[u8]) {
    let Ok(record) = format::parse(bytes) else {
        return;
    };
    let mut again = format::header(&record.identity);
    for (at, input) in &record.inputs {
        again.extend(format::record(*at, input));
    }
    assert_eq!(again, bytes);
}

/// The bytes with the sums that a writer would have given them, as far as their lengths lead.
fn summed(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    let Some(header) = end_of_fields(&bytes) else {
        return bytes;
    };
    put(&mut bytes, header, 0..header);
    let mut at = header + 4;
    while let Some(length) = word(&bytes, at) {
        let (start, end) = (at + 8, at.saturating_add(8).saturating_add(length));
        if end > bytes.len() {
            break;
        }
        put(&mut bytes, at + 4, start..end);
        at = end;
    }
    bytes
}

fn end_of_fields(bytes: &[u8]) -> Option<usize> {
    let (fields, mut at) = (word(bytes, 12)?, 16usize);
    for _ in 0..fields.min(64) {
        let name = usize::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        at = at
            .checked_add(6 + name)?
            .checked_add(word(bytes, at + 2)?)?;
    }
    (at + 4 <= bytes.len()).then_some(at)
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
}

fn put(bytes: &mut [u8], at: usize, of: std::ops::Range<usize>) {
    let sum = crc32fast::hash(&bytes[of]).to_le_bytes();
    bytes[at..at + 4].copy_from_slice(&sum);
}
