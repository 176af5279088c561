//! Tests of EPT entries, pointer and violations against the clauses of the SDM.

use proptest::prelude::*;

use super::*;
use crate::{
    Gpa,
    paging::{StageFault, walk_stage},
};

const WRITE_BACK: u64 = 6 << 3;

fn ept(features: EptFeatures) -> Ept {
    Ept {
        pointer: EptPointer {
            root: Hpa(0x1000),
            levels: 4,
            memory_type: MemoryType::WriteBack,
            accessed_dirty: false,
            shadow_stack: false,
        },
        features,
    }
}

fn current() -> Ept {
    ept(EptFeatures::current(40))
}

#[test]
fn sdm_29_3_2_an_entry_without_rights_is_absent_whatever_else_it_holds() {
    assert_eq!(current().entry(2, 0xffff_ffff_ffff_f8f8), Ok(None));
}

#[test]
fn sdm_29_3_2_with_mode_based_control_bit_10_alone_makes_an_entry_present() {
    let raw = USER_EXECUTE | WRITE_BACK;
    assert_eq!(current().entry(1, raw), Ok(None));
    let mode_based = ept(EptFeatures {
        mode_based_execute: true,
        ..EptFeatures::current(40)
    });
    let rights = mode_based.entry(1, raw).unwrap().unwrap().rights;
    assert_eq!((rights.execute, rights.user_execute), (false, true));
}

#[test]
fn sdm_29_3_3_1_writes_without_reads_are_a_misconfiguration() {
    for rights in [WRITE, WRITE | EXECUTE] {
        let found = current().entry(1, rights | WRITE_BACK);
        assert_eq!(found, Err(Malformed::WriteWithoutRead));
    }
}

#[test]
fn sdm_29_3_3_1_execute_only_depends_on_the_processor() {
    let raw = EXECUTE | WRITE_BACK;
    assert!(current().entry(1, raw).unwrap().unwrap().rights.execute);
    let mut features = EptFeatures::current(40);
    features.execute_only = false;
    assert_eq!(ept(features).entry(1, raw), Err(Malformed::ExecuteOnly));
    features.mode_based_execute = true;
    let user = USER_EXECUTE | WRITE_BACK;
    assert_eq!(ept(features).entry(1, user), Err(Malformed::ExecuteOnly));
}

#[test]
fn sdm_29_3_3_1_memory_types_2_3_and_7_are_a_misconfiguration_of_pages_only() {
    for kind in [2u8, 3, 7] {
        let raw = READ | u64::from(kind) << TYPE_SHIFT;
        assert_eq!(current().entry(1, raw), Err(Malformed::MemoryType(kind)));
        let large = raw | LARGE;
        assert_eq!(current().entry(2, large), Err(Malformed::MemoryType(kind)));
    }
    for kind in [0u8, 1, 4, 5, 6] {
        let raw = READ | u64::from(kind) << TYPE_SHIFT;
        assert!(current().entry(1, raw).is_ok(), "{kind}");
    }
}

#[test]
fn sdm_29_3_2_bits_7_to_3_of_an_entry_that_leads_to_a_table_are_reserved() {
    for level in 2..=5 {
        for bit in 3..=6 {
            let found = current().entry(level, READ | 1 << bit);
            assert_eq!(found, Err(Malformed::Reserved(1 << bit)), "{level} {bit}");
        }
    }
    for level in [4, 5] {
        let found = current().entry(level, READ | LARGE);
        assert_eq!(found, Err(Malformed::Reserved(LARGE)));
    }
}

#[test]
fn sdm_29_3_2_bit_7_is_reserved_where_the_processor_lacks_the_page_size() {
    let mut features = EptFeatures::current(40);
    features.one_gibibyte_pages = false;
    let found = ept(features).entry(3, READ | LARGE);
    assert_eq!(found, Err(Malformed::Reserved(LARGE)));
    assert_eq!(ept(features).largest_page_level(), 2);
}

#[test]
fn sdm_29_3_2_address_bits_below_a_large_page_and_above_the_width_are_reserved() {
    let ept = current();
    let page = READ | LARGE | WRITE_BACK;
    let reserved = |level, bit: u32| ept.entry(level, page | 1 << bit);
    assert_eq!(reserved(2, 12), Err(Malformed::Reserved(1 << 12)));
    assert_eq!(reserved(2, 20), Err(Malformed::Reserved(1 << 20)));
    assert!(reserved(2, 21).is_ok());
    assert_eq!(reserved(3, 29), Err(Malformed::Reserved(1 << 29)));
    assert!(reserved(3, 30).is_ok());
    for level in 1..=5 {
        for bit in [40, 51] {
            let raw = READ | 1 << bit;
            assert_eq!(
                ept.entry(level, raw),
                Err(Malformed::Reserved(1 << bit)),
                "{level}"
            );
        }
    }
    let ignored = READ | WRITE_BACK | LARGE | 1 << 11 | 0xfff << 52;
    assert!(ept.entry(1, ignored).is_ok());
}

#[test]
fn sdm_25_6_11_an_ept_pointer_takes_two_types_and_four_or_five_levels() {
    let decode = |raw| EptPointer::decode(raw, 40);
    let four = decode(0x1000 | 3 << 3 | 6).unwrap();
    assert_eq!((four.root, four.levels), (Hpa(0x1000), 4));
    assert!(decode(0x1000 | 4 << 3 | 1 << 6).unwrap().accessed_dirty);
    for kind in [1, 2, 3, 4, 5, 7] {
        let found = decode(0x1000 | 3 << 3 | u64::from(kind));
        assert_eq!(found, Err(BadEptPointer::MemoryType(kind)));
    }
    for levels in [0, 1, 2, 5, 6, 7] {
        let found = decode(0x1000 | u64::from(levels) << 3 | 6);
        assert_eq!(found, Err(BadEptPointer::Levels(levels)));
    }
    for bit in [8, 11, 40, 63] {
        let found = decode(0x1000 | 3 << 3 | 6 | 1 << bit);
        assert_eq!(found, Err(BadEptPointer::Reserved(1 << bit)));
    }
}

/// The fault of an access to address 0 through one entry of level 4.
fn fault(ept: &Ept, entry: u64, access: Access) -> StageFault {
    let read = |at: Hpa| {
        Some(if at.0 < 0x2000 {
            entry
        } else {
            READ | LARGE | WRITE_BACK
        })
    };
    walk_stage(ept, Gpa(0), access, &read).result.unwrap_err()
}

fn qualification(ept: &Ept, entry: u64, access: Access) -> u64 {
    match fault(ept, entry, access).exit {
        StageExit::EptViolation(EptQualification(bits)) => bits,
        other => panic!("{other}"),
    }
}

#[test]
fn sdm_29_2_1_a_violation_reports_the_access_and_what_all_entries_allow() {
    let (ept, table) = (current(), 0x2000 | READ | EXECUTE);
    let fetch = Access::Final {
        operation: Operation::Execute,
        user: true,
    };
    // The page allows reads only.
    assert_eq!(qualification(&ept, table, Access::WRITE), 0x18a);
    assert_eq!(qualification(&ept, table, fetch), 0x18c);
    // Absent: nothing is allowed.
    assert_eq!(qualification(&ept, 0, Access::READ), 0x181);
    assert_eq!(qualification(&ept, 0, Access::Table), 0x081);
}

#[test]
fn sdm_29_3_3_2_with_accessed_and_dirty_bits_table_accesses_are_writes() {
    let mut ept = current();
    let readable = 0x2000 | READ;
    let read = |at: Hpa| {
        Some(if at.0 < 0x2000 {
            readable
        } else {
            READ | LARGE | WRITE_BACK
        })
    };
    assert!(
        walk_stage(&ept, Gpa(0), Access::Table, &read)
            .result
            .is_ok()
    );
    ept.pointer.accessed_dirty = true;
    assert_eq!(qualification(&ept, readable, Access::Table), 0x08b);
}

#[test]
fn sdm_29_2_1_bit_6_reports_user_fetches_with_mode_based_control_only() {
    let mut ept = current();
    ept.features.mode_based_execute = true;
    let fetch = |user| Access::Final {
        operation: Operation::Execute,
        user,
    };
    let leaf = |at: Hpa| {
        Some(if at.0 < 0x2000 {
            0x2000 | READ | EXECUTE | USER_EXECUTE
        } else {
            READ | USER_EXECUTE | LARGE | WRITE_BACK
        })
    };
    assert!(walk_stage(&ept, Gpa(0), fetch(true), &leaf).result.is_ok());
    let denied = walk_stage(&ept, Gpa(0), fetch(false), &leaf);
    let exit = StageExit::EptViolation(EptQualification(0x1cc));
    assert_eq!(denied.result.unwrap_err().exit, exit);
}

#[test]
fn sdm_29_3_3_1_a_malformed_entry_is_a_misconfiguration_not_a_violation() {
    let fault = fault(&current(), READ | 1 << 5, Access::READ);
    assert_eq!(fault.exit, StageExit::EptMisconfiguration);
    assert_eq!(
        (fault.level, fault.cause),
        (4, StageCause::Malformed(Malformed::Reserved(1 << 5)))
    );
}

fn entries() -> impl Strategy<Value = (u8, EptEntry)> {
    let bits = any::<[bool; 8]>();
    (1u8..=5, 0u64..1 << 28, bits, 0usize..5).prop_map(|(level, frame, bits, kind)| {
        let [
            write,
            execute,
            user,
            accessed,
            dirty,
            ignore_pat,
            page,
            read,
        ] = bits;
        let kinds = [0, 1, 4, 5, 6].map(|bits| MemoryType::from_bits(bits).unwrap());
        let page = level == 1 || (page && level < 4);
        let size = if page {
            1 << (12 + 9 * (u32::from(level) - 1))
        } else {
            4096
        };
        let rights = Rights {
            read: read || !(execute || user),
            write: write && read,
            execute,
            user_execute: user,
        };
        let target = if page {
            EptTarget::Page {
                memory_type: kinds[kind],
                ignore_pat,
                dirty,
            }
        } else {
            EptTarget::Table
        };
        let address = Hpa((frame << 12) & !(size - 1));
        let entry = EptEntry {
            rights,
            address,
            accessed,
            target,
        };
        (level, entry)
    })
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded((level, entry) in entries()) {
        let ept = ept(EptFeatures { mode_based_execute: true, ..EptFeatures::current(40) });
        prop_assert_eq!(ept.entry(level, ept.encode(level, &entry)), Ok(Some(entry)));
    }

    #[test]
    fn what_is_decoded_encodes_to_the_bits_that_count(level in 1u8..=5, raw: u64) {
        let ept = ept(EptFeatures { mode_based_execute: true, ..EptFeatures::current(52) });
        if let Ok(Some(entry)) = ept.entry(level, raw) {
            let table = entry.target == EptTarget::Table;
            let ignored = 0xfff << 52 | 1 << 11
                | if table { DIRTY } else { 0 }
                | if level == 1 { LARGE } else { 0 };
            prop_assert_eq!(ept.encode(level, &entry), raw & !ignored);
        }
    }

    #[test]
    fn pointers_encode_what_they_decode(raw: u64) {
        if let Ok(pointer) = EptPointer::decode(raw, 52) {
            prop_assert_eq!(pointer.encode(), raw);
        }
    }
}
