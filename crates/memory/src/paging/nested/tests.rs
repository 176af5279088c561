//! Tests of the two-dimensional walk.

use super::*;
use crate::{
    PAGE_SIZE,
    paging::{
        Ept, EptFeatures, EptPointer, MemoryType, Npt, PageAttributes, StageBuilder, StageCause,
        StageExit, TableMemory, TablePages,
    },
};

const ROOT: Hpa = Hpa(0x1_0000_0000);
/// Where the host keeps the guest's memory.
const GUEST: u64 = 0x4000_1000;
const LINEAR: u64 = 0x1234_5678;
const PAGE: u64 = 0x8000;

/// A guest of 64 KiB whose tables lie at 0x1000, 0x2000, 0x3000 and 0x4000, and whose linear page
/// leads to `PAGE`.
struct World {
    guest: Vec<u64>,
    tables: TablePages,
}

impl World {
    fn new(format: &dyn StageFormat) -> World {
        let mut tables = TablePages::new(ROOT, 64);
        tables.allocate();
        let mut world = World {
            guest: vec![0; 0x2000],
            tables,
        };
        for level in 1..=4u64 {
            let table = (5 - level) * 0x1000;
            let next = if level == 1 { PAGE } else { table + 0x1000 };
            let index = (LINEAR >> (12 + 9 * (level - 1))) & 511;
            world.guest[usize::try_from(table / 8 + index).unwrap()] = next | 7;
        }
        StageBuilder::new(format, &mut world.tables)
            .map(Gpa(0), 0x1_0000, Hpa(GUEST), PageAttributes::RAM)
            .unwrap();
        world
    }

    fn read(&self, at: Hpa) -> Option<u64> {
        match at.offset_from(Hpa(GUEST)).filter(|_| at < ROOT) {
            Some(offset) => self.guest.get(usize::try_from(offset / 8).ok()?).copied(),
            None => self.tables.load(at),
        }
    }

    fn walk(&self, format: &dyn StageFormat, access: Access) -> NestedWalk {
        walk_nested(&context(), format, LINEAR, access, &|at| self.read(at))
    }

    fn hole(&mut self, format: &dyn StageFormat, gpa: u64) {
        StageBuilder::new(format, &mut self.tables)
            .unmap(Gpa(gpa), PAGE_SIZE)
            .unwrap();
    }
}

fn context() -> PagingContext {
    PagingContext {
        cr0: 1 << 31,
        cr3: 0x1000,
        cr4: 1 << 5,
        efer: 1 << 10 | 1 << 11,
        physical_bits: 40,
        gibibyte_pages: true,
    }
}

fn ept() -> Ept {
    Ept {
        pointer: EptPointer {
            root: ROOT,
            levels: 4,
            memory_type: MemoryType::WriteBack,
            accessed_dirty: true,
            shadow_stack: false,
        },
        features: EptFeatures::current(40),
    }
}

#[test]
fn four_by_four_levels_take_twenty_four_reads() {
    let formats: [&dyn StageFormat; 2] = [&ept(), &Npt::current(ROOT, 40)];
    for format in formats {
        let world = World::new(format);
        let walk = world.walk(format, Access::READ);
        let found = walk.result.unwrap();
        assert_eq!(found.gpa, Gpa(PAGE + 0x678));
        assert_eq!(found.hpa, Hpa(GUEST + PAGE + 0x678));
        assert_eq!(found.page_size, PAGE_SIZE);
        assert_eq!(walk.reads(), 24);
        let gpas: Vec<u64> = walk.accesses.iter().map(|a| a.gpa.0 & !0xfff).collect();
        assert_eq!(gpas, [0x1000, 0x2000, 0x3000, 0x4000, PAGE]);
    }
}

#[test]
fn a_five_level_second_stage_takes_twenty_nine_reads() {
    let mut format = ept();
    format.pointer.levels = 5;
    let walk = World::new(&format).walk(&format, Access::READ);
    assert!(walk.result.is_ok());
    assert_eq!(walk.reads(), 29);
}

#[test]
fn a_hole_under_a_guest_table_is_an_exit_that_names_the_table() {
    let format = Npt::current(ROOT, 40);
    let mut world = World::new(&format);
    world.hole(&format, 0x3000);
    let walk = world.walk(&format, Access::READ);
    let Err(NestedFault::Stage { gpa, fault }) = walk.result else {
        panic!("{:?}", walk.result);
    };
    assert_eq!((gpa.0 & !0xfff, fault.cause), (0x3000, StageCause::Absent));
    let StageExit::NestedPageFault(info) = fault.exit else {
        panic!("{}", fault.exit);
    };
    assert_eq!(info.0, 1 << 33 | 0b110);
    assert_eq!(walk.guest.steps.len(), 2);
}

#[test]
fn a_hole_under_the_page_is_an_exit_with_the_final_address() {
    let format = ept();
    let mut world = World::new(&format);
    world.hole(&format, PAGE);
    let walk = world.walk(&format, Access::WRITE);
    let Err(NestedFault::Stage { gpa, fault }) = walk.result else {
        panic!("{:?}", walk.result);
    };
    assert_eq!(gpa, Gpa(PAGE + 0x678));
    assert_eq!(fault.exit.to_string(), "EPT violation, qualification 0x182");
}

#[test]
fn a_guest_entry_that_is_not_present_is_the_guests_own_fault() {
    let format = ept();
    let mut world = World::new(&format);
    world.guest[0x2000 / 8] = 0;
    let walk = world.walk(&format, Access::READ);
    let fault = WalkFault::NotPresent { level: 3 };
    assert_eq!(walk.result, Err(NestedFault::Guest(fault)));
}

#[test]
fn a_read_only_guest_table_faults_where_the_processor_writes_it() {
    let (npt, mut ept) = (Npt::current(ROOT, 40), ept());
    let protect = |format: &dyn StageFormat| {
        let mut world = World::new(format);
        StageBuilder::new(format, &mut world.tables)
            .log_writes(Gpa(0x1000), PAGE_SIZE)
            .unwrap();
        world.walk(format, Access::READ).result.is_err()
    };
    assert!(protect(&npt));
    assert!(protect(&ept));
    ept.pointer.accessed_dirty = false;
    assert!(!protect(&ept));
}
