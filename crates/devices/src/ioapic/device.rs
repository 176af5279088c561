//! The registers, the pins, and what is sent when.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use serde::{Deserialize, Serialize};
use vmlet_bus::{
    AccessContext, Device, Flow, IrqLine, LineEnd, Msi, MsiSink, RequesterId, SavedError,
    SavedState,
};

use super::RedirectionEntry;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_FIRST_ENTRY: u8 = 0x10;
/// Version 0x20, highest pin 23.
const VERSION: u32 = 0x0017_0020;

#[derive(Clone, Copy, Debug, Default)]
struct PinState {
    entry: RedirectionEntry,
    /// The line's level.
    high: bool,
    /// An edge came while the pin was masked.
    edge_waits: bool,
}

#[derive(Debug, Default)]
struct State {
    select: u8,
    id: u32,
    pins: [PinState; IoApic::PINS],
    /// What the sink was last told of level-triggered pins.
    told: [Option<Msi>; IoApic::PINS],
}

/// An I/O APIC at one page of memory.
pub struct IoApic {
    state: Mutex<State>,
    /// Who hears of the ends of a pin's interrupts; not held while they are told.
    listeners: Mutex<Vec<(usize, Weak<dyn LineEnd>)>>,
    sink: Arc<dyn MsiSink>,
    requester: RequesterId,
}

impl fmt::Debug for IoApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoApic")
            .field("requester", &self.requester)
            .finish_non_exhaustive()
    }
}

impl IoApic {
    /// Pins.
    pub const PINS: usize = 24;
    /// Bytes of the register range.
    pub const LEN: u64 = 0x1000;

    /// An I/O APIC that sends to `sink` as `requester`.
    pub fn new(sink: Arc<dyn MsiSink>, requester: RequesterId) -> IoApic {
        IoApic {
            state: Mutex::default(),
            listeners: Mutex::default(),
            sink,
            requester,
        }
    }

    /// The line into pin `pin`; a pin that does not exist leads nowhere.
    pub fn pin(self: &Arc<Self>, pin: usize) -> Arc<Pin> {
        Arc::new(Pin {
            ioapic: Arc::clone(self),
            pin,
        })
    }

    /// A local APIC ended the level interrupt `vector`: pins whose line is still high send again.
    pub fn end_of_interrupt(&self, vector: u8) {
        let mut ended = [false; IoApic::PINS];
        for (pin, ended) in self.lock().pins.iter_mut().zip(&mut ended) {
            if pin.entry.is_level() && pin.entry.vector() == vector {
                pin.entry = pin.entry.with_remote_irr(false);
                *ended = true;
            }
        }
        self.tell_listeners(&ended);
        for (pin, ended) in self.lock().pins.iter_mut().zip(ended) {
            if ended && pin.entry.is_level() {
                self.deliver(pin);
            }
        }
    }

    fn tell_listeners(&self, ended: &[bool; IoApic::PINS]) {
        let listeners = self.listeners();
        let of_pin = |pin: &usize| ended.get(*pin).copied().unwrap_or(false);
        let concerned = listeners.iter().filter(|(pin, _)| of_pin(pin));
        let concerned: Vec<_> = concerned.filter_map(|(_, one)| one.upgrade()).collect();
        drop(listeners);
        concerned.iter().for_each(|listener| listener.ended());
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<(usize, Weak<dyn LineEnd>)>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn set_line(&self, pin: usize, high: bool) {
        let mut state = self.lock();
        let Some(pin) = state.pins.get_mut(pin) else {
            return;
        };
        let rose = high && !pin.high;
        pin.high = high;
        pin.edge_waits |= rose && !pin.entry.is_level();
        self.deliver(pin);
    }

    /// Sends what the pin has to send now.
    fn deliver(&self, pin: &mut PinState) {
        let due = if pin.entry.is_level() {
            pin.high && !pin.entry.remote_irr()
        } else {
            pin.edge_waits
        };
        if !due || pin.entry.is_masked() {
            return;
        }
        if pin.entry.is_level() {
            pin.entry = pin.entry.with_remote_irr(true);
        }
        pin.edge_waits = false;
        self.sink.send(self.requester, pin.entry.message());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self) -> u32 {
        let state = self.lock();
        match state.select {
            REG_ID | REG_ARBITRATION => state.id,
            REG_VERSION => VERSION,
            _ => entry_index(state.select).map_or(u32::MAX, |(pin, high)| {
                let bits = state.pins.get(pin).map_or(u64::MAX, |pin| pin.entry.bits());
                ((if high { bits >> 32 } else { bits }) & 0xffff_ffff) as u32
            }),
        }
    }

    fn write_register(&self, value: u32) {
        let mut state = self.lock();
        if state.select == REG_ID {
            state.id = value & 0x0f00_0000;
        }
        let Some((index, high)) = entry_index(state.select) else {
            return;
        };
        let Some(pin) = state.pins.get_mut(index) else {
            return;
        };
        pin.entry = pin.entry.with_half(high, value);
        // The sink must know a level pin before the pin sends, or its end would go unreported.
        self.tell(&mut state);
        if let Some(pin) = state.pins.get_mut(index) {
            self.deliver(pin);
        }
    }

    /// Tells the sink which messages level-triggered pins send, if that has changed.
    fn tell(&self, state: &mut State) {
        let now = state.pins.map(|pin| {
            let reports = pin.entry.is_level() && !pin.entry.is_masked();
            reports.then(|| pin.entry.message())
        });
        // A masked pin may still have an interrupt under way: what was told of it stays until
        // another message takes its place.
        let mut told = state.told;
        for ((old, new), pin) in told.iter_mut().zip(now).zip(&state.pins) {
            if new.is_some() || !pin.entry.is_level() {
                *old = new;
            }
        }
        if told != state.told {
            state.told = told;
            self.sink.level_pins(self.requester, &state.told);
        }
    }
}

fn entry_index(select: u8) -> Option<(usize, bool)> {
    let offset = select.checked_sub(REG_FIRST_ENTRY)?;
    Some((usize::from(offset / 2), offset % 2 == 1))
}

impl Device for IoApic {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&self, _: &dyn AccessContext, offset: u64, data: &mut [u8]) -> Flow {
        let value = match offset {
            SELECT => u32::from(self.lock().select),
            WINDOW => self.read_register(),
            _ => 0,
        };
        data.fill(0);
        data.iter_mut()
            .zip(value.to_le_bytes())
            .for_each(|(to, from)| *to = from);
        Flow::Continue
    }

    fn write(&self, _: &dyn AccessContext, offset: u64, data: &[u8]) -> Flow {
        let value = data
            .iter()
            .take(4)
            .rev()
            .fold(0, |value, byte| value << 8 | u32::from(*byte));
        match offset {
            SELECT => self.lock().select = (value & 0xff) as u8,
            WINDOW => self.write_register(value),
            EOI => self.end_of_interrupt((value & 0xff) as u8),
            _ => {}
        }
        Flow::Continue
    }

    fn reset(&self) {
        let mut state = self.lock();
        let lines = state.pins.map(|pin| pin.high);
        state.pins = lines.map(|high| PinState {
            high,
            ..PinState::default()
        });
        (state.select, state.id) = (0, 0);
        self.tell(&mut state);
    }

    fn save(&self) -> Option<SavedState> {
        let state = self.lock();
        let pins = state.pins.iter();
        let fields = Fields {
            select: state.select,
            id: state.id,
            pins: pins
                .map(|pin| (pin.entry.bits(), pin.high, pin.edge_waits))
                .collect(),
        };
        Some(SavedState::new(KIND, LAYOUT, &fields))
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        let fields: Fields = saved.read(KIND, LAYOUT)?;
        let mut pins = [PinState::default(); IoApic::PINS];
        if fields.pins.len() != pins.len() {
            return Err(SavedError::Damaged {
                kind: KIND,
                detail: format!("{} pins", fields.pins.len()),
            });
        }
        for (pin, (bits, high, edge_waits)) in pins.iter_mut().zip(fields.pins) {
            *pin = PinState {
                entry: RedirectionEntry::restored(bits),
                high,
                edge_waits,
            };
        }
        let mut state = self.lock();
        state.pins = pins;
        state.select = fields.select;
        state.id = fields.id & 0x0f00_0000;
        self.tell(&mut state);
        Ok(())
    }
}

/// Kind and layout of the saved state.
const KIND: &str = "I/O APIC";
const LAYOUT: u16 = 1;

#[derive(Serialize, Deserialize)]
struct Fields {
    select: u8,
    id: u32,
    /// Entry, level of the line, edge that waits.
    pins: Vec<(u64, bool, bool)>,
}

/// The line into one pin.
#[derive(Debug)]
pub struct Pin {
    ioapic: Arc<IoApic>,
    pin: usize,
}

impl IrqLine for Pin {
    fn set(&self, high: bool) {
        self.ioapic.set_line(self.pin, high);
    }

    fn on_end(&self, listener: Weak<dyn LineEnd>) {
        let mut listeners = self.ioapic.listeners();
        listeners.retain(|(_, other)| other.strong_count() > 0);
        listeners.push((self.pin, listener));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::Nobody;

    #[derive(Debug, Default)]
    struct Sink {
        sent: Mutex<Vec<Msi>>,
        told: Mutex<Vec<Vec<Option<Msi>>>>,
    }

    impl MsiSink for Sink {
        fn send(&self, _: RequesterId, msi: Msi) {
            self.sent.lock().unwrap().push(msi);
        }

        fn level_pins(&self, _: RequesterId, pins: &[Option<Msi>]) {
            self.told.lock().unwrap().push(pins.to_vec());
        }

        fn route(&self, _: RequesterId) -> Arc<dyn vmlet_bus::MsiRoute> {
            unreachable!("an I/O APIC sends by its pins")
        }
    }

    fn ioapic() -> (Arc<IoApic>, Arc<Sink>) {
        let sink = Arc::new(Sink::default());
        let ioapic = IoApic::new(Arc::clone(&sink) as Arc<dyn MsiSink>, RequesterId(0xa0));
        (Arc::new(ioapic), sink)
    }

    fn set(ioapic: &IoApic, register: u8, value: u32) {
        ioapic.write(&Nobody, SELECT, &[register]);
        ioapic.write(&Nobody, WINDOW, &value.to_le_bytes());
    }

    fn get(ioapic: &IoApic, register: u8) -> u32 {
        let mut data = [0; 4];
        ioapic.write(&Nobody, SELECT, &[register]);
        ioapic.read(&Nobody, WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    fn sent(sink: &Sink) -> usize {
        sink.sent.lock().unwrap().len()
    }

    const LEVEL_0X31: u32 = 0x8031;
    const EDGE_0X31: u32 = 0x31;
    const MASK: u32 = 1 << 16;

    #[test]
    fn version_register_names_24_pins_and_the_eoi_register() {
        assert_eq!(get(&ioapic().0, REG_VERSION), 0x0017_0020);
    }

    #[test]
    fn pins_are_masked_after_reset() {
        let (ioapic, sink) = ioapic();
        set(&ioapic, 0x10, EDGE_0X31);
        ioapic.reset();
        ioapic.pin(0).pulse();
        assert_eq!((sent(&sink), get(&ioapic, 0x10)), (0, MASK));
    }

    #[test]
    fn an_edge_is_sent_once() {
        let (ioapic, sink) = ioapic();
        set(&ioapic, 0x18, EDGE_0X31);
        let pin = ioapic.pin(4);
        pin.set(true);
        pin.set(true);
        assert_eq!(sent(&sink), 1);
        pin.pulse();
        assert_eq!(sent(&sink), 1);
        pin.pulse();
        assert_eq!(sent(&sink), 2);
    }

    #[test]
    fn an_edge_while_masked_is_sent_when_unmasked() {
        let (ioapic, sink) = ioapic();
        set(&ioapic, 0x18, EDGE_0X31 | MASK);
        ioapic.pin(4).pulse();
        assert_eq!(sent(&sink), 0);
        set(&ioapic, 0x18, EDGE_0X31);
        assert_eq!(sent(&sink), 1);
    }

    #[test]
    fn a_level_line_is_sent_once_until_its_end() {
        let (ioapic, sink) = ioapic();
        set(&ioapic, 0x1a, LEVEL_0X31);
        let pin = ioapic.pin(5);
        pin.set(true);
        pin.set(true);
        assert_eq!(sent(&sink), 1);
        assert_ne!(get(&ioapic, 0x1a) & 1 << 14, 0);
    }

    #[test]
    fn a_level_line_still_high_after_its_end_is_sent_again() {
        let (ioapic, sink) = ioapic();
        set(&ioapic, 0x1a, LEVEL_0X31);
        let pin = ioapic.pin(5);
        pin.set(true);
        ioapic.end_of_interrupt(0x31);
        assert_eq!(sent(&sink), 2);
        pin.set(false);
        ioapic.end_of_interrupt(0x31);
        assert_eq!(sent(&sink), 2);
        assert_eq!(get(&ioapic, 0x1a) & 1 << 14, 0);
    }

    #[derive(Debug)]
    struct Lowers(Arc<Pin>, Mutex<u32>);

    impl LineEnd for Lowers {
        fn ended(&self) {
            *self.1.lock().unwrap() += 1;
            self.0.set(false);
        }
    }

    #[test]
    fn who_hears_of_the_end_can_lower_the_line_before_it_is_looked_at() {
        let (ioapic, sink) = ioapic();
        set(&ioapic, 0x1a, LEVEL_0X31);
        let pin = ioapic.pin(5);
        let lowers = Arc::new(Lowers(ioapic.pin(5), Mutex::default()));
        let listener = Arc::downgrade(&lowers);
        pin.on_end(listener);
        pin.set(true);
        ioapic.end_of_interrupt(0x32);
        ioapic.end_of_interrupt(0x31);
        assert_eq!((sent(&sink), *lowers.1.lock().unwrap()), (1, 1));
        drop(lowers);
        pin.set(true);
        ioapic.end_of_interrupt(0x31);
        assert_eq!(sent(&sink), 3);
    }

    #[test]
    fn the_end_of_another_vector_changes_nothing() {
        let (ioapic, sink) = ioapic();
        set(&ioapic, 0x1a, LEVEL_0X31);
        ioapic.pin(5).set(true);
        ioapic.end_of_interrupt(0x32);
        assert_eq!(sent(&sink), 1);
    }

    #[test]
    fn the_eoi_register_ends_an_interrupt() {
        let (ioapic, sink) = ioapic();
        set(&ioapic, 0x1a, LEVEL_0X31);
        ioapic.pin(5).set(true);
        ioapic.write(&Nobody, EOI, &0x31u32.to_le_bytes());
        assert_eq!(sent(&sink), 2);
    }

    #[test]
    fn the_sink_hears_of_level_pins_only_when_a_message_changes() {
        let (ioapic, sink) = ioapic();
        set(&ioapic, 0x1a, LEVEL_0X31);
        set(&ioapic, 0x1a, LEVEL_0X31 | MASK);
        set(&ioapic, 0x1a, LEVEL_0X31);
        set(&ioapic, 0x18, EDGE_0X31);
        assert_eq!(sink.told.lock().unwrap().len(), 1);
        set(&ioapic, 0x1b, 0x0100_0000);
        assert_eq!(sink.told.lock().unwrap().len(), 2);
    }

    #[test]
    fn pins_and_registers_that_do_not_exist_are_harmless() {
        let (ioapic, sink) = ioapic();
        ioapic.pin(24).pulse();
        set(&ioapic, 0xff, 0);
        assert_eq!((sent(&sink), get(&ioapic, 0x40)), (0, u32::MAX));
    }

    proptest! {
        #[test]
        fn no_sequence_of_accesses_panics(ops in proptest::collection::vec((0u8..4, 0u64..0x50, any::<u32>(), 0usize..9), 0..300)) {
            let (ioapic, _) = ioapic();
            for (what, offset, value, len) in ops {
                let mut data = [value.to_le_bytes(), value.to_be_bytes()].concat();
                data.truncate(len);
                match what {
                    0 => drop(ioapic.write(&Nobody, offset, &data)),
                    1 => drop(ioapic.read(&Nobody, offset, &mut data)),
                    2 => ioapic.pin(len * 3).set(value & 1 == 1),
                    _ => ioapic.end_of_interrupt(value.to_le_bytes()[0]),
                }
            }
        }
    }
}
