//! The common configuration as plain registers (virtio 1.2, section 4.1.4.3).

use crate::virtio::QueueState;

/// Bits of the device status (section 2.1).
pub(super) const DRIVER_OK: u8 = 4;
pub(super) const FEATURES_OK: u8 = 8;
pub(super) const NEEDS_RESET: u8 = 0x40;

/// What the driver has written.
#[derive(Clone, Debug, Default)]
pub(super) struct Common {
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    /// What the driver accepts.
    pub(super) features: u64,
    pub(super) queue_select: u16,
    pub(super) queues: Vec<QueueState>,
}

/// A register that is not plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing to do.
    Done,
    /// `device_status` was written.
    Status(u8),
    /// The vector of configuration changes was written.
    ConfigVector(u16),
    /// A queue's vector was written.
    QueueVector {
        /// Which queue.
        queue: u16,
        /// Which vector.
        vector: u16,
    },
}

/// What is kept elsewhere and read here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    pub(super) offered: u64,
    pub(super) status: u8,
    pub(super) generation: u8,
    pub(super) config_vector: u16,
    pub(super) queue_vector: u16,
}

/// Where fields lie.
mod field {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const CONFIG_VECTOR: u64 = 0x10;
    pub(super) const NUM_QUEUES: u64 = 0x12;
    pub(super) const DEVICE_STATUS: u64 = 0x14;
    pub(super) const CONFIG_GENERATION: u64 = 0x15;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub(super) const QUEUE_DESC: u64 = 0x20;
    pub(super) const QUEUE_DRIVER: u64 = 0x28;
    pub(super) const QUEUE_DEVICE: u64 = 0x30;
}

impl Common {
    pub(super) fn new(sizes: &[u16]) -> Common {
        Common {
            queues: sizes.iter().map(|size| QueueState::new(*size)).collect(),
            ..Common::default()
        }
    }

    /// The selected queue, if the device has it.
    pub(super) fn queue(&self) -> Option<&QueueState> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The registers as the driver reads them.
    pub(super) fn image(&self, shown: &Shown) -> [u8; 0x40] {
        let mut image = [0; 0x40];
        let mut put = |offset: u64, bytes: &[u8]| {
            let start = usize::try_from(offset).unwrap_or(0);
            let place = image.iter_mut().skip(start);
            place.zip(bytes).for_each(|(to, from)| *to = *from);
        };
        let queues = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        // A queue that is not there has size zero (section 4.1.4.3.1).
        let queue = self.queue().copied().unwrap_or_default();
        let notify_off = self.queue().map_or(0, |_| self.queue_select);
        put(
            field::DEVICE_FEATURE_SELECT,
            &self.device_feature_select.to_le_bytes(),
        );
        put(
            field::DEVICE_FEATURE,
            &word(shown.offered, self.device_feature_select),
        );
        put(
            field::DRIVER_FEATURE_SELECT,
            &self.driver_feature_select.to_le_bytes(),
        );
        put(
            field::DRIVER_FEATURE,
            &word(self.features, self.driver_feature_select),
        );
        put(field::CONFIG_VECTOR, &shown.config_vector.to_le_bytes());
        put(field::NUM_QUEUES, &queues.to_le_bytes());
        put(field::DEVICE_STATUS, &[shown.status]);
        put(field::CONFIG_GENERATION, &[shown.generation]);
        put(field::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        put(field::QUEUE_SIZE, &queue.size.to_le_bytes());
        put(field::QUEUE_VECTOR, &shown.queue_vector.to_le_bytes());
        put(field::QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
        put(field::QUEUE_NOTIFY_OFF, &notify_off.to_le_bytes());
        put(field::QUEUE_DESC, &queue.desc.to_le_bytes());
        put(field::QUEUE_DRIVER, &queue.avail.to_le_bytes());
        put(field::QUEUE_DEVICE, &queue.used.to_le_bytes());
        image
    }

    /// The driver writes `data` at `offset`; `status` is the device's now. Fields are taken in their
    /// own width, 64-bit ones in halves too (section 4.1.3.1); anything else is ignored.
    pub(super) fn write(&mut self, status: u8, offset: u64, data: &[u8]) -> Effect {
        let value = data
            .iter()
            .rev()
            .fold(0u64, |v, byte| v << 8 | u64::from(*byte));
        let half = |value: u64| (value & 0xffff_ffff) as u32;
        let short = |value: u64| (value & 0xffff) as u16;
        match (offset, data.len()) {
            (field::DEVICE_FEATURE_SELECT, 4) => self.device_feature_select = half(value),
            (field::DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select = half(value),
            (field::DRIVER_FEATURE, 4) => self.accept(status, half(value)),
            (field::CONFIG_VECTOR, 2) => return Effect::ConfigVector(short(value)),
            (field::DEVICE_STATUS, 1) => return Effect::Status((value & 0xff) as u8),
            (field::QUEUE_SELECT, 2) => self.queue_select = short(value),
            (field::QUEUE_VECTOR, 2) => {
                let queue = self.queue_select;
                let vector = short(value);
                return Effect::QueueVector { queue, vector };
            }
            _ => self.configure(status, offset, data.len(), value),
        }
        Effect::Done
    }

    /// Features are settled once `FEATURES_OK` is set (section 3.1.1).
    fn accept(&mut self, status: u8, value: u32) {
        if status & FEATURES_OK != 0 || self.driver_feature_select > 1 {
            return;
        }
        let shift = 32 * self.driver_feature_select;
        let kept = self.features & !(0xffff_ffff << shift);
        self.features = kept | u64::from(value) << shift;
    }

    /// A queue's configuration, frozen once the queue is enabled or the driver is ready.
    fn configure(&mut self, status: u8, offset: u64, len: usize, value: u64) {
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return;
        };
        if queue.enabled || status & DRIVER_OK != 0 {
            return;
        }
        match (offset, len) {
            (field::QUEUE_SIZE, 2) => {
                let size = u16::try_from(value).unwrap_or(0);
                if size.is_power_of_two() && size <= queue.max_size {
                    queue.size = size;
                }
            }
            // Writing zero is not allowed to drivers, and does nothing (section 4.1.4.3.2).
            (field::QUEUE_ENABLE, 2) => queue.enabled = value == 1,
            _ => {
                set_half(&mut queue.desc, field::QUEUE_DESC, offset, len, value);
                set_half(&mut queue.avail, field::QUEUE_DRIVER, offset, len, value);
                set_half(&mut queue.used, field::QUEUE_DEVICE, offset, len, value);
            }
        }
    }
}

/// Half `select` of a 64-bit set of features; there are no others.
fn word(features: u64, select: u32) -> [u8; 4] {
    let bytes = features.to_le_bytes();
    let half = match select {
        0 => bytes.first_chunk(),
        1 => bytes.last_chunk(),
        _ => None,
    };
    half.copied().unwrap_or_default()
}

/// Writes a 64-bit register at `at`, whole or by halves.
fn set_half(register: &mut u64, at: u64, offset: u64, len: usize, value: u64) {
    let low = 0xffff_ffff;
    if (offset, len) == (at, 8) {
        *register = value;
    } else if (offset, len) == (at, 4) {
        *register = *register & !low | value;
    } else if (offset, len) == (at + 4, 4) {
        *register = *register & low | value << 32;
    }
}
