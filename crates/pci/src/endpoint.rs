//! A function on a bus: its type 0 header (PCIe 6.0, section 7.5.1.2) and what follows from it.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use vmlet_bus::{IrqLine, NoIrq, SavedError, SavedState};

use crate::{
    Bdf, Function, FunctionLayout, Links, MsiVector, Msix, PciError, Switches,
    bar::{self, Bar},
    capability::{DEVICE_CONTROL, Express, FLR_CAPABLE, List, MSIX_CONTROL, PM_CONTROL},
    decode::Decoder,
    intx::{Intx, SharedLine},
    msi::MsiRegisters,
    msix::{Gate, SavedRow},
    registers::Registers,
    wiring::Wiring,
};

const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
const INTERRUPT_PIN: u16 = 0x3d;

/// Command register (section 7.5.1.1.3).
pub(crate) const MEMORY_SPACE: u16 = 1 << 1;
pub(crate) const BUS_MASTER: u16 = 1 << 2;
pub(crate) const INTX_DISABLE: u16 = 1 << 10;
/// What of it a guest can write: memory, mastering, parity and SERR reporting, INTx.
pub(crate) const COMMAND_BITS: u16 = MEMORY_SPACE | BUS_MASTER | 1 << 6 | 1 << 8 | INTX_DISABLE;
/// Interrupt Status (section 7.5.1.1.4).
pub(crate) const INTERRUPT_STATUS: u8 = 1 << 3;
/// Errors in the upper byte of Status, cleared by ones.
pub(crate) const STATUS_ERRORS: u8 = 0xf9;
/// Power states that are not D0 (section 7.5.2.2).
const POWER_STATE: u8 = 3;
/// Message Control of MSI-X (section 7.7.2.2).
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK: u16 = 1 << 14;
/// Initiate Function Level Reset, in the upper byte of Device Control (section 7.5.3.4).
const FLR: u8 = 1 << 7;

/// The addresses that reach the function through the ports above it.
pub(crate) type Upstream = [Range<u64>; 2];

#[derive(Debug)]
struct State {
    registers: Registers,
    upstream: Upstream,
    /// Taken off the bus: nothing is decoded any more.
    gone: bool,
}

/// Where the function's capabilities are.
#[derive(Clone, Debug)]
struct Places {
    power: u16,
    express: u16,
    msix: Option<u16>,
    msi: Option<MsiRegisters>,
    own: Range<u16>,
}

/// A function on a bus.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) function: Arc<dyn Function>,
    pub(crate) layout: FunctionLayout,
    msix: Arc<Msix>,
    msi: Arc<MsiVector>,
    intx: Arc<Intx>,
    pub(crate) bars: Vec<Bar>,
    places: Places,
    initial: Registers,
    decoder: Arc<Decoder>,
    state: Mutex<State>,
}

/// A function's state as its bus saves it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedEndpoint {
    /// The function's name.
    pub(crate) device: String,
    config: Vec<u8>,
    msix: Vec<SavedRow>,
    intx: bool,
    function: Option<SavedState>,
}

fn header(layout: &FunctionLayout) -> Registers {
    let mut registers = Registers::default();
    let [base, sub, interface] = layout.class;
    registers.fix(0x00, &layout.vendor.to_le_bytes());
    registers.fix(0x02, &layout.device.to_le_bytes());
    registers.fix(0x08, &[layout.revision, interface, sub, base]);
    registers.fix(0x2c, &layout.subsystem_vendor.to_le_bytes());
    registers.fix(0x2e, &layout.subsystem.to_le_bytes());
    registers.fix(INTERRUPT_PIN, &[layout.intx.into()]);
    registers.allow(COMMAND, &COMMAND_BITS.to_le_bytes());
    registers.clear_by_ones(STATUS + 1, &[STATUS_ERRORS]);
    // Cache line size and interrupt line are scratch registers.
    registers.allow(0x0c, &[0xff]);
    registers.allow(0x3c, &[0xff]);
    registers
}

impl Endpoint {
    /// Puts `function` at `bdf`, where nothing is decoded yet; its INTA drives `line`.
    pub(crate) fn connect(
        function: Arc<dyn Function>,
        bdf: Bdf,
        wiring: &Wiring,
        decoder: &Arc<Decoder>,
        line: Arc<SharedLine>,
    ) -> Result<Arc<Endpoint>, PciError> {
        let layout = function.layout();
        layout.check(function.name())?;
        let vectors = layout.msix.map_or(0, |msix| msix.vectors);
        let msix = Arc::new(Msix::new(
            vectors,
            Arc::clone(&wiring.sink),
            bdf.requester(),
        ));
        let bars = bar::all(&function, &layout, &msix);
        let mut registers = header(&layout);
        bars.iter().for_each(|bar| bar.define(&mut registers));
        let mut list = List::new();
        let power = list.add_power(&mut registers);
        let express = list.add_express(
            &mut registers,
            &Express {
                port_type: 0,
                device: FLR_CAPABLE,
                link: 0,
                slot: None,
            },
        );
        let msix_at = layout.msix.map(|msix| list.add_msix(&mut registers, msix));
        let msi_at = layout
            .msi
            .then(|| MsiRegisters::define(&mut list, &mut registers));
        let first = list.end();
        let capabilities = list.add_own(&mut registers, &layout);
        let places = Places {
            power,
            express,
            msix: msix_at,
            msi: msi_at,
            own: first..list.end(),
        };
        let msi = Arc::new(MsiVector::new(Arc::clone(&wiring.sink), bdf.requester()));
        let intx = Arc::new(Intx::new(line));
        function.connect(Links {
            bdf,
            dma: wiring.dma(bdf.requester()),
            msix: Arc::clone(&msix),
            msi: Arc::clone(&msi),
            intx: if layout.intx {
                Arc::clone(&intx) as Arc<dyn IrqLine>
            } else {
                Arc::new(NoIrq)
            },
            doorbells: Arc::clone(&wiring.doorbells),
            capabilities,
        });
        Ok(Arc::new(Endpoint {
            function,
            layout,
            msix,
            msi,
            intx,
            bars,
            places,
            initial: registers.clone(),
            decoder: Arc::clone(decoder),
            state: Mutex::new(State {
                registers,
                upstream: [0..0, 0..0],
                gone: false,
            }),
        }))
    }

    /// The guest reads config space.
    pub(crate) fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.lock().registers.read(offset, data);
        if self.intx.asserted() {
            Registers::add_bits(offset, data, STATUS, INTERRUPT_STATUS);
        }
        if let Some(msi) = self.places.msi.filter(|_| self.msi.pending()) {
            Registers::add_bits(offset, data, msi.pending(), 1);
        }
        if self.is_own(offset, data.len()) {
            self.function.read_config(offset, data);
        }
    }

    /// The guest writes config space.
    pub(crate) fn write_config(&self, offset: u16, data: &[u8]) {
        let flr = usize::from(self.places.express + DEVICE_CONTROL + 1);
        let byte = flr.checked_sub(offset.into()).and_then(|at| data.get(at));
        if byte.is_some_and(|byte| byte & FLR != 0) {
            return self.reset();
        }
        let mut state = self.lock();
        state.registers.write(offset, data);
        self.apply(&state);
        drop(state);
        if self.is_own(offset, data.len()) {
            self.function.write_config(offset, data);
        }
    }

    fn is_own(&self, offset: u16, len: usize) -> bool {
        let own = &self.places.own;
        offset >= own.start && usize::from(offset) + len <= usize::from(own.end)
    }

    /// Has BARs, vectors and the line follow the registers.
    fn apply(&self, state: &State) {
        let registers = &state.registers;
        let command = registers.half(COMMAND);
        let awake = registers.byte(self.places.power + PM_CONTROL) & POWER_STATE == 0;
        let decodes = command & MEMORY_SPACE != 0 && awake && !state.gone;
        for bar in &self.bars {
            let place = bar.place(registers).filter(|place| {
                let through =
                    |window: &Range<u64>| window.start <= place.start && place.end <= window.end;
                decodes && state.upstream.iter().any(through)
            });
            self.decoder.set(&bar.range, place);
        }
        let gate = self.gate(state);
        self.msix.set_gate(gate);
        let bus_master = command & BUS_MASTER != 0 && !state.gone;
        let msi = self.places.msi.filter(|_| !state.gone);
        self.msi.set(
            msi.is_some_and(|msi| msi.enabled(registers)),
            msi.and_then(|msi| msi.message(registers, bus_master)),
        );
        let messages = gate != Gate::Off || self.msi.enabled();
        let disabled = command & INTX_DISABLE != 0 || messages || state.gone;
        self.function.switched(Switches {
            bus_master,
            line: !disabled,
        });
        self.intx.disable(disabled);
    }

    fn gate(&self, state: &State) -> Gate {
        let control = self.places.msix.filter(|_| !state.gone);
        let control = control.map_or(0, |at| state.registers.half(at + MSIX_CONTROL));
        let masters = state.registers.half(COMMAND) & BUS_MASTER != 0;
        match (
            control & MSIX_ENABLE != 0,
            control & MSIX_MASK == 0 && masters,
        ) {
            (false, _) => Gate::Off,
            (true, false) => Gate::Masked,
            (true, true) => Gate::Open,
        }
    }

    /// The port above forwards these addresses.
    pub(crate) fn set_upstream(&self, upstream: Upstream) {
        let mut state = self.lock();
        state.upstream = upstream;
        self.apply(&state);
    }

    /// Writes addresses into BARs, as firmware does: BAR register and address.
    pub(crate) fn assign(&self, addresses: &[(u8, u64)]) {
        let mut state = self.lock();
        for (index, address) in addresses {
            let bar = self.bars.iter().find(|bar| bar.layout.index == *index);
            if let Some(bar) = bar {
                bar.assign(&mut state.registers, *address);
            }
        }
        self.apply(&state);
    }

    /// Back to the state after a conventional or function level reset (section 6.6).
    pub(crate) fn reset(&self) {
        let mut state = self.lock();
        state.registers = self.initial.clone();
        self.apply(&state);
        self.msix.reset();
        drop(state);
        self.function.reset();
        self.intx.set(false);
    }

    /// Takes the function off the bus, for good.
    pub(crate) fn unplug(&self) {
        let mut state = self.lock();
        state.gone = true;
        self.apply(&state);
        drop(state);
        self.intx.set(false);
        self.function.unplug();
    }

    pub(crate) fn save(&self) -> SavedEndpoint {
        let state = self.lock();
        SavedEndpoint {
            device: self.function.name().to_owned(),
            config: state.registers.save(),
            msix: self.msix.save(),
            intx: self.intx.asserted(),
            function: self.function.save(),
        }
    }

    /// Takes over a state: a refused one changes nothing.
    pub(crate) fn restore(&self, saved: &SavedEndpoint) -> Result<(), SavedError> {
        let kind = self.function.name();
        if saved.device != kind {
            return Err(SavedError::Kind {
                expected: kind,
                found: saved.device.clone(),
            });
        }
        let damaged = |detail| SavedError::Damaged { kind, detail };
        let mut state = self.lock();
        let mut registers = self.initial.clone();
        registers
            .restore(&saved.config)
            .map_err(|at| damaged(format!("config space differs at {at:#x}")))?;
        if saved.msix.len() != usize::from(self.msix.vectors()) {
            return Err(damaged(format!("{} vectors", saved.msix.len())));
        }
        if saved.intx && !self.layout.intx {
            return Err(damaged("a line it has not got".to_owned()));
        }
        if let Some(function) = &saved.function {
            self.function.restore(function)?;
        }
        state.registers = registers;
        self.msix.restore(&saved.msix, self.gate(&state));
        self.apply(&state);
        self.intx.set(saved.intx);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
