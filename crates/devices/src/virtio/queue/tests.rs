//! Clauses of virtio 1.2, section 2.7, and what breaks a queue.

use std::{cell::Cell, sync::atomic::Ordering};

use super::*;
use crate::virtio::testing::{
    BUFFERS, Driver, Heard, INDIRECT, Lent, MEMORY, NEXT, WRITE, dma, readable, writable,
};

const SIZE: u16 = 8;

fn queue() -> (Driver, Arc<VirtQueue>, Arc<Heard>) {
    let driver = Driver::new(&dma(), 0x1000, SIZE);
    let heard = Arc::<Heard>::default();
    let queue = driver.queue(&heard);
    (driver, queue, heard)
}

/// A queue whose notifications are asked for by index.
fn by_index() -> (Driver, Arc<VirtQueue>, Arc<Heard>) {
    let mut driver = Driver::new(&dma(), 0x1000, SIZE);
    driver.state.event_idx = true;
    let heard = Arc::<Heard>::default();
    let queue = driver.queue(&heard);
    (driver, queue, heard)
}

#[track_caller]
fn breaks(driver: &Driver, queue: &VirtQueue, heard: &Heard) {
    let view = driver.view();
    assert_eq!(queue.pop(&view), None);
    assert!(queue.is_broken());
    assert_eq!(heard.reset.load(Ordering::SeqCst), 1);
    driver.send(&[readable(BUFFERS, 1)]);
    assert_eq!(queue.pop(&view), None, "it stays broken");
    queue.push(&view, 0, 0);
    queue.notify(&view);
    assert_eq!(driver.used_index(), 0);
    assert_eq!(heard.queue.load(Ordering::SeqCst), 0);
}

#[test]
fn a_chain_is_taken_whole_and_given_back() {
    let (driver, queue, heard) = queue();
    driver.write(BUFFERS, b"question");
    driver.send(&[
        readable(BUFFERS, 3),
        readable(BUFFERS + 3, 5),
        writable(BUFFERS + 0x1000, 2),
        writable(BUFFERS + 0x2000, 4),
    ]);
    let view = driver.view();
    let chain = queue.pop(&view).unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (8, 6));
    let mut data = [0; 10];
    assert_eq!(chain.read(&view, 1, &mut data).unwrap(), 7);
    assert_eq!(&data[..7], b"uestion");
    assert_eq!(chain.write(&view, 1, b"answer").unwrap(), 5);
    assert_eq!(driver.read::<1>(BUFFERS + 0x1001), *b"a");
    assert_eq!(driver.read::<4>(BUFFERS + 0x2000), *b"nswe");
    queue.push(&view, chain.head(), 6);
    queue.notify(&view);
    assert_eq!((driver.used_index(), driver.used(0)), (1, (0, 6)));
    assert_eq!(heard.queue.load(Ordering::SeqCst), 1);
    assert_eq!(queue.pop(&view), None);
}

#[test]
fn virtio_2_7_5_a_descriptor_loop_is_refused_and_the_queue_breaks() {
    let (driver, queue, heard) = queue();
    let lent = |at| Lent {
        flags: NEXT,
        ..readable(at, 4)
    };
    driver.describe(driver.state.desc, 0, lent(BUFFERS), 1);
    driver.describe(driver.state.desc, 1, lent(BUFFERS), 0);
    driver.offer(0);
    breaks(&driver, &queue, &heard);
}

#[test]
fn virtio_2_7_5_a_next_index_outside_the_table_breaks_the_queue() {
    let (driver, queue, heard) = queue();
    let lent = Lent {
        flags: NEXT,
        ..readable(BUFFERS, 4)
    };
    driver.describe(driver.state.desc, 0, lent, SIZE);
    driver.offer(0);
    breaks(&driver, &queue, &heard);
}

#[test]
fn virtio_2_7_6_a_head_outside_the_table_breaks_the_queue() {
    let (driver, queue, heard) = queue();
    driver.offer(SIZE);
    breaks(&driver, &queue, &heard);
}

#[test]
fn virtio_2_7_5_2_a_chain_of_more_than_2_to_the_32_bytes_breaks_the_queue() {
    let (driver, queue, heard) = queue();
    driver.send(&[readable(BUFFERS, u32::MAX), readable(BUFFERS, 1)]);
    breaks(&driver, &queue, &heard);
}

#[test]
fn virtio_2_7_4_2_readable_buffers_behind_writable_ones_break_the_queue() {
    let (driver, queue, heard) = queue();
    driver.send(&[writable(BUFFERS, 4), readable(BUFFERS, 4)]);
    breaks(&driver, &queue, &heard);
}

#[test]
fn virtio_2_7_5_3_1_an_indirect_table_in_an_indirect_table_breaks_the_queue() {
    let (driver, queue, heard) = queue();
    let table = |at| Lent {
        flags: INDIRECT,
        ..readable(at, 16)
    };
    driver.describe(driver.state.desc, 0, table(BUFFERS), 0);
    driver.describe(BUFFERS, 0, table(BUFFERS + 0x100), 0);
    driver.offer(0);
    breaks(&driver, &queue, &heard);
}

#[test]
fn virtio_2_7_5_3_1_an_indirect_chain_longer_than_the_queue_breaks_it() {
    let (driver, queue, heard) = queue();
    let count = SIZE + 1;
    for index in 0..count {
        let flags = if index + 1 < count { NEXT } else { 0 };
        let lent = Lent {
            flags,
            ..readable(BUFFERS, 1)
        };
        driver.describe(BUFFERS + 0x1000, index, lent, index + 1);
    }
    let table = Lent {
        flags: INDIRECT,
        ..readable(BUFFERS + 0x1000, u32::from(count) * 16)
    };
    driver.describe(driver.state.desc, 0, table, 0);
    driver.offer(0);
    breaks(&driver, &queue, &heard);
}

#[test]
fn virtio_2_7_5_3_2_an_indirect_chain_is_one_chain() {
    let (driver, queue, _) = queue();
    let first = Lent {
        flags: NEXT,
        ..readable(BUFFERS, 3)
    };
    driver.describe(BUFFERS + 0x1000, 0, first, 1);
    driver.describe(BUFFERS + 0x1000, 1, writable(BUFFERS, 5), 0);
    let table = Lent {
        flags: INDIRECT,
        ..readable(BUFFERS + 0x1000, 32)
    };
    driver.describe(driver.state.desc, 2, table, 0);
    driver.offer(2);
    let chain = queue.pop(&driver.view()).unwrap();
    assert_eq!(chain.head(), 2);
    assert_eq!((chain.readable_len(), chain.writable_len()), (3, 5));
}

#[test]
fn virtio_2_7_5_3_2_a_table_may_follow_chained_descriptors_and_its_write_flag_is_ignored() {
    let (driver, queue, _) = queue();
    let first = Lent {
        flags: NEXT,
        ..readable(BUFFERS, 3)
    };
    let table = Lent {
        flags: INDIRECT | WRITE,
        ..readable(BUFFERS + 0x1000, 16)
    };
    driver.describe(driver.state.desc, 0, first, 1);
    driver.describe(driver.state.desc, 1, table, 0);
    driver.describe(BUFFERS + 0x1000, 0, readable(BUFFERS, 5), 0);
    driver.offer(0);
    let chain = queue.pop(&driver.view()).unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (8, 0));
}

#[test]
fn virtio_2_7_6_more_available_chains_than_entries_break_the_queue() {
    let (driver, queue, heard) = queue();
    driver.claim(SIZE + 1);
    breaks(&driver, &queue, &heard);
}

#[test]
fn more_chains_under_way_than_entries_break_the_queue() {
    let (driver, queue, heard) = queue();
    for _ in 0..SIZE {
        driver.send(&[readable(BUFFERS, 1)]);
        assert!(queue.pop(&driver.view()).is_some());
    }
    driver.send(&[readable(BUFFERS, 1)]);
    breaks(&driver, &queue, &heard);
}

#[test]
fn buffers_outside_memory_are_errors_when_they_are_used() {
    let (driver, queue, heard) = queue();
    driver.send(&[readable(MEMORY - 1, 2), writable(u64::MAX - 1, 4)]);
    let view = driver.view();
    let chain = queue.pop(&view).unwrap();
    assert!(chain.read(&view, 0, &mut [0; 2]).is_err());
    assert!(chain.write(&view, 0, &[0; 4]).is_err());
    assert_eq!(heard.reset.load(Ordering::SeqCst), 0);
}

#[test]
fn descriptors_that_change_after_the_chain_was_taken_change_nothing() {
    let (driver, queue, _) = queue();
    driver.send(&[readable(BUFFERS, 4)]);
    let chain = queue.pop(&driver.view()).unwrap();
    driver.describe(driver.state.desc, 0, writable(0, u32::MAX), 7);
    assert_eq!((chain.readable_len(), chain.writable_len()), (4, 0));
}

#[test]
fn virtio_2_7_7_2_no_interrupt_is_sent_while_the_driver_asks_for_none() {
    let (driver, queue, heard) = queue();
    driver.write(driver.state.avail, &NO_INTERRUPT.to_le_bytes());
    let view = driver.view();
    let serve = || {
        driver.send(&[writable(BUFFERS, 1)]);
        let chain = queue.pop(&view).unwrap();
        queue.push(&view, chain.head(), 0);
        queue.notify(&view);
        heard.queue.load(Ordering::SeqCst)
    };
    assert_eq!(serve(), 0);
    driver.write(driver.state.avail, &[0; 2]);
    assert_eq!(serve(), 1);
    queue.notify(&view);
    assert_eq!(heard.queue.load(Ordering::SeqCst), 1, "nothing new");
}

#[test]
fn virtio_2_7_7_2_with_event_idx_the_flags_are_ignored_and_the_index_decides() {
    let (driver, queue, heard) = by_index();
    let view = driver.view();
    let used_event = driver.state.avail + 4 + u64::from(SIZE) * 2;
    driver.write(driver.state.avail, &NO_INTERRUPT.to_le_bytes());
    driver.write(used_event, &1u16.to_le_bytes());
    for expected in [0, 1, 1] {
        driver.send(&[writable(BUFFERS, 1)]);
        let chain = queue.pop(&view).unwrap();
        queue.push(&view, chain.head(), 0);
        queue.notify(&view);
        assert_eq!(heard.queue.load(Ordering::SeqCst), expected);
    }
}

#[test]
fn virtio_2_7_10_notifications_are_off_while_chains_are_taken_and_on_after() {
    let (driver, queue, _) = queue();
    let view = driver.view();
    let flags = |driver: &Driver| u16::from_le_bytes(driver.read(driver.state.used));
    driver.send(&[readable(BUFFERS, 1)]);
    let mut during = None;
    queue.drain(&view, |_| {
        during = Some(flags(&driver));
        true
    });
    assert_eq!((during, flags(&driver)), (Some(1), 0));
}

#[test]
fn virtio_2_7_10_with_event_idx_the_next_index_is_asked_for() {
    let (driver, queue, _) = by_index();
    let view = driver.view();
    driver.send(&[readable(BUFFERS, 1)]);
    let mut taken = 0;
    queue.drain(&view, |_| {
        taken += 1;
        true
    });
    let avail_event = driver.state.used + 4 + u64::from(SIZE) * 8;
    assert_eq!(u16::from_le_bytes(driver.read(avail_event)), 1);
    assert_eq!(taken, 1);
}

/// Sends a chain, and another one at the second look for more; how many chains were taken at once and
/// the used ring's flags then. None: the time to linger was over before that look.
fn what_comes_at_the_second_look() -> Option<Vec<(usize, u16)>> {
    let (driver, queue, _) = queue();
    let view = driver.view();
    let flags = |driver: &Driver| u16::from_le_bytes(driver.read(driver.state.used));
    driver.send(&[readable(BUFFERS, 1)]);
    let mut seen = Vec::new();
    let looks = Cell::new(0);
    let batches = Batches {
        is_full: &|batch| {
            looks.set(looks.get() + u32::from(batch.is_empty()));
            if looks.get() == 3 {
                looks.set(4);
                driver.send(&[readable(BUFFERS, 1)]);
            }
            false
        },
        may_wait: &|| true,
        each: &mut |chains| seen.push((chains.len(), flags(&driver))),
    };
    queue.drain_batches(&view, batches);
    assert_eq!(flags(&driver), 0);
    (looks.get() > 3).then_some(seen)
}

#[test]
fn what_comes_while_the_device_lingers_is_taken_without_a_notification() {
    // A thread that the host takes off its processor lingers no longer.
    let seen = (0..1000).find_map(|_| what_comes_at_the_second_look());
    let seen = seen.expect("one of the tries has its time");
    assert_eq!(seen, [(1, 1), (1, 1)], "notifications are off at both");
}

/// Interrupts for 66 chains: two at once, the others each when it has been looked for in vain.
fn interrupts_for_many(may_wait: bool) -> u32 {
    let (driver, queue, heard) = queue();
    let view = driver.view();
    let left = Cell::new(64);
    let send = || driver.send(&[readable(BUFFERS, 1)]);
    send();
    send();
    while left.get() > 0 {
        let batches = Batches {
            is_full: &|batch| {
                if batch.is_empty() && left.get() > 0 {
                    left.set(left.get() - 1);
                    send();
                }
                false
            },
            may_wait: &|| may_wait,
            each: &mut |chains| {
                for chain in chains {
                    queue.push(&view, chain.head(), 0);
                    queue.notify(&view);
                }
            },
        };
        queue.drain_batches(&view, batches);
    }
    assert_eq!(driver.used_index(), 66, "all are answered");
    assert_eq!(queue.owed(), 0, "and the driver was told");
    heard.queue.load(Ordering::SeqCst).try_into().unwrap()
}

#[test]
fn a_driver_with_several_chains_under_way_gets_one_interrupt_for_a_few() {
    assert!(interrupts_for_many(true) < 33);
}

#[test]
fn a_device_that_cannot_wait_interrupts_for_each_answer() {
    assert_eq!(interrupts_for_many(false), 66);
}

#[test]
fn a_driver_that_never_stops_adding_does_not_keep_the_thread() {
    let driver = Driver::new(&dma(), 0x1000, SIZE);
    let bell = Arc::new(EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap());
    let heard: Arc<dyn VirtioInterrupt> = Arc::new(Heard::default());
    let queue = VirtQueue::new(0, &driver.state, heard, Some(Arc::clone(&bell))).unwrap();
    let view = driver.view();
    driver.send(&[readable(BUFFERS, 1)]);
    let mut taken = 0;
    queue.drain(&view, |chain| {
        taken += 1;
        queue.push(&view, chain.head(), 0);
        driver.send(&[readable(BUFFERS, 1)]);
        true
    });
    assert_eq!(taken, SIZE);
    assert_eq!(bell.read().unwrap(), 1, "the rest comes with the doorbell");
}

#[test]
fn a_queue_goes_on_where_its_saved_state_is() {
    let (mut driver, queue, heard) = queue();
    let view = driver.view();
    for _ in 0..3 {
        driver.send(&[writable(BUFFERS, 1)]);
        let chain = queue.pop(&view).unwrap();
        queue.push(&view, chain.head(), 0);
    }
    driver.state = queue.save();
    let queue = driver.queue(&heard);
    driver.send(&[writable(BUFFERS, 1)]);
    let chain = queue.pop(&view).unwrap();
    queue.push(&view, chain.head(), 1);
    assert_eq!((driver.used_index(), driver.used(3)), (4, (3, 1)));
}

#[test]
fn sizes_and_alignments_that_cannot_be_are_refused() {
    let good = Driver::new(&dma(), 0x1000, SIZE).state;
    let wrong = [
        QueueState { size: 0, ..good },
        QueueState { size: 3, ..good },
        QueueState { size: 16, ..good },
        QueueState { desc: 8, ..good },
        QueueState { avail: 1, ..good },
        QueueState { used: 2, ..good },
    ];
    for state in wrong {
        let heard: Arc<dyn VirtioInterrupt> = Arc::new(Heard::default());
        assert!(VirtQueue::new(0, &state, heard, None).is_err(), "{state:?}");
    }
}
