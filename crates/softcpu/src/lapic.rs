//! The local APIC: xAPIC and x2APIC registers, priorities, messages, the timer.
//!
//! Source: Intel SDM volume 3, chapter 12 "APIC". The registers are kept as the first 1 KiB of the
//! xAPIC page, which is also the form they are saved in.

use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use vmlet_vcpu::MsiMessage;

use crate::{clock::CRYSTAL_NS, signal::Signal};

mod saved;

pub(crate) const PAGE: usize = 1024;
const ID: usize = 0x20;
const VERSION: usize = 0x30;
const TPR: usize = 0x80;
const PPR: usize = 0xa0;
const EOI: usize = 0xb0;
const LDR: usize = 0xd0;
const DFR: usize = 0xe0;
const SVR: usize = 0xf0;
const ISR: usize = 0x100;
const TMR: usize = 0x180;
const IRR: usize = 0x200;
const ESR: usize = 0x280;
const ICR_LOW: usize = 0x300;
const ICR_HIGH: usize = 0x310;
const LVT_TIMER: usize = 0x320;
const LVT_LAST: usize = 0x370;
const COUNT: usize = 0x380;
const CURRENT: usize = 0x390;
const DIVIDE: usize = 0x3e0;
const SELF_IPI: usize = 0x3f0;

const MASKED: u32 = 1 << 16;
const SOFTWARE_ENABLED: u32 = 1 << 8;
const LEVEL: u32 = 1 << 15;
const TIMER_MODE: u32 = 3 << 17;
const TIMER_PERIODIC: u32 = 1 << 17;
const TIMER_DEADLINE: u32 = 2 << 17;
/// Bits of the base address register.
pub(crate) const BASE_ENABLED: u64 = 1 << 11;
pub(crate) const BASE_X2APIC: u64 = 1 << 10;

const MODE_FIXED: u32 = 0;
const MODE_LOWEST: u32 = 1;
const MODE_NMI: u32 = 4;
const MODE_INIT: u32 = 5;
const MODE_STARTUP: u32 = 6;
const MODE_EXTINT: u32 = 7;

/// The local APICs of a VM, which send each other messages.
#[derive(Debug, Default)]
pub(crate) struct Apics {
    all: Mutex<Vec<Arc<Lapic>>>,
}

impl Apics {
    pub(crate) fn add(self: &Arc<Self>, lapic: Arc<Lapic>) {
        let _ = lapic.peers.set(Arc::downgrade(self));
        self.lock().push(lapic);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Lapic>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Delivers a message-signalled interrupt; whether anyone took it.
    pub(crate) fn message(&self, message: MsiMessage) -> bool {
        if message.address & 0xfff0_0000 != 0xfee0_0000 {
            return false;
        }
        let wide = (message.address >> 40) as u32;
        let request = Request {
            destination: ((message.address >> 12) as u32 & 0xff) | (wide << 8),
            logical: message.address & 4 != 0,
            mode: (message.data >> 8) & 7,
            vector: message.data as u8,
            level: message.data & LEVEL != 0,
        };
        self.send(&request, None, 0)
    }

    /// Sends to all that the request names; `shorthand` as in the ICR.
    fn send(&self, request: &Request, from: Option<u32>, shorthand: u32) -> bool {
        let all = self.lock().clone();
        let mut taken = false;
        for lapic in all {
            let itself = from == Some(lapic.id);
            let named = match shorthand {
                1 => itself,
                2 => true,
                3 => !itself,
                _ => lapic.is_named(request),
            };
            if named && lapic.accept(request) {
                taken = true;
                if request.mode == MODE_LOWEST && shorthand == 0 {
                    break;
                }
            }
        }
        taken
    }
}

/// A message between APICs.
#[derive(Clone, Copy, Debug)]
struct Request {
    destination: u32,
    logical: bool,
    mode: u32,
    vector: u8,
    level: bool,
}

/// INIT and start-up messages that wait for the vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Startup {
    pub(crate) init: bool,
    pub(crate) vector: Option<u8>,
}

#[derive(Debug)]
struct State {
    words: [u32; PAGE / 16],
    base: u64,
    /// When the deadline or the count runs out, in clock nanoseconds.
    deadline: Option<u64>,
    /// When counting began.
    started: u64,
    startup: Startup,
}

/// One local APIC.
#[derive(Debug)]
pub(crate) struct Lapic {
    id: u32,
    signal: Arc<Signal>,
    state: Mutex<State>,
    /// Some bit of IRR is set.
    waits: AtomicBool,
    peers: OnceLock<std::sync::Weak<Apics>>,
}

impl State {
    fn get(&self, offset: usize) -> u32 {
        self.words.get(offset >> 4).copied().unwrap_or(0)
    }

    fn put(&mut self, offset: usize, value: u32) {
        if let Some(word) = self.words.get_mut(offset >> 4) {
            *word = value;
        }
    }

    fn bit(&self, table: usize, vector: u8) -> bool {
        self.get(table + usize::from(vector >> 5) * 16) >> (vector & 31) & 1 != 0
    }

    fn set_bit(&mut self, table: usize, vector: u8, on: bool) {
        let at = table + usize::from(vector >> 5) * 16;
        let bit = 1 << (vector & 31);
        let word = self.get(at);
        self.put(at, if on { word | bit } else { word & !bit });
    }

    fn highest(&self, table: usize) -> Option<u8> {
        (0..8usize).rev().find_map(|at| {
            let word = self.get(table + at * 16);
            (word != 0).then(|| (at * 32) as u8 + (31 - word.leading_zeros()) as u8)
        })
    }

    /// The priority an interrupt has to exceed (SDM 12.8.3.1).
    fn priority(&self) -> u8 {
        let tpr = self.get(TPR) as u8;
        let isr = self.highest(ISR).unwrap_or(0);
        if tpr >> 4 >= isr >> 4 {
            tpr
        } else {
            isr & 0xf0
        }
    }

    fn enabled(&self) -> bool {
        self.base & BASE_ENABLED != 0 && self.get(SVR) & SOFTWARE_ENABLED != 0
    }

    fn x2apic(&self) -> bool {
        self.base & BASE_X2APIC != 0
    }

    /// Nanoseconds of one count of the timer.
    fn tick(&self) -> u64 {
        let divide = self.get(DIVIDE);
        let code = (divide & 3) | ((divide >> 1) & 4);
        let by = if code == 7 { 1 } else { 2u64 << code };
        by * CRYSTAL_NS
    }

    fn period(&self) -> u64 {
        u64::from(self.get(COUNT)) * self.tick()
    }

    /// What is left of the count: 0 only where the timer does not run.
    fn current(&self, now: u64) -> u32 {
        let Some(end) = self.deadline else {
            return 0;
        };
        if self.get(LVT_TIMER) & TIMER_MODE == TIMER_DEADLINE {
            return 0;
        }
        let left = end.saturating_sub(now).div_ceil(self.tick());
        left.clamp(1, u64::from(self.get(COUNT)).max(1)) as u32
    }

    fn start_timer(&mut self, now: u64) {
        let period = self.period();
        self.started = now;
        self.deadline = (period != 0).then(|| now.saturating_add(period));
    }

    fn reset(&mut self, id: u32) {
        let base = self.base;
        self.words = [0; PAGE / 16];
        let shown = if base & BASE_X2APIC != 0 {
            id
        } else {
            id << 24
        };
        self.put(ID, shown);
        self.put(VERSION, 0x0005_0014);
        self.put(DFR, 0xffff_ffff);
        self.put(SVR, 0xff);
        for at in (LVT_TIMER..=LVT_LAST).step_by(16) {
            self.put(at, MASKED);
        }
        self.deadline = None;
    }

    fn logical_id(&self, id: u32) -> u32 {
        if self.x2apic() {
            ((id >> 4) << 16) | (1 << (id & 15))
        } else {
            self.get(LDR)
        }
    }
}

impl Lapic {
    pub(crate) fn new(id: u32, signal: Arc<Signal>) -> Lapic {
        let first = if id == 0 { 1 << 8 } else { 0 };
        let mut state = State {
            words: [0; PAGE / 16],
            base: 0xfee0_0000 | BASE_ENABLED | first,
            deadline: None,
            started: 0,
            startup: Startup::default(),
        };
        state.reset(id);
        Lapic {
            id,
            signal,
            state: Mutex::new(state),
            waits: AtomicBool::new(false),
            peers: OnceLock::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn base(&self) -> u64 {
        self.lock().base
    }

    /// Sets the base address register.
    pub(crate) fn set_base(&self, value: u64) {
        let mut state = self.lock();
        let was = state.base;
        state.base = value;
        if value & BASE_ENABLED == 0 {
            state.reset(self.id);
        } else if (was ^ value) & BASE_X2APIC != 0 {
            let shown = if state.x2apic() {
                self.id
            } else {
                self.id << 24
            };
            state.put(ID, shown);
        }
    }

    /// The offset of `gpa` in the register page, if it is there.
    pub(crate) fn offset(&self, gpa: u64) -> Option<usize> {
        let base = self.lock().base;
        let inside = (gpa ^ base) & 0xff_ffff_f000 == 0;
        (inside && base & BASE_ENABLED != 0 && base & BASE_X2APIC == 0)
            .then_some((gpa & 0xfff) as usize)
    }

    pub(crate) fn in_x2apic_mode(&self) -> bool {
        self.lock().x2apic()
    }

    pub(crate) fn reset(&self) {
        self.lock().reset(self.id);
        self.waits.store(false, Ordering::SeqCst);
    }

    fn is_named(&self, request: &Request) -> bool {
        let state = self.lock();
        let broadcast = if state.x2apic() { u32::MAX } else { 0xff };
        if request.destination == broadcast || (request.destination == 0xff && !state.x2apic()) {
            return true;
        }
        if !request.logical {
            return request.destination == self.id;
        }
        let logical = state.logical_id(self.id);
        if state.x2apic() {
            return request.destination >> 16 == logical >> 16
                && request.destination & logical & 0xffff != 0;
        }
        let (wanted, mine) = (request.destination & 0xff, logical >> 24);
        if state.get(DFR) >> 28 == 0xf {
            wanted & mine != 0
        } else {
            wanted >> 4 == mine >> 4 && wanted & mine & 0xf != 0
        }
    }

    fn accept(&self, request: &Request) -> bool {
        match request.mode {
            MODE_FIXED | MODE_LOWEST => return self.interrupt(request.vector, request.level),
            MODE_NMI => self.signal.set_nmi(true),
            MODE_INIT => {
                self.lock().startup = Startup {
                    init: true,
                    vector: None,
                };
            }
            MODE_STARTUP => self.lock().startup.vector = Some(request.vector),
            MODE_EXTINT => return self.interrupt(request.vector, false),
            _ => return false,
        }
        self.signal.wake();
        true
    }

    fn interrupt(&self, vector: u8, level: bool) -> bool {
        let mut state = self.lock();
        if !state.enabled() {
            return false;
        }
        if vector < 16 {
            let errors = state.get(ESR) | 1 << 6;
            state.put(ESR, errors);
            return false;
        }
        state.set_bit(IRR, vector, true);
        state.set_bit(TMR, vector, level);
        self.waits.store(true, Ordering::SeqCst);
        drop(state);
        self.signal.wake();
        true
    }

    /// The interrupt that may be delivered now.
    pub(crate) fn next(&self) -> Option<u8> {
        if !self.waits.load(Ordering::SeqCst) {
            return None;
        }
        let state = self.lock();
        let vector = state.highest(IRR)?;
        (vector >> 4 > state.priority() >> 4 && state.enabled()).then_some(vector)
    }

    /// The processor takes `vector`.
    pub(crate) fn take(&self, vector: u8) {
        let mut state = self.lock();
        state.set_bit(IRR, vector, false);
        state.set_bit(ISR, vector, true);
        if state.highest(IRR).is_none() {
            self.waits.store(false, Ordering::SeqCst);
        }
    }

    /// INIT and start-up messages that came.
    pub(crate) fn take_startup(&self) -> Startup {
        std::mem::take(&mut self.lock().startup)
    }

    /// When the timer runs out, in clock nanoseconds.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.lock().deadline
    }

    /// Lets the timer run out if it is time.
    pub(crate) fn expire(&self, now: u64) {
        let mut state = self.lock();
        let Some(end) = state.deadline.filter(|end| *end <= now) else {
            return;
        };
        let lvt = state.get(LVT_TIMER);
        let period = state.period();
        state.deadline = None;
        if lvt & TIMER_MODE == TIMER_PERIODIC && period != 0 {
            let missed = (now - end) / period;
            let later = (missed + 1).saturating_mul(period);
            state.deadline = Some(end.saturating_add(later));
        }
        drop(state);
        if lvt & MASKED == 0 {
            self.interrupt(lvt as u8, false);
        }
    }

    /// Sets the deadline in clock nanoseconds; 0 switches it off. Only in deadline mode.
    pub(crate) fn set_deadline(&self, at: Option<u64>) {
        let mut state = self.lock();
        if state.get(LVT_TIMER) & TIMER_MODE == TIMER_DEADLINE {
            state.deadline = at;
        }
    }

    /// The deadline, in deadline mode.
    pub(crate) fn tsc_deadline(&self) -> Option<u64> {
        let state = self.lock();
        state
            .deadline
            .filter(|_| state.get(LVT_TIMER) & TIMER_MODE == TIMER_DEADLINE)
    }

    pub(crate) fn tpr(&self) -> u8 {
        self.lock().get(TPR) as u8
    }

    pub(crate) fn set_tpr(&self, value: u8) {
        self.lock().put(TPR, value.into());
        self.signal.wake();
    }

    /// Reads a register.
    pub(crate) fn read(&self, offset: usize, now: u64) -> u32 {
        let state = self.lock();
        match offset & !0xf {
            PPR => state.priority().into(),
            CURRENT => state.current(now),
            LDR => state.logical_id(self.id),
            EOI => 0,
            at => state.get(at),
        }
    }

    /// The ICR as x2APIC shows it.
    pub(crate) fn read_icr(&self) -> u64 {
        let state = self.lock();
        u64::from(state.get(ICR_LOW)) | u64::from(state.get(ICR_HIGH)) << 32
    }

    /// Writes a register. Gives the vector of a level interrupt that ended.
    pub(crate) fn write(&self, offset: usize, value: u32, now: u64) -> Option<u8> {
        let at = offset & !0xf;
        if at == ICR_LOW {
            let high = self.lock().get(ICR_HIGH);
            self.command(value, high);
            return None;
        }
        let mut state = self.lock();
        match at {
            TPR => state.put(TPR, value & 0xff),
            EOI => return self.end(&mut state),
            LDR => state.put(LDR, value & 0xff00_0000),
            DFR => state.put(DFR, value | 0x0fff_ffff),
            SVR => {
                state.put(SVR, value & 0x1ff);
                if value & SOFTWARE_ENABLED == 0 {
                    for lvt in (LVT_TIMER..=LVT_LAST).step_by(16) {
                        let masked = state.get(lvt) | MASKED;
                        state.put(lvt, masked);
                    }
                }
            }
            ESR => state.put(ESR, 0),
            ICR_HIGH => state.put(ICR_HIGH, value),
            LVT_TIMER => self.set_timer(&mut state, value),
            0x330..=LVT_LAST => {
                let forced = if state.get(SVR) & SOFTWARE_ENABLED == 0 {
                    MASKED
                } else {
                    0
                };
                state.put(at, (value & 0x1_a7ff) | forced);
            }
            COUNT if state.get(LVT_TIMER) & TIMER_MODE != TIMER_DEADLINE => {
                state.put(COUNT, value);
                state.start_timer(now);
            }
            DIVIDE => state.put(DIVIDE, value & 0xb),
            SELF_IPI => {
                drop(state);
                self.interrupt(value as u8, false);
                return None;
            }
            _ => {}
        }
        drop(state);
        self.signal.wake();
        None
    }

    fn set_timer(&self, state: &mut State, value: u32) {
        let forced = if state.get(SVR) & SOFTWARE_ENABLED == 0 {
            MASKED
        } else {
            0
        };
        let was = state.get(LVT_TIMER) & TIMER_MODE;
        state.put(LVT_TIMER, (value & 0x7_10ff) | forced);
        let crosses = (was == TIMER_DEADLINE) != (value & TIMER_MODE == TIMER_DEADLINE);
        if crosses {
            state.deadline = None;
            state.put(COUNT, 0);
        }
    }

    fn end(&self, state: &mut State) -> Option<u8> {
        let vector = state.highest(ISR)?;
        state.set_bit(ISR, vector, false);
        self.signal.wake();
        state.bit(TMR, vector).then_some(vector)
    }

    /// Writes the interrupt command register: sends a message.
    pub(crate) fn command(&self, low: u32, high: u32) {
        let mut state = self.lock();
        state.put(ICR_LOW, low & !(1 << 12));
        state.put(ICR_HIGH, high);
        let destination = if state.x2apic() { high } else { high >> 24 };
        drop(state);
        let mode = (low >> 8) & 7;
        // INIT with level "de-assert" synchronises arbitration ids of processors long gone.
        if mode == MODE_INIT && low & (1 << 14) == 0 {
            return;
        }
        let request = Request {
            destination,
            logical: low & (1 << 11) != 0,
            mode,
            vector: low as u8,
            level: false,
        };
        if let Some(peers) = self.peers.get().and_then(std::sync::Weak::upgrade) {
            peers.send(&request, Some(self.id), (low >> 18) & 3);
        }
    }
}

#[cfg(test)]
mod tests;
