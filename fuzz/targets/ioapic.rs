//! The I/O APIC: any register accesses, line levels and ends of interrupts, against a model of
//! its pins (82093AA data sheet, section 3.2.4).
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vmlet_bus::{Device, IrqLine, Msi, MsiSink, RequesterId};
use vmlet_devices::ioapic::IoApic;
use vmlet_fuzz::{
    Input, MemoryCap,
    guest::{Messages, Nobody},
    seeds,
};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const REMOTE_IRR: u64 = 1 << 14;

#[derive(Clone, Copy)]
struct Pin {
    entry: u64,
    high: bool,
    waits: bool,
}

impl Pin {
    const RESET: Pin = Pin {
        entry: MASKED,
        high: false,
        waits: false,
    };

    fn is_level(&self) -> bool {
        self.entry & LEVEL != 0
    }

    /// Vectors of the messages the pin sends now: one or none.
    fn deliver(&mut self) -> Option<u8> {
        let due = if self.is_level() {
            self.high && self.entry & REMOTE_IRR == 0
        } else {
            self.waits
        };
        if !due || self.entry & MASKED != 0 {
            return None;
        }
        if self.is_level() {
            self.entry |= REMOTE_IRR;
        }
        self.waits = false;
        Some((self.entry & 0xff) as u8)
    }
}

struct Model {
    pins: [Pin; IoApic::PINS],
    select: u8,
    id: u32,
}

impl Model {
    fn line(&mut self, pin: usize, high: bool) -> Vec<u8> {
        let Some(pin) = self.pins.get_mut(pin) else {
            return Vec::new();
        };
        pin.waits |= high && !pin.high && !pin.is_level();
        pin.high = high;
        pin.deliver().into_iter().collect()
    }

    fn end(&mut self, vector: u8) -> Vec<u8> {
        let of = |pin: &&mut Pin| pin.is_level() && pin.entry & 0xff == u64::from(vector);
        let ended = self.pins.iter_mut().filter(of);
        ended
            .filter_map(|pin| {
                pin.entry &= !REMOTE_IRR;
                pin.deliver()
            })
            .collect()
    }

    fn write(&mut self, value: u32) -> Vec<u8> {
        if self.select == 0 {
            self.id = value & 0x0f00_0000;
        }
        let Some(index) = self.select.checked_sub(0x10) else {
            return Vec::new();
        };
        let Some(pin) = self.pins.get_mut(usize::from(index / 2)) else {
            return Vec::new();
        };
        let value = u64::from(value);
        if index % 2 == 1 {
            pin.entry = pin.entry & 0xffff_ffff | (value & 0xffff_0000) << 32;
        } else {
            let kept = REMOTE_IRR | 1 << 12;
            pin.entry = pin.entry & (0xffff_ffff << 32 | kept) | value & 0x1_ffff & !kept;
        }
        if !pin.is_level() {
            pin.entry &= !REMOTE_IRR;
        }
        pin.deliver().into_iter().collect()
    }

    fn read(&self) -> u32 {
        let entry = |index: u8| {
            self.pins
                .get(usize::from(index / 2))
                .map(|pin| pin.entry >> (32 * (index % 2)))
        };
        match self.select {
            0 | 2 => self.id,
            1 => 0x0017_0020,
            other => other
                .checked_sub(0x10)
                .and_then(entry)
                .map_or(u32::MAX, |half| (half & 0xffff_ffff) as u32),
        }
    }

    fn reset(&mut self) {
        (self.select, self.id) = (0, 0);
        for pin in &mut self.pins {
            *pin = Pin {
                high: pin.high,
                ..Pin::RESET
            };
        }
    }
}

fuzz_target!(init: seeds::plant("ioapic"), |data: &[u8]| {
    let messages = Arc::new(Messages::default());
    let sink = Arc::clone(&messages) as Arc<dyn MsiSink>;
    let ioapic = Arc::new(IoApic::new(sink, RequesterId(0xa0)));
    let mut model = Model {
        pins: [Pin::RESET; IoApic::PINS],
        select: 0,
        id: 0,
    };
    let mut input = Input::new(data);
    while !input.is_empty() {
        let expected = operate(&ioapic, &mut model, &mut input);
        let sent = messages.take();
        assert!(sent.iter().all(is_well_formed), "{sent:x?}");
        let vectors: Vec<u8> = sent.iter().map(|msi| (msi.data & 0xff) as u8).collect();
        assert_eq!(vectors, expected);
        check_told(&model, &messages.level());
    }
});

/// One operation on both; the vectors to be sent by it.
fn operate(ioapic: &Arc<IoApic>, model: &mut Model, input: &mut Input<'_>) -> Vec<u8> {
    match input.byte() % 8 {
        0 => {
            model.select = input.byte();
            ioapic.write(&Nobody, 0, &[model.select]);
            Vec::new()
        }
        1 | 2 => {
            let bytes = [input.half(), input.half()].map(u16::to_le_bytes).concat();
            let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            ioapic.write(&Nobody, 0x10, &bytes);
            model.write(value)
        }
        3 => {
            let mut data = [0; 4];
            ioapic.read(&Nobody, 0x10, &mut data);
            assert_eq!(u32::from_le_bytes(data), model.read());
            Vec::new()
        }
        4 | 5 => {
            let line = input.byte();
            let (pin, high) = (usize::from(line & 31), line & 32 != 0);
            ioapic.pin(pin).set(high);
            model.line(pin, high)
        }
        6 => {
            let vector = input.byte();
            ioapic.end_of_interrupt(vector);
            model.end(vector)
        }
        _ => odd_access(ioapic, model, input),
    }
}

/// Resets, and accesses of any offset and width outside the registers.
fn odd_access(ioapic: &IoApic, model: &mut Model, input: &mut Input<'_>) -> Vec<u8> {
    let offset = u64::from(input.half() & 0xfff);
    let len = usize::from(input.byte()) % 9;
    match offset {
        0x1 => {
            ioapic.reset();
            model.reset();
        }
        0x0 | 0x10 | 0x40 => {}
        _ => {
            ioapic.write(&Nobody, offset, input.bytes(len));
            let mut data = vec![0xff; len];
            ioapic.read(&Nobody, offset, &mut data);
            assert!(data.iter().all(|byte| *byte == 0));
        }
    }
    Vec::new()
}

fn is_well_formed(msi: &Msi) -> bool {
    msi.address >> 20 == 0xfee && msi.address & 3 == 0 && msi.data >> 16 == 0
}

/// The sink knows every level-triggered pin that can send, or its end would go unreported.
fn check_told(model: &Model, told: &[Option<Msi>]) {
    for (index, pin) in model.pins.iter().enumerate() {
        let told = told.get(index).copied().flatten();
        if pin.is_level() && pin.entry & MASKED == 0 {
            let vector = told.map(|msi| u64::from(msi.data & 0xff));
            assert_eq!(vector, Some(pin.entry & 0xff), "pin {index}");
        } else if !pin.is_level() {
            assert_eq!(told, None, "pin {index}");
        }
    }
}
