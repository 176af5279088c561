//! Page-table walks over any registers, any address and any entries, against a second walker that
//! is written entry by entry from the manual (Intel SDM volume 3, section 5.3 to 5.5).
#![no_main]

use std::cell::Cell;

use libfuzzer_sys::fuzz_target;
use vmlet_fuzz::{Input, MemoryCap, seeds};
use vmlet_memory::{
    Gpa,
    paging::{PagingContext, WalkFault, walk},
};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
const LA57: u64 = 1 << 12;
const LMA: u64 = 1 << 10;
const NXE: u64 = 1 << 11;
const PG: u64 = 1 << 31;

fuzz_target!(init: seeds::plant("guest_walk"), |data: &[u8]| {
    let mut input = Input::new(data);
    let (cr0, cr4, efer) = input.choose(&[
        (0, 0, 0),
        (PG, 0, 0),
        (PG, PSE, 0),
        (PG, PAE, 0),
        (PG, PAE, NXE),
        (PG, PAE, LMA),
        (PG, PAE, LMA | NXE),
        (PG, PAE | LA57, LMA),
        (PG, PAE | LA57, LMA | NXE),
    ]);
    let (physical_bits, cr3, linear) = (input.byte(), input.word(), input.word());
    let context = PagingContext {
        cr0,
        cr3,
        cr4,
        efer,
        physical_bits,
        gibibyte_pages: cr3 & 1 != 0,
    };
    let entries: Vec<u64> = (0..6)
        .map_while(|_| (!input.is_empty()).then(|| input.word()))
        .collect();
    let reads = Cell::new(0);
    let read = |gpa: Gpa| {
        assert_eq!(gpa.0 % 8, 0);
        let index = reads.replace(reads.get() + 1);
        entries.get(index).copied()
    };
    let found = walk(&context, linear, &read);
    assert!(reads.get() <= 5 && found.steps.len() <= reads.get());
    assert!(
        found
            .steps
            .windows(2)
            .all(|pair| pair[0].level == pair[1].level + 1)
    );
    let model = Model {
        context,
        bits: u32::from(physical_bits.clamp(32, 52)),
    };
    let expected = model.walk(linear, &entries);
    let result = found
        .result
        .map(|to| (to.gpa.0, to.page_size, to.writable, to.user, to.executable));
    let result = result.map_err(|fault| match fault {
        WalkFault::NotPresent { level } => Fault::NotPresent(level),
        WalkFault::ReservedBit { level } => Fault::Reserved(level),
        WalkFault::OutsideMemory { level, .. } => Fault::Outside(level),
        WalkFault::NonCanonical => Fault::Address,
    });
    assert_eq!(result, expected, "{context:?} {linear:#x} {entries:#x?}");
});

#[derive(Debug, PartialEq, Eq)]
enum Fault {
    NotPresent(u8),
    Reserved(u8),
    Outside(u8),
    Address,
}

/// Address, page size, writable, user, executable.
type End = Result<(u64, u64, bool, bool, bool), Fault>;

struct Model {
    context: PagingContext,
    bits: u32,
}

/// Bits `high` to `low`, as the manual's tables give them.
fn bits(high: u32, low: u32) -> u64 {
    if high < low {
        return 0;
    }
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

impl Model {
    fn walk(&self, linear: u64, entries: &[u64]) -> End {
        let PagingContext { cr0, cr4, efer, .. } = self.context;
        if cr0 & PG == 0 {
            return Ok((linear & 0xffff_ffff, 4096, true, true, true));
        }
        if efer & LMA != 0 {
            let (top, width) = if cr4 & LA57 != 0 { (5, 57) } else { (4, 48) };
            let sign = linear >> (width - 1);
            if sign != 0 && sign != u64::MAX >> (width - 1) {
                return Err(Fault::Address);
            }
            return self.descend(linear, entries, top);
        }
        if linear > 0xffff_ffff {
            return Err(Fault::Address);
        }
        if cr4 & PAE != 0 {
            self.descend(linear, entries, 3)
        } else {
            self.narrow(linear, entries)
        }
    }

    /// Formats of 64-bit entries.
    fn descend(&self, linear: u64, entries: &[u64], top: u8) -> End {
        let (mut writable, mut user, mut executable) = (true, true, true);
        for level in (1..=top).rev() {
            let index = usize::from(top - level);
            // A word that lies at 4 modulo 8 is no case here: these entries are aligned to 8.
            let entry = *entries.get(index).ok_or(Fault::Outside(level))?;
            if entry & 1 == 0 {
                return Err(Fault::NotPresent(level));
            }
            let pointer = top == 3 && level == 3;
            let gibibyte = level == 3 && top > 3 && self.context.gibibyte_pages;
            let large = entry & 1 << 7 != 0 && (level == 2 || gibibyte);
            if entry & self.reserved(level, top, large) != 0 {
                return Err(Fault::Reserved(level));
            }
            if !pointer {
                writable &= entry & 2 != 0;
                user &= entry & 4 != 0;
            }
            executable &= entry >> 63 == 0;
            if large || level == 1 {
                let shift = 3 + 9 * u32::from(level);
                let frame = entry & bits(self.bits - 1, shift);
                let gpa = frame | linear & bits(shift - 1, 0);
                return Ok((gpa, 1 << shift, writable, user, executable));
            }
        }
        unreachable!("level 1 returns")
    }

    fn reserved(&self, level: u8, top: u8, large: bool) -> u64 {
        let no_execute = if self.context.efer & NXE == 0 {
            bits(63, 63)
        } else {
            0
        };
        let address = bits(51, self.bits);
        match (top, level) {
            (3, 3) => bits(2, 1) | bits(8, 5) | bits(63, self.bits),
            (3, _) => address | bits(62, 52) | no_execute | if large { bits(20, 13) } else { 0 },
            (_, 4 | 5) => address | no_execute | 1 << 7,
            (_, 3) if !large => address | no_execute | 1 << 7,
            (_, 3) => address | no_execute | bits(29, 13),
            (_, 2) if large => address | no_execute | bits(20, 13),
            _ => address | no_execute,
        }
    }

    /// 32-bit entries, two to a word.
    fn narrow(&self, linear: u64, words: &[u64]) -> End {
        let pick = |word: u64, index: u64| {
            if index & 1 == 1 {
                word >> 32
            } else {
                word & 0xffff_ffff
            }
        };
        let directory = pick(*words.first().ok_or(Fault::Outside(2))?, linear >> 22);
        let rights = |entry: u64| (entry & 2 != 0, entry & 4 != 0);
        if directory & 1 == 0 {
            return Err(Fault::NotPresent(2));
        }
        let (writable, user) = rights(directory);
        if directory & 1 << 7 != 0 && self.context.cr4 & PSE != 0 {
            // PSE-36: M is the lesser of 40 and the width; bits M-20 to 13 are address bits M-1 to
            // 32, bits 21 to M-19 are reserved.
            let m = self.bits.min(40);
            if directory & bits(21, m - 19) != 0 {
                return Err(Fault::Reserved(2));
            }
            let high = (directory & bits(m - 20, 13)) >> 13 << 32;
            let gpa = high | directory & bits(31, 22) | linear & bits(21, 0);
            return Ok((gpa, 1 << 22, writable, user, true));
        }
        let table = pick(*words.get(1).ok_or(Fault::Outside(1))?, linear >> 12);
        if table & 1 == 0 {
            return Err(Fault::NotPresent(1));
        }
        let (both, all) = rights(table);
        let gpa = table & bits(31, 12) | linear & bits(11, 0);
        Ok((gpa, 1 << 12, writable && both, user && all, true))
    }
}
