//! The compressed kernel inside a bzImage.
//!
//! Linux appends the unpacked size to every format but gzip, which has it; a hostile image can say
//! anything there, so the size is a hint for nothing and the output is capped.

use std::io::{self, Read};

use crate::{BootError, xz};

/// No kernel is larger.
const LIMIT: u64 = 1 << 30;
/// Bytes of an uncompressed block of the legacy lz4 format.
const LZ4_BLOCK: usize = 8 << 20;
/// More than what kernels are packed to.
const LZ4_RATIO: usize = 8;

/// Unpacks a payload by what it starts with: gzip, xz, zstd or legacy lz4, to 1 GiB at most.
pub fn unpack(payload: &[u8]) -> Result<Vec<u8>, BootError> {
    match payload {
        [0x1f, 0x8b, ..] => read_all("gzip", flate2::read::GzDecoder::new(payload)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let reader = xz::reader(payload).map_err(|error| damaged("xz", &error))?;
            read_all("xz", reader)
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(payload);
            read_all("zstd", decoder.map_err(|error| damaged("zstd", &error))?)
        }
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => unpack_lz4(blocks),
        [0x7f, b'E', b'L', b'F', ..] => Ok(payload.to_vec()),
        [b'B', b'Z', b'h', ..] => Err(BootError::Compression { name: "bzip2" }),
        [0x5d, 0, 0, ..] => Err(BootError::Compression { name: "LZMA" }),
        [0x89, b'L', b'Z', b'O', ..] => Err(BootError::Compression { name: "LZO" }),
        _ => Err(BootError::Compression {
            name: "an unknown method",
        }),
    }
}

fn damaged(format: &'static str, detail: &dyn std::fmt::Display) -> BootError {
    BootError::Payload {
        format,
        detail: detail.to_string(),
    }
}

fn read_all(format: &'static str, reader: impl Read) -> Result<Vec<u8>, BootError> {
    let mut bytes = Vec::new();
    match reader.take(LIMIT + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() as u64 > LIMIT => Err(BootError::PayloadTooLarge { limit: LIMIT }),
        Ok(_) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
            Err(BootError::PayloadTooLarge { limit: LIMIT })
        }
        Err(error) => Err(damaged(format, &error)),
    }
}

/// The legacy format: blocks of at most 8 MiB, each behind its packed size. What follows the last
/// block is the appended size, four bytes, which is no block.
fn unpack_lz4(mut rest: &[u8]) -> Result<Vec<u8>, BootError> {
    let mut bytes = vec![0; plausible(rest)];
    let mut len = 0;
    while let Some((size, tail)) = rest.split_first_chunk::<4>() {
        let size = usize::try_from(u32::from_le_bytes(*size)).unwrap_or(usize::MAX);
        let Some(packed) = tail.get(..size).filter(|_| !tail.is_empty()) else {
            break;
        };
        if bytes.len() < len + LZ4_BLOCK {
            bytes.resize(len + LZ4_BLOCK, 0);
        }
        let room = bytes.get_mut(len..).unwrap_or_default();
        len += lz4_flex::block::decompress_into(packed, room)
            .map_err(|error| damaged("lz4", &error))?;
        if len as u64 > LIMIT {
            return Err(BootError::PayloadTooLarge { limit: LIMIT });
        }
        rest = tail.get(size..).unwrap_or_default();
    }
    bytes.truncate(len);
    if bytes.is_empty() {
        Err(damaged("lz4", &"no blocks"))
    } else {
        Ok(bytes)
    }
}

/// Room for what a kernel may unpack to. Of fresh memory only what is written to takes pages, and
/// what is there need not be moved as it grows.
fn plausible(packed: &[u8]) -> usize {
    packed.len().saturating_mul(LZ4_RATIO) + LZ4_BLOCK
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn content() -> Vec<u8> {
        (0..200_000u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect()
    }

    fn gzip() -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&content()).unwrap();
        encoder.finish().unwrap()
    }

    fn lz4() -> Vec<u8> {
        let packed = lz4_flex::block::compress(&content());
        let size = u32::try_from(packed.len()).unwrap().to_le_bytes();
        let appended = u32::try_from(content().len()).unwrap().to_le_bytes();
        [&[0x02, 0x21, 0x4c, 0x18], &size[..], &packed, &appended].concat()
    }

    fn zstd() -> Vec<u8> {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        ruzstd::encoding::compress_to_vec(&content()[..], level)
    }

    #[test]
    fn gzip_lz4_and_zstd_payloads_are_unpacked() {
        for payload in [gzip(), lz4(), zstd()] {
            assert!(
                unpack(&payload).unwrap() == content(),
                "{:02x?}",
                &payload[..4]
            );
        }
    }

    #[test]
    fn truncated_payloads_are_refused() {
        for payload in [gzip(), lz4(), zstd()] {
            let cut = &payload[..payload.len() / 2];
            assert!(
                matches!(unpack(cut), Err(BootError::Payload { .. })),
                "{:02x?}",
                &cut[..4]
            );
        }
    }

    #[test]
    fn unsupported_compression_is_named() {
        assert_eq!(
            unpack(b"BZh9"),
            Err(BootError::Compression { name: "bzip2" })
        );
        let unknown = Err(BootError::Compression {
            name: "an unknown method",
        });
        assert_eq!(unpack(b"nothing"), unknown);
    }
}
