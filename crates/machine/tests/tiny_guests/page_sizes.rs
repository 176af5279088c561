//! Rows: the pages that the second stage uses, as KVM counts them.
//!
//! Each guest touches one byte in every 4 KiB of a range that lies in a memory slot of its own.
//! Where KVM runs without EPT or NPT, its counts are those of shadow tables, which follow the
//! guest's own pages too; the guests map the range in pages as large as the test is about.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
};

use vmlet_memory::{AddressSpace, Backing, Gpa, HugePool, Mapping, PageLimit, Ram, RegionKind};
use vmlet_vcpu::{SlotChange, x86_64::Regs};

use crate::harness::{
    DATA, Guest, MMIO, Place, each,
    guest::Options,
    paging::{ALL, Tables},
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Where the range lies, guest-physical.
const RANGE: u64 = GIB;
/// Room for page tables in the standard memory.
const OWN_TABLES: u64 = 0x18_0000;

/// Held by a test that uses the host's pools of huge pages, or that counts: for a page of the pool
/// the host moves others away, which unmaps them.
static POOLS: Mutex<()> = Mutex::new(());

fn undisturbed(test: impl Fn(&Place)) {
    let _guard = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    each(test);
}

/// Pages of 1 GiB, 2 MiB and 4 KiB that the engine has mapped; none where it does not count.
fn counts(guest: &Guest) -> Option<[u64; 3]> {
    let stats = guest.vm.stats().unwrap();
    let count = |name| {
        let found = stats.iter().find(|stat| stat.name == name);
        found.map(|stat| stat.values[0])
    };
    let [large, middle, small] = ["pages_1g", "pages_2m", "pages_4k"].map(count);
    Some([large?, middle?, small?])
}

/// A guest with `mapping` besides its standard memory.
fn guest_with(place: &Place, mapping: Mapping) -> Guest {
    Guest::with(
        place,
        Options {
            more: vec![mapping],
            ..Options::default()
        },
    )
}

/// `len` bytes at [`RANGE`], from `offset` of fresh anonymous memory on.
fn anonymous(offset: u64, len: u64) -> Mapping {
    let ram = Ram::new(offset + len, Backing::Anon).unwrap();
    let gpa = Gpa(RANGE);
    Mapping {
        offset,
        len,
        ..Mapping::ram(gpa, ram)
    }
}

/// Has the guest write a byte in every page of `len` bytes of the range.
fn touch(guest: &mut Guest, len: u64) {
    touch_from(guest, RANGE, len);
}

fn touch_from(guest: &mut Guest, first: u64, len: u64) {
    let mut tables = Tables::new(&guest.memory, OWN_TABLES);
    for page in (0..4 * MIB).step_by(0x20_0000) {
        tables.large(page, page, ALL);
    }
    for page in (0..8 * MIB).step_by(0x20_0000) {
        tables.large(RANGE + page, RANGE + page, ALL);
    }
    tables.large(MMIO, MMIO, ALL);
    let root = tables.root;
    guest.enter_user();
    guest.change_sregs(|sregs| sregs.cr3 = root);
    let code = guest!(
        "2:",
        "mov byte ptr [rbx], 1",
        "add rbx, 0x1000",
        "dec rcx",
        "jnz 2b",
        "mov eax, 0xd0001000",
        "mov [rax], eax"
    );
    let regs = Regs {
        rbx: first,
        rcx: len / 0x1000,
        ..Regs::default()
    };
    guest.load_with(code, regs);
    guest.finish();
}

/// What the guest's touching of the range adds to the engine's counts. Code, tables and stack are
/// mapped before the first count.
fn added(guest: &mut Guest, len: u64) -> Option<[u64; 3]> {
    touch_from(guest, DATA, 0x1000);
    let before = counts(guest)?;
    touch(guest, len);
    let after = counts(guest)?;
    Some(std::array::from_fn(|size| {
        after[size].saturating_sub(before[size])
    }))
}

/// Hands the slots of `space` to the engine again, after their flags changed.
fn update(guest: &Guest) {
    for slot in guest.memory.slots() {
        guest.vm.change_slot(SlotChange::Set(&slot)).unwrap();
    }
}

/// The plan for the range's slot.
fn plan(space: &AddressSpace) -> ([u64; 3], PageLimit) {
    let plans = space.page_plans();
    let found = plans.iter().find(|plan| plan.slot.gpa.0 == RANGE);
    let found = found.unwrap();
    (found.pages, found.limit)
}

/// Whether the host backs this memory with transparent huge pages.
fn host_has_huge_pages() -> bool {
    let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    setting.is_ok_and(|text| !text.contains("[never]"))
}

#[test]
fn an_aligned_slot_is_mapped_in_two_mebibyte_pages() {
    undisturbed(|place| {
        let len = 8 * MIB;
        let mut guest = guest_with(place, anonymous(0, len));
        assert_eq!(plan(&guest.memory), ([0, 4, 0], PageLimit::Backing));
        let Some([large, middle, small]) = added(&mut guest, len) else {
            return;
        };
        assert_eq!(large, 0);
        if place.native() && host_has_huge_pages() {
            assert_eq!(middle, 4, "and {small} small pages");
        } else {
            assert!(middle <= 4);
        }
    });
}

#[test]
fn a_slot_whose_host_address_is_one_page_off_is_mapped_in_small_pages() {
    undisturbed(|place| {
        let len = 8 * MIB;
        let mut guest = guest_with(place, anonymous(0x1000, len));
        assert_eq!(plan(&guest.memory), ([0, 0, 2048], PageLimit::Misaligned));
        let Some([large, middle, small]) = added(&mut guest, len) else {
            return;
        };
        assert_eq!((large, middle), (0, 0));
        assert!(small >= 2048, "{small}");
    });
}

#[test]
fn a_logged_slot_is_mapped_in_small_pages() {
    undisturbed(|place| {
        let len = 8 * MIB;
        let mut guest = guest_with(place, anonymous(0, len));
        guest.memory.set_dirty_logging(true).unwrap();
        update(&guest);
        assert_eq!(plan(&guest.memory), ([0, 0, 2048], PageLimit::DirtyLog));
        let Some([large, middle, small]) = added(&mut guest, len) else {
            return;
        };
        assert_eq!((large, middle), (0, 0));
        assert!(small >= 2048, "{small}");
    });
}

#[test]
fn logging_splits_large_pages_that_are_mapped_already() {
    undisturbed(|place| {
        let len = 8 * MIB;
        let mut guest = guest_with(place, anonymous(0, len));
        touch(&mut guest, len);
        guest.memory.set_dirty_logging(true).unwrap();
        update(&guest);
        touch(&mut guest, len);
        let Some([large, middle, small]) = counts(&guest) else {
            return;
        };
        assert_eq!((large, middle), (0, 0));
        assert!(small >= 2048, "{small}");
    });
}

#[test]
fn a_slot_that_ends_inside_a_page_is_cut_to_small_pages_there() {
    undisturbed(|place| {
        let len = 3 * MIB;
        let mut guest = guest_with(place, anonymous(0, len));
        assert_eq!(plan(&guest.memory).0, [0, 1, 256]);
        let Some([_, middle, small]) = added(&mut guest, len) else {
            return;
        };
        assert!(middle <= 1);
        assert!(small >= 256, "{small}");
        if place.native() && host_has_huge_pages() {
            assert_eq!(middle, 1);
        }
    });
}

/// Runs `test` with a page of 1 GiB of the host's pool, one test at a time. With
/// `VMLET_REQUIRE=hugetlb` the pool is enlarged for it, which takes root, and a page that cannot be
/// had is a failure.
fn with_gibibyte_page(test: impl Fn(&Place, Arc<Ram>)) {
    let _guard = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    let list = std::env::var("VMLET_REQUIRE").unwrap_or_default();
    let required = list.split([',', ' ']).any(|need| need == "hugetlb");
    let pool = HugePool::of(GIB);
    if let (true, Ok(pool)) = (required, &pool) {
        // A gibibyte in one piece is easier to find without the page cache.
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        fs::write(pool.control(), format!("{}", pool.total + 1)).unwrap();
    }
    match Ram::new(GIB, Backing::HugeTlb { page_size: GIB }) {
        Ok(ram) => each(|place| test(place, Arc::clone(&ram))),
        Err(error) => {
            assert!(!required, "hugetlb is required here: {error}");
            eprintln!("SKIPPED 1 GiB pages: {error}");
        }
    }
    if let (true, Ok(pool)) = (required, pool) {
        fs::write(pool.control(), format!("{}", pool.total)).unwrap();
    }
}

#[test]
fn an_aligned_slot_of_a_gibibyte_page_is_one_page() {
    with_gibibyte_page(|place, ram| {
        let mut guest = guest_with(place, Mapping::ram(Gpa(RANGE), ram));
        assert_eq!(plan(&guest.memory), ([1, 0, 0], PageLimit::None));
        let Some([large, middle, _]) = added(&mut guest, 8 * MIB) else {
            return;
        };
        if place.native() {
            assert_eq!((large, middle), (1, 0));
        }
    });
}

#[test]
fn a_gibibyte_page_two_mebibytes_off_is_mapped_in_two_mebibyte_pages() {
    with_gibibyte_page(|place, ram| {
        let mapping = Mapping {
            gpa: Gpa(RANGE),
            len: 8 * MIB,
            ram,
            offset: 2 * MIB,
            readonly: false,
            kind: RegionKind::Ram,
        };
        let mut guest = guest_with(place, mapping);
        assert_eq!(plan(&guest.memory), ([0, 4, 0], PageLimit::Misaligned));
        let Some([large, middle, _]) = added(&mut guest, 8 * MIB) else {
            return;
        };
        if place.native() {
            assert_eq!((large, middle), (0, 4));
        }
    });
}

#[test]
fn a_pool_without_room_refuses_with_its_numbers() {
    let _guard = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    for pool in HugePool::all() {
        let page_size = pool.page_size;
        let pages = pool.available() + 1;
        let refused = Ram::new(pages * page_size, Backing::HugeTlb { page_size });
        let text = refused.unwrap_err().to_string();
        let control = format!("Write {} to {}", pool.total + 1, pool.control().display());
        assert!(text.contains(&control), "{text}");
    }
}
