//! Tests of the address space and its listeners.

use proptest::prelude::*;

use super::*;
use crate::{Backing, LeaseKind, Refusal};

#[derive(Debug, Default)]
struct Recorder {
    name: &'static str,
    refuse: bool,
    calls: Arc<Mutex<Vec<String>>>,
}

impl MapListener for Recorder {
    fn name(&self) -> &str {
        self.name
    }

    fn prepare(&self, change: &MapChange) -> Result<(), Refusal> {
        self.note("prepare", change);
        if self.refuse {
            Err(Refusal("not today".into()))
        } else {
            Ok(())
        }
    }

    fn commit(&self, change: &MapChange) {
        self.note("commit", change);
    }

    fn rollback(&self, change: &MapChange) {
        self.note("rollback", change);
    }
}

impl Recorder {
    fn note(&self, what: &str, change: &MapChange) {
        let (added, removed) = (change.added.len(), change.removed.len());
        self.calls
            .lock()
            .unwrap()
            .push(format!("{} {what} +{added} -{removed}", self.name));
    }
}

fn ram(len: u64) -> Arc<Ram> {
    Ram::new(len, Backing::Anon).unwrap()
}

fn space() -> AddressSpace {
    AddressSpace::new(16)
}

#[test]
fn neighbours_of_the_same_ram_share_a_slot() {
    let (space, ram) = (space(), ram(0x4000));
    let part = |gpa, offset| Mapping {
        len: 0x2000,
        offset,
        ..Mapping::ram(Gpa(gpa), Arc::clone(&ram))
    };
    space.map(vec![part(0x2000, 0x2000), part(0, 0)]).unwrap();
    assert_eq!(space.slots().len(), 1);
    assert_eq!(space.slots()[0].len, 0x4000);
}

#[test]
fn overlapping_mappings_are_refused_and_nothing_changes() {
    let space = space();
    space
        .map(vec![Mapping::ram(Gpa(0x1000), ram(0x3000))])
        .unwrap();
    for gpa in [0, 0x1000, 0x2000, 0x3000] {
        let error = space
            .map(vec![Mapping::ram(Gpa(gpa), ram(0x2000))])
            .unwrap_err();
        assert!(
            matches!(error, MemoryError::Overlap { other: 0x1000, .. }),
            "{gpa:#x}: {error}"
        );
    }
    assert_eq!(space.regions().len(), 1);
}

#[test]
fn ranges_that_wrap_around_are_refused() {
    let error = space()
        .map(vec![Mapping::ram(Gpa(!4095), ram(0x2000))])
        .unwrap_err();
    assert!(matches!(error, MemoryError::BadRange { .. }));
}

#[test]
fn accesses_cross_from_one_mapping_into_the_next() {
    let space = space();
    let maps = vec![
        Mapping::ram(Gpa(0), ram(0x1000)),
        Mapping::ram(Gpa(0x1000), ram(0x1000)),
    ];
    space.map(maps).unwrap();
    space.write(Gpa(0xffe), b"abcd").unwrap();
    let mut data = [0; 4];
    space.read(Gpa(0xffe), &mut data).unwrap();
    assert_eq!(&data, b"abcd");
}

#[test]
fn a_write_that_runs_into_a_hole_writes_nothing() {
    let space = space();
    space.map(vec![Mapping::ram(Gpa(0), ram(0x1000))]).unwrap();
    let error = space.write(Gpa(0xfff), b"ab").unwrap_err();
    assert!(matches!(error, MemoryError::NotMemory { gpa: 0x1000 }));
    let mut byte = [9];
    space.read(Gpa(0xfff), &mut byte).unwrap();
    assert_eq!(byte, [0]);
}

#[test]
fn read_only_memory_is_loaded_but_not_written() {
    let space = space();
    let rom = Mapping {
        readonly: true,
        kind: RegionKind::Rom,
        ..Mapping::ram(Gpa(0), ram(0x1000))
    };
    space.map(vec![rom]).unwrap();
    assert!(matches!(
        space.write(Gpa(4), b"x"),
        Err(MemoryError::ReadOnly { gpa: 4 })
    ));
    space.load(Gpa(4), b"x").unwrap();
}

#[test]
fn a_held_range_is_not_unmapped_and_the_holder_is_named() {
    let (space, ram) = (space(), ram(0x2000));
    space
        .map(vec![Mapping::ram(Gpa(0), Arc::clone(&ram))])
        .unwrap();
    let lease = ram
        .lease(LeaseKind::DmaMap, 0..4096, "0000:01:00.0".into())
        .unwrap();
    let error = space.unmap(Gpa(0), 0x2000).unwrap_err();
    assert!(error.to_string().contains("0000:01:00.0"), "{error}");
    drop(lease);
    space.unmap(Gpa(0), 0x2000).unwrap();
    assert!(space.slots().is_empty());
}

#[test]
fn listeners_prepare_in_order_and_commit_in_reverse() {
    let (space, calls) = (space(), Arc::new(Mutex::new(Vec::new())));
    for name in ["slots", "dma"] {
        let calls = Arc::clone(&calls);
        space
            .add_listener(Arc::new(Recorder {
                name,
                refuse: false,
                calls,
            }))
            .unwrap();
    }
    calls.lock().unwrap().clear();
    space.map(vec![Mapping::ram(Gpa(0), ram(0x1000))]).unwrap();
    let expected = [
        "slots prepare +1 -0",
        "dma prepare +1 -0",
        "dma commit +1 -0",
        "slots commit +1 -0",
    ];
    assert_eq!(*calls.lock().unwrap(), expected);
}

#[test]
fn one_refusal_rolls_the_others_back() {
    let (space, calls) = (space(), Arc::new(Mutex::new(Vec::new())));
    let recorder = |name, refuse| {
        Arc::new(Recorder {
            name,
            refuse,
            calls: Arc::clone(&calls),
        })
    };
    space.add_listener(recorder("slots", false)).unwrap();
    // A refusing listener is only let in while the map is empty and it has nothing to refuse.
    let mut listeners = space.lock();
    listeners.push(recorder("dma", true));
    drop(listeners);
    calls.lock().unwrap().clear();
    let error = space
        .map(vec![Mapping::ram(Gpa(0), ram(0x1000))])
        .unwrap_err();
    assert!(error.to_string().contains("not today"), "{error}");
    let expected = [
        "slots prepare +1 -0",
        "dma prepare +1 -0",
        "slots rollback +1 -0",
    ];
    assert_eq!(*calls.lock().unwrap(), expected);
    assert!(space.regions().is_empty());
}

#[test]
fn a_late_listener_hears_of_the_whole_map_or_stays_out() {
    let (space, calls) = (space(), Arc::new(Mutex::new(Vec::new())));
    space.map(vec![Mapping::ram(Gpa(0), ram(0x1000))]).unwrap();
    let refuse = Recorder {
        name: "dma",
        refuse: true,
        calls: Arc::clone(&calls),
    };
    assert!(space.add_listener(Arc::new(refuse)).is_err());
    let accept = Recorder {
        name: "dma",
        refuse: false,
        calls: Arc::clone(&calls),
    };
    space.add_listener(Arc::new(accept)).unwrap();
    let expected = ["dma prepare +1 -0", "dma prepare +1 -0", "dma commit +1 -0"];
    assert_eq!(*calls.lock().unwrap(), expected);
}

/// Notes the addresses of mappings that come and go.
#[derive(Debug, Default)]
struct Mapped(Mutex<Vec<(char, u64)>>);

impl MapListener for Mapped {
    fn name(&self) -> &'static str {
        "mapped"
    }

    fn prepare(&self, change: &MapChange) -> Result<(), Refusal> {
        let came = change.mapped.iter().map(|m| ('+', m.gpa.0));
        let gone = change.unmapped.iter().map(|m| ('-', m.gpa.0));
        self.0.lock().unwrap().extend(came.chain(gone));
        Ok(())
    }

    fn commit(&self, _: &MapChange) {}

    fn rollback(&self, _: &MapChange) {}
}

#[test]
fn a_change_names_the_mappings_that_come_and_go_where_slots_join_them() {
    let (space, ram) = (space(), ram(0x4000));
    let part = |gpa, offset| Mapping {
        len: 0x2000,
        offset,
        ..Mapping::ram(Gpa(gpa), Arc::clone(&ram))
    };
    space.map(vec![part(0, 0)]).unwrap();
    let heard = Arc::new(Mapped::default());
    let listener = Arc::clone(&heard) as Arc<dyn MapListener>;
    space.add_listener(Arc::clone(&listener)).unwrap();
    space.map(vec![part(0x2000, 0x2000)]).unwrap();
    space.set_dirty_logging(true).unwrap();
    space.unmap(Gpa(0), 0x2000).unwrap();
    space.remove_listener(&listener);
    space.unmap(Gpa(0x2000), 0x2000).unwrap();
    let told = heard.0.lock().unwrap().clone();
    assert_eq!(told, [('+', 0), ('+', 0x2000), ('-', 0)]);
}

#[test]
fn more_slots_than_the_engine_takes_are_refused() {
    let space = AddressSpace::new(1);
    let maps = vec![
        Mapping::ram(Gpa(0), ram(0x1000)),
        Mapping::ram(Gpa(0x8000), ram(0x1000)),
    ];
    assert!(matches!(
        space.map(maps),
        Err(MemoryError::TooManySlots { needed: 2, max: 1 })
    ));
}

#[test]
fn dirty_extents_join_the_guests_log_and_our_writes() {
    let space = space();
    space
        .map(vec![Mapping::ram(Gpa(0x10_0000), ram(0x10_000))])
        .unwrap();
    space.set_dirty_logging(true).unwrap();
    space.write(Gpa(0x10_1000), b"x").unwrap();
    let found = space.collect_dirty(&mut |_, pages| {
        assert_eq!(pages, 16);
        Ok(vec![0b1001])
    });
    let extent = |gpa, len| Extent { gpa: Gpa(gpa), len };
    assert_eq!(
        found.unwrap(),
        [extent(0x10_0000, 0x2000), extent(0x10_3000, 0x1000)]
    );
}

#[test]
fn switching_the_dirty_log_changes_flags_and_keeps_slots() {
    let space = space();
    space.map(vec![Mapping::ram(Gpa(0), ram(0x1000))]).unwrap();
    let before = space.slots()[0];
    space.set_dirty_logging(true).unwrap();
    assert_eq!(
        space.slots(),
        [Memslot {
            log_dirty: true,
            ..before
        }]
    );
}

proptest! {
    #[test]
    fn every_mapped_byte_lies_in_exactly_one_slot(pages in proptest::collection::btree_set(0u64..64, 1..32)) {
        let space = AddressSpace::new(64);
        let ram = ram(64 * PAGE_SIZE);
        for page in &pages {
            let mapping = Mapping { len: PAGE_SIZE, offset: page * PAGE_SIZE, ..Mapping::ram(Gpa(page * PAGE_SIZE), Arc::clone(&ram)) };
            space.map(vec![mapping]).unwrap();
        }
        let slots = space.slots();
        for page in 0..64 {
            let gpa = page * PAGE_SIZE;
            let holding = slots.iter().filter(|s| s.gpa.0 <= gpa && gpa < s.gpa.0 + s.len).collect::<Vec<_>>();
            prop_assert_eq!(holding.len(), usize::from(pages.contains(&page)));
            for slot in holding {
                prop_assert_eq!(slot.hva.0 - slot.gpa.0, ram.hva().0);
            }
        }
        let mut ids: Vec<_> = slots.iter().map(|s| s.id).collect();
        ids.dedup();
        prop_assert_eq!(ids.len(), slots.len());
    }
}
