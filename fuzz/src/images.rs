//! Well-formed images, small.

use std::io::Write;

const HEADER_AT: usize = 0x1f1;
/// Four sectors in front of the protected-mode kernel, the boot sector not counted.
const SETUP: usize = 5 * 512;
const CODE: &[u8] = &[0xf4; 64];

/// A bzImage of protocol 2.15 with a 64-bit entry and this payload.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; SETUP];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(HEADER_AT, &[4]);
    put(0x201, &[0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    put(0x24c, &len.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x10_0000u32.to_le_bytes());
    image.extend(payload);
    image
}

/// A 64-bit ELF file with two segments and PVH's note, entered at 16 MiB.
pub fn elf64() -> Vec<u8> {
    let entry = 0x100_0000u64;
    let note = note(&entry.to_le_bytes());
    let code_at = 64 + 3 * 56;
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2u16, 62].map(u16::to_le_bytes).concat());
    image.extend(1u32.to_le_bytes());
    image.extend([entry, 64, 0].map(u64::to_le_bytes).concat());
    image.extend(
        [0u16, 0, 64, 56, 3, 64, 0, 0]
            .map(u16::to_le_bytes)
            .concat(),
    );
    image.resize(64, 0);
    let code = CODE.len() as u64;
    let note_at = code_at + code;
    let mut header = |kind: u32, fields: [u64; 6]| {
        image.extend([kind, 7].map(u32::to_le_bytes).concat());
        image.extend(fields.map(u64::to_le_bytes).concat());
    };
    header(1, [code_at, entry, entry, code, 0x2000, 0x20_0000]);
    header(
        1,
        [code_at, entry, entry + 0x20_0000, code, code, 0x20_0000],
    );
    header(4, [note_at, 0, 0, note.len() as u64, note.len() as u64, 4]);
    [&image, CODE, &note].concat()
}

/// A 32-bit ELF file with PVH's note, entered at 1 MiB.
pub fn elf32() -> Vec<u8> {
    let entry = 0x10_0000u32;
    let note = note(&entry.to_le_bytes());
    let (code_at, code) = (52 + 2 * 32, 64);
    let mut image = b"\x7fELF\x01\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2u16, 3].map(u16::to_le_bytes).concat());
    image.extend([1u32, entry, 52, 0, 0].map(u32::to_le_bytes).concat());
    image.extend([52u16, 32, 2, 40, 0, 0].map(u16::to_le_bytes).concat());
    let note_len = u32::try_from(note.len()).unwrap_or(0);
    let load = [1, code_at, entry, entry, code, code, 7, 4096];
    let noted = [4, code_at + code, 0, 0, note_len, note_len, 4, 4];
    image.extend(
        [load, noted]
            .concat()
            .into_iter()
            .flat_map(u32::to_le_bytes),
    );
    [&image, CODE, &note].concat()
}

/// XEN_ELFNOTE_PHYS32_ENTRY.
fn note(content: &[u8]) -> Vec<u8> {
    let len = u32::try_from(content.len()).unwrap_or(0);
    let head = [4, len, 18].map(u32::to_le_bytes).concat();
    [&head, &b"Xen\0"[..], content].concat()
}

/// gzip.
pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).expect("a vector");
    encoder.finish().expect("a vector")
}

/// xz, with the filter for x86 code if asked for.
pub fn xz(content: &[u8], x86: bool) -> Vec<u8> {
    let mut options = lzma_rust2::XzOptions::with_preset(1);
    if x86 {
        options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
    }
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).expect("known options");
    writer.write_all(content).expect("a vector");
    writer.finish().expect("a vector")
}

/// Makes the checksums of an xz stream's header and of its first block's header right, so that
/// changes of what they cover are not all refused for their checksum.
pub fn mend_xz(stream: &mut [u8]) {
    if !stream.starts_with(b"\xfd7zXZ\x00") {
        return;
    }
    put_checksum(stream, 6, 8);
    if let Some(size) = stream.get(12) {
        put_checksum(stream, 12, 12 + usize::from(*size) * 4);
    }
}

/// The CRC32 of `start..end` behind that.
fn put_checksum(stream: &mut [u8], start: usize, end: usize) {
    if let Some((covered, rest)) = stream.split_at_mut_checked(end)
        && let Some(place) = rest.first_chunk_mut()
    {
        let mut sum = flate2::Crc::new();
        sum.update(&covered[start..]);
        *place = sum.sum().to_le_bytes();
    }
}

/// The legacy lz4 format with the unpacked size that Linux appends.
pub fn lz4(content: &[u8]) -> Vec<u8> {
    let packed = lz4_flex::block::compress(content);
    let word = |len: usize| u32::try_from(len).unwrap_or(0).to_le_bytes();
    let magic = &[0x02, 0x21, 0x4c, 0x18][..];
    [magic, &word(packed.len()), &packed, &word(content.len())].concat()
}

/// zstd.
pub fn zstd(content: &[u8]) -> Vec<u8> {
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    ruzstd::encoding::compress_to_vec(content, level)
}
