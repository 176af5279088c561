//! Where a function is.

use std::fmt;

use vmlet_bus::RequesterId;

/// Bus, device and function number (PCIe 6.0, section 2.2.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf(u16);

impl Bdf {
    /// Device numbers have five bits and function numbers three; the others are not looked at.
    pub fn new(bus: u8, device: u8, function: u8) -> Bdf {
        Bdf(u16::from(bus) << 8 | u16::from(device & 0x1f) << 3 | u16::from(function & 7))
    }

    #[cfg(test)]
    pub(crate) const fn from_bits(bits: u16) -> Bdf {
        Bdf(bits)
    }

    /// The bus number.
    pub fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The device number, below 32.
    pub fn device(self) -> u8 {
        (self.0 >> 3 & 0x1f) as u8
    }

    /// The function number, below 8.
    pub fn function(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// What the function's requests carry.
    pub fn requester(self) -> RequesterId {
        RequesterId(self.0)
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bus, device, function) = (self.bus(), self.device(), self.function());
        write!(f, "{bus:02x}:{device:02x}.{function}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_lspci_does_and_keeps_its_parts() {
        let bdf = Bdf::new(0x12, 0x1f, 7);
        assert_eq!((bdf.bus(), bdf.device(), bdf.function()), (0x12, 0x1f, 7));
        assert_eq!(
            (bdf.to_string().as_str(), bdf.requester()),
            ("12:1f.7", RequesterId(0x12ff))
        );
    }
}
