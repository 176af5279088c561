//! The bytes of a saved machine.
//!
//! ```text
//! "VMLETSAV"  version:u32  length:u64  head  pages:u64  page*  crc:u32
//! head        JSON: settings, vCPUs, devices
//! page        gpa:u64, then 4096 bytes; a page that is not there is zero
//! ```
//!
//! Numbers are little-endian. The sum, CRC-32 (IEEE 802.3), covers everything before it: damage is
//! seen before anything is made of the bytes.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmlet_bus::SavedState;
use vmlet_vcpu::x86_64::VcpuState;

const MAGIC: &[u8; 8] = b"VMLETSAV";
const VERSION: u32 = 1;
const PAGE: usize = 4096;
/// Bytes of a page with its address.
const RECORD: usize = 8 + PAGE;

/// Why bytes are no saved machine.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SavedMachineError {
    /// The bytes are damaged.
    #[error("the saved VM is damaged at byte {offset}: {reason}. Use one that is whole")]
    Damaged {
        /// Where.
        offset: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A version this one does not know.
    #[error("the saved VM has version {found}, and this is version {VERSION}. Save it again")]
    Version {
        /// The version found.
        found: u32,
    },
    /// A device does not take its state.
    #[error(transparent)]
    Device(#[from] vmlet_bus::SavedError),
    /// Saved by a machine with another CPU model than it says it has.
    #[error("the saved VM has {found} vCPUs and says it has {said}")]
    Vcpus {
        /// States there are.
        found: usize,
        /// vCPUs it was made with.
        said: u32,
    },
}

/// What is saved of a machine beside its memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Head {
    /// Name of the engine that saved it.
    pub(crate) engine: String,
    /// Name of the CPU model.
    pub(crate) cpu: String,
    /// Bytes.
    pub(crate) memory: u64,
    pub(crate) cpus: u32,
    pub(crate) cmdline: String,
    pub(crate) debug_port: bool,
    #[serde(default)]
    pub(crate) pci_ports: u8,
    /// What the guest's clock says, in nanoseconds.
    #[serde(default)]
    pub(crate) clock: u64,
    pub(crate) vcpus: Vec<VcpuState>,
    pub(crate) ports: Vec<(u64, SavedState)>,
    pub(crate) mmio: Vec<(u64, SavedState)>,
}

/// Writes a saved machine.
pub(crate) struct Writer {
    bytes: Vec<u8>,
    /// Where the number of pages stands.
    count_at: usize,
    pages: u64,
}

impl Writer {
    pub(crate) fn new(head: &Head) -> Writer {
        // Structures of numbers and texts have no value that JSON lacks.
        let head = serde_json::to_vec(head).unwrap_or_default();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((head.len() as u64).to_le_bytes());
        bytes.extend(head);
        let count_at = bytes.len();
        bytes.extend(0u64.to_le_bytes());
        Writer {
            bytes,
            count_at,
            pages: 0,
        }
    }

    /// Adds the page at `gpa`, unless it is zero.
    pub(crate) fn page(&mut self, gpa: u64, content: &[u8; PAGE]) {
        if content.iter().any(|byte| *byte != 0) {
            self.bytes.extend(gpa.to_le_bytes());
            self.bytes.extend(content);
            self.pages += 1;
        }
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        let place = self.bytes.get_mut(self.count_at..self.count_at + 8);
        if let Some(place) = place {
            place.copy_from_slice(&self.pages.to_le_bytes());
        }
        let sum = crc32fast::hash(&self.bytes);
        self.bytes.extend(sum.to_le_bytes());
        self.bytes
    }
}

/// A saved machine as it was read.
#[derive(Debug)]
pub(crate) struct Saved<'a> {
    pub(crate) head: Head,
    pages: &'a [u8],
}

impl<'a> Saved<'a> {
    /// Looks at all of `bytes`.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Saved<'a>, SavedMachineError> {
        let mut reader = Reader { bytes, at: 0 };
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(damaged(0, "it does not begin as a saved VM does"));
        }
        let found = reader.u32()?;
        if found != VERSION {
            return Err(SavedMachineError::Version { found });
        }
        let length = reader.size()?;
        let head_at = reader.at;
        let head = reader.take(length)?;
        let count_at = reader.at;
        let count = reader.size()?;
        let length = count.checked_mul(RECORD);
        let length = length.ok_or_else(|| damaged(count_at, "it has too many pages"))?;
        let pages = reader.take(length)?;
        let sum_at = reader.at;
        let sum = crc32fast::hash(bytes.get(..sum_at).unwrap_or_default());
        if reader.u32()? != sum {
            return Err(damaged(sum_at, "the sum is wrong"));
        }
        if reader.at != bytes.len() {
            return Err(damaged(reader.at, "something follows the sum"));
        }
        let head: Head = serde_json::from_slice(head)
            .map_err(|error| damaged(head_at, &format!("its head: {error}")))?;
        if head.vcpus.len() as u64 != u64::from(head.cpus) {
            return Err(SavedMachineError::Vcpus {
                found: head.vcpus.len(),
                said: head.cpus,
            });
        }
        Ok(Saved { head, pages })
    }

    /// The pages that are not zero, with their addresses.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (u64, &'a [u8])> {
        self.pages.chunks_exact(RECORD).filter_map(|record| {
            let (gpa, content) = record.split_first_chunk::<8>()?;
            Some((u64::from_le_bytes(*gpa), content))
        })
    }
}

fn damaged(offset: usize, reason: &str) -> SavedMachineError {
    SavedMachineError::Damaged {
        offset,
        reason: reason.to_owned(),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], SavedMachineError> {
        let end = self.at.saturating_add(count);
        let found = self.bytes.get(self.at..end);
        let found = found.ok_or_else(|| damaged(self.bytes.len(), "it ends too early"))?;
        self.at = end;
        Ok(found)
    }

    fn u32(&mut self) -> Result<u32, SavedMachineError> {
        let bytes = self.take(4)?.iter().rev();
        Ok(bytes.fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    fn size(&mut self) -> Result<usize, SavedMachineError> {
        let bytes = self.take(8)?.iter().rev();
        let size = bytes.fold(0, |value, byte| value << 8 | u64::from(*byte));
        Ok(usize::try_from(size).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            engine: "soft".to_owned(),
            cpu: "soft-v1".to_owned(),
            memory: 1 << 20,
            cpus: 1,
            cmdline: "quiet".to_owned(),
            debug_port: false,
            pci_ports: 2,
            clock: 5,
            vcpus: vec![VcpuState::default()],
            ports: vec![(0x70, SavedState::new("rtc", 1, &7u8))],
            mmio: Vec::new(),
        }
    }

    fn written() -> Vec<u8> {
        let mut writer = Writer::new(&head());
        writer.page(0x1000, &[0; PAGE]);
        writer.page(0x2000, &[7; PAGE]);
        writer.finish()
    }

    #[test]
    fn what_is_written_is_read_and_zero_pages_take_no_room() {
        let bytes = written();
        let saved = Saved::parse(&bytes).unwrap();
        assert_eq!(saved.head, head());
        let pages: Vec<_> = saved.pages().collect();
        assert_eq!(pages, [(0x2000, &[7; PAGE][..])]);
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = written();
        for end in (0..bytes.len()).step_by(7) {
            let error = Saved::parse(&bytes[..end]).unwrap_err();
            assert!(
                matches!(error, SavedMachineError::Damaged { .. }),
                "{end}: {error}"
            );
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut bytes = written();
        for at in (0..bytes.len()).step_by(5) {
            bytes[at] ^= 4;
            assert!(Saved::parse(&bytes).is_err(), "{at}");
            bytes[at] ^= 4;
        }
        assert!(Saved::parse(&bytes).is_ok());
    }

    #[test]
    fn a_number_of_vcpus_that_is_not_there_is_refused() {
        let lying = Head { cpus: 2, ..head() };
        let bytes = Writer::new(&lying).finish();
        let error = Saved::parse(&bytes).unwrap_err();
        assert!(matches!(
            error,
            SavedMachineError::Vcpus { found: 1, said: 2 }
        ));
    }

    #[test]
    fn a_number_of_pages_past_everything_is_refused() {
        let mut bytes = Writer::new(&head()).finish();
        let at = bytes.len() - 12;
        bytes[at..at + 8].fill(0xff);
        let error = Saved::parse(&bytes).unwrap_err();
        assert!(matches!(error, SavedMachineError::Damaged { .. }));
    }
}
