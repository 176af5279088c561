//! The board during a run, and what a device may ask about an access.
//!
//! Invariant: the pointer in a [`BusSlot`] is set by [`BusSlot::lend`] from the exclusive reference
//! that `run` was given and cleared before that reference ends; only the thread inside `run` uses
//! it, one call at a time.

#![expect(unsafe_code, reason = "lends the board to the handlers of a run")]

use std::ptr::NonNull;

use vmlet_vcpu::{AccessContext, Flow, GuestBus, SpaceId, x86_64::Regs};

use crate::cpu::{Cpu, Ending};

/// Holds the board while guest code runs.
#[derive(Debug, Default)]
pub(crate) struct BusSlot {
    bus: Option<NonNull<dyn GuestBus>>,
}

// SAFETY: a board may go to another thread, and the pointer is there only during a run.
unsafe impl Send for BusSlot {}

impl BusSlot {
    fn lend(&mut self, bus: &mut dyn GuestBus) {
        let pointer: NonNull<dyn GuestBus + '_> = NonNull::from(bus);
        // SAFETY: changes the lifetime only; `take_back` ends the loan before the reference does.
        let pointer = unsafe {
            std::mem::transmute::<NonNull<dyn GuestBus + '_>, NonNull<dyn GuestBus + 'static>>(
                pointer,
            )
        };
        self.bus = Some(pointer);
    }
}

/// Runs `body` with the board lent to `cpu`.
pub(crate) fn with_bus<C, R>(
    owner: &mut C,
    cpu: impl Fn(&mut C) -> &mut Cpu,
    bus: &mut dyn GuestBus,
    body: impl FnOnce(&mut C) -> R,
) -> R {
    /// Ends the loan however the body ends.
    struct Loan<'a, C, F: Fn(&mut C) -> &mut Cpu>(&'a mut C, F);
    impl<C, F: Fn(&mut C) -> &mut Cpu> Drop for Loan<'_, C, F> {
        fn drop(&mut self) {
            (self.1)(self.0).bus.bus = None;
        }
    }
    cpu(owner).bus.lend(bus);
    let loan = Loan(owner, cpu);
    body(&mut *loan.0)
}

/// What callbacks may ask.
struct Access<'a>(&'a Cpu);

impl AccessContext for Access<'_> {
    fn vcpu(&self) -> u32 {
        self.0.id
    }

    fn regs(&self) -> Regs {
        Regs {
            rip: self.0.next_rip(),
            ..self.0.all_regs()
        }
    }

    fn instructions(&self) -> Option<u64> {
        Some(self.0.instructions)
    }
}

impl Cpu {
    fn call(&mut self, body: impl FnOnce(&mut dyn GuestBus, &dyn AccessContext) -> Flow) {
        let Some(mut bus) = self.bus.bus else {
            return;
        };
        // SAFETY: the module's invariant; nothing else holds a reference to the board now.
        let bus = unsafe { bus.as_mut() };
        if let Flow::Stop(reason) = body(bus, &Access(self)) {
            self.ending = Some(Ending::Stopped(reason));
            self.cut = true;
            self.look = true;
        }
        self.look |= self.signal.event();
    }

    /// A read of a device. Without a board all ones.
    pub(crate) fn bus_read(&mut self, space: SpaceId, addr: u64, data: &mut [u8]) {
        data.fill(0xff);
        self.call(|bus, cx| bus.read(cx, space, addr, data));
    }

    /// A write to a device.
    pub(crate) fn bus_write(&mut self, space: SpaceId, addr: u64, data: &[u8]) {
        self.call(|bus, cx| bus.write(cx, space, addr, data));
    }

    /// A string of writes to one port.
    pub(crate) fn bus_write_string(&mut self, addr: u64, size: usize, data: &[u8]) {
        self.call(|bus, cx| bus.write_string(cx, SpaceId::PORT, addr, size, data));
    }

    /// The end of a level interrupt.
    pub(crate) fn bus_eoi(&mut self, vector: u8) {
        self.call(|bus, _| {
            bus.end_of_interrupt(vector);
            Flow::Continue
        });
    }
}
