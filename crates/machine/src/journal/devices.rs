//! What comes for devices from outside a counted run.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use vmlet_devices::virtio::{VirtioPci, net::FrameSink};

use super::{Journal, Mode, RecordError, format::Input};

/// The most bytes that wait for the guest's thread; what comes beyond is lost.
const MOST: usize = 4 << 20;
/// The longest entry.
const LONGEST: usize = 1 << 20;

/// A device that takes bytes from outside, on the guest's thread.
pub(crate) trait TakesInput: Send + Sync + Debug {
    /// Here they are.
    fn input(&self, bytes: &[u8]);
}

impl TakesInput for VirtioPci {
    fn input(&self, bytes: &[u8]) {
        VirtioPci::input(self, bytes);
    }
}

/// The devices of a run, by root port.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<BTreeMap<u32, Weak<dyn TakesInput>>>);

impl Table {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Weak<dyn TakesInput>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What comes for a device that is gone is lost.
    pub(super) fn give(&self, port: u32, bytes: &[u8]) {
        let device = self.lock().get(&port).and_then(Weak::upgrade);
        if let Some(device) = device {
            device.input(bytes);
        }
    }
}

/// What waits to enter.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    inputs: VecDeque<(u32, Vec<u8>)>,
    bytes: usize,
}

impl Arrived {
    /// False: there is no room.
    fn add(&mut self, port: u32, bytes: &[u8]) -> bool {
        let fits = bytes.len() <= LONGEST && self.bytes + bytes.len() <= MOST;
        if fits {
            self.bytes += bytes.len();
            self.inputs.push_back((port, bytes.to_vec()));
        }
        fits
    }

    pub(super) fn take(&mut self) -> impl Iterator<Item = Input> + use<> {
        self.bytes = 0;
        let inputs = std::mem::take(&mut self.inputs);
        inputs
            .into_iter()
            .map(|(port, bytes)| Input::Device { port, bytes })
    }
}

impl Journal {
    /// The device in root port `port`; what comes for it goes through the result.
    pub(crate) fn connect(
        self: &Arc<Journal>,
        port: u8,
        device: Weak<dyn TakesInput>,
    ) -> DeviceInputs {
        let port = u32::from(port);
        self.devices.lock().insert(port, device);
        DeviceInputs {
            journal: Arc::downgrade(self),
            port,
        }
    }
}

/// The way of one device's inputs into a counted run.
#[derive(Clone, Debug)]
pub(crate) struct DeviceInputs {
    journal: Weak<Journal>,
    port: u32,
}

impl DeviceInputs {
    /// Lets `bytes` enter when the guest's thread next asks. False: they are lost, for want of room
    /// or because the run is over; an error in a replay, which takes nothing from outside.
    pub(crate) fn offer(&self, bytes: &[u8]) -> Result<bool, RecordError> {
        let Some(journal) = self.journal.upgrade() else {
            return Ok(false);
        };
        let mut state = journal.lock();
        match state.mode {
            Mode::Live | Mode::Recording(_) => {}
            Mode::Replaying(_) => return Err(RecordError::Replaying),
            Mode::Over => return Ok(false),
        }
        if !state.arrived.add(self.port, bytes) {
            return Ok(false);
        }
        drop(state);
        if let Some(vm) = journal.vm.upgrade() {
            vm.input_waits();
        }
        Ok(true)
    }
}

impl FrameSink for DeviceInputs {
    fn push(&self, frame: &[u8]) {
        // A frame that finds no room, or a replay, is lost as on any network.
        let _ = self.offer(frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_lost_and_the_rest_enters_in_order() {
        let mut arrived = Arrived::default();
        assert!(arrived.add(1, b"a"));
        assert!(!arrived.add(1, &vec![0; LONGEST + 1]));
        for _ in 0..3 {
            assert!(arrived.add(2, &vec![0; LONGEST]));
        }
        assert!(!arrived.add(2, &vec![0; LONGEST]));
        let ports: Vec<_> = arrived.take().collect();
        assert_eq!(ports.len(), 4);
        assert!(matches!(&ports[0], Input::Device { port: 1, bytes } if bytes == b"a"));
        assert!(arrived.add(1, b"b"));
    }
}
