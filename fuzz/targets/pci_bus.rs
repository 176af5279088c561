//! A PCIe bus: any accesses to config space, MSI-X tables and registers, functions that come and
//! go. No interrupt is sent or driven that config space forbids, and a saved bus is a restored one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmlet_bus::Device;
use vmlet_fuzz::{Input, MemoryCap, pci::Bus, seeds};
use vmlet_pci::{
    Bdf, Plug,
    testing::{Board, Nobody, REG_LINE, REG_VECTOR},
};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

const COMMAND: u64 = 4;
const MSIX_CONTROL: u64 = 0x86;
const BUS_MASTER: u16 = 4;
const INTX_DISABLE: u16 = 0x400;
const MSIX_ON: u16 = 0x8000;
const MSIX_MASKED: u16 = 0x4000;

/// Whether the function at `bdf` may send messages, and drive its line, as config space says.
fn allowed(bus: &Bus, bdf: Bdf) -> (bool, bool) {
    let (command, control) = (bus.half(bdf, COMMAND), bus.half(bdf, MSIX_CONTROL));
    let there = bus.half(bdf, 0) == 0x1234;
    let on = control & MSIX_ON != 0;
    let sends = on && control & MSIX_MASKED == 0 && command & BUS_MASTER != 0;
    (there && sends, there && !on && command & INTX_DISABLE == 0)
}

/// Registers that matter more often than others.
const REGISTERS: [u64; 16] = [
    0x04, 0x06, 0x10, 0x18, 0x20, 0x24, 0x3e, 0x44, 0x50, 0x60, 0x62, 0x86, 0x88, 0x90, 0x94, 0x8c,
];

fn step(bus: &Bus, input: &mut Input<'_>) {
    let port = 1 + (input.byte() & 1);
    let functions = [
        Bdf::new(0, port, 0),
        bus.behind(port),
        Bdf::new(0, 0, 0),
        Bdf::new(input.byte(), 0, 0),
    ];
    let what = input.byte();
    match what % 8 {
        0..3 => {
            let register = match input.byte() {
                odd if odd & 1 == 1 => u64::from(input.half() & 0xfff),
                _ => input.choose(&REGISTERS),
            };
            let bdf = input.choose(&functions);
            let count = usize::from(input.byte() % 9);
            bus.write(bdf, register, input.bytes(count));
        }
        3..6 => {
            let base = input.choose(&[0, 0x1000, 0x2000, 0x80_0000, 0x80_1000]);
            let at = Board::LOW.start + base + u64::from(input.half() & 0xfff);
            let count = usize::from(input.byte() % 9);
            bus.board.mmio.write(&Nobody, at, input.bytes(count));
            let mut data = [0; 8];
            bus.board.mmio.read(&Nobody, at, &mut data[..count.min(8)]);
        }
        6 => {
            // A function's own interrupts, and whether they were allowed.
            let (sends, _) = allowed(bus, functions[1]);
            bus.board.messages.take();
            let base = Board::LOW.start + input.choose(&[0, 0x1000, 0x80_0000]);
            let register = input.choose(&[REG_VECTOR, REG_LINE]);
            let value = u32::from(input.byte() % 5);
            let at = base + register;
            bus.board.mmio.write(&Nobody, at, &value.to_le_bytes());
            let requester = functions[1].requester();
            let sent = bus.board.messages.take();
            let own = sent.iter().any(|(from, _)| *from == requester);
            assert!(!own || sends, "a message that config space forbids");
        }
        _ => match input.byte() % 4 {
            0 => bus.plug(port, Plug::Hot),
            1 => drop(bus.root.request_unplug(port)),
            2 => drop(bus.root.pull(port, Plug::Hot)),
            _ => bus.ecam.reset(),
        },
    }
}

fn lines_fit(bus: &Bus) {
    for port in [1, 2] {
        let mut wanted = false;
        let own = Bdf::new(0, port, 0);
        // The port's own: Interrupt Status, its disable bit, MSI on.
        let silent = bus.half(own, COMMAND) & INTX_DISABLE != 0 || bus.half(own, 0x86) & 1 != 0;
        wanted |= bus.half(own, 6) & 8 != 0 && !silent;
        let bdf = bus.behind(port);
        if bdf.bus() != 0 {
            let (_, drives) = allowed(bus, bdf);
            wanted |= drives && bus.half(bdf, 6) & 8 != 0;
        }
        let line = &bus.board.lines[usize::from(port)];
        // A function that bus numbers hide may still drive its line.
        assert!(line.is_high() || !wanted, "a line that is asked for is low");
    }
}

fuzz_target!(
    init: seeds::plant("pci_bus"),
    |bytes: &[u8]| {
        let bus = Bus::with_probe();
        let mut input = Input::new(bytes);
        // To save takes as long as a hundred steps.
        let saves = input.byte() % 8 == 0;
        while !input.is_empty() {
            step(&bus, &mut input);
        }
        lines_fit(&bus);
        if !saves {
            return;
        }
        let saved = bus.ecam.save().expect("a bus has a state");
        let other = Bus::default();
        other.ecam.restore(&saved).expect("a state of its own");
        for (port, _) in other.root.waiting() {
            other.plug(port, Plug::Cold);
        }
        assert!(other.root.waiting().is_empty());
        assert!(other.ecam.save().expect("a bus has a state") == saved);
    }
);
