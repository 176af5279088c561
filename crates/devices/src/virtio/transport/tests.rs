//! Clauses of virtio 1.2, sections 2.1 to 2.4, 3.1 and 4.1.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use vmlet_bus::{Doorbell, Doorbells, IrqLine, Msi, MsiRoute, MsiSink, RequesterId};
use vmlet_pci::{Bdf, Function, Links, MsiVector, Msix};
use vmm_sys_util::eventfd::EventFd;

use super::{VirtioPci, layout};
use crate::{
    testing::Nobody,
    virtio::{
        Place,
        rng::{Rng, SeededEntropy},
        testing::{BUFFERS, Driver, dma, readable, writable},
    },
};

const STATUS: u64 = 0x14;
const ALL_OK: u8 = 1 | 2 | 4 | 8;
const NEEDS_RESET: u8 = 0x40;

/// Counts messages, and holds the line.
#[derive(Debug, Default)]
struct Board {
    sent: Arc<AtomicUsize>,
    line: AtomicBool,
    hung: Mutex<Vec<Doorbell>>,
}

#[derive(Debug)]
struct Route(Arc<AtomicUsize>, AtomicBool);

impl MsiRoute for Route {
    fn set(&self, msi: Option<Msi>) {
        self.1.store(msi.is_some(), Ordering::SeqCst);
    }

    fn trigger(&self) {
        if self.1.load(Ordering::SeqCst) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn eventfd(&self) -> io::Result<EventFd> {
        EventFd::new(0)
    }
}

impl MsiSink for Board {
    fn send(&self, _: RequesterId, _: Msi) {}

    fn level_pins(&self, _: RequesterId, _: &[Option<Msi>]) {}

    fn route(&self, _: RequesterId) -> Arc<dyn MsiRoute> {
        Arc::new(Route(Arc::clone(&self.sent), AtomicBool::new(false)))
    }
}

impl IrqLine for Board {
    fn set(&self, high: bool) {
        self.line.store(high, Ordering::SeqCst);
    }
}

impl Doorbells for Board {
    fn attach(&self, bell: &Doorbell, _: &EventFd) -> io::Result<()> {
        self.hung.lock().unwrap().push(*bell);
        Ok(())
    }

    fn detach(&self, bell: &Doorbell, _: &EventFd) {
        self.hung.lock().unwrap().retain(|hung| hung != bell);
    }
}

/// An entropy device on a board without MSI-X switched on, and its driver.
struct Bench {
    function: Arc<VirtioPci>,
    board: Arc<Board>,
    driver: Driver,
}

impl Bench {
    fn new() -> Bench {
        let driver = Driver::new(&dma(), 0x1000, 64);
        let board = Arc::<Board>::default();
        let device = Arc::new(Rng::new(Box::new(SeededEntropy::default())));
        let function = VirtioPci::new(device, Place::Guest);
        let sink: Arc<dyn MsiSink> = Arc::<Board>::clone(&board);
        function.connect(Links {
            bdf: Bdf::new(0, 1, 0),
            dma: driver.dma.clone(),
            msi: Arc::new(MsiVector::new(Arc::clone(&sink), RequesterId(8))),
            msix: Arc::new(Msix::new(2, sink, RequesterId(8))),
            intx: Arc::<Board>::clone(&board),
            doorbells: Arc::<Board>::clone(&board),
            capabilities: vec![0x50, 0x60, 0x74, 0x84, 0x94],
        });
        Bench {
            function,
            board,
            driver,
        }
    }

    fn put(&self, offset: u64, bytes: &[u8]) {
        self.function.write_bar(&Nobody, layout::BAR, offset, bytes);
    }

    fn get<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0xee; N];
        self.function
            .read_bar(&Nobody, layout::BAR, offset, &mut bytes);
        bytes
    }

    fn status(&self) -> u8 {
        self.get::<1>(STATUS)[0]
    }

    fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.put(0, &select.to_le_bytes());
            u64::from(u32::from_le_bytes(self.get(4)))
        };
        half(0) | half(1) << 32
    }

    fn accept(&self, features: u64) {
        for select in 0..2u32 {
            self.put(8, &select.to_le_bytes());
            self.put(0xc, &features.to_le_bytes()[select as usize * 4..][..4]);
        }
    }

    /// Up to FEATURES_OK with all that is offered.
    fn negotiate(&self) {
        self.put(STATUS, &[1]);
        self.put(STATUS, &[1 | 2]);
        self.accept(self.offered() & !(1 << 29));
        self.put(STATUS, &[1 | 2 | 8]);
    }

    fn configure(&self) {
        self.put(0x16, &[0, 0]);
        self.put(0x20, &self.driver.state.desc.to_le_bytes());
        self.put(0x28, &self.driver.state.avail.to_le_bytes());
        self.put(0x30, &self.driver.state.used.to_le_bytes());
        self.put(0x1c, &[1, 0]);
    }

    fn start(&self) {
        self.negotiate();
        self.configure();
        self.put(STATUS, &[ALL_OK]);
    }

    fn ring(&self) {
        self.put(layout::NOTIFY.start, &[0, 0]);
    }
}

#[test]
fn a_driver_that_follows_3_1_1_gets_its_buffers_used() {
    let bench = Bench::new();
    bench.start();
    assert_eq!(bench.status(), ALL_OK);
    bench.driver.send(&[writable(BUFFERS, 16)]);
    bench.ring();
    assert_eq!(bench.driver.used_index(), 1);
    assert_eq!(bench.driver.used(0), (0, 16));
    assert_ne!(bench.driver.read::<16>(BUFFERS), [0; 16]);
}

#[test]
fn virtio_2_1_2_nothing_is_consumed_before_driver_ok() {
    let bench = Bench::new();
    bench.negotiate();
    bench.configure();
    bench.driver.send(&[writable(BUFFERS, 16)]);
    bench.ring();
    assert_eq!(bench.driver.used_index(), 0);
    bench.put(STATUS, &[ALL_OK]);
    assert_eq!(bench.driver.used_index(), 1);
}

#[test]
fn virtio_2_1_2_a_broken_queue_sets_needs_reset_and_notifies_the_driver() {
    let bench = Bench::new();
    bench.start();
    bench.driver.send(&[readable(BUFFERS, 16)]);
    bench.ring();
    assert_eq!(bench.status(), ALL_OK | NEEDS_RESET);
    assert!(bench.board.line.load(Ordering::SeqCst));
    assert_eq!(bench.get::<1>(layout::ISR.start), [2]);
    bench.put(STATUS, &[0]);
    assert_eq!(bench.status(), 0);
    bench.driver.claim(0);
    bench.start();
    assert_eq!(bench.status(), ALL_OK, "a reset mends it");
}

#[test]
fn virtio_2_2_2_features_that_are_not_offered_are_refused() {
    let bench = Bench::new();
    bench.put(STATUS, &[1 | 2]);
    bench.accept(bench.offered() | 1);
    bench.put(STATUS, &[1 | 2 | 8]);
    assert_eq!(bench.status(), 1 | 2);
    bench.put(STATUS, &[ALL_OK]);
    assert_eq!(bench.status() & 4, 0, "and DRIVER_OK with them");
}

#[test]
fn virtio_6_2_a_driver_without_version_1_is_refused() {
    let bench = Bench::new();
    bench.put(STATUS, &[1 | 2]);
    bench.accept(0);
    bench.put(STATUS, &[1 | 2 | 8]);
    assert_eq!(bench.status(), 1 | 2);
}

#[test]
fn virtio_3_1_1_features_are_settled_once_features_ok_is_set() {
    let bench = Bench::new();
    bench.negotiate();
    bench.accept(0);
    bench.put(8, &[0; 4]);
    assert_ne!(bench.get::<4>(0xc), [0; 4]);
}

#[test]
fn virtio_2_4_1_status_is_0_after_reset_and_queues_are_forgotten() {
    let bench = Bench::new();
    bench.start();
    bench.put(STATUS, &[0]);
    assert_eq!(bench.status(), 0);
    assert_eq!(bench.get::<2>(0x1c), [0, 0]);
    assert_eq!(bench.get::<8>(0x20), [0; 8]);
    bench.driver.send(&[writable(BUFFERS, 16)]);
    bench.ring();
    assert_eq!(bench.driver.used_index(), 0);
}

#[test]
fn virtio_4_1_2_ids_are_those_of_a_modern_device() {
    let layout = Bench::new().function.layout();
    assert_eq!((layout.vendor, layout.device), (0x1af4, 0x1044));
    assert!(layout.revision >= 1 && layout.subsystem >= 0x40);
    assert!(layout.check("virtio-rng").is_ok());
}

#[test]
fn virtio_4_1_4_every_structure_has_a_capability_in_the_bar() {
    let layout = Bench::new().function.layout();
    let kinds: Vec<u8> = layout.capabilities.iter().map(|c| c.body[1]).collect();
    assert_eq!(kinds, [1, 2, 3, 4, 5]);
    for capability in &layout.capabilities[..4] {
        let word = |at: usize| u32::from_le_bytes(capability.body[at..at + 4].try_into().unwrap());
        let (offset, len) = (word(6), word(10));
        assert_eq!(usize::from(capability.body[0]), capability.body.len() + 2);
        assert!(u64::from(offset) + u64::from(len) <= layout.bars[0].size);
        assert!(offset.is_multiple_of(4));
    }
}

#[test]
fn virtio_4_1_4_3_1_a_queue_that_is_not_there_has_size_0() {
    let bench = Bench::new();
    assert_eq!(bench.get::<2>(0x12), [1, 0]);
    assert_eq!(bench.get::<2>(0x18), [64, 0]);
    bench.put(0x16, &[1, 0]);
    assert_eq!(bench.get::<2>(0x18), [0, 0]);
    bench.put(0x18, &[8, 0]);
    bench.put(0x1c, &[1, 0]);
    assert_eq!(bench.get::<2>(0x1c), [0, 0]);
}

#[test]
fn virtio_4_1_4_3_1_other_feature_words_read_as_0() {
    let bench = Bench::new();
    bench.put(0, &2u32.to_le_bytes());
    assert_eq!(bench.get::<4>(4), [0; 4]);
}

#[test]
fn virtio_4_1_4_3_1_a_size_that_cannot_be_changes_nothing() {
    let bench = Bench::new();
    for size in [0u16, 3, 128, 0xffff] {
        bench.put(0x18, &size.to_le_bytes());
        assert_eq!(bench.get::<2>(0x18), [64, 0]);
    }
    bench.put(0x18, &[16, 0]);
    assert_eq!(bench.get::<2>(0x18), [16, 0]);
}

#[test]
fn queue_configuration_is_frozen_once_enabled() {
    let bench = Bench::new();
    bench.start();
    let before: [u8; 0x30] = bench.get(0x10);
    bench.put(0x18, &[8, 0]);
    bench.put(0x20, &0x7000u64.to_le_bytes());
    bench.put(0x28, &[0; 4]);
    bench.put(0x1c, &[0, 0]);
    assert_eq!(bench.get::<0x30>(0x10), before);
    bench.driver.send(&[writable(BUFFERS, 16)]);
    bench.ring();
    assert_eq!(bench.driver.used_index(), 1);
}

#[test]
fn virtio_4_1_4_5_1_without_msix_the_isr_byte_says_queue_and_reading_clears_it() {
    let bench = Bench::new();
    bench.start();
    bench.driver.send(&[writable(BUFFERS, 16)]);
    bench.ring();
    assert!(bench.board.line.load(Ordering::SeqCst));
    assert_eq!(bench.get::<1>(layout::ISR.start), [1]);
    assert!(!bench.board.line.load(Ordering::SeqCst));
    assert_eq!(bench.get::<1>(layout::ISR.start), [0]);
}

#[test]
fn virtio_4_1_5_1_2_1_a_vector_that_does_not_exist_reads_back_as_none() {
    let bench = Bench::new();
    for (field, vector, expected) in [
        (0x10, 1u16, 1u16),
        (0x10, 2, 0xffff),
        (0x1a, 0, 0),
        (0x1a, 700, 0xffff),
    ] {
        bench.put(field, &vector.to_le_bytes());
        assert_eq!(bench.get::<2>(field), expected.to_le_bytes());
    }
}

#[test]
fn virtio_4_1_4_9_the_window_reaches_registers_through_config_space() {
    let bench = Bench::new();
    let window = |offset: u32, len: u32| {
        bench.function.write_config(0x94 + 4, &[layout::BAR]);
        bench.function.write_config(0x94 + 8, &offset.to_le_bytes());
        bench.function.write_config(0x94 + 12, &len.to_le_bytes());
    };
    window(0x14, 1);
    assert!(bench.function.write_config(0x94 + 16, &[1]));
    assert_eq!(bench.status(), 1);
    window(0x12, 2);
    let mut data = [0; 2];
    assert!(bench.function.read_config(0x94 + 16, &mut data));
    assert_eq!(data, [1, 0]);
    window(0x13, 2);
    assert!(
        !bench.function.read_config(0x94 + 16, &mut data),
        "unaligned"
    );
    window(0x12, 3);
    assert!(!bench.function.read_config(0x94 + 16, &mut data));
}

#[test]
fn a_paused_device_uses_nothing_and_catches_up_when_resumed() {
    let bench = Bench::new();
    bench.start();
    bench.function.pause();
    bench.driver.send(&[writable(BUFFERS, 16)]);
    bench.ring();
    assert_eq!(bench.driver.used_index(), 0);
    bench.function.resume();
    assert_eq!(bench.driver.used_index(), 1);
}

#[test]
fn a_saved_device_goes_on_in_another_one() {
    let old = Bench::new();
    old.start();
    old.driver.send(&[writable(BUFFERS, 16)]);
    old.ring();
    old.function.pause();
    let saved = old.function.save().unwrap();
    let new = Bench::new();
    new.driver.write(new.driver.state.used + 2, &[1, 0]);
    new.function.restore(&saved).unwrap();
    assert_eq!(new.status(), ALL_OK);
    assert_eq!(new.get::<0x2c>(0x14), old.get::<0x2c>(0x14));
    for _ in 0..2 {
        new.driver.send(&[writable(BUFFERS, 16)]);
    }
    new.ring();
    assert_eq!(new.driver.used_index(), 1, "still paused");
    new.function.resume();
    assert_eq!(new.driver.used_index(), 2);
}

#[test]
fn damaged_states_change_nothing() {
    let bench = Bench::new();
    bench.start();
    let good = bench.function.save().unwrap();
    for (from, to) in [
        ("\"id\":4", "\"id\":2"),
        ("\"size\":64", "\"size\":65"),
        ("\"max_size\":64", "\"max_size\":128"),
        ("\"desc\":4096", "\"desc\":4097"),
        ("\"features\":", "\"features\":1"),
        ("\"queues\":[", "\"queues\":[{}"),
    ] {
        let mut bad = good.clone();
        bad.data = bad.data.replace(from, to);
        assert_ne!(bad.data, good.data, "{from}");
        assert!(bench.function.restore(&bad).is_err(), "{to}");
        assert_eq!(bench.status(), ALL_OK);
    }
}

#[test]
fn any_access_to_the_registers_is_harmless() {
    let bench = Bench::new();
    bench.start();
    let mut seed = 1u64;
    for _ in 0..20_000 {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let offset = (seed >> 33) % 0x4000;
        let bytes = seed.to_le_bytes();
        let len = [1, 2, 4, 8][(seed >> 20) as usize % 4];
        let offset = if seed & 1 == 0 { offset % 0x40 } else { offset };
        bench.put(offset, &bytes[..len]);
        bench.get::<8>(offset);
    }
}
