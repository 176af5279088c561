//! What the device is made of, and its configuration (virtio 1.2, section 5.1.4).

use std::{fmt, str::FromStr};

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// For many stations.
    pub fn is_multicast(self) -> bool {
        let [first, ..] = self.0;
        first & 1 != 0
    }

    /// For all stations.
    pub fn is_broadcast(self) -> bool {
        self.0 == [0xff; 6]
    }

    /// One station's, and not all zeros.
    pub fn is_station(self) -> bool {
        !self.is_multicast() && self.0 != [0; 6]
    }

    /// A locally administered address out of random bytes.
    pub fn local(random: [u8; 6]) -> MacAddress {
        let [first, rest @ ..] = random;
        let [a, b, c, d, e] = rest;
        MacAddress([first & 0xfc | 2, a, b, c, d, e])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = ();

    fn from_str(text: &str) -> Result<MacAddress, ()> {
        let mut address = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut address {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(())?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| ())?;
        }
        parts
            .next()
            .is_none()
            .then_some(MacAddress(address))
            .ok_or(())
    }
}

/// What a network device is made of.
#[derive(Clone, Copy, Debug)]
pub struct NetConfig {
    /// Its address.
    pub mac: MacAddress,
    /// The longest packet, without the Ethernet header; none: the driver's choice.
    pub mtu: Option<u16>,
}

/// `VIRTIO_NET_S_LINK_UP`.
const LINK_UP: u16 = 1;

/// `struct virtio_net_config`, as far as features of ours fill it: address, status, pairs of queues,
/// MTU.
pub(super) fn image(mac: MacAddress, link_up: bool, mtu: Option<u16>) -> Vec<u8> {
    let status = if link_up { LINK_UP } else { 0 };
    let mut image = mac.0.to_vec();
    image.extend(status.to_le_bytes());
    image.extend(1u16.to_le_bytes());
    image.extend(mtu.unwrap_or(0).to_le_bytes());
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_what_it_is_written_as() {
        let text = "02:00:0a:ff:10:01";
        let address: MacAddress = text.parse().unwrap();
        assert_eq!(address.to_string(), text);
        for wrong in [
            "",
            "02:00:0a:ff:10",
            "02:00:0a:ff:10:01:02",
            "2:0:a:f:1:1",
            "02-00-0a-ff-10-01",
        ] {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_made_address_is_one_stations_and_locally_administered() {
        let MacAddress(bytes) = MacAddress::local([0xff; 6]);
        assert_eq!(bytes[0] & 3, 2);
    }
}
