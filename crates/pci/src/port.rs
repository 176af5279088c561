//! A root port: its type 1 header (PCIe 6.0, section 7.5.1.3), its slot, and what is in it.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use vmlet_bus::{IrqLine, MsiSink, SavedError};

use crate::{
    Bdf, Function, PciError,
    assign::Share,
    capability::{Express, List},
    endpoint::{
        BUS_MASTER, COMMAND_BITS, Endpoint, INTERRUPT_STATUS, INTX_DISABLE, MEMORY_SPACE,
        STATUS_ERRORS, SavedEndpoint, Upstream,
    },
    intx::Intx,
    msi::{MsiRegisters, MsiVector},
    registers::Registers,
    slot::{self, Slot},
};

const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
const SECONDARY: u16 = 0x19;
const MEMORY: u16 = 0x20;
const PREFETCHABLE: u16 = 0x24;
const PREFETCHABLE_UPPER: u16 = 0x28;
const BRIDGE_CONTROL: u16 = 0x3e;
/// Secondary Bus Reset (section 7.5.1.3.13).
const BUS_RESET: u8 = 1 << 6;

/// The ids of a root port that is nobody's product in particular.
const VENDOR: u16 = 0x1b36;
const DEVICE: u16 = 0x000c;

/// What is in a port's slot.
#[derive(Debug, Default)]
struct Content {
    endpoint: Option<Arc<Endpoint>>,
    /// The state of a function that has not been put back yet.
    waits: Option<SavedEndpoint>,
    /// The host has asked for the function.
    wanted: bool,
    /// Functions that were taken out of the slot and have not ended yet.
    leaving: u32,
}

#[derive(Debug)]
struct State {
    registers: Registers,
    content: Content,
    /// The slot asked for an interrupt when last looked at.
    asked: bool,
}

/// A root port.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) bdf: Bdf,
    slot: Slot,
    msi: MsiRegisters,
    initial: Registers,
    vector: MsiVector,
    intx: Intx,
    /// Secondary and subordinate bus number, for who looks for the port of a bus.
    buses: AtomicU16,
    state: Mutex<State>,
}

/// A port's state as its bus saves it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedPort {
    config: Vec<u8>,
    pending: bool,
    wanted: bool,
    function: Option<SavedEndpoint>,
}

fn header(number: u8) -> (Registers, Slot, MsiRegisters) {
    let mut registers = Registers::default();
    registers.fix(0x00, &VENDOR.to_le_bytes());
    registers.fix(0x02, &DEVICE.to_le_bytes());
    // A PCI-to-PCI bridge.
    registers.fix(0x08, &[0, 0, 4, 6]);
    registers.fix(0x0e, &[1]);
    registers.fix(0x3d, &[1]);
    registers.allow(COMMAND, &COMMAND_BITS.to_le_bytes());
    registers.clear_by_ones(STATUS + 1, &[STATUS_ERRORS]);
    registers.clear_by_ones(0x1f, &[STATUS_ERRORS]);
    registers.allow(0x0c, &[0xff]);
    // Primary, secondary and subordinate bus; there are no I/O addresses behind the port.
    registers.allow(0x18, &[0xff; 3]);
    registers.allow(MEMORY, &[0xf0, 0xff, 0xf0, 0xff]);
    registers.fix(PREFETCHABLE, &[1, 0, 1, 0]);
    registers.allow(PREFETCHABLE, &[0xf0, 0xff, 0xf0, 0xff]);
    registers.allow(PREFETCHABLE_UPPER, &[0xff; 8]);
    registers.allow(0x3c, &[0xff]);
    registers.allow(BRIDGE_CONTROL, &[0x43]);
    let mut list = List::new();
    list.add_power(&mut registers);
    let slot_number = u32::from(number) << slot::NUMBER_SHIFT;
    let express = Express {
        port_type: 4,
        device: 0,
        link: slot::LINK_REPORTING | u32::from(number) << 24,
        slot: Some(slot::CAPABILITIES | slot_number),
    };
    let slot = Slot {
        at: list.add_express(&mut registers, &express),
    };
    slot.define(&mut registers);
    let msi = MsiRegisters::define(&mut list, &mut registers);
    (registers, slot, msi)
}

impl Port {
    /// Port number `number`, from 1 on, which is its device number on bus 0 too.
    pub(crate) fn new(number: u8, sink: Arc<dyn MsiSink>, intx: Intx) -> Port {
        let (registers, slot, msi) = header(number);
        let bdf = Bdf::new(0, number, 0);
        Port {
            bdf,
            slot,
            msi,
            initial: registers.clone(),
            vector: MsiVector::new(sink, bdf.requester()),
            intx,
            buses: AtomicU16::new(0),
            state: Mutex::new(State {
                registers,
                content: Content::default(),
                asked: false,
            }),
        }
    }

    /// Secondary and subordinate bus.
    pub(crate) fn buses(&self) -> (u8, u8) {
        let [secondary, subordinate] = self.buses.load(Ordering::Acquire).to_le_bytes();
        (secondary, subordinate)
    }

    /// The guest reads the port's config space.
    pub(crate) fn read_config(&self, offset: u16, data: &mut [u8]) {
        let state = self.lock();
        state.registers.read(offset, data);
        drop(state);
        if self.intx.asserted() {
            Registers::add_bits(offset, data, STATUS, INTERRUPT_STATUS);
        }
        if self.vector.pending() {
            Registers::add_bits(offset, data, self.msi.pending(), 1);
        }
    }

    /// The guest writes the port's config space; whether the function in the slot is to go.
    pub(crate) fn write_config(&self, offset: u16, data: &[u8]) -> Option<Arc<Endpoint>> {
        let mut state = self.lock();
        let (was_off, was_reset) = (self.slot.is_off(&state.registers), is_reset(&state));
        state.registers.write(offset, data);
        self.slot.update_link(&mut state.registers, true);
        let gone = if !was_off && self.slot.is_off(&state.registers) && state.content.wanted {
            self.take(&mut state, true)
        } else {
            None
        };
        self.apply(&mut state);
        if is_reset(&state)
            && !was_reset
            && let Some(endpoint) = &state.content.endpoint
        {
            endpoint.reset();
        }
        gone
    }

    /// Has windows, bus numbers and interrupts follow the registers.
    fn apply(&self, state: &mut State) {
        let buses = state.registers.half(SECONDARY);
        self.buses.store(buses, Ordering::Release);
        if let Some(endpoint) = &state.content.endpoint {
            endpoint.set_upstream(windows(&state.registers));
        }
        let registers = &state.registers;
        let command = registers.half(COMMAND);
        let on = self.msi.enabled(registers);
        let message = self.msi.message(registers, command & BUS_MASTER != 0);
        let disabled = command & INTX_DISABLE != 0 || on;
        let asks = self.slot.wants_interrupt(registers);
        self.vector.set(on, message);
        self.intx.disable(disabled);
        self.intx.set(asks);
        if std::mem::replace(&mut state.asked, asks) != asks && asks {
            self.vector.trigger();
        }
    }

    /// The function behind the port, while the link to it is active.
    pub(crate) fn reachable(&self) -> Option<Arc<Endpoint>> {
        let state = self.lock();
        let active = self.slot.link_is_active(&state.registers);
        state.content.endpoint.clone().filter(|_| active)
    }

    /// The function in the slot.
    pub(crate) fn function(&self) -> Option<Arc<dyn Function>> {
        let state = self.lock();
        let endpoint = state.content.endpoint.as_ref();
        endpoint.map(|endpoint| Arc::clone(&endpoint.function))
    }

    pub(crate) fn endpoint(&self) -> Option<Arc<Endpoint>> {
        self.lock().content.endpoint.clone()
    }

    /// Nothing is in the slot and nothing is to be put back.
    pub(crate) fn is_free(&self) -> bool {
        let state = self.lock();
        state.content.endpoint.is_none() && state.content.waits.is_none()
    }

    /// The kind of function whose state waits for it.
    pub(crate) fn waits_for(&self) -> Option<String> {
        let state = self.lock();
        let waits = state.content.waits.as_ref();
        waits.map(|saved| saved.device.clone())
    }

    /// Puts a function into the empty slot: with `events` the guest is to notice.
    pub(crate) fn insert(&self, endpoint: Arc<Endpoint>, events: bool) -> Result<(), PciError> {
        let mut state = self.lock();
        if let Some(other) = &state.content.endpoint {
            return Err(PciError::Taken {
                port: self.bdf.device(),
                device: other.function.name(),
            });
        }
        if let Some(saved) = &state.content.waits {
            // Presence, link and windows are those of the port's own state.
            endpoint.restore(saved)?;
        } else {
            self.slot.set_present(&mut state.registers, true, events);
            state.content.wanted = false;
        }
        state.content.waits = None;
        state.content.endpoint = Some(endpoint);
        self.apply(&mut state);
        Ok(())
    }

    /// Asks the guest for the function. It is given back at once where the guest has switched the
    /// slot off.
    pub(crate) fn request(&self) -> Result<Option<Arc<Endpoint>>, PciError> {
        let mut state = self.occupied()?;
        state.content.wanted = true;
        let gone = if self.slot.is_off(&state.registers) {
            self.take(&mut state, true)
        } else {
            self.slot.press_button(&mut state.registers);
            None
        };
        self.apply(&mut state);
        Ok(gone)
    }

    /// Takes the function without asking; with `events` the guest is to notice.
    pub(crate) fn pull(&self, events: bool) -> Result<Option<Arc<Endpoint>>, PciError> {
        let mut state = self.occupied()?;
        let gone = self.take(&mut state, events);
        self.apply(&mut state);
        Ok(gone)
    }

    fn occupied(&self) -> Result<MutexGuard<'_, State>, PciError> {
        let state = self.lock();
        if state.content.endpoint.is_none() {
            return Err(PciError::Empty {
                port: self.bdf.device(),
            });
        }
        Ok(state)
    }

    fn take(&self, state: &mut State, events: bool) -> Option<Arc<Endpoint>> {
        state.content.wanted = false;
        self.slot.set_present(&mut state.registers, false, events);
        let gone = state.content.endpoint.take();
        state.content.leaving += u32::from(gone.is_some());
        gone
    }

    /// One of those that were taken has ended.
    pub(crate) fn left(&self) {
        let mut state = self.lock();
        state.content.leaving = state.content.leaving.saturating_sub(1);
    }

    /// Whether nothing is in the slot, nor on its way out.
    pub(crate) fn is_empty(&self) -> bool {
        let content = &self.lock().content;
        content.endpoint.is_none() && content.leaving == 0
    }

    /// Bus numbers, windows and BARs as firmware gives them.
    pub(crate) fn assign(&self, share: &Share) {
        let mut state = self.lock();
        let number = self.bdf.device();
        let registers = &mut state.registers;
        registers.write(0x18, &[0, number, number]);
        set_windows(registers, share);
        registers.write(COMMAND, &(MEMORY_SPACE | BUS_MASTER).to_le_bytes());
        self.apply(&mut state);
        if let Some(endpoint) = &state.content.endpoint {
            endpoint.assign(&share.bars);
        }
    }

    /// Back to the state after power-on; what is in the slot stays.
    pub(crate) fn reset(&self) {
        let mut state = self.lock();
        state.registers = self.initial.clone();
        state.content.wanted = false;
        let present = state.content.endpoint.is_some();
        self.slot.set_present(&mut state.registers, present, false);
        self.apply(&mut state);
        if let Some(endpoint) = &state.content.endpoint {
            endpoint.reset();
        }
    }

    pub(crate) fn save(&self) -> SavedPort {
        let state = self.lock();
        let content = &state.content;
        let function = content.endpoint.as_ref().map(|endpoint| endpoint.save());
        SavedPort {
            config: state.registers.save(),
            pending: self.vector.pending(),
            wanted: content.wanted,
            function: function.or_else(|| content.waits.clone()),
        }
    }

    /// Whether [`Port::restore`] takes a state.
    pub(crate) fn check(&self, saved: &SavedPort) -> Result<Registers, SavedError> {
        let kind = "PCIe root port";
        let damaged = |detail| SavedError::Damaged { kind, detail };
        let mut registers = self.initial.clone();
        registers
            .restore(&saved.config)
            .map_err(|at| damaged(format!("config space differs at {at:#x}")))?;
        // What the registers say of the slot cannot be other than what is in it.
        let said = registers.save();
        let there = saved.function.is_some();
        self.slot.correct(&mut registers, there);
        if said != registers.save() {
            return Err(damaged(
                "presence and link are not those of its slot".to_owned(),
            ));
        }
        Ok(registers)
    }

    /// Takes over a state. A function that was in the slot is to be put back by
    /// [`Port::insert`]; one that is there takes its state now.
    pub(crate) fn restore(&self, saved: SavedPort) -> Result<(), SavedError> {
        let registers = self.check(&saved)?;
        let mut state = self.lock();
        if let Some(endpoint) = &state.content.endpoint {
            let there = saved.function.as_ref().ok_or_else(|| SavedError::Damaged {
                kind: "PCIe root port",
                detail: format!("its slot is empty, and has a {}", endpoint.function.name()),
            })?;
            endpoint.restore(there)?;
        } else {
            state.content.waits = saved.function;
        }
        state.registers = registers;
        state.content.wanted = saved.wanted;
        state.asked = self.slot.wants_interrupt(&state.registers);
        self.vector.restore(saved.pending);
        self.apply(&mut state);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_reset(state: &State) -> bool {
    state.registers.byte(BRIDGE_CONTROL) & BUS_RESET != 0
}

/// The addresses that the port forwards (sections 7.5.1.3.8 and 7.5.1.3.9).
fn windows(registers: &Registers) -> Upstream {
    if registers.half(COMMAND) & MEMORY_SPACE == 0 {
        return [0..0, 0..0];
    }
    let bits = |at, upper: u64| upper << 32 | u64::from(registers.half(at) & 0xfff0) << 16;
    let window = |at: u16, base: u64, limit: u64| -> Range<u64> {
        let start = bits(at, base);
        start..(bits(at + 2, limit) | 0xf_ffff).saturating_add(1)
    };
    let upper = |at| registers.word(at).into();
    [
        window(MEMORY, 0, 0),
        window(
            PREFETCHABLE,
            upper(PREFETCHABLE_UPPER),
            upper(PREFETCHABLE_UPPER + 4),
        ),
    ]
}

fn set_windows(registers: &mut Registers, share: &Share) {
    // An empty window has its limit below its base.
    let ends = |window: &Range<u64>| {
        if window.is_empty() {
            (0xfff0_0000, 0)
        } else {
            (window.start, window.end - 1)
        }
    };
    let field = |address: u64| ((address >> 16 & 0xfff0) as u16).to_le_bytes();
    let upper = |address: u64| ((address >> 32) as u32).to_le_bytes();
    for (at, window) in [(MEMORY, &share.low), (PREFETCHABLE, &share.high)] {
        let (base, limit) = ends(window);
        registers.write(at, &field(base));
        registers.write(at + 2, &field(limit));
        if at == PREFETCHABLE {
            registers.write(PREFETCHABLE_UPPER, &upper(base));
            registers.write(PREFETCHABLE_UPPER + 4, &upper(limit));
        }
    }
}
