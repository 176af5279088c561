//! Clauses of virtio 1.2, section 5.5.

use std::sync::{Arc, atomic::Ordering};

use vmlet_memory::PAGE_SIZE;

use super::{
    Balloon, BalloonOptions, Statistic,
    device::{DEFLATE, FREE_PAGE_HINT, HINTS, INFLATE, PAGE_REPORTING, REPORTS, STATS, STATS_VQ},
};
use crate::virtio::{
    Activation, VirtioDevice, features,
    testing::{BUFFERS, Driver, Heard, dma, readable, writable},
};

/// A balloon, the drivers' sides of its queues, and what it says.
struct Bench {
    balloon: Balloon,
    queues: Vec<Driver>,
    heard: Arc<Heard>,
}

impl Bench {
    fn new(bits: u64) -> Bench {
        let (dma, heard) = (dma(), Arc::<Heard>::default());
        let queues: Vec<_> = (0..5)
            .map(|queue| Driver::new(&dma, 0x1000 + queue * 0x1_0000, 16))
            .collect();
        let balloon = Balloon::new(BalloonOptions::default());
        balloon.activate(Activation {
            features: bits | features::VERSION_1,
            queues: queues.iter().map(|driver| driver.queue(&heard)).collect(),
            interrupt: Arc::<Heard>::clone(&heard),
            dma,
        });
        Bench {
            balloon,
            queues,
            heard,
        }
    }

    fn driver(&self, queue: u16) -> &Driver {
        &self.queues[usize::from(queue)]
    }

    /// Sends the numbers of pages.
    fn pages(&self, queue: u16, numbers: &[u32]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let driver = self.driver(queue);
        driver.write(BUFFERS, &bytes);
        driver.send(&[readable(BUFFERS, u32::try_from(bytes.len()).unwrap())]);
        self.balloon.queue_ready(queue);
    }

    fn fill(&self, page: u64) {
        self.driver(0).write(page * PAGE_SIZE, &[7; 4096]);
    }

    fn first(&self, page: u64) -> u8 {
        self.driver(0).read::<1>(page * PAGE_SIZE)[0]
    }

    fn config(&self) -> [u32; 2] {
        let mut bytes = [0; 8];
        self.balloon.read_config(0, &mut bytes);
        [0, 4].map(|at| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()))
    }
}

#[test]
fn virtio_5_5_6_a_target_is_told_and_the_size_is_taken() {
    let bench = Bench::new(0);
    bench.balloon.set_target(10 * PAGE_SIZE + 1);
    assert_eq!(bench.heard.config.load(Ordering::SeqCst), 1);
    bench.balloon.write_config(4, &6u32.to_le_bytes());
    assert_eq!(bench.config(), [10, 6]);
    let state = bench.balloon.state();
    assert_eq!((state.target, state.actual), (10 << 12, 6 << 12));
}

#[test]
fn virtio_5_5_6_1_inflated_pages_are_zero_and_others_stay() {
    let bench = Bench::new(0);
    (600..=603).for_each(|page| bench.fill(page));
    bench.pages(INFLATE, &[602, 600, 601]);
    assert_eq!(
        [600, 601, 602, 603].map(|page| bench.first(page)),
        [0, 0, 0, 7]
    );
    assert_eq!(bench.driver(INFLATE).used(0), (0, 0));
    assert_eq!(bench.balloon.state().given_back, 3 * PAGE_SIZE);
}

#[test]
fn virtio_5_5_6_1_pages_outside_memory_are_kept_and_harm_nobody() {
    let bench = Bench::new(0);
    bench.pages(INFLATE, &[u32::MAX, 0x9_0000, 600]);
    let state = bench.balloon.state();
    assert_eq!((state.given_back, state.kept), (PAGE_SIZE, 2 * PAGE_SIZE));
    assert_eq!(bench.heard.reset.load(Ordering::SeqCst), 0);
}

#[test]
fn virtio_5_5_6_1_half_a_page_number_breaks_the_queue() {
    let bench = Bench::new(0);
    bench.driver(INFLATE).send(&[readable(BUFFERS, 6)]);
    bench.balloon.queue_ready(INFLATE);
    assert_eq!(bench.heard.reset.load(Ordering::SeqCst), 1);
}

#[test]
fn virtio_5_5_6_1_deflated_pages_are_acknowledged() {
    let bench = Bench::new(0);
    bench.fill(600);
    bench.pages(DEFLATE, &[600]);
    assert_eq!(bench.driver(DEFLATE).used_index(), 1);
    assert_eq!(bench.first(600), 7);
}

#[test]
fn virtio_5_5_6_3_statistics_come_when_asked_for() {
    let bench = Bench::new(STATS_VQ);
    let driver = bench.driver(STATS);
    let send = |free: u64| {
        let mut bytes = 4u16.to_le_bytes().to_vec();
        bytes.extend(free.to_le_bytes());
        bytes.extend([0xff; 10]);
        driver.write(BUFFERS, &bytes);
        driver.send(&[readable(BUFFERS, 20)]);
        bench.balloon.queue_ready(STATS);
    };
    assert!(!bench.balloon.ask_statistics());
    send(100);
    assert_eq!(driver.used_index(), 0);
    assert!(bench.balloon.ask_statistics());
    assert!(!bench.balloon.ask_statistics());
    assert_eq!(driver.used_index(), 1);
    send(200);
    let found = bench.balloon.statistics();
    assert_eq!(
        (found.number, found.figures),
        (2, vec![(Statistic::FreeMemory, 200)])
    );
}

#[test]
fn virtio_5_5_6_3_2_unknown_figures_are_ignored_and_others_come_in_any_order() {
    let bench = Bench::new(STATS_VQ);
    let driver = bench.driver(STATS);
    let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    let bytes = [
        entry(6, 1),
        entry(999, 2),
        entry(0, 3),
        entry(10, 4),
        vec![5; 7],
    ]
    .concat();
    driver.write(BUFFERS, &bytes);
    driver.send(&[readable(BUFFERS, u32::try_from(bytes.len()).unwrap())]);
    bench.balloon.queue_ready(STATS);
    assert_eq!(
        bench.balloon.statistics().figures,
        vec![(Statistic::AvailableMemory, 1), (Statistic::SwapIn, 3)]
    );
}

#[test]
fn virtio_5_5_6_5_2_pages_that_are_hinted_without_being_asked_for_are_left_alone() {
    let bench = Bench::new(FREE_PAGE_HINT);
    bench.fill(600);
    let driver = bench.driver(HINTS);
    driver.write(BUFFERS, &7u32.to_le_bytes());
    driver.send(&[readable(BUFFERS, 4)]);
    driver.send(&[writable(600 * PAGE_SIZE, 4096)]);
    bench.balloon.queue_ready(HINTS);
    assert_eq!((bench.first(600), driver.used_index()), (7, 2));
    // The command stays at "stop".
    let mut command = [9; 4];
    bench.balloon.read_config(8, &mut command);
    assert_eq!(command, [0; 4]);
}

#[test]
fn virtio_5_5_6_7_reported_blocks_are_given_back() {
    let reporting = PAGE_REPORTING | FREE_PAGE_HINT;
    for (bits, queue) in [(reporting, REPORTS), (PAGE_REPORTING, HINTS)] {
        let bench = Bench::new(bits);
        bench.fill(600);
        let block = writable(600 * PAGE_SIZE, 8192);
        bench.driver(queue).send(&[block]);
        bench.balloon.queue_ready(queue);
        assert_eq!(bench.first(600), 0);
        assert_eq!(bench.balloon.state().given_back, 8192);
        assert_eq!(bench.driver(queue).used_index(), 1);
    }
}

#[test]
fn a_reset_empties_the_balloon_and_keeps_the_target() {
    let bench = Bench::new(0);
    bench.balloon.set_target(4096);
    bench.balloon.write_config(4, &1u32.to_le_bytes());
    bench.balloon.reset();
    assert_eq!(bench.config(), [1, 0]);
}

#[test]
fn a_saved_balloon_goes_on_and_a_damaged_one_is_refused() {
    let bench = Bench::new(STATS_VQ);
    bench.balloon.set_target(8192);
    bench.driver(STATS).send(&[readable(BUFFERS, 10)]);
    bench.balloon.queue_ready(STATS);
    let mut saved = bench.balloon.save().unwrap();
    let other = Bench::new(STATS_VQ);
    other.balloon.restore(&saved).unwrap();
    assert_eq!(other.config(), [2, 0]);
    assert!(other.balloon.ask_statistics());
    saved.data = saved.data.replace("\"held\":0", "\"held\":999");
    assert!(other.balloon.restore(&saved).is_err());
}
