//! Saved state of a PCIe bus: any text. What is refused changes nothing; what is taken can be saved
//! again, and functions take their part or refuse it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmlet_bus::{Device, SavedState};
use vmlet_fuzz::{MemoryCap, pci::Bus, seeds};
use vmlet_pci::Plug;

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

fuzz_target!(
    init: seeds::plant("pci_saved"),
    |bytes: &[u8]| {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return;
        };
        let bus = Bus::default();
        let before = bus.ecam.save().expect("a bus has a state");
        let saved = SavedState {
            data: text.to_owned(),
            ..before.clone()
        };
        if bus.ecam.restore(&saved).is_err() {
            assert!(bus.ecam.save().expect("a bus has a state") == before);
            return;
        }
        for port in [1, 2] {
            bus.plug(port, Plug::Cold);
        }
        bus.ecam.reset();
        bus.ecam.save().expect("a bus has a state");
    }
);
