//! Config space of a function of the host: where its extended capabilities are.
//!
//! The bytes come from a device, which may be broken or made to mislead: lists are followed for as
//! many steps as there is room for entries, and what lies outside of the bytes is not there.

/// Bytes that every user may read (`drivers/pci/pci-sysfs.c`).
pub(crate) const HEADER: usize = 64;
/// Bytes of the whole of it (PCIe 6.0, section 7.2).
pub(crate) const WHOLE: usize = 4096;
/// First extended capability (PCIe 6.0, section 7.6).
const EXTENDED: usize = 0x100;
/// Entries of eight bytes in the extended part.
const MOST_EXTENDED: usize = (WHOLE - EXTENDED) / 8;

/// Config space, or what of it may be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConfigSpace {
    bytes: Vec<u8>,
}

impl ConfigSpace {
    pub(crate) fn new(bytes: Vec<u8>) -> ConfigSpace {
        ConfigSpace { bytes }
    }

    /// How much may be read.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn u16(&self, offset: usize) -> Option<u16> {
        let bytes = self.bytes.get(offset..offset.checked_add(2)?)?;
        Some(u16::from_le_bytes(bytes.try_into().ok()?))
    }

    fn u32(&self, offset: usize) -> Option<u32> {
        let bytes = self.bytes.get(offset..offset.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    /// Where the extended capability `id` is (PCIe 6.0, section 7.6.3).
    pub(crate) fn extended(&self, id: u16) -> Option<usize> {
        let mut at = EXTENDED;
        for _ in 0..MOST_EXTENDED {
            let header = self.u32(at)?;
            if header == 0 || header == u32::MAX {
                return None;
            }
            if header & 0xffff == u32::from(id) {
                return Some(at);
            }
            at = usize::try_from(header >> 20 & !3).ok()?;
            if at < EXTENDED {
                return None;
            }
        }
        None
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Config space with these extended capabilities: id, and the bytes behind the header.
    pub(crate) fn with_extended(capabilities: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; WHOLE];
        let mut at = EXTENDED;
        for (number, (id, body)) in capabilities.iter().enumerate() {
            let last = number + 1 == capabilities.len();
            let next = if last { 0 } else { at + 0x40 };
            let header = u32::from(*id) | 1 << 16 | u32::try_from(next).unwrap() << 20;
            bytes[at..at + 4].copy_from_slice(&header.to_le_bytes());
            bytes[at + 4..at + 4 + body.len()].copy_from_slice(body);
            at = next;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_leads_back_to_itself_ends() {
        let mut bytes = testing::with_extended(&[(0xf, &[0; 4])]);
        bytes[EXTENDED + 2] = 1;
        bytes[EXTENDED + 3] = 0x10;
        assert_eq!(ConfigSpace::new(bytes).extended(0x10), None);
    }

    #[test]
    fn extended_capabilities_are_followed() {
        let config = ConfigSpace::new(testing::with_extended(&[(1, &[]), (0xf, &[0, 0, 0, 0x80])]));
        assert_eq!(config.extended(0xf), Some(0x140));
        assert_eq!(config.u16(0x146), Some(0x8000));
    }

    #[test]
    fn whatever_the_bytes_are_the_search_ends() {
        // Numbers of a linear congruential generator.
        let mut state = 1u32;
        for _ in 0..200 {
            let bytes = (0..WHOLE).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_le_bytes()[3]
            });
            let config = ConfigSpace::new(bytes.collect());
            for id in 0..64 {
                assert!(config.extended(id).is_none_or(|at| at < WHOLE));
            }
        }
    }

    #[test]
    fn a_header_alone_and_a_device_that_is_gone_have_none() {
        assert_eq!(ConfigSpace::new(vec![0xff; HEADER]).extended(0xf), None);
        let gone = ConfigSpace::new(vec![0xff; WHOLE]);
        assert_eq!(gone.extended(0xf), None);
    }
}
