//! The serial port: any accesses and input. What the guest writes to the data register goes out,
//! in order, and nothing else; nothing grows.
#![no_main]

use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use vmlet_bus::{Device, Flow, IrqLine};
use vmlet_devices::serial::{SerialOut, SerialPort};
use vmlet_fuzz::{
    Input, MemoryCap,
    guest::{Edges, Nobody},
    seeds,
};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

#[derive(Clone, Debug, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl SerialOut for Sink {
    fn send(&mut self, bytes: &[u8]) -> Flow {
        self.0.lock().expect("one thread").extend(bytes);
        Flow::Continue
    }
}

/// What decides where a byte written to the data register goes (16550D data sheet, sections 8.1
/// and 8.6.2).
#[derive(Default)]
struct Model {
    divisor_latch: bool,
    loop_back: bool,
    out: Vec<u8>,
}

impl Model {
    fn write(&mut self, offset: u64, byte: u8) {
        match offset % 8 {
            0 if !self.divisor_latch && !self.loop_back => self.out.push(byte),
            3 => self.divisor_latch = byte & 0x80 != 0,
            4 => self.loop_back = byte & 0x10 != 0,
            _ => {}
        }
    }

    fn write_all(&mut self, offset: u64, bytes: &[u8]) {
        (offset..)
            .zip(bytes)
            .for_each(|(at, byte)| self.write(at, *byte));
    }
}

fuzz_target!(init: seeds::plant("serial"), |data: &[u8]| {
    let (sink, line) = (Sink::default(), Arc::new(Edges::default()));
    let port = SerialPort::new(
        Arc::clone(&line) as Arc<dyn IrqLine>,
        Box::new(sink.clone()),
    );
    let (mut input, mut model) = (Input::new(data), Model::default());
    while !input.is_empty() {
        let operation = input.byte();
        let (kind, offset) = (operation >> 5, u64::from(operation & 7));
        let len = usize::from(input.byte()) % 9;
        match kind {
            0 | 1 => {
                port.read(&Nobody, offset, &mut vec![0; len]);
            }
            2 | 3 => {
                let bytes = input.bytes(len);
                port.write(&Nobody, offset, bytes);
                model.write_all(offset, bytes);
            }
            4 => {
                let bytes = input.bytes(len);
                port.write_string(&Nobody, offset, 1, bytes);
                bytes.iter().for_each(|byte| model.write(offset, *byte));
            }
            5 => {
                let bytes = input.bytes(len);
                port.write_string(&Nobody, offset, 2, bytes);
                bytes
                    .chunks(2)
                    .for_each(|pair| model.write_all(offset, pair));
            }
            6 => {
                let bytes = input.bytes(len);
                assert_eq!(port.push_input(bytes), bytes.len());
            }
            _ => {
                port.reset();
                (model.divisor_latch, model.loop_back) = (false, false);
                let mut status = [0];
                port.read(&Nobody, 5, &mut status);
                assert_eq!(status[0] & 1, 0, "input after a reset");
            }
        }
    }
    assert_eq!(*sink.0.lock().expect("one thread"), model.out);
    assert!(
        line.count() <= 16 * data.len() + 16,
        "interrupts out of nothing"
    );
});
