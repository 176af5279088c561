//! Network devices that a user names, as plain data, and what they are made of.

use std::{
    os::fd::RawFd,
    sync::{Arc, Weak},
};

use vmlet_devices::{
    backend::net::{self, NetBackend, NetError, Passt, Tap, VhostNet},
    virtio::{
        Place, VirtioPci,
        net::{MacAddress, Net, NetConfig, features},
        rng::{Entropy, HostEntropy},
    },
};
use vmlet_pci::Function;

use crate::{Machine, MachineError, ThreadStarter, devices::shared_reactor, journal::TakesInput};

/// The shortest packets that IPv4 allows for, and the longest there are.
const MTUS: std::ops::RangeInclusive<u16> = 68..=65_520;
/// Addresses of devices in counted runs: these bytes, locally administered, and the root port.
const COUNTED: [u8; 5] = [0x02, 0x76, 0x6d, 0x6c, 0x74];

/// What stands behind a network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetLink {
    /// The program passt, with these arguments: networking without privileges.
    User(Vec<String>),
    /// An interface of the host.
    Tap(String),
    /// What this number stands for; it stays its owner's.
    Descriptor(RawFd),
}

/// A network device to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetDevice {
    /// What stands behind it.
    pub link: NetLink,
    /// Its address; none: one of its own.
    pub mac: Option<String>,
    /// The longest packet without the Ethernet header; none: the guest's choice.
    pub mtu: Option<u16>,
    /// The kernel moves frames: always, never, or where it can.
    pub vhost: Option<bool>,
}

impl NetDevice {
    fn check(&self) -> Result<(), MachineError> {
        let refuse = |what, detail: String, remedy| {
            Err(MachineError::Config {
                what,
                detail,
                remedy,
            })
        };
        if let Some(mtu) = self.mtu.filter(|mtu| !MTUS.contains(mtu)) {
            return refuse("mtu", mtu.to_string(), "Give 68 to 65520 bytes.");
        }
        if self.vhost == Some(true) && matches!(self.link, NetLink::User(_)) {
            let detail = "True without a tap interface".to_owned();
            return refuse("vhost", detail, "Leave it out: it is for tap interfaces.");
        }
        Ok(())
    }

    /// The address that was asked for.
    fn address(&self) -> Result<Option<MacAddress>, MachineError> {
        let Some(text) = &self.mac else {
            return Ok(None);
        };
        let address: Option<MacAddress> = text.parse().ok();
        let address = address.filter(|address| address.is_station());
        let found = address.ok_or_else(|| MachineError::Config {
            what: "mac",
            detail: format!("{text:?}"),
            remedy: "Give one station's address, such as 02:00:00:00:00:01.",
        });
        found.map(Some)
    }

    fn backend(&self) -> Result<Arc<dyn NetBackend>, NetError> {
        Ok(match &self.link {
            NetLink::User(arguments) => Arc::new(Passt::start(arguments)?),
            NetLink::Tap(name) => Arc::new(Tap::open(name)?),
            NetLink::Descriptor(number) => net::of_number(*number)?,
        })
    }

    /// The kernel's help, as far as it is wanted and can be had.
    fn vhost(
        &self,
        backend: &dyn NetBackend,
        able: bool,
    ) -> Result<Option<VhostNet>, MachineError> {
        let wanted = self.vhost.unwrap_or(able);
        if !wanted || !able || backend.descriptor().is_none() {
            if self.vhost == Some(true) {
                return Err(MachineError::Config {
                    what: "vhost",
                    detail: "True where the kernel cannot move frames".to_owned(),
                    remedy: "It takes KVM, the host's clock, and a tap interface with headers.",
                });
            }
            return Ok(None);
        }
        match VhostNet::open().and_then(|vhost| knows_merging(&vhost).map(|()| vhost)) {
            Ok(vhost) => Ok(Some(vhost)),
            Err(error) if self.vhost == Some(true) => Err(error.into()),
            Err(_) => Ok(None),
        }
    }
}

/// The device offers merged buffers, which the kernel has to know then.
fn knows_merging(vhost: &VhostNet) -> Result<(), NetError> {
    if vhost.features()? & features::MRG_RXBUF != 0 {
        return Ok(());
    }
    Err(NetError::Vhost {
        action: "merging buffers",
        remedy: "",
        source: std::io::ErrorKind::Unsupported.into(),
    })
}

/// An address for who named none. A counted run gets the same one every time.
fn own_address(counted: bool, port: u8) -> Result<MacAddress, MachineError> {
    let mut bytes = [0; 6];
    if counted {
        let fixed = COUNTED.into_iter().chain([port]);
        bytes
            .iter_mut()
            .zip(fixed)
            .for_each(|(to, from)| *to = from);
        return Ok(MacAddress(bytes));
    }
    let filled = HostEntropy::open().and_then(|source| source.fill(&mut bytes));
    filled.map_err(|source| MachineError::Source { source })?;
    Ok(MacAddress::local(bytes))
}

impl Machine {
    /// Makes a network device and puts it into root port `port`, or into the first that is free;
    /// gives which. Its thread is started by `spawn`.
    pub fn attach_net(
        &self,
        device: &NetDevice,
        port: Option<u8>,
        spawn: &Arc<ThreadStarter>,
    ) -> Result<u8, MachineError> {
        device.check()?;
        let counted = self.is_counted()?;
        let free = self.next_port(port)?;
        let mac = match device.address()? {
            Some(mac) => mac,
            None => own_address(counted, free)?,
        };
        let reactor = shared_reactor(&**spawn)?;
        let place = if counted {
            Place::Guest
        } else {
            Place::Reactor(Arc::clone(&reactor))
        };
        let backend = device.backend()?;
        let able = !counted && self.engine()? == "kvm";
        let vhost = device.vhost(&*backend, able)?;
        let config = NetConfig {
            mac,
            mtu: device.mtu,
        };
        let made = Arc::new(Net::new(config, backend, place.clone(), vhost));
        let function = VirtioPci::new(Arc::clone(&made) as Arc<_>, place);
        let port = self.attach(Arc::clone(&function) as Arc<dyn Function>, port)?;
        if let Some(journal) = self.journal()? {
            let inputs: Weak<VirtioPci> = Arc::downgrade(&function);
            let inputs = journal.connect(port, inputs as Weak<dyn TakesInput>);
            made.feed(&reactor, Arc::new(inputs))?;
        }
        Ok(port)
    }
}
