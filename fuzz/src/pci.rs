//! A PCIe bus with a function that does everything.

use std::sync::Arc;

use vmlet_bus::Device;
use vmlet_memory::{AddressSpace, Backing, Gpa, Mapping, Ram};
use vmlet_pci::{
    Bdf, Ecam, Function, Plug, Root,
    testing::{Board, Nobody, Probe},
};

/// The bus.
#[derive(Debug)]
pub struct Bus {
    /// What is around it.
    pub board: Board,
    /// The bus itself.
    pub root: Arc<Root>,
    /// Its config space.
    pub ecam: Ecam,
}

impl Default for Bus {
    fn default() -> Bus {
        let memory = AddressSpace::new(1);
        let ram = Ram::new(0x4000, Backing::Anon).expect("16 KiB");
        let mapped = memory.map(vec![Mapping::ram(Gpa(0), ram)]);
        mapped.expect("an empty space");
        let board = Board::new(Arc::new(memory));
        let root = Root::new(board.wiring(), 2);
        let ecam = Ecam::new(&root);
        Bus { board, root, ecam }
    }
}

impl Bus {
    /// Two root ports, a probe in the first.
    pub fn with_probe() -> Bus {
        let bus = Bus::default();
        bus.plug(1, Plug::Cold);
        bus
    }

    /// Puts a probe into `port`, if that is empty.
    pub fn plug(&self, port: u8, plug: Plug) {
        let probe = Arc::new(Probe::default()) as Arc<dyn Function>;
        let _ = self.root.plug(probe, Some(port), plug);
    }

    /// The guest writes config space.
    pub fn write(&self, bdf: Bdf, register: u64, data: &[u8]) {
        let at = u64::from(bdf.requester().0) << 12 | register;
        self.ecam.write(&Nobody, at, data);
    }

    /// The guest reads two bytes of config space.
    pub fn half(&self, bdf: Bdf, register: u64) -> u16 {
        let mut data = [0; 2];
        let at = u64::from(bdf.requester().0) << 12 | register;
        self.ecam.read(&Nobody, at, &mut data);
        u16::from_le_bytes(data)
    }

    /// Bus numbers behind root port `port`.
    pub fn behind(&self, port: u8) -> Bdf {
        let [secondary, _] = self.half(Bdf::new(0, port, 0), 0x19).to_le_bytes();
        Bdf::new(secondary, 0, 0)
    }
}

/// Saved states to start from: of an empty bus, and of one with a function.
pub(crate) fn states() -> Vec<Vec<u8>> {
    let saved = |bus: Bus| bus.ecam.save().map(|saved| saved.data.into_bytes());
    [Bus::default(), Bus::with_probe()]
        .into_iter()
        .filter_map(saved)
        .collect()
}
