//! Where a PCI function of the host is.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

/// Segment, bus, device and function (PCIe 6.0, section 2.2.4.2); written as sysfs does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    segment: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    /// Five bits of the device number and three of the function number are looked at.
    pub fn new(segment: u32, bus: u8, device: u8, function: u8) -> PciAddress {
        PciAddress {
            segment,
            bus,
            device: device & 0x1f,
            function: function & 7,
        }
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PciAddress {
            segment,
            bus,
            device,
            function,
        } = self;
        write!(f, "{segment:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

impl Serialize for PciAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Text that is no address of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAnAddress {
    /// The text.
    pub text: String,
}

impl fmt::Display for NotAnAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no address of a PCI function", self.text)
    }
}

impl std::error::Error for NotAnAddress {}

impl FromStr for PciAddress {
    type Err = NotAnAddress;

    /// `0000:01:10.0`, or without the segment, which is 0 then.
    fn from_str(text: &str) -> Result<PciAddress, NotAnAddress> {
        parse(text).ok_or_else(|| NotAnAddress {
            text: text.to_owned(),
        })
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (front, function) = text.rsplit_once('.')?;
    let (front, device) = front.rsplit_once(':')?;
    let (segment, bus) = front.rsplit_once(':').unwrap_or(("0", front));
    let number = |digits: &str, most: u32| {
        let plain = digits.chars().all(|digit| digit.is_ascii_hexdigit());
        let value = u32::from_str_radix(digits, 16).ok()?;
        (plain && value <= most).then_some(value)
    };
    Some(PciAddress {
        segment: number(segment, u32::MAX)?,
        bus: u8::try_from(number(bus, 0xff)?).ok()?,
        device: u8::try_from(number(device, 0x1f)?).ok()?,
        function: u8::try_from(number(function, 7)?).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        for text in ["0000:01:10.0", "10000:ff:1f.7"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        let short: PciAddress = "01:10.0".parse().unwrap();
        assert_eq!(short.to_string(), "0000:01:10.0");
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_text() {
        for text in [
            "",
            "1",
            "01:00",
            "01:20.0",
            "01:00.8",
            "+1:00.0",
            "100:00.0",
            "0:01:00.0/../x",
        ] {
            let error = text.parse::<PciAddress>().unwrap_err();
            assert_eq!(error.text, text);
        }
    }
}
