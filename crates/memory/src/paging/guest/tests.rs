//! Tests of the walker against tables written by an independent encoder.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Tables {
    words: HashMap<u64, u64>,
    next: u64,
}

impl Tables {
    fn new() -> Tables {
        Tables {
            words: HashMap::new(),
            next: 0x10_0000,
        }
    }

    fn page(&mut self) -> u64 {
        self.next += 0x1000;
        self.next
    }

    fn read(&self, gpa: Gpa) -> Option<u64> {
        (gpa.0 < 1 << 32).then(|| self.words.get(&gpa.0).copied().unwrap_or(0))
    }

    /// Long mode: maps `linear` to `frame` with a page of level `leaf`, `levels` deep.
    fn map_long(&mut self, root: u64, levels: u8, linear: u64, leaf: u8, entry: u64) {
        let mut table = root;
        for level in (leaf..=levels).rev() {
            let index = (linear >> (12 + 9 * (u64::from(level) - 1))) & 511;
            let at = table + index * 8;
            if level == leaf {
                self.words.insert(at, entry);
            } else {
                let next = self
                    .words
                    .get(&at)
                    .copied()
                    .unwrap_or_else(|| self.page() | 7);
                self.words.insert(at, next);
                table = next & !0xfff;
            }
        }
    }
}

fn long(root: u64, levels: u8) -> PagingContext {
    let cr4 = CR4_PAE | if levels == 5 { CR4_LA57 } else { 0 };
    let efer = EFER_LMA | EFER_NXE;
    PagingContext {
        cr0: CR0_PG,
        cr3: root,
        cr4,
        efer,
        physical_bits: 40,
        gibibyte_pages: true,
    }
}

fn run(tables: &Tables, context: &PagingContext, linear: u64) -> Walk {
    walk(context, linear, &|gpa| tables.read(gpa))
}

#[test]
fn without_paging_linear_is_physical() {
    let walk = walk(&PagingContext::default(), 0x1234, &|_| None);
    assert_eq!(walk.result.unwrap().gpa, Gpa(0x1234));
    assert!(walk.steps.is_empty());
}

#[test]
fn sdm_5_4_2_bit_7_of_a_pml4_entry_is_reserved() {
    let mut tables = Tables::new();
    tables.words.insert(0x1000, 0x2000 | 7 | LARGE);
    let walk = run(&tables, &long(0x1000, 4), 0);
    assert_eq!(walk.result, Err(WalkFault::ReservedBit { level: 4 }));
}

#[test]
fn sdm_5_4_address_bits_above_the_physical_width_are_reserved() {
    let mut tables = Tables::new();
    tables.words.insert(0x1000, 0x2000 | 7 | 1 << 40);
    let walk = run(&tables, &long(0x1000, 4), 0);
    assert_eq!(walk.result, Err(WalkFault::ReservedBit { level: 4 }));
}

#[test]
fn no_execute_without_nxe_is_reserved() {
    let mut tables = Tables::new();
    tables.words.insert(0x1000, 0x2000 | 7 | NO_EXECUTE);
    let context = PagingContext {
        efer: EFER_LMA,
        ..long(0x1000, 4)
    };
    let walk = run(&tables, &context, 0);
    assert_eq!(walk.result, Err(WalkFault::ReservedBit { level: 4 }));
}

#[test]
fn sdm_5_4_bit_7_of_a_pdpt_entry_is_reserved_without_gibibyte_pages() {
    let mut tables = Tables::new();
    tables.map_long(0x1000, 4, 0, 3, 7 | LARGE);
    let mut context = long(0x1000, 4);
    assert_eq!(run(&tables, &context, 5).result.unwrap().page_size, 1 << 30);
    context.gibibyte_pages = false;
    let walk = run(&tables, &context, 5);
    assert_eq!(walk.result, Err(WalkFault::ReservedBit { level: 3 }));
}

#[test]
fn addresses_that_are_not_canonical_are_refused() {
    let tables = Tables::new();
    let walk = run(&tables, &long(0x1000, 4), 0x0000_8000_0000_0000);
    assert_eq!(walk.result, Err(WalkFault::NonCanonical));
}

#[test]
fn a_table_outside_memory_is_named() {
    let tables = Tables::new();
    let walk = run(&tables, &long(0xff_0000_0000, 4), 0);
    let gpa = Gpa(0xff_0000_0000);
    assert_eq!(walk.result, Err(WalkFault::OutsideMemory { level: 4, gpa }));
}

#[test]
fn cyclic_tables_end_after_four_levels() {
    let mut tables = Tables::new();
    tables.words.insert(0x1000, 0x1000 | 7);
    let walk = run(&tables, &long(0x1000, 4), 0);
    assert_eq!(walk.steps.len(), 4);
    assert_eq!(walk.result.unwrap().gpa, Gpa(0x1000));
}

#[test]
fn sdm_5_3_address_bits_of_a_4_mib_entry_above_the_physical_width_are_reserved() {
    let mut tables = Tables::new();
    tables.words.insert(0x1000, 1 << 13 | LARGE | 7);
    let wide = PagingContext {
        cr0: CR0_PG,
        cr3: 0x1000,
        cr4: CR4_PSE,
        efer: 0,
        physical_bits: 36,
        gibibyte_pages: false,
    };
    let narrow = PagingContext {
        physical_bits: 32,
        ..wide
    };
    assert_eq!(run(&tables, &wide, 0).result.unwrap().gpa, Gpa(1 << 32));
    let fault = Err(WalkFault::ReservedBit { level: 2 });
    assert_eq!(run(&tables, &narrow, 0).result, fault);
}

#[test]
fn two_level_tables_use_four_byte_entries_and_four_mebibyte_pages() {
    let mut tables = Tables::new();
    // Directory entry 1: a 4 MiB page at 0x800000 with address bit 32 (PSE-36) set.
    let entry: u64 = 0x80_0000 | 7 | LARGE | 1 << 13;
    tables.words.insert(0x1000, entry << 32);
    let context = PagingContext {
        cr0: CR0_PG,
        cr3: 0x1000,
        cr4: CR4_PSE,
        efer: 0,
        physical_bits: 40,
        gibibyte_pages: true,
    };
    let walk = run(&tables, &context, 0x40_1234);
    let found = walk.result.unwrap();
    assert_eq!((found.gpa, found.page_size), (Gpa(0x1_0080_1234), 4 << 20));
}

#[test]
fn pae_directory_pointers_have_no_rights_of_their_own() {
    let mut tables = Tables::new();
    tables.words.insert(0x1020, 0x2000 | 1);
    tables.words.insert(0x2000, 0x20_0000 | 7 | LARGE);
    let context = PagingContext {
        cr0: CR0_PG,
        cr3: 0x1020,
        cr4: CR4_PAE,
        efer: 0,
        physical_bits: 40,
        gibibyte_pages: true,
    };
    let found = run(&tables, &context, 0x1234).result.unwrap();
    assert_eq!(
        (found.gpa, found.writable, found.user),
        (Gpa(0x20_1234), true, true)
    );
}

proptest! {
    #[test]
    fn long_mode_walks_find_what_was_mapped(
        five in any::<bool>(), leaf in 1u8..=3, frame in 0u64..1 << 22, page in any::<u64>(),
        flags in 0u64..8, no_execute in any::<bool>(), offset in 0u64..1 << 30,
    ) {
        let levels = if five { 5 } else { 4 };
        let bits = if five { 57 } else { 48 };
        let size = 1u64 << (12 + 9 * (u64::from(leaf) - 1));
        let canonical = ((page << (64 - bits)).cast_signed() >> (64 - bits)).cast_unsigned();
        let linear = canonical & !(size - 1) | (offset & (size - 1));
        let gpa = (frame << 12) & !(size - 1);
        let mut entry = gpa | flags | 1;
        if leaf > 1 { entry |= LARGE; }
        if no_execute { entry |= NO_EXECUTE; }
        let mut tables = Tables::new();
        tables.map_long(0x1000, levels, linear, leaf, entry);
        let walk = run(&tables, &long(0x1000, levels), linear);
        let found = walk.result.unwrap();
        prop_assert_eq!(found.gpa.0, gpa | (linear & (size - 1)));
        prop_assert_eq!(found.page_size, size);
        prop_assert_eq!(found.writable, flags & 2 != 0);
        prop_assert_eq!(found.user, flags & 4 != 0);
        prop_assert_eq!(found.executable, !no_execute);
        prop_assert_eq!(walk.steps.len(), usize::from(levels - leaf + 1));
    }

    #[test]
    fn any_table_content_ends_within_five_steps(words in proptest::collection::vec(any::<u64>(), 512), linear in any::<u64>(), cr4 in any::<u64>(), efer in any::<u64>(), cr3 in 0u64..8192) {
        let context = PagingContext { cr0: CR0_PG, cr3, cr4, efer, physical_bits: 40, gibibyte_pages: true };
        let read = |gpa: Gpa| words.get((gpa.0 / 8 % 1024) as usize).copied();
        prop_assert!(walk(&context, linear, &read).steps.len() <= 5);
    }
}
