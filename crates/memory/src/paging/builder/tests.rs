//! Tests of the builder and the second-stage walker together, in both formats.

use proptest::prelude::*;

use super::*;
use crate::paging::{
    Access, Ept, EptFeatures, EptPointer, MemoryType, Npt, StageCause, StageTranslation, walk_stage,
};

const ROOT: Hpa = Hpa(0x8_0000_0000);
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn ept(levels: u8) -> Ept {
    Ept {
        pointer: EptPointer {
            root: ROOT,
            levels,
            memory_type: MemoryType::WriteBack,
            accessed_dirty: true,
            shadow_stack: false,
        },
        features: EptFeatures::current(40),
    }
}

fn npt(levels: u8) -> Npt {
    Npt {
        levels,
        ..Npt::current(ROOT, 40)
    }
}

fn each_format(test: impl Fn(&dyn StageFormat)) {
    for levels in [4, 5] {
        test(&ept(levels));
        test(&npt(levels));
    }
}

fn tables() -> TablePages {
    let mut tables = TablePages::new(ROOT, 4096);
    assert_eq!(tables.allocate(), Some(ROOT));
    tables
}

fn find(format: &dyn StageFormat, tables: &TablePages, gpa: u64) -> Option<StageTranslation> {
    walk_stage(format, Gpa(gpa), Access::READ, &|at| tables.load(at))
        .result
        .ok()
}

fn map(format: &dyn StageFormat, tables: &mut TablePages, gpa: u64, len: u64, hpa: u64) {
    StageBuilder::new(format, tables)
        .map(Gpa(gpa), len, Hpa(hpa), PageAttributes::RAM)
        .unwrap();
}

/// The largest page that fits `gpa` in a mapping: what the builder promises, said independently.
fn expected_page(start: u64, len: u64, hpa: u64, gpa: u64) -> u64 {
    let fits = |size: &u64| {
        let page = gpa & !(size - 1);
        start % size == hpa % size && page >= start && page + size <= start + len
    };
    [GIB, 2 * MIB].into_iter().find(fits).unwrap_or(PAGE_SIZE)
}

#[test]
fn an_aligned_gibibyte_is_one_page() {
    each_format(|format| {
        let mut tables = tables();
        map(format, &mut tables, GIB, GIB, 7 * GIB);
        let found = find(format, &tables, GIB + 0x1234_5678).unwrap();
        assert_eq!(found.page_size, GIB);
        assert_eq!(found.hpa, Hpa(7 * GIB + 0x1234_5678));
        // The tables above level 3 and the one that holds the page.
        assert_eq!(tables.count(), usize::from(format.levels()) - 2);
    });
}

#[test]
fn addresses_that_differ_modulo_two_mebibytes_get_small_pages() {
    each_format(|format| {
        let mut tables = tables();
        map(format, &mut tables, 0, 4 * MIB, GIB + 4096);
        for gpa in [0, 2 * MIB, 4 * MIB - 1] {
            assert_eq!(find(format, &tables, gpa).unwrap().page_size, 4096);
        }
    });
}

#[test]
fn a_processor_without_gibibyte_pages_gets_two_mebibytes() {
    let mut format = npt(4);
    format.one_gibibyte_pages = false;
    let mut tables = tables();
    map(&format, &mut tables, 0, GIB, 0);
    assert_eq!(find(&format, &tables, 0).unwrap().page_size, 2 * MIB);
}

#[test]
fn a_hole_splits_its_page_and_keeps_the_rest() {
    each_format(|format| {
        let mut tables = tables();
        map(format, &mut tables, 0, GIB, 3 * GIB);
        let hole = (0xa_0000, 0x6_0000);
        StageBuilder::new(format, &mut tables)
            .unmap(Gpa(hole.0), hole.1)
            .unwrap();
        assert_eq!(find(format, &tables, hole.0), None);
        assert_eq!(find(format, &tables, hole.0 + hole.1 - 1), None);
        for gpa in [0, hole.0 - 1, hole.0 + hole.1, 2 * MIB, GIB - 1] {
            let found = find(format, &tables, gpa).unwrap();
            assert_eq!(found.hpa, Hpa(3 * GIB + gpa));
            let size = if gpa < 2 * MIB { 4096 } else { 2 * MIB };
            assert_eq!(found.page_size, size, "{gpa:#x}");
        }
    });
}

#[test]
fn logged_pages_are_small_and_refuse_writes_only() {
    each_format(|format| {
        let mut tables = tables();
        map(format, &mut tables, 0, 8 * MIB, GIB);
        StageBuilder::new(format, &mut tables)
            .log_writes(Gpa(2 * MIB), 4 * MIB)
            .unwrap();
        let write = |gpa| walk_stage(format, Gpa(gpa), Access::WRITE, &|at| tables.load(at)).result;
        assert_eq!(find(format, &tables, 2 * MIB).unwrap().page_size, 4096);
        assert_eq!(write(2 * MIB).unwrap_err().cause, StageCause::Denied);
        assert_eq!(write(6 * MIB - 1).unwrap_err().cause, StageCause::Denied);
        assert_eq!(write(6 * MIB).unwrap().page_size, 2 * MIB);
        assert_eq!(write(0).unwrap().page_size, 2 * MIB);
    });
}

#[test]
fn a_page_that_is_there_is_not_mapped_again() {
    each_format(|format| {
        let mut tables = tables();
        map(format, &mut tables, 2 * MIB, 2 * MIB, 0);
        let again = StageBuilder::new(format, &mut tables).map(
            Gpa(0),
            4 * MIB,
            Hpa(GIB),
            PageAttributes::RAM,
        );
        assert_eq!(again, Err(BuildError::Mapped { gpa: 2 * MIB }));
        assert_eq!(find(format, &tables, 2 * MIB).unwrap().hpa, Hpa(0));
    });
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    each_format(|format| {
        let mut tables = tables();
        let room = 1u64 << if format.levels() == 5 { 57 } else { 48 };
        for (gpa, len, hpa) in [
            (0, 0, 0),
            (1, 4096, 0),
            (0, 4095, 0),
            (0, 4096, 1),
            (room, 4096, 0),
            (room - 4096, 8192, 0),
            (!4095, 8192, 0),
            (0, 4096, 1 << 40),
            (0, 1 << 40, 4096),
        ] {
            let refused = StageBuilder::new(format, &mut tables).map(
                Gpa(gpa),
                len,
                Hpa(hpa),
                PageAttributes::RAM,
            );
            assert!(
                matches!(refused, Err(BuildError::BadRange { .. })),
                "{gpa:#x}+{len:#x} to {hpa:#x}: {refused:?}"
            );
        }
    });
}

#[test]
fn a_full_pool_of_tables_is_an_error() {
    let format = ept(4);
    let mut tables = TablePages::new(ROOT, 2);
    tables.allocate();
    let mut builder = StageBuilder::new(&format, &mut tables);
    let failed = builder.map(Gpa(0), 4096, Hpa(0), PageAttributes::RAM);
    assert_eq!(failed, Err(BuildError::NoTable { level: 2 }));
}

#[test]
fn an_address_with_more_bits_than_the_tables_take_faults() {
    each_format(|format| {
        let mut tables = tables();
        map(format, &mut tables, 0, GIB, 0);
        let room = 1u64 << if format.levels() == 5 { 57 } else { 48 };
        let walk = walk_stage(format, Gpa(room), Access::READ, &|at| tables.load(at));
        assert_eq!(walk.result.unwrap_err().cause, StageCause::AddressTooWide);
        assert!(walk.steps.is_empty());
    });
}

#[test]
fn a_cycle_ends_after_one_step_a_level() {
    each_format(|format| {
        let entry = format.table(ROOT);
        let walk = walk_stage(format, Gpa(0), Access::READ, &|_| Some(entry));
        assert_eq!(walk.steps.len(), usize::from(format.levels()));
        // The last entry is read as a page: of memory type 0, or the table itself.
        assert!(walk.result.is_ok());
    });
}

#[test]
fn a_table_outside_memory_is_named() {
    each_format(|format| {
        let walk = walk_stage(format, Gpa(0), Access::READ, &|_| None);
        let fault = walk.result.unwrap_err();
        let expected = (format.levels(), StageCause::OutsideMemory(ROOT));
        assert_eq!((fault.level, fault.cause), expected);
    });
}

/// Ranges of a few kinds: small ones, and such that hold large pages.
fn ranges() -> impl Strategy<Value = (u64, u64, u64)> {
    let grain = prop_oneof![Just(PAGE_SIZE), Just(2 * MIB), Just(GIB)];
    let place = (0u64..4, 0u64..4, 0u64..1024);
    (grain.clone(), grain, place, any::<bool>()).prop_map(|(grain, extra, place, congruent)| {
        let (at, more, pages) = place;
        let gpa = at * grain + pages % 3 * extra.min(2 * MIB);
        let len = (1 + more) * grain + pages * PAGE_SIZE;
        let hpa = gpa
            + 4 * GIB
            + if congruent {
                0
            } else {
                (1 + pages) * PAGE_SIZE
            };
        (gpa, len, hpa)
    })
}

fn formats() -> impl Strategy<Value = Box<dyn StageFormat>> {
    (any::<bool>(), 4u8..=5).prop_map(|(intel, levels)| -> Box<dyn StageFormat> {
        if intel {
            Box::new(ept(levels))
        } else {
            Box::new(npt(levels))
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn walks_find_what_was_built_in_the_largest_pages_there_can_be(
        format in formats(), (gpa, len, hpa) in ranges(), probes in proptest::collection::vec(any::<u64>(), 64),
    ) {
        let mut tables = tables();
        map(&*format, &mut tables, gpa, len, hpa);
        for probe in probes.iter().map(|probe| probe % len).chain([0, len - 1]) {
            let found = find(&*format, &tables, gpa + probe).unwrap();
            prop_assert_eq!(found.hpa, Hpa(hpa + probe));
            prop_assert_eq!(found.page_size, expected_page(gpa, len, hpa, gpa + probe));
            prop_assert_eq!(found.memory_type, MemoryType::WriteBack);
        }
        prop_assert!(find(&*format, &tables, gpa + len).is_none());
        prop_assert!(gpa == 0 || find(&*format, &tables, gpa - 1).is_none());
    }

    #[test]
    fn splits_preserve_every_mapping(
        format in formats(), (gpa, len, hpa) in ranges(), first in any::<u64>(), count in 1u64..600,
        hole in any::<bool>(), probes in proptest::collection::vec(any::<u64>(), 64),
    ) {
        let mut tables = tables();
        map(&*format, &mut tables, gpa, len, hpa);
        let start = first % (len / PAGE_SIZE) * PAGE_SIZE;
        let end = (start + count * PAGE_SIZE).min(len);
        let mut builder = StageBuilder::new(&*format, &mut tables);
        let range = (Gpa(gpa + start), end - start);
        if hole { builder.unmap(range.0, range.1) } else { builder.log_writes(range.0, range.1) }.unwrap();
        let edges = [0, len - 1, start, end - 1, end % len, start.saturating_sub(1)];
        for probe in probes.iter().map(|probe| probe % len).chain(edges) {
            let inside = (start..end).contains(&probe);
            let found = find(&*format, &tables, gpa + probe);
            if inside && hole {
                prop_assert!(found.is_none());
                continue;
            }
            let found = found.unwrap();
            prop_assert_eq!(found.hpa, Hpa(hpa + probe));
            prop_assert_eq!(found.rights.write, !inside);
            if inside { prop_assert_eq!(found.page_size, PAGE_SIZE); }
        }
    }

    #[test]
    fn hostile_tables_end_within_five_steps(
        format in formats(), words in proptest::collection::vec(any::<u64>(), 512), gpa: u64, keep: u64,
    ) {
        // Entries that mostly lead on, into a memory of one page that repeats.
        let read = |at: Hpa| {
            let word = words[(at.0 / 8 % 512) as usize];
            (at.0 % 7 != 6).then_some(if keep & 1 == 0 { word } else { word & 0xff_ffff_f007 | 7 })
        };
        for access in [Access::READ, Access::WRITE, Access::Table] {
            let walk = walk_stage(&*format, Gpa(gpa), access, &read);
            prop_assert!(walk.steps.len() <= usize::from(format.levels()));
            if let Err(fault) = walk.result {
                prop_assert!((1..=5).contains(&fault.level));
            }
        }
    }
}
