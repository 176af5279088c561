//! xz streams, with a limit on the dictionary that they make a decoder allocate.
//!
//! A block's header may ask for 4 GiB and the index for any number of records, whatever the stream
//! holds. Where a dictionary cannot be had the process aborts, so the headers of all blocks and the
//! index are read first: the framing of LZMA2 says where each begins without decompressing anything (The .xz File Format 1.2.1, sections 2 to 4; the LZMA2
//! chunks as in the Linux kernel's lib/xz/xz_dec_lzma2.c).

use std::io;

use lzma_rust2::XzReader;

/// The largest dictionary that kernels and modules are packed with, in bytes.
const MAX_DICTIONARY: u64 = 128 << 20;
const STREAM_HEADER: usize = 12;
/// Bytes of the check behind a block, by its number in the stream's flags.
const CHECK_SIZES: [usize; 16] = [0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64];
const FILTER_LZMA2: u64 = 0x21;

/// A decoder of the stream, whose dictionaries are no larger than the limit.
pub(crate) fn reader(stream: &[u8]) -> io::Result<XzReader<&[u8]>> {
    let mut walk = Walk {
        rest: stream,
        read: 0,
    };
    walk.stream()
        .ok_or_else(|| damaged("the stream is cut"))??;
    Ok(XzReader::new(stream, false))
}

fn damaged(detail: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, detail)
}

/// A position in a stream. `None` means that the stream ends too early.
struct Walk<'a> {
    rest: &'a [u8],
    read: usize,
}

impl Walk<'_> {
    fn skip(&mut self, count: usize) -> Option<&[u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        self.read += count;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.skip(1)?.first().copied()
    }

    /// A big-endian count of 16 bits, less one.
    fn count(&mut self) -> Option<usize> {
        let bytes: [u8; 2] = self.skip(2)?.try_into().ok()?;
        Some(usize::from(u16::from_be_bytes(bytes)) + 1)
    }

    fn pad(&mut self) -> Option<()> {
        self.skip(self.read.next_multiple_of(4) - self.read)?;
        Some(())
    }

    /// All blocks, up to the index.
    fn stream(&mut self) -> Option<io::Result<()>> {
        let flags = *self.skip(STREAM_HEADER)?.get(7)?;
        let check = *CHECK_SIZES.get(usize::from(flags & 15))?;
        for blocks in 0.. {
            let size = self.byte()?;
            if size == 0 && self.number()? == blocks {
                break;
            }
            if size == 0 {
                return Some(Err(damaged("an index of another number of blocks")));
            }
            let header = self.skip(usize::from(size) * 4 + 3)?;
            match dictionary(header) {
                Some(bytes) if bytes <= MAX_DICTIONARY => {}
                Some(_) => return Some(Err(damaged("a dictionary of more than 128 MiB"))),
                None => return Some(Err(damaged("a block without LZMA2"))),
            }
            if let Err(error) = self.chunks()? {
                return Some(Err(error));
            }
            self.pad()?;
            self.skip(check)?;
        }
        Some(Ok(()))
    }

    /// The chunks of a block, up to their end.
    fn chunks(&mut self) -> Option<io::Result<()>> {
        loop {
            let control = self.byte()?;
            let len = match control {
                0 => return Some(Ok(())),
                1 | 2 => self.count()?,
                3..0x80 => return Some(Err(damaged("an LZMA2 chunk of no known kind"))),
                _ => {
                    self.skip(2)?;
                    let properties = usize::from(control >= 0xc0);
                    self.count()? + properties
                }
            };
            self.skip(len)?;
        }
    }
}

/// The dictionary's size in bytes, from a block's header without its size.
fn dictionary(header: &[u8]) -> Option<u64> {
    let mut walk = Walk {
        rest: header,
        read: 0,
    };
    let flags = walk.byte()?;
    for size in [0x40, 0x80] {
        if flags & size != 0 {
            walk.number()?;
        }
    }
    let mut found = None;
    for _ in 0..=flags & 3 {
        let (filter, size) = (walk.number()?, walk.number()?);
        let properties = walk.skip(usize::try_from(size).ok()?)?;
        if filter == FILTER_LZMA2 {
            let property = u32::from(*properties.first()?);
            let bytes = u64::from(2 | property & 1).checked_shl(property / 2 + 11)?;
            found = found.max(Some(bytes));
        }
    }
    found
}

impl Walk<'_> {
    /// A number of seven bits a byte, the lowest first, at most nine bytes.
    fn number(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use lzma_rust2::{FilterType, XzOptions, XzWriter};

    use super::*;

    fn content() -> Vec<u8> {
        (0..300_000u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect()
    }

    fn packed(options: XzOptions) -> Vec<u8> {
        let mut writer = XzWriter::new(Vec::new(), options).unwrap();
        writer.write_all(&content()).unwrap();
        writer.finish().unwrap()
    }

    fn x86() -> XzOptions {
        let mut options = XzOptions::with_preset(0);
        options.prepend_pre_filter(FilterType::BcjX86, 0);
        options
    }

    #[test]
    fn streams_of_one_and_of_several_blocks_are_unpacked() {
        let mut several = XzOptions::with_preset(0);
        several.set_block_size(std::num::NonZeroU64::new(300_000));
        for options in [XzOptions::with_preset(0), x86(), several] {
            let (stream, mut bytes) = (packed(options), Vec::new());
            reader(&stream).unwrap().read_to_end(&mut bytes).unwrap();
            assert!(bytes == content());
        }
    }

    #[test]
    fn a_dictionary_of_four_gibibytes_is_refused_before_it_is_allocated() {
        let mut stream = packed(XzOptions::with_preset(0));
        // Header of the first block: size, flags, filter, size of its properties, the property.
        assert_eq!(stream[14..16], [0x21, 1]);
        stream[16] = 40;
        let error = reader(&stream).err().unwrap();
        assert!(error.to_string().contains("dictionary"), "{error}");
    }

    #[test]
    fn an_index_of_more_blocks_than_there_are_is_refused_before_it_is_allocated() {
        // A stream without blocks, and an index of 2^42 records.
        let mut stream = packed(XzOptions::with_preset(0))[..12].to_vec();
        stream.extend([0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 0, 0, 0, 0]);
        let error = reader(&stream).err().unwrap();
        assert!(error.to_string().contains("index"), "{error}");
    }

    #[test]
    fn every_truncation_is_refused() {
        let stream = packed(x86());
        let end = stream.len() - 100;
        for len in (0..64).chain((64..end).step_by(97)) {
            assert!(reader(&stream[..len]).is_err(), "{len}");
        }
    }
}
