//! Tests of nested entries and fault information against the clauses of the APM.

use proptest::prelude::*;

use super::*;
use crate::{Gpa, paging::walk_stage};

const ALL: u64 = PRESENT | WRITABLE | USER;

fn npt() -> Npt {
    Npt::current(Hpa(0x1000), 40)
}

fn walk_entry(npt: &Npt, entry: u64, access: Access) -> Result<Hpa, (StageCause, u64)> {
    let read = |at: Hpa| Some(if at.0 < 0x2000 { 0x2000 | ALL } else { entry });
    let result = walk_stage(npt, Gpa(0x123), access, &read).result;
    result
        .map(|found| found.hpa)
        .map_err(|fault| match fault.exit {
            StageExit::NestedPageFault(NestedFaultInfo(bits)) => (fault.cause, bits),
            other => panic!("{other}"),
        })
}

#[test]
fn apm_15_25_5_an_entry_without_user_access_allows_nothing() {
    let supervisor = PRESENT | WRITABLE | LARGE;
    let found = walk_entry(&npt(), supervisor, Access::READ);
    assert_eq!(found, Err((StageCause::Denied, 1 << 32 | 0b101)));
    assert_eq!(
        walk_entry(&npt(), supervisor | USER, Access::READ),
        Ok(Hpa(0x123))
    );
}

#[test]
fn apm_15_25_5_entries_of_the_guests_tables_are_accessed_as_user_writes() {
    let readonly = PRESENT | USER | LARGE;
    assert!(walk_entry(&npt(), readonly, Access::READ).is_ok());
    let found = walk_entry(&npt(), readonly, Access::Table);
    assert_eq!(found, Err((StageCause::Denied, 1 << 33 | 0b111)));
}

#[test]
fn apm_15_25_6_an_absent_entry_reports_neither_present_nor_reserved() {
    let write = walk_entry(&npt(), 0, Access::WRITE);
    assert_eq!(write, Err((StageCause::Absent, 1 << 32 | 0b110)));
    let fetch = Access::Final {
        operation: Operation::Execute,
        user: false,
    };
    let found = walk_entry(&npt(), 0, fetch);
    assert_eq!(found, Err((StageCause::Absent, 1 << 32 | 0b10100)));
}

#[test]
fn apm_15_25_6_a_reserved_bit_reports_present_and_reserved() {
    let raw = ALL | LARGE | 1 << 45;
    let cause = StageCause::Malformed(Malformed::Reserved(1 << 45));
    let found = walk_entry(&npt(), raw, Access::READ);
    assert_eq!(found, Err((cause, 1 << 32 | 0b1101)));
}

#[test]
fn no_execute_denies_fetches_and_is_reserved_without_nxe() {
    let raw = ALL | LARGE | NO_EXECUTE;
    let fetch = Access::Final {
        operation: Operation::Execute,
        user: true,
    };
    let found = walk_entry(&npt(), raw, fetch);
    assert_eq!(found, Err((StageCause::Denied, 1 << 32 | 0b10101)));
    let without = Npt {
        no_execute: false,
        ..npt()
    };
    let reserved = Err(Malformed::Reserved(NO_EXECUTE));
    assert_eq!(without.entry(3, raw), reserved);
}

#[test]
fn apm_5_3_bits_7_and_8_of_the_highest_levels_are_reserved() {
    for level in [4, 5] {
        for bit in [LARGE, GLOBAL] {
            let found = npt().entry(level, ALL | bit);
            assert_eq!(found, Err(Malformed::Reserved(bit)), "{level}");
        }
    }
}

#[test]
fn apm_5_3_bits_below_a_large_page_are_reserved_but_for_the_pat() {
    let page = ALL | LARGE;
    for (level, first, last) in [(2, 13, 20), (3, 13, 29)] {
        assert!(npt().entry(level, page | PAT_LARGE).is_ok());
        for bit in first..=last {
            let found = npt().entry(level, page | 1 << bit);
            assert_eq!(found, Err(Malformed::Reserved(1 << bit)), "{level} {bit}");
        }
        assert!(npt().entry(level, page | 1 << (last + 1)).is_ok());
    }
}

#[test]
fn one_gibibyte_pages_are_reserved_where_the_processor_lacks_them() {
    let lacking = Npt {
        one_gibibyte_pages: false,
        ..npt()
    };
    let found = lacking.entry(3, ALL | LARGE);
    assert_eq!(found, Err(Malformed::Reserved(LARGE)));
}

#[test]
fn what_the_format_lacks_cannot_be_expressed() {
    let attributes = |rights, memory_type| PageAttributes {
        rights,
        memory_type,
    };
    let execute_only = Rights {
        read: false,
        write: false,
        ..Rights::ALL
    };
    let npt = npt();
    let page = |a| npt.page(1, Hpa(0x1000), a);
    assert_eq!(page(attributes(execute_only, MemoryType::WriteBack)), None);
    assert_eq!(
        page(attributes(Rights::ALL, MemoryType::WriteCombining)),
        None
    );
    assert!(page(attributes(Rights::ALL, MemoryType::Uncacheable)).is_some());
}

fn entries() -> impl Strategy<Value = (u8, NptEntry)> {
    (1u8..=5, 0u64..1 << 28, any::<[bool; 10]>()).prop_map(|(level, frame, bits)| {
        let [writable, user, no_execute, write_through, cache_disable, ..] = bits;
        let [.., accessed, dirty, global, pat, page] = bits;
        let page = level == 1 || (page && level < 4);
        let size = if page {
            1 << (12 + 9 * (u32::from(level) - 1))
        } else {
            4096
        };
        let entry = NptEntry {
            writable,
            user,
            no_execute,
            write_through,
            cache_disable,
            accessed,
            address: Hpa((frame << 12) & !(size - 1)),
            target: if page {
                NptTarget::Page { dirty, global, pat }
            } else {
                NptTarget::Table
            },
        };
        (level, entry)
    })
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded((level, entry) in entries()) {
        prop_assert_eq!(npt().entry(level, npt().encode(level, &entry)), Ok(Some(entry)));
    }

    #[test]
    fn what_is_decoded_encodes_to_the_bits_that_count(level in 1u8..=5, raw: u64) {
        let npt = Npt { physical_bits: 52, ..npt() };
        if let Ok(Some(entry)) = npt.entry(level, raw) {
            let table = entry.target == NptTarget::Table;
            let available = 0x7ff << 52 | 0xe00 | if table { DIRTY | GLOBAL } else { 0 };
            prop_assert_eq!(npt.encode(level, &entry), raw & !available);
        }
    }
}
