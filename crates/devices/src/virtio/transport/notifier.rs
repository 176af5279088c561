//! Interrupts, the ISR byte and the device status (virtio 1.2, sections 2.1, 4.1.4.5, 4.1.5.3).

use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicU8, AtomicU16, Ordering},
};

use vmlet_bus::{IrqLine, MsiRoute};
use vmlet_pci::Msix;

use super::registers::{DRIVER_OK, NEEDS_RESET};
use crate::virtio::VirtioInterrupt;

/// `VIRTIO_MSI_NO_VECTOR`.
pub(super) const NO_VECTOR: u16 = 0xffff;
/// Bits of the ISR byte.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Where interrupts go.
#[derive(Debug)]
pub(super) struct Wires {
    pub(super) msix: Arc<Msix>,
    pub(super) intx: Arc<dyn IrqLine>,
}

/// What queues and devices interrupt by.
#[derive(Debug)]
pub(super) struct Notifier {
    wires: OnceLock<Wires>,
    /// The byte, and with it the line: they change together.
    isr: Mutex<u8>,
    status: AtomicU8,
    generation: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
}

impl Notifier {
    pub(super) fn new(queues: usize) -> Notifier {
        Notifier {
            wires: OnceLock::new(),
            isr: Mutex::default(),
            status: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        }
    }

    pub(super) fn connect(&self, wires: Wires) {
        let _ = self.wires.set(wires);
    }

    pub(super) fn status(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    pub(super) fn set_status(&self, status: u8) {
        self.status.store(status, Ordering::Release);
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    pub(super) fn queue_vector(&self, index: u16) -> u16 {
        let vector = self.queue_vectors.get(usize::from(index));
        vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// A vector that does not exist reads back as none (section 4.1.5.1.2.1).
    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector
            .store(self.existing(vector), Ordering::Release);
    }

    pub(super) fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(place) = self.queue_vectors.get(usize::from(index)) {
            place.store(self.existing(vector), Ordering::Release);
        }
    }

    fn existing(&self, vector: u16) -> u16 {
        let vectors = self.wires.get().map_or(0, |wires| wires.msix.vectors());
        if vector < vectors { vector } else { NO_VECTOR }
    }

    /// Back to the state after power-on.
    pub(super) fn reset(&self) {
        self.set_status(0);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.take_isr();
    }

    /// The driver reads the ISR byte: that clears it and lowers the line.
    pub(super) fn take_isr(&self) -> u8 {
        let mut isr = self.isr();
        let taken = std::mem::take(&mut *isr);
        self.drive(0);
        taken
    }

    pub(super) fn peek_isr(&self) -> u8 {
        *self.isr()
    }

    pub(super) fn restore_isr(&self, value: u8) {
        let mut isr = self.isr();
        *isr = value & (ISR_QUEUE | ISR_CONFIG);
        self.drive(*isr);
    }

    fn isr(&self) -> MutexGuard<'_, u8> {
        self.isr.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drive(&self, isr: u8) {
        if let Some(wires) = self.wires.get() {
            wires.intx.set(isr != 0);
        }
    }

    fn send(&self, bit: u8, vector: u16) {
        let Some(wires) = self.wires.get() else {
            return;
        };
        let by_message = wires.msix.enabled();
        if bit == ISR_CONFIG || !by_message {
            let mut isr = self.isr();
            *isr |= bit;
            self.drive(*isr);
        }
        if by_message && vector != NO_VECTOR {
            wires.msix.trigger(vector);
        }
    }
}

impl VirtioInterrupt for Notifier {
    fn queue(&self, index: u16) {
        self.send(ISR_QUEUE, self.queue_vector(index));
    }

    fn config(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if self.status() & DRIVER_OK != 0 {
            self.send(ISR_CONFIG, self.config_vector());
        }
    }

    fn needs_reset(&self) {
        let before = self.status.fetch_or(NEEDS_RESET, Ordering::AcqRel);
        if before & DRIVER_OK != 0 {
            self.config();
        }
    }

    fn route(&self, index: u16) -> Option<Arc<dyn MsiRoute>> {
        let wires = self.wires.get().filter(|wires| wires.msix.enabled())?;
        wires.msix.route(self.queue_vector(index))
    }
}
