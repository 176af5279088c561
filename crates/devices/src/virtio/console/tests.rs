//! Clauses of virtio 1.2, section 5.3.

use std::sync::{Arc, Mutex, atomic::Ordering};

use vmlet_bus::Flow;

use super::{
    VirtioConsole,
    device::{EMERG_WRITE, EMERGENCY, RECEIVE, SIZE, TRANSMIT},
};
use crate::{
    serial::SerialOut,
    virtio::{
        Activation, VirtioDevice, features,
        testing::{BUFFERS, Driver, Heard, dma, readable, writable},
    },
};

#[derive(Clone, Debug, Default)]
struct Out(Arc<Mutex<Vec<u8>>>);

impl SerialOut for Out {
    fn send(&mut self, bytes: &[u8]) -> Flow {
        self.0.lock().unwrap().extend(bytes);
        Flow::Continue
    }
}

struct Bench {
    console: VirtioConsole,
    out: Out,
    queues: [Driver; 2],
    heard: Arc<Heard>,
}

fn bench(bits: u64) -> Bench {
    let (dma, heard, out) = (dma(), Arc::<Heard>::default(), Out::default());
    let queues = [0x1000, 0x1_1000].map(|at| Driver::new(&dma, at, 16));
    let console = VirtioConsole::new(Box::new(out.clone()));
    console.activate(Activation {
        features: bits | features::VERSION_1,
        queues: queues.iter().map(|queue| queue.queue(&heard)).collect(),
        interrupt: Arc::<Heard>::clone(&heard),
        dma,
    });
    Bench {
        console,
        out,
        queues,
        heard,
    }
}

#[test]
fn virtio_5_3_6_output_comes_in_order_and_its_buffers_go_back() {
    let bench = bench(0);
    let [_, transmit] = &bench.queues;
    transmit.write(BUFFERS, &[b'x'; 9000]);
    transmit.write(BUFFERS + 0x4000, b"end");
    transmit.send(&[readable(BUFFERS, 9000), readable(BUFFERS + 0x4000, 3)]);
    bench.console.queue_ready(TRANSMIT);
    let sent = bench.out.0.lock().unwrap().clone();
    assert_eq!((sent.len(), &sent[8998..]), (9003, &b"xxend"[..]));
    assert_eq!((transmit.used_index(), transmit.used(0)), (1, (0, 0)));
}

#[test]
fn virtio_5_3_6_input_waits_for_buffers_and_fills_them() {
    let bench = bench(0);
    let [receive, _] = &bench.queues;
    assert_eq!(bench.console.push_input(b"hello"), 5);
    receive.send(&[writable(BUFFERS, 3)]);
    receive.send(&[writable(BUFFERS + 16, 16)]);
    bench.console.queue_ready(RECEIVE);
    assert_eq!((receive.used(0).1, receive.used(1).1), (3, 2));
    assert_eq!(&receive.read::<3>(BUFFERS), b"hel");
    assert_eq!(&receive.read::<2>(BUFFERS + 16), b"lo");
    assert_eq!(bench.console.unread(), 0);
    receive.send(&[writable(BUFFERS + 32, 16)]);
    bench.console.push_input(b"!");
    assert_eq!(
        (receive.used(2).1, receive.read::<1>(BUFFERS + 32)),
        (1, *b"!")
    );
}

#[test]
fn virtio_5_3_6_1_output_in_a_writable_buffer_breaks_the_queue() {
    let bench = bench(0);
    bench.queues[1].send(&[writable(BUFFERS, 3)]);
    bench.console.queue_ready(TRANSMIT);
    assert_eq!(bench.heard.reset.load(Ordering::SeqCst), 1);
}

#[test]
fn virtio_5_3_4_a_new_size_is_told_only_to_drivers_that_know_it() {
    for (bits, told) in [(SIZE, 1), (0, 0)] {
        let bench = bench(bits);
        bench.console.resize([80, 25]);
        assert_eq!(bench.heard.config.load(Ordering::SeqCst), told);
        let mut config = [0; 16];
        bench.console.read_config(0, &mut config);
        assert_eq!(config[..8], [80, 0, 25, 0, 1, 0, 0, 0]);
    }
}

#[test]
fn virtio_5_3_4_emergency_output_takes_no_queue() {
    let bench = bench(EMERG_WRITE);
    bench.console.write_config(EMERGENCY, &[b'!', 0, 0, 0]);
    bench.console.write_config(4, b"?");
    assert_eq!(*bench.out.0.lock().unwrap(), b"!");
}

#[test]
fn virtio_5_3_5_1_emergency_output_is_taken_before_a_driver_is_there() {
    let out = Out::default();
    let console = VirtioConsole::new(Box::new(out.clone()));
    console.write_config(EMERGENCY, &[b'?', 1, 2, 3]);
    assert_eq!(*out.0.lock().unwrap(), b"?");
}

#[test]
fn virtio_5_3_6_1_readable_and_empty_buffers_for_input_break_the_queue() {
    for buffer in [readable(BUFFERS, 3), writable(BUFFERS, 0)] {
        let bench = bench(0);
        bench.queues[0].send(&[buffer]);
        bench.console.push_input(b"x");
        assert_eq!(bench.heard.reset.load(Ordering::SeqCst), 1);
        assert_eq!(bench.console.unread(), 1);
    }
}

#[test]
fn virtio_5_3_6_a_driver_that_starts_is_told_of_a_known_size() {
    let (old, heard) = (bench(SIZE), Arc::<Heard>::default());
    old.console.resize([80, 25]);
    for (bits, told) in [(0, 0), (SIZE, 1)] {
        old.console.activate(Activation {
            features: bits | features::VERSION_1,
            queues: Vec::new(),
            interrupt: Arc::<Heard>::clone(&heard),
            dma: dma(),
        });
        assert_eq!(heard.config.load(Ordering::SeqCst), told);
    }
}

#[test]
fn more_input_than_the_limit_is_not_taken() {
    let bench = bench(0);
    let more = vec![0; crate::serial::INPUT_LIMIT];
    assert_eq!(bench.console.push_input(&more), more.len());
    assert_eq!(bench.console.push_input(b"x"), 0);
}

#[test]
fn waiting_input_is_saved_and_survives_a_reset() {
    let old = bench(0);
    old.console.push_input(b"typed");
    old.console.resize([80, 25]);
    let new = bench(0);
    new.console.restore(&old.console.save().unwrap()).unwrap();
    new.console.reset();
    assert_eq!(new.console.unread(), 5);
    let mut columns = [0; 2];
    new.console.read_config(0, &mut columns);
    assert_eq!(columns, [80, 0]);
}
