//! Two-dimensional walks: any guest registers and address, EPT or NPT with any settings, any
//! entries of both. The walk is bounded, ends where its entries say, and an entry that is understood
//! is written back as it was read but for bits the processor ignores.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use vmlet_fuzz::{Input, MemoryCap, seeds};
use vmlet_memory::{
    Hpa,
    paging::{
        Access, Ept, EptFeatures, EptPointer, NestedFault, NestedWalk, Npt, Operation,
        PagingContext, StageFormat, walk_nested,
    },
};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

/// Every level of both dimensions: five guest entries and the page, each behind five entries.
const MAX_READS: usize = 5 + 6 * 5;

fuzz_target!(init: seeds::plant("nested_walk"), |data: &[u8]| {
    let mut input = Input::new(data);
    let (flags, bits) = (input.byte(), 32 + input.byte() % 21);
    let levels = if flags & 1 != 0 { 5 } else { 4 };
    let npt = Npt {
        root: Hpa(0x1000),
        levels,
        physical_bits: bits,
        no_execute: flags & 2 != 0,
        one_gibibyte_pages: flags & 4 != 0,
    };
    let pointer = EptPointer::decode(input.word(), bits);
    let features = EptFeatures {
        physical_bits: bits,
        execute_only: flags & 2 != 0,
        two_mebibyte_pages: flags & 8 != 0,
        one_gibibyte_pages: flags & 4 != 0,
        mode_based_execute: flags & 16 != 0,
    };
    if let Ok(pointer) = pointer {
        assert_eq!(EptPointer::decode(pointer.encode(), bits), Ok(pointer));
        check(&Ept { pointer, features }, bits, flags, input);
    }
    check_entries(&npt, pointer.ok().map(|pointer| Ept { pointer, features }), input);
    check(&npt, bits, flags, input);
});

fn check(format: &dyn StageFormat, bits: u8, flags: u8, mut input: Input<'_>) {
    let (long, paging) = (1 << 8 | 1 << 10 | 1 << 11, 1 << 31);
    let (cr0, cr4, efer) = input.choose(&[(0, 0, 0), (paging, 1 << 5, long), (paging, 1 << 4, 0)]);
    let context = PagingContext {
        cr0,
        cr3: input.word(),
        cr4,
        efer,
        physical_bits: bits,
        gibibyte_pages: flags & 64 != 0,
    };
    let linear = input.word();
    let operation = input.choose(&[Operation::Read, Operation::Write, Operation::Execute]);
    let access = Access::Final {
        operation,
        user: flags & 32 != 0,
    };
    // The n-th read gives the n-th word.
    let words = RefCell::new(input);
    let read = |hpa: Hpa| {
        assert_eq!(hpa.0 % 8, 0);
        let mut words = words.borrow_mut();
        (!words.is_empty()).then(|| words.word())
    };
    let walk = walk_nested(&context, format, linear, access, &read);
    check_end(&walk, format, access);
}

fn check_end(walk: &NestedWalk, format: &dyn StageFormat, access: Access) {
    assert!(walk.reads() <= MAX_READS && walk.accesses.len() <= 6);
    for access in &walk.accesses {
        let levels = access.stage.steps.iter().map(|step| step.level);
        let down = (1..=format.levels()).rev();
        assert!(levels.eq(down.take(access.stage.steps.len())));
    }
    match walk.result {
        Ok(found) => {
            let last = walk.accesses.last().expect("an access of the page");
            let stage = last.stage.result.expect("the page's walk succeeded");
            assert!(stage.rights.cover(format.needed(access)));
            assert_eq!(found.hpa.0 % found.page_size, found.gpa.0 % found.page_size);
            assert_eq!(found.hpa.0 >> format.physical_bits(), 0);
        }
        Err(NestedFault::Guest(fault)) => assert!(!fault.to_string().is_empty()),
        Err(NestedFault::Stage { gpa, .. }) => {
            assert_eq!(walk.accesses.last().map(|access| access.gpa), Some(gpa));
        }
    }
}

/// An entry that is decoded means the same when it is encoded and decoded again.
fn check_entries(npt: &Npt, ept: Option<Ept>, mut input: Input<'_>) {
    for level in 1..=npt.levels {
        let raw = input.word();
        if let Ok(Some(entry)) = npt.entry(level, raw) {
            let again = npt.entry(level, npt.encode(level, &entry));
            assert_eq!(again, Ok(Some(entry)), "{raw:#x} at level {level}");
        }
        if let Some(ept) = ept
            && let Ok(Some(entry)) = ept.entry(level, raw)
        {
            let again = ept.entry(level, ept.encode(level, &entry));
            assert_eq!(again, Ok(Some(entry)), "{raw:#x} at level {level}");
        }
    }
}
