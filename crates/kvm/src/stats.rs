//! KVM's binary statistics (Linux, Documentation/virt/kvm/api.rst, section 4.133
//! "KVM_GET_STATS_FD").
//!
//! The descriptor is opened for one reading and closed again: it holds a reference on the VM.

use std::{fs::File, io, os::unix::fs::FileExt};

use vmlet_vcpu::{EngineError, Stat, StatKind, StatUnit};

const HEADER: usize = 24;
/// Bytes of a descriptor before its name.
const DESCRIPTOR: usize = 16;
const MOST_DESCRIPTORS: u32 = 4096;
const MOST_NAME: u32 = 4096;
const MOST_VALUES: u16 = 1024;

/// Reads all numbers of a statistics descriptor.
pub(crate) fn read(file: &File) -> Result<Vec<Stat>, EngineError> {
    read_all(file).map_err(|source| EngineError::call("read of KVM statistics", source))
}

/// Where the parts of the descriptor's content lie.
struct Header {
    name_size: u32,
    count: u32,
    descriptors: u32,
    data: u32,
}

/// The descriptor of one number.
struct Descriptor {
    flags: u32,
    exponent: i16,
    values: u16,
    offset: u32,
    bucket_size: u32,
    name: String,
}

fn read_all(file: &File) -> io::Result<Vec<Stat>> {
    let mut bytes = [0; HEADER];
    file.read_exact_at(&mut bytes, 0)?;
    let header = Header::parse(&bytes).ok_or_else(malformed)?;
    let size = DESCRIPTOR + header.name_size as usize;
    let mut table = vec![0; size * header.count as usize];
    file.read_exact_at(&mut table, u64::from(header.descriptors))?;
    let parsed = table.chunks_exact(size).map(Descriptor::parse);
    let descriptors: Option<Vec<_>> = parsed.collect();
    let descriptors = descriptors.ok_or_else(malformed)?;
    descriptors
        .into_iter()
        .map(|descriptor| descriptor.read(file, header.data))
        .collect()
}

fn malformed() -> io::Error {
    io::Error::from_raw_os_error(libc::EPROTO)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    word.try_into().ok().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let half = bytes.get(at..at.checked_add(2)?)?;
    half.try_into().ok().map(u16::from_ne_bytes)
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Header> {
        let header = Header {
            name_size: word(bytes, 4)?,
            count: word(bytes, 8)?,
            descriptors: word(bytes, 16)?,
            data: word(bytes, 20)?,
        };
        (header.name_size <= MOST_NAME && header.count <= MOST_DESCRIPTORS).then_some(header)
    }
}

impl Descriptor {
    fn parse(bytes: &[u8]) -> Option<Descriptor> {
        let name = bytes.get(DESCRIPTOR..)?.split(|byte| *byte == 0).next()?;
        let values = half(bytes, 6)?;
        (values <= MOST_VALUES).then_some(Descriptor {
            flags: word(bytes, 0)?,
            exponent: half(bytes, 4)?.cast_signed(),
            values,
            offset: word(bytes, 8)?,
            bucket_size: word(bytes, 12)?,
            name: String::from_utf8_lossy(name).into_owned(),
        })
    }

    fn read(self, file: &File, data: u32) -> io::Result<Stat> {
        let mut bytes = vec![0; usize::from(self.values) * 8];
        file.read_exact_at(&mut bytes, u64::from(data) + u64::from(self.offset))?;
        let values = bytes.chunks_exact(8);
        let values = values.filter_map(|value| value.try_into().ok().map(u64::from_ne_bytes));
        Ok(Stat {
            kind: kind(self.flags & 0xf),
            unit: unit((self.flags >> 4) & 0xf),
            base: if (self.flags >> 8) & 0xf == 0 { 10 } else { 2 },
            exponent: self.exponent,
            bucket_size: self.bucket_size,
            values: values.collect(),
            name: self.name,
        })
    }
}

fn kind(bits: u32) -> StatKind {
    match bits {
        0 => StatKind::Cumulative,
        1 => StatKind::Instant,
        2 => StatKind::Peak,
        3 => StatKind::LinearHistogram,
        4 => StatKind::LogHistogram,
        _ => StatKind::Unknown,
    }
}

fn unit(bits: u32) -> StatUnit {
    match bits {
        0 => StatUnit::None,
        1 => StatUnit::Bytes,
        2 => StatUnit::Seconds,
        3 => StatUnit::Cycles,
        4 => StatUnit::Boolean,
        _ => StatUnit::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    fn file_with(bytes: &[u8]) -> File {
        let mut file = TempFile::new().unwrap().into_file();
        file.write_all(bytes).unwrap();
        file
    }

    /// A header, one descriptor with an eight-byte name, two values.
    fn content(name_size: u32, count: u32) -> Vec<u8> {
        let header = [0, name_size, count, 24, 24, 48];
        let mut bytes: Vec<u8> = header.iter().flat_map(|w: &u32| w.to_ne_bytes()).collect();
        bytes.extend((3u32 | 2 << 4).to_ne_bytes());
        bytes.extend((-9i16).to_ne_bytes());
        bytes.extend(2u16.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(500u32.to_ne_bytes());
        bytes.extend(b"halts\0\0\0");
        bytes.extend(7u64.to_ne_bytes());
        bytes.extend(9u64.to_ne_bytes());
        bytes
    }

    #[test]
    fn numbers_are_read_with_name_kind_unit_and_scale() {
        let found = read(&file_with(&content(8, 1))).unwrap();
        let expected = Stat {
            name: "halts".to_owned(),
            kind: StatKind::LinearHistogram,
            unit: StatUnit::Seconds,
            base: 10,
            exponent: -9,
            bucket_size: 500,
            values: vec![7, 9],
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn content_that_is_no_statistics_is_an_error() {
        assert!(read(&file_with(&[])).is_err());
        assert!(read(&file_with(&content(u32::MAX, 1))).is_err());
        assert!(read(&file_with(&content(8, u32::MAX))).is_err());
        assert!(read(&file_with(&content(8, 2))).is_err());
    }
}
