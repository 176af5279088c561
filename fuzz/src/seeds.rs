//! Inputs to start from, by target.

use std::{env, fs, path::Path};

use vmlet_machine::journal::format::{self, Input};
use vmlet_vcpu::{MsiMessage, Position};

use crate::images;

/// Writes a target's seeds into the directory that `VMLET_FUZZ_SEEDS` names, if it does: `ci/fuzz`
/// names one that libFuzzer reads right after.
pub fn plant(target: &str) {
    let Some(directory) = env::var_os("VMLET_FUZZ_SEEDS") else {
        return;
    };
    for (index, seed) in of(target).iter().enumerate() {
        let path = Path::new(&directory).join(format!("seed-{index:02}"));
        fs::write(path, seed).expect("a directory for the seeds");
    }
}

/// The seeds of a target; empty for one whose inputs are plain choices.
fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "boot_elf" => with_options(&[images::elf64(), images::elf32()], 4),
        "boot_bzimage" => with_options(&[images::bzimage(&images::elf64())], 0),
        "boot_payload" => with_options(&payloads(), 0),
        "boot_modules" => payloads().iter().map(|module| modules(module)).collect(),
        "console" => vec![console()],
        "host_findings" => vec![host()],
        "host_pci" => vec![function()],
        "guest_walk" => walks(),
        "nested_walk" => nested_walks(),
        "pci_saved" => crate::pci::states(),
        "record" => vec![record()],
        "soft_cpu" => programs(),
        "virtio_vsock" => vec![socket()],
        "virtio_blk" | "virtio_queue" => crate::queue_image::seeds(),
        _ => Vec::new(),
    }
}

/// Each image by each protocol, without its first `skip` bytes.
fn with_options(images: &[Vec<u8>], skip: usize) -> Vec<Vec<u8>> {
    let option = |protocol| [[protocol, 2, 0, 1], [protocol, 0x43, 0x0f, 1]];
    let options: Vec<[u8; 4]> = (0..4).flat_map(option).collect();
    let all = images
        .iter()
        .flat_map(|image| options.iter().map(move |option| (option, image)));
    all.map(|(option, image)| [option, &image[skip..]].concat())
        .collect()
}

/// A short record of a run.
fn record() -> Vec<u8> {
    let identity = vec![("kernel".to_owned(), "sha256 0".to_owned())];
    let mut bytes = format::header(&identity);
    let message = MsiMessage {
        address: 0xfee0_0000,
        data: 0x31,
    };
    let inputs = [
        Input::Typed(b"ls".to_vec()),
        Input::Message(message),
        Input::End,
    ];
    for (instructions, input) in (1..).zip(&inputs) {
        let at = Position {
            instructions,
            nanoseconds: instructions,
        };
        bytes.extend(format::record(at, input));
    }
    bytes
}

/// A driver (`virtio.rs`) of sockets that connects, sends, and has buffers for answers.
fn socket() -> Vec<u8> {
    // A header of section 5.10.6: stream, operation, room for 64 KiB.
    let header = |op: u8, len: u8| {
        let mut bytes = vec![0; 44];
        for (at, value) in [
            (0, 3),
            (8, 2),
            (16, 9),
            (20, 1),
            (24, len),
            (28, 1),
            (30, op),
            (38, 1),
        ] {
            bytes[at] = value;
        }
        bytes
    };
    let mut seed = vec![1, 0xff, 0xff, 0, 0];
    for index in 0..8 {
        // A writable buffer of the first queue, offered.
        seed.extend([0, 0, 0x2a, index, 0, 0x10 + index, 0xff, 0, 4, 0, index]);
    }
    for (op, len) in [(1, 0), (5, 4), (7, 0), (4, 0)] {
        // Written, described in the second queue, offered and notified of.
        seed.extend([10, 0, 0, 48]);
        seed.extend(header(op, len));
        seed.extend(b"byte");
        seed.extend([0, 1, 0x0a, 0, 0, 0, 48, 0, 4, 1, 0, 7, 1]);
        // The host takes a connection, and sends.
        seed.extend([12, 6, 0, 12, 4, 3, b'a', b'b', b'c']);
    }
    seed
}

fn payloads() -> Vec<Vec<u8>> {
    let elf = images::elf64();
    let large = vec![0; 100_000];
    vec![
        images::gzip(&elf),
        images::gzip(&large),
        images::xz(&elf, false),
        images::xz(&elf, true),
        images::xz(&large, true),
        images::lz4(&elf),
        images::lz4(&large),
        images::zstd(&elf),
        images::zstd(&large),
        elf,
    ]
}

fn modules(module: &[u8]) -> Vec<u8> {
    let index = b"a.ko: b/b-x.ko\nb/b-x.ko:\n";
    let parts = [&index[..], b"kernel/ext4.ko\n", b"a ext4", module];
    parts.join(&0xff)
}

/// Output in pieces: a limit, then each piece behind its length.
fn console() -> Vec<u8> {
    let lines: [&[u8]; 3] = [
        b"[    0.0] Linux version 6.1\r\n",
        b"[    1.0] Kernel panic - not syncing: no init\r\n",
        b"---[ end Kernel panic - not syncing: no init ]---\r\n",
    ];
    let piece = |line: &[u8]| [&[u8::try_from(line.len()).unwrap_or(0)], line].concat();
    [vec![0, 1], lines.map(piece).concat()].concat()
}

/// A card with ATS and SR-IOV, both on, in a group with two reserved regions.
fn function() -> Vec<u8> {
    let mut config = vec![0; 4096];
    config[..4].copy_from_slice(&[0x86, 0x80, 0xc9, 0x10]);
    for (at, header, control) in [(0x100, 0x1400_000f_u32, 6), (0x140, 0x0001_0010, 8)] {
        config[at..at + 4].copy_from_slice(&header.to_le_bytes());
        config[at + control..at + control + 2].copy_from_slice(&[1, 0x80]);
    }
    let texts = [
        "0x8086\n",
        "0x10c9\n",
        "0x020000\n",
        "(null)\n",
        "flr pm bus\n",
        "7\n",
        "2\n",
        "DMA\n",
        "0x00000000000c0000 0x00000000000dffff direct\n0xfee00000 0xfeefffff msi\n",
    ];
    let mut seed = vec![0x00, 0x10];
    seed.append(&mut config);
    for text in texts {
        seed.extend_from_slice(text.as_bytes());
        seed.push(0xff);
    }
    seed
}

fn host() -> Vec<u8> {
    let files: [&[u8]; 10] = [
        b"vendor_id\t: GenuineIntel\nmodel name\t: A\nflags\t\t: vmx ept\nvmx flags\t: ept vpid\n",
        b"MemTotal: 4096 kB\nMemAvailable: 2048 kB\nHugePages_Total: 1\nHugePages_Free: 1\n\
          Hugepagesize: 2048 kB\n",
        b"0::/a/b\n",
        b"Max locked memory 8388608 8388608 bytes\n",
        b"cgroup2 /sys/fs/cgroup cgroup2 rw,favordynmods 0 0\n",
        b"1: 0 IR-IO-APIC 1-edge\n",
        b"root:x:0:\nkvm:x:104:me\n",
        b"always [madvise] never\n",
        b"Y\n",
        b"1073741824\n",
    ];
    files.join(&0xff)
}

/// One walk that succeeds for each paging mode: a mode, 36 address bits, CR3, an address, entries.
fn walks() -> Vec<Vec<u8>> {
    let one = |mode: u8| {
        let words = [0x1000u64, 0x20_3040, 0x2007, 0x3007, 0x4007, 0x5007, 0x6007];
        [&[mode, 36][..], &words.map(u64::to_le_bytes).concat()].concat()
    };
    (0..9).map(one).collect()
}

/// A nested walk of four levels each, all entries present and writable, by EPT and NPT.
fn nested_walks() -> Vec<Vec<u8>> {
    let pointer = 0x1000u64 | 3 << 3 | 6;
    let one = |mode: u8| {
        let head = [&[0x0e, 8][..], &pointer.to_le_bytes(), &[mode]].concat();
        let registers = [0x1000u64, 0x1234].map(u64::to_le_bytes).concat();
        // Present, writable and for users in both formats; write-back where it is a page.
        let entries =
            (0..30u64).map(|index| (index + 2) << 12 | if index % 5 == 3 { 0x37 } else { 7 });
        let entries: Vec<u8> = entries.flat_map(u64::to_le_bytes).collect();
        [&head[..], &registers, &[0], &entries].concat()
    };
    (0..3).map(one).collect()
}

/// Programs for each mode: no change of registers, no writes to memory, then code.
fn programs() -> Vec<Vec<u8>> {
    let codes: [&[u8]; 6] = [
        // A loop that copies and changes its own code.
        b"\xb9\x10\0\0\0\xf3\xa4\xc6\x05\0\x50\0\0\x90\xe2\xf0\xeb\xee",
        b"\x66\x0f\x58\xc1\xf2\x0f\x5e\xc1\xd9\xfe\xd8\x0b\xdd\x35\0\x60\0\0",
        b"\x50\xe8\0\0\0\0\x58\x9c\x9d\xc8\x10\0\x03\xc9\xc3",
        b"\x0f\x20\xc0\x0f\x22\xd8\x0f\x01\x38\x0f\x30\x0f\x32\xcd\x03\xcf",
        b"\xf0\x0f\xb1\x0b\xf0\x0f\xc7\x0b\x0f\xa3\x08\xf7\xf1\xe4\x60\xe6\x80",
        b"\x8e\xd8\xea\0\x50\0\0\x08\0\xcb\x0f\x05\x0f\x07\xfb\xf4",
    ];
    let one = |mode: u8, code: &[u8]| [&[mode, 0, 0, 0, 0], code].concat();
    (0..8)
        .flat_map(|mode| codes.map(|code| one(mode, code)))
        .collect()
}
