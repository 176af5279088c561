//! Clauses of virtio 1.2, section 5.4.

use std::sync::{Arc, atomic::Ordering};

use super::{HostEntropy, Rng, SeededEntropy};
use crate::virtio::{
    VirtioDevice,
    testing::{BUFFERS, Driver, activate, dma, readable, writable},
};

#[test]
fn virtio_5_4_6_2_a_buffer_gets_at_least_one_random_byte() {
    let driver = Driver::new(&dma(), 0x1000, 64);
    let device = Rng::new(Box::new(HostEntropy::open().unwrap()));
    let heard = activate(&device, &driver, 0);
    driver.send(&[writable(BUFFERS, 1)]);
    driver.send(&[writable(BUFFERS, 64), writable(BUFFERS + 64, 1 << 20)]);
    device.queue_ready(0);
    assert_eq!((driver.used(0), driver.used(1)), ((0, 1), (1, 64 << 10)));
    assert_ne!(driver.read::<16>(BUFFERS + 0x8000), [0; 16]);
    assert_eq!(heard.queue.load(Ordering::SeqCst), 1);
}

#[test]
fn virtio_5_4_6_1_readable_buffers_break_the_queue() {
    let driver = Driver::new(&dma(), 0x1000, 64);
    let device = Rng::new(Box::new(SeededEntropy::default()));
    let heard = activate(&device, &driver, 0);
    driver.send(&[readable(BUFFERS, 16)]);
    device.queue_ready(0);
    assert_eq!(heard.reset.load(Ordering::SeqCst), 1);
    assert_eq!(driver.used_index(), 0);
}

#[test]
fn seeded_bytes_are_the_same_after_a_reset_and_in_a_restored_device() {
    let driver = Driver::new(&dma(), 0x1000, 64);
    let (old, new) = [(), ()]
        .map(|()| Arc::new(Rng::new(Box::new(SeededEntropy::default()))))
        .into();
    let serve = |device: &Rng, driver: &Driver| {
        driver.send(&[writable(BUFFERS, 16)]);
        device.queue_ready(0);
        driver.read::<16>(BUFFERS)
    };
    activate(&*old, &driver, 0);
    let first = serve(&old, &driver);
    new.restore(&old.save().unwrap()).unwrap();
    let second = serve(&old, &driver);
    assert_ne!(first, second);
    let driver = Driver::new(&dma(), 0x1000, 64);
    activate(&*new, &driver, 0);
    assert_eq!(serve(&new, &driver), second);
    new.reset();
    let driver = Driver::new(&dma(), 0x1000, 64);
    activate(&*new, &driver, 0);
    assert_eq!(serve(&new, &driver), first);
}
