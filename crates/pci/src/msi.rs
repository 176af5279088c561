//! MSI with one vector (PCIe 6.0, section 7.7.1): 64-bit addresses, and a mask.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use vmlet_bus::{Msi, MsiRoute, MsiSink, RequesterId};

use crate::{
    capability::{List, MSI},
    registers::Registers,
    vector::{Sender, Vector},
};

/// Registers from the capability on.
const CONTROL: u16 = 2;
const ENABLE: u16 = 1;
const ADDRESS: u16 = 4;
const DATA: u16 = 12;
const MASK: u16 = 16;
const PENDING: u16 = 20;
/// 64-bit addresses, a mask for each vector.
const KIND: [u8; 2] = [0x80, 0x01];

/// The capability in its function's registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MsiRegisters {
    at: u16,
}

impl MsiRegisters {
    /// Adds the capability.
    pub(crate) fn define(list: &mut List, registers: &mut Registers) -> MsiRegisters {
        let [low, high] = KIND;
        let mut body = vec![low, high];
        body.resize(22, 0);
        let at = list.add(registers, MSI, &body);
        registers.allow(at + CONTROL, &[1]);
        registers.allow(
            at + ADDRESS,
            &[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        );
        registers.allow(at + DATA, &[0xff; 2]);
        registers.allow(at + MASK, &[1]);
        MsiRegisters { at }
    }

    /// Messages are on, masked or not.
    pub(crate) fn enabled(self, registers: &Registers) -> bool {
        registers.half(self.at + CONTROL) & ENABLE != 0
    }

    /// What is sent now by a function that `masters` its bus; `None`: masked or off.
    pub(crate) fn message(self, registers: &Registers, masters: bool) -> Option<Msi> {
        let masked = registers.byte(self.at + MASK) & 1 != 0 || !masters;
        let low = u64::from(registers.word(self.at + ADDRESS));
        let high = u64::from(registers.word(self.at + ADDRESS + 4));
        (self.enabled(registers) && !masked).then(|| Msi {
            address: low | high << 32,
            data: registers.half(self.at + DATA).into(),
        })
    }

    /// Where the pending bit is.
    pub(crate) fn pending(self) -> u16 {
        self.at + PENDING
    }
}

/// A function's vector of MSI.
#[derive(Debug)]
pub struct MsiVector {
    vector: Mutex<Vector>,
    sender: Sender,
    enabled: AtomicBool,
}

impl MsiVector {
    /// A vector of `requester`, off.
    pub fn new(sink: Arc<dyn MsiSink>, requester: RequesterId) -> MsiVector {
        MsiVector {
            vector: Mutex::default(),
            sender: Sender { sink, requester },
            enabled: AtomicBool::new(false),
        }
    }

    /// MSI is on, masked or not: the function's line is silent.
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Sends the message, from any thread: at once, or when it is unmasked. Nothing happens while
    /// MSI is off.
    pub fn trigger(&self) {
        if self.enabled() {
            self.lock().trigger(&self.sender);
        }
    }

    /// The vector's way to the local APICs, for who sends without this process; the guest's mask
    /// holds for it too.
    pub fn route(&self) -> Arc<dyn MsiRoute> {
        Arc::clone(self.lock().route(&self.sender))
    }

    /// Registers have changed.
    pub(crate) fn set(&self, enabled: bool, message: Option<Msi>) {
        let mut vector = self.lock();
        self.enabled.store(enabled, Ordering::Release);
        if !enabled {
            vector.pending = false;
        }
        if vector.message != message || vector.pending {
            vector.set(message, &self.sender);
        }
    }

    pub(crate) fn pending(&self) -> bool {
        self.lock().pending
    }

    /// Takes over a pending bit; it goes out, or away, with what [`MsiVector::set`] says next.
    pub(crate) fn restore(&self, pending: bool) {
        self.lock().pending = pending;
    }

    fn lock(&self) -> MutexGuard<'_, Vector> {
        self.vector.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Messages;

    const SENT: Msi = Msi {
        address: 0xfee0_0000,
        data: 0x41,
    };

    fn registers() -> (Registers, MsiRegisters) {
        let (mut registers, mut list) = (Registers::default(), List::new());
        let msi = MsiRegisters::define(&mut list, &mut registers);
        registers.write(msi.at + ADDRESS, &[0, 0, 0xe0, 0xfe]);
        registers.write(msi.at + DATA, &[0x41]);
        (registers, msi)
    }

    #[test]
    fn a_message_is_what_the_registers_say_while_nothing_masks_it() {
        let (mut registers, msi) = registers();
        assert_eq!(msi.message(&registers, true), None);
        registers.write(msi.at + CONTROL, &[1]);
        assert_eq!(msi.message(&registers, true), Some(SENT));
        assert_eq!(msi.message(&registers, false), None);
        registers.write(msi.at + MASK, &[1]);
        assert_eq!(msi.message(&registers, true), None);
        assert!(msi.enabled(&registers));
    }

    #[test]
    fn what_comes_while_masked_is_pending_and_goes_out_later() {
        let messages = Messages::default();
        let vector = MsiVector::new(Arc::new(messages.clone()), RequesterId(8));
        vector.trigger();
        vector.set(true, None);
        assert!(!vector.pending());
        vector.trigger();
        assert!(vector.pending() && messages.take().is_empty());
        vector.set(true, Some(SENT));
        vector.trigger();
        assert_eq!(messages.take(), [(RequesterId(8), SENT); 2]);
        vector.set(false, None);
        vector.trigger();
        assert!(messages.take().is_empty() && !vector.enabled());
    }
}
