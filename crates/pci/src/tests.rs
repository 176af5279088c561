//! A bus as a guest sees it, by config space and memory accesses alone.

use std::sync::Arc;

use vmlet_bus::Device;
use vmlet_memory::{AddressSpace, Backing, Gpa, Mapping, Ram};

use crate::{
    Bdf, Ecam, Function, Plug, Root,
    testing::{Board, Nobody, Probe},
};

mod config;
mod hotplug;
mod interrupts;
mod saved;

/// Root port 1, and what is behind it.
const PORT: Bdf = Bdf::at(0, 1);
const PROBE: Bdf = Bdf::at(1, 0);

impl Bdf {
    const fn at(bus: u16, device: u16) -> Bdf {
        Bdf::from_bits(bus << 8 | device << 3)
    }
}

struct Bus {
    board: Board,
    root: Arc<Root>,
    ecam: Ecam,
}

impl Bus {
    /// Two root ports.
    fn new() -> Bus {
        let memory = AddressSpace::new(4);
        let ram = Ram::new(0x10000, Backing::Anon).unwrap();
        memory.map(vec![Mapping::ram(Gpa(0), ram)]).unwrap();
        let board = Board::new(Arc::new(memory));
        let root = Root::new(board.wiring(), 2);
        let ecam = Ecam::new(&root);
        Bus { board, root, ecam }
    }

    /// With a function in port 1 from the start.
    fn with_probe() -> (Bus, Arc<Probe>) {
        let bus = Bus::new();
        let probe = bus.plug(Plug::Cold);
        (bus, probe)
    }

    fn plug(&self, plug: Plug) -> Arc<Probe> {
        let probe = Arc::new(Probe::default());
        let function = Arc::clone(&probe) as Arc<dyn Function>;
        self.root.plug(function, Some(1), plug).unwrap();
        probe
    }

    fn offset(bdf: Bdf, register: u64) -> u64 {
        u64::from(bdf.requester().0) << 12 | register
    }

    fn read<const N: usize>(&self, bdf: Bdf, register: u64) -> [u8; N] {
        let mut data = [0; N];
        self.ecam
            .read(&Nobody, Bus::offset(bdf, register), &mut data);
        data
    }

    fn half(&self, bdf: Bdf, register: u64) -> u16 {
        u16::from_le_bytes(self.read(bdf, register))
    }

    fn word(&self, bdf: Bdf, register: u64) -> u32 {
        u32::from_le_bytes(self.read(bdf, register))
    }

    fn write(&self, bdf: Bdf, register: u64, data: &[u8]) {
        self.ecam.write(&Nobody, Bus::offset(bdf, register), data);
    }

    fn set_half(&self, bdf: Bdf, register: u64, value: u16) {
        self.write(bdf, register, &value.to_le_bytes());
    }

    fn set_word(&self, bdf: Bdf, register: u64, value: u32) {
        self.write(bdf, register, &value.to_le_bytes());
    }

    /// Where a capability begins.
    fn capability(&self, bdf: Bdf, id: u8) -> u64 {
        let [mut at] = self.read(bdf, 0x34);
        for _ in 0..48 {
            let [found, next] = self.read(bdf, at.into());
            if found == id {
                return at.into();
            }
            at = next;
        }
        panic!("no capability {id:#x}");
    }

    /// Memory decoding and bus mastering.
    fn enable(&self, bdf: Bdf) {
        self.set_half(bdf, 4, 6);
    }

    /// Address of a BAR of 32 bits.
    fn bar(&self, bdf: Bdf, index: u64) -> u64 {
        u64::from(self.word(bdf, 0x10 + index * 4) & !0xf)
    }

    fn load(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.board.mmio.read(&Nobody, at, &mut data);
        u32::from_le_bytes(data)
    }

    fn store(&self, at: u64, value: u32) {
        self.board.mmio.write(&Nobody, at, &value.to_le_bytes());
    }
}
