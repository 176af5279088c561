//! The device.

use std::sync::{Arc, Mutex, PoisonError};

use vmlet_bus::{SavedError, SavedState};
use vmlet_reactor::{Reactor, ReactorError};

use super::{
    CONTROL, NetConfig, config,
    features::{self as bit, are_complete},
    filter::Filter,
    kernel::KernelSession,
    outside::{Feed, FrameSink},
    saved::{self, NAME},
    session::{Session, Settings, Shared, lock},
};
use crate::{
    backend::net::{NetBackend, VhostNet},
    virtio::{Activation, Place, VirtioDevice, read_image},
};

/// Entries of the queues of frames, and of commands.
const FRAMES: u16 = 256;
const COMMANDS: u16 = 64;
/// Ethernet controller (PCI Code and ID Assignment Specification 1.11, section 1.3).
const CLASS: [u8; 3] = [2, 0, 0];

/// Who moves frames.
#[derive(Clone, Debug)]
enum Mover {
    Here(Arc<Session>),
    Kernel(Arc<KernelSession>),
}

/// A network device.
#[derive(Debug)]
pub struct Net {
    config: NetConfig,
    place: Place,
    shared: Arc<Shared>,
    vhost: Option<Arc<VhostNet>>,
    mover: Mutex<Option<Mover>>,
    /// Reads what is to enter a counted run.
    feed: Mutex<Option<Feed>>,
}

impl Net {
    /// A device whose frames go to and come from `backend`. With `vhost` the kernel moves them, where
    /// it can.
    pub fn new(
        config: NetConfig,
        backend: Arc<dyn NetBackend>,
        place: Place,
        vhost: Option<VhostNet>,
    ) -> Net {
        Net {
            config,
            place,
            shared: Arc::new(Shared {
                settings: Mutex::new(Settings {
                    mac: config.mac,
                    link_up: true,
                    filter: Filter::new(),
                }),
                backend,
                mtu: config.mtu,
            }),
            vhost: vhost.map(Arc::new),
            mover: Mutex::default(),
            feed: Mutex::default(),
        }
    }

    /// Has `reactor` read frames for `sink`, which lets them enter a counted run.
    pub fn feed(
        &self,
        reactor: &Arc<Reactor>,
        sink: Arc<dyn FrameSink>,
    ) -> Result<(), ReactorError> {
        let feed = Feed::start(&self.shared, reactor, sink)?;
        *lock(&self.feed) = feed;
        Ok(())
    }

    /// The address that the driver uses now.
    pub fn mac(&self) -> super::MacAddress {
        self.shared.settings().mac
    }

    /// Whether the cable is in.
    pub fn link_is_up(&self) -> bool {
        self.shared.settings().link_up
    }

    /// Puts the cable in or pulls it out; frames are lost meanwhile.
    pub fn set_link(&self, up: bool) {
        let was = std::mem::replace(&mut self.shared.settings().link_up, up);
        if was != up
            && let Some(Mover::Here(session)) = self.mover()
        {
            session.active.interrupt.config();
        }
    }

    fn mover(&self) -> Option<Mover> {
        let mover = self.mover.lock().unwrap_or_else(PoisonError::into_inner);
        mover.clone()
    }

    /// The kernel, where that is wanted and it can.
    fn by_kernel(&self, active: &Activation) -> Option<Mover> {
        let (Some(vhost), Place::Reactor(reactor)) = (&self.vhost, &self.place) else {
            return None;
        };
        match KernelSession::start(active.clone(), &self.shared, vhost, reactor) {
            Ok(session) => Some(Mover::Kernel(session)),
            Err(error) => {
                log::warn!(target: "vmlet.virtio", "frames are not moved by the kernel: {error}");
                None
            }
        }
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> u32 {
        1
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> [u8; 3] {
        CLASS
    }

    fn features(&self) -> u64 {
        let offloads = self.shared.backend.offloads();
        let mut features = offloads | bit::MAC | bit::STATUS | bit::MRG_RXBUF;
        features |= bit::CTRL_VQ | bit::CTRL_RX | bit::CTRL_RX_EXTRA | bit::CTRL_MAC_ADDR;
        if self.config.mtu.is_some() {
            features |= bit::MTU;
        }
        if offloads & bit::GUEST_OFFLOADS != 0 {
            features |= bit::CTRL_GUEST_OFFLOADS;
        }
        features
    }

    fn accepts(&self, features: u64) -> bool {
        are_complete(features)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![FRAMES, FRAMES, COMMANDS]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let settings = self.shared.settings();
        let image = config::image(settings.mac, settings.link_up, self.config.mtu);
        read_image(&image, offset, data);
    }

    fn activate(&self, active: Activation) {
        let offloads = active.features & bit::GUEST_OFFLOADS;
        if let Err(error) = self.shared.backend.set_offloads(offloads) {
            log::warn!(target: "vmlet.virtio", "the host does not take offloads: {error}");
        }
        let mover = self.by_kernel(&active).unwrap_or_else(|| {
            let session = Session::new(active, &self.shared, &self.place);
            session.listen();
            Mover::Here(session)
        });
        *lock(&self.mover) = Some(mover);
    }

    fn queue_ready(&self, index: u16) {
        match self.mover() {
            Some(Mover::Here(session)) => session.kicked(index),
            Some(Mover::Kernel(session)) if index == CONTROL => session.obey(),
            _ => {}
        }
    }

    fn owns_doorbells(&self) -> bool {
        matches!(self.mover(), Some(Mover::Kernel(_)))
    }

    fn input(&self, bytes: &[u8]) {
        if let Some(Mover::Here(session)) = self.mover() {
            session.input(bytes);
        }
    }

    fn reset(&self) {
        self.pause();
        lock(&self.mover).take();
        let mut settings = self.shared.settings();
        settings.mac = self.config.mac;
        settings.filter = Filter::new();
        drop(settings);
        let _ = self.shared.backend.set_offloads(0);
    }

    fn pause(&self) {
        match self.mover() {
            Some(Mover::Here(session)) => session.stop(),
            Some(Mover::Kernel(session)) => session.stop(),
            None => {}
        }
    }

    fn resume(&self) {
        match self.mover() {
            Some(Mover::Here(session)) => session.listen(),
            Some(Mover::Kernel(session)) => {
                if let Err(error) = session.go() {
                    log::error!(target: "vmlet.virtio", "the kernel moves no frames: {error}");
                }
            }
            None => {}
        }
    }

    fn save(&self) -> Option<SavedState> {
        Some(saved::save(&self.shared.settings()))
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        let (mac, filter) = saved::load(saved)?;
        let mut settings = self.shared.settings();
        settings.mac = mac;
        settings.filter = filter;
        Ok(())
    }
}
