//! ELF executables, 32- and 64-bit, as far as a boot needs them (System V ABI, chapters 4 and 5).

use std::borrow::Cow;

use crate::{BootError, Load};

pub(crate) const MAGIC: [u8; 4] = *b"\x7fELF";

const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// A boot needs a handful; the cap bounds the work on hostile files.
const MAX_HEADERS: u16 = 256;
const MAX_NOTES: usize = 1024;

/// A little-endian field; an error names what was being read.
pub(crate) fn field<const N: usize>(
    image: &[u8],
    at: u64,
    what: &'static str,
) -> Result<[u8; N], BootError> {
    let start = usize::try_from(at).unwrap_or(usize::MAX);
    let bytes = start.checked_add(N).and_then(|end| image.get(start..end));
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(BootError::Truncated {
            what,
            needed: at.saturating_add(N as u64),
            len: image.len() as u64,
        })
}

/// A program header.
#[derive(Clone, Copy, Debug)]
struct Segment {
    kind: u32,
    offset: u64,
    paddr: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

/// A checked view of an ELF file.
#[derive(Debug)]
pub(crate) struct Elf {
    wide: bool,
    entry: u64,
    segments: Vec<Segment>,
}

impl Elf {
    /// Reads the headers.
    pub(crate) fn parse(image: &[u8]) -> Result<Elf, BootError> {
        let [class, data] = field::<2>(image, 4, "ELF identification")?;
        if !(1..=2).contains(&class) {
            return Err(BootError::Damaged {
                what: "ELF class",
                value: u64::from(class),
            });
        }
        if data != 1 {
            return Err(BootError::Damaged {
                what: "ELF byte order",
                value: u64::from(data),
            });
        }
        let machine = u16::from_le_bytes(field(image, 18, "ELF header")?);
        if ![MACHINE_386, MACHINE_X86_64].contains(&machine) {
            return Err(BootError::Architecture { machine });
        }
        let wide = class == 2;
        let reader = Reader { image, wide };
        let (entry, table) = (reader.word(24, 24)?, reader.word(28, 32)?);
        let (size, count) = (reader.half(42, 54)?, reader.half(44, 56)?);
        if usize::from(size) < if wide { 56 } else { 32 } {
            return Err(BootError::Damaged {
                what: "ELF program header size",
                value: size.into(),
            });
        }
        if count == 0 || count > MAX_HEADERS {
            let value = count.into();
            return Err(BootError::Damaged {
                what: "number of ELF program headers",
                value,
            });
        }
        let at = |index: u16| table.checked_add(u64::from(index) * u64::from(size));
        let segments = (0..count).map(|index| reader.segment(at(index).unwrap_or(u64::MAX)));
        Ok(Elf {
            wide,
            entry,
            segments: segments.collect::<Result<_, _>>()?,
        })
    }

    /// The file is a 64-bit one.
    pub(crate) fn is_64bit(&self) -> bool {
        self.wide
    }

    /// Linux's vmlinux enters at the start of its first segment, at 16 MiB unless configured
    /// otherwise, and has at least two.
    pub(crate) fn looks_like_linux(&self) -> bool {
        let first = self.loads().next();
        self.loads().count() >= 2
            && first.is_some_and(|s| s.paddr >= 0x10_0000 && s.align >= 0x20_0000)
    }

    /// The entry point.
    pub(crate) fn entry(&self) -> u64 {
        self.entry
    }

    /// The end of the highest segment in memory.
    pub(crate) fn end(&self) -> u64 {
        self.loads()
            .map(|s| s.paddr.saturating_add(s.memory_size))
            .max()
            .unwrap_or(0)
    }

    fn loads(&self) -> impl Iterator<Item = &Segment> {
        self.segments
            .iter()
            .filter(|s| s.kind == PT_LOAD && s.memory_size > 0)
    }

    /// The segments to load, at their physical addresses.
    ///
    /// Segments share no bytes of the file in any kernel. Many that all name the same bytes would
    /// make a small file large.
    pub(crate) fn load<'a>(&self, image: &'a [u8]) -> Result<Vec<Load<'a>>, BootError> {
        let sizes = self.loads().map(|segment| segment.file_size);
        let total = sizes.fold(0, u64::saturating_add);
        if total > image.len() as u64 {
            return Err(BootError::Truncated {
                what: "the ELF segments together",
                needed: total,
                len: image.len() as u64,
            });
        }
        let loads = self.loads().map(|segment| {
            if segment.file_size > segment.memory_size {
                let value = segment.file_size;
                return Err(BootError::Damaged {
                    what: "ELF segment's size in the file",
                    value,
                });
            }
            let bytes = slice(image, segment.offset, segment.file_size, "an ELF segment")?;
            let zeros = segment.memory_size - segment.file_size;
            Ok(Load {
                gpa: segment.paddr,
                bytes: Cow::Borrowed(bytes),
                zeros,
            })
        });
        loads.collect()
    }

    /// The content of the first note of this name and type.
    pub(crate) fn note<'a>(&self, image: &'a [u8], name: &[u8], kind: u32) -> Option<&'a [u8]> {
        let notes = self
            .segments
            .iter()
            .filter(|segment| segment.kind == PT_NOTE);
        notes
            .filter_map(|segment| find_note(image, segment, name, kind))
            .next()
    }
}

/// A range of the image.
fn slice<'a>(
    image: &'a [u8],
    offset: u64,
    len: u64,
    what: &'static str,
) -> Result<&'a [u8], BootError> {
    let truncated = || BootError::Truncated {
        what,
        needed: offset.saturating_add(len),
        len: image.len() as u64,
    };
    let start = usize::try_from(offset).map_err(|_| truncated())?;
    let end = offset
        .checked_add(len)
        .and_then(|end| usize::try_from(end).ok());
    let range = start..end.ok_or_else(truncated)?;
    image.get(range).ok_or_else(truncated)
}

/// Notes are a name size, a content size, a type, the name and the content, each padded to four
/// bytes.
fn find_note<'a>(image: &'a [u8], segment: &Segment, name: &[u8], kind: u32) -> Option<&'a [u8]> {
    let mut at = segment.offset;
    let end = segment.offset.checked_add(segment.file_size)?;
    for _ in 0..MAX_NOTES {
        if at >= end {
            return None;
        }
        let word = |offset| field(image, at.saturating_add(offset), "an ELF note");
        let name_size = u32::from_le_bytes(word(0).ok()?);
        let size = u32::from_le_bytes(word(4).ok()?);
        let found = u32::from_le_bytes(word(8).ok()?);
        let name_at = at.checked_add(12)?;
        let content_at = name_at.checked_add(u64::from(name_size).next_multiple_of(4))?;
        let next = content_at.checked_add(u64::from(size).next_multiple_of(4))?;
        let bytes = |from: u64, len: u32| {
            let from = usize::try_from(from).ok()?;
            image.get(from..from.checked_add(usize::try_from(len).ok()?)?)
        };
        if found == kind && bytes(name_at, name_size)?.strip_suffix(b"\0") == Some(name) {
            return bytes(content_at, size);
        }
        at = next;
    }
    None
}

/// Reads fields whose place or width differs between 32- and 64-bit files.
struct Reader<'a> {
    image: &'a [u8],
    wide: bool,
}

impl Reader<'_> {
    fn word(&self, narrow: u64, wide: u64) -> Result<u64, BootError> {
        if self.wide {
            Ok(u64::from_le_bytes(field(self.image, wide, "ELF header")?))
        } else {
            Ok(u32::from_le_bytes(field(self.image, narrow, "ELF header")?).into())
        }
    }

    fn half(&self, narrow: u64, wide: u64) -> Result<u16, BootError> {
        let at = if self.wide { wide } else { narrow };
        Ok(u16::from_le_bytes(field(self.image, at, "ELF header")?))
    }

    fn segment(&self, at: u64) -> Result<Segment, BootError> {
        let offset = |narrow: u64, wide: u64| {
            let place = if self.wide { wide } else { narrow };
            at.saturating_add(place)
        };
        let value = |narrow, wide| {
            let place = offset(narrow, wide);
            self.word(place, place)
        };
        Ok(Segment {
            kind: u32::from_le_bytes(field(self.image, at, "an ELF program header")?),
            offset: value(4, 8)?,
            paddr: value(12, 24)?,
            file_size: value(16, 32)?,
            memory_size: value(20, 40)?,
            align: value(28, 48)?,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A 64-bit ELF file with one segment of `code` at `paddr` and, if given, a PVH note.
    pub(crate) fn elf64(paddr: u64, code: &[u8], pvh: Option<&[u8]>) -> Vec<u8> {
        let note = pvh.map(|entry| note(18, entry)).unwrap_or_default();
        let headers = 64 + 56 * 2;
        let mut image = vec![0; headers];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[16..20].copy_from_slice(&[2, 0, 62, 0]);
        image[24..32].copy_from_slice(&paddr.to_le_bytes());
        image[32..40].copy_from_slice(&64u64.to_le_bytes());
        image[54..58].copy_from_slice(&[56, 0, 2, 0]);
        let mut header = |index: usize, fields: [u64; 7]| {
            let at = 64 + 56 * index;
            for (i, value) in fields.into_iter().enumerate() {
                image[at + i * 8..at + i * 8 + 8].copy_from_slice(&value.to_le_bytes());
            }
        };
        let (len, note_len) = (code.len() as u64, note.len() as u64);
        header(0, [1, headers as u64, paddr, paddr, len, len + 16, 0x1000]);
        header(1, [4, headers as u64 + len, 0, 0, note_len, note_len, 4]);
        image.extend(code);
        image.extend(note);
        image
    }

    fn note(kind: u32, content: &[u8]) -> Vec<u8> {
        let words = [4, u32::try_from(content.len()).unwrap(), kind]
            .map(u32::to_le_bytes)
            .concat();
        [&words, &b"Xen\0"[..], content].concat()
    }

    #[test]
    fn segments_are_loaded_at_their_physical_addresses() {
        let image = Cow::Owned(elf64(0x10_0000, b"code", None));
        let elf = Elf::parse(&image).unwrap();
        let loads = elf.load(&image).unwrap();
        assert_eq!(
            (loads[0].gpa, &*loads[0].bytes, loads[0].zeros),
            (0x10_0000, &b"code"[..], 16)
        );
        assert_eq!(elf.end(), 0x10_0014);
    }

    #[test]
    fn the_pvh_note_is_found() {
        let image = elf64(0x10_0000, b"code", Some(&[0, 0, 0x10, 0]));
        let elf = Elf::parse(&image).unwrap();
        assert_eq!(elf.note(&image, b"Xen", 18), Some(&[0, 0, 0x10, 0][..]));
        assert_eq!(elf.note(&image, b"Xen", 19), None);
    }

    #[test]
    fn every_truncation_is_an_error_and_no_panic() {
        let image = elf64(0x10_0000, b"code", Some(&[0; 8]));
        for len in 4..image.len() - 20 {
            let cut: Cow<'_, [u8]> = Cow::Borrowed(&image[..len]);
            let loaded = Elf::parse(&cut).and_then(|elf| elf.load(&cut));
            assert!(loaded.is_err() || len >= image.len() - 24, "{len}");
        }
    }

    #[test]
    fn other_architectures_are_named() {
        let mut image = elf64(0, b"", None);
        image[18] = 183;
        assert_eq!(
            Elf::parse(&image).unwrap_err(),
            BootError::Architecture { machine: 183 }
        );
    }
}
