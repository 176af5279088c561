//! Saved state of a device and its transport. Untrusted: looked at before anything changes.

use serde::{Deserialize, Serialize};
use vmlet_bus::{SavedError, SavedState};
use vmlet_pci::Function;

use super::{
    pci::VirtioPci,
    registers::{DRIVER_OK, NEEDS_RESET},
};
use crate::virtio::QueueState;

const KIND: &str = "virtio-pci";
const VERSION: u16 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    /// The device type.
    id: u32,
    status: u8,
    features: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    queues: Vec<QueueState>,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    isr: u8,
    window: Vec<u8>,
    device: Option<SavedState>,
}

impl VirtioPci {
    pub(super) fn saved(&self) -> SavedState {
        let state = self.lock();
        let mut queues = state.common.queues.clone();
        for (queue, active) in queues.iter_mut().zip(&state.queues) {
            *queue = active.save();
        }
        let indices = 0..u16::try_from(queues.len()).unwrap_or(u16::MAX);
        let fields = Saved {
            id: self.core.device.id(),
            status: self.notifier.status(),
            features: state.common.features,
            device_feature_select: state.common.device_feature_select,
            driver_feature_select: state.common.driver_feature_select,
            queue_select: state.common.queue_select,
            queue_vectors: indices.map(|i| self.notifier.queue_vector(i)).collect(),
            queues,
            config_vector: self.notifier.config_vector(),
            isr: self.notifier.peek_isr(),
            window: state.window.registers(),
            device: self.core.device.save(),
        };
        SavedState::new(KIND, VERSION, &fields)
    }

    /// A device that was active goes on once it is resumed.
    pub(super) fn take_over(&self, saved: &SavedState) -> Result<(), SavedError> {
        let fields: Saved = saved.read(KIND, VERSION)?;
        self.check(&fields)?;
        self.reset();
        if let Some(device) = &fields.device {
            self.core.device.restore(device)?;
        }
        let mut state = self.lock();
        let common = &mut state.common;
        common.features = fields.features;
        common.device_feature_select = fields.device_feature_select;
        common.driver_feature_select = fields.driver_feature_select;
        common.queue_select = fields.queue_select;
        common.queues.clone_from(&fields.queues);
        state.window.restore(&fields.window);
        self.notifier.set_config_vector(fields.config_vector);
        for (index, vector) in (0..).zip(&fields.queue_vectors) {
            self.notifier.set_queue_vector(index, *vector);
        }
        self.notifier.set_status(fields.status);
        self.notifier.restore_isr(fields.isr);
        self.set_paused();
        if fields.status & DRIVER_OK != 0 && fields.status & NEEDS_RESET == 0 {
            self.activate(&mut state)
                .map_err(|fault| damaged(fault.to_string()))?;
            self.core.device.pause();
        }
        Ok(())
    }

    fn check(&self, fields: &Saved) -> Result<(), SavedError> {
        let id = self.core.device.id();
        if fields.id != id {
            return Err(damaged(format!("device type {}, not {id}", fields.id)));
        }
        let sizes = fields.queues.iter().map(|queue| queue.max_size);
        if !sizes.eq(self.core.device.queue_sizes()) {
            return Err(damaged("its queues are not the device's".to_owned()));
        }
        if let Some(fault) = fields.queues.iter().find_map(|queue| queue.check().err()) {
            return Err(damaged(fault.to_string()));
        }
        if fields.status & DRIVER_OK != 0 && !self.agrees(fields.features) {
            return Err(damaged(
                "features that the device does not offer".to_owned(),
            ));
        }
        Ok(())
    }
}

fn damaged(detail: String) -> SavedError {
    SavedError::Damaged { kind: KIND, detail }
}
