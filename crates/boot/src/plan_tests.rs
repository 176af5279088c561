//! Tests of whole plans.

use crate::{
    BootError, BootRequest, Entry, MemoryKind, MemoryRange, Mode, Protocol, ProtocolChoice,
    elf::tests::elf64, plan,
};

const RAM: [MemoryRange; 2] = [
    MemoryRange {
        gpa: 0,
        len: 0x9_fc00,
        kind: MemoryKind::Ram,
    },
    MemoryRange {
        gpa: 0x10_0000,
        len: 63 << 20,
        kind: MemoryKind::Ram,
    },
];

fn request(kernel: &[u8]) -> BootRequest<'_> {
    BootRequest {
        kernel,
        vmlinux: None,
        initramfs: None,
        modules: &[],
        cmdline: "console=ttyS0",
        memory: &RAM,
        rsdp: Some(0xe_0000),
        protocol: ProtocolChoice::Auto,
    }
}

/// A bzImage with a 32-bit kernel of `code`.
fn bzimage32(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x201] = 0x66;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0c, 2]);
    image[0x211] = 1;
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x238..0x23c].copy_from_slice(&255u32.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&0x10_0000u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x10000u32.to_le_bytes());
    image.extend(code);
    image
}

#[test]
fn a_pvh_elf_starts_flat_with_ebx_at_the_start_information() {
    for note in [&[0x10, 0, 0x10, 0][..], &[0x10, 0, 0x10, 0, 0, 0, 0, 0]] {
        let image = elf64(0x10_0000, &[0xf4; 64], Some(note));
        let plan = plan(&request(&image)).unwrap();
        let Entry { mode, rip, rbx, .. } = plan.entry;
        assert_eq!(
            (plan.protocol, mode, rip),
            (Protocol::Pvh, Mode::Flat32, 0x10_0010)
        );
        let info = plan.loads.iter().find(|load| load.gpa == rbx).unwrap();
        assert_eq!(info.bytes[..4], 0x336e_c578u32.to_le_bytes());
    }
}

#[test]
fn pvh_modules_are_listed_in_order_and_do_not_overlap() {
    let image = elf64(0x10_0000, &[0xf4; 64], Some(&[0, 0, 0x10, 0]));
    let (first, second) = (vec![1; 5000], vec![2; 100]);
    let modules = [&second[..]];
    let request = BootRequest {
        initramfs: Some(&first),
        modules: &modules,
        ..request(&image)
    };
    let plan = plan(&request).unwrap();
    let info = &plan
        .loads
        .iter()
        .find(|load| load.gpa == plan.entry.rbx)
        .unwrap()
        .bytes;
    let word = |at: usize| u64::from_le_bytes(info[at..at + 8].try_into().unwrap());
    assert_eq!((info[12], word(56 + 8), word(56 + 32 + 8)), (2, 5000, 100));
    assert!(word(56) + 5000 <= word(56 + 32));
}

#[test]
fn a_bzimage_without_a_64_bit_payload_starts_at_its_32_bit_entry() {
    let image = bzimage32(&[0xf4; 32]);
    let plan = plan(&request(&image)).unwrap();
    let Entry { mode, rip, rsi, .. } = plan.entry;
    assert_eq!(
        (plan.protocol, mode, rip, rsi),
        (Protocol::BzImage, Mode::Flat32, 0x10_0000, 0x7000)
    );
}

#[test]
fn the_zero_page_carries_command_line_memory_map_and_initramfs() {
    let image = bzimage32(&[0xf4; 32]);
    let initramfs = vec![7; 10_000];
    let plan = plan(&BootRequest {
        initramfs: Some(&initramfs),
        ..request(&image)
    })
    .unwrap();
    let page = &plan
        .loads
        .iter()
        .find(|load| load.gpa == 0x7000)
        .unwrap()
        .bytes;
    let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
    assert_eq!(
        (page[0x1e8], word(0x228), word(0x21c)),
        (2, 0x2_0000, 10_000)
    );
    let at = u64::from(word(0x218));
    assert!(
        plan.loads
            .iter()
            .any(|load| load.gpa == at && load.bytes.len() == 10_000)
    );
    assert!(at % 4096 == 0 && at + 10_000 <= 64 << 20);
    let line = plan.loads.iter().find(|load| load.gpa == 0x2_0000).unwrap();
    assert_eq!(&*line.bytes, b"console=ttyS0\0");
}

#[test]
fn an_initramfs_larger_than_memory_is_refused_with_both_numbers() {
    let image = bzimage32(&[0xf4; 32]);
    let initramfs = vec![7; 65 << 20];
    let error = plan(&BootRequest {
        initramfs: Some(&initramfs),
        ..request(&image)
    })
    .unwrap_err();
    assert!(
        matches!(error, BootError::NoRoom { len, room, .. } if len == 65 << 20 && room < 64 << 20)
    );
}

#[test]
fn segments_outside_memory_or_on_the_protocols_tables_are_refused() {
    for (paddr, outside) in [
        (0x7000_0000, true),
        (0xffff_ffff_ffff_f000, true),
        (0x7000, false),
    ] {
        let image = elf64(paddr, &[0xf4; 64], Some(&[0, 0, 0x10, 0]));
        let error = plan(&request(&image)).unwrap_err();
        assert_eq!(
            matches!(error, BootError::OutsideRam { .. }),
            outside,
            "{error}"
        );
        assert_eq!(
            matches!(error, BootError::Overlap { .. }),
            !outside,
            "{error}"
        );
    }
}

#[test]
fn a_command_line_too_long_for_the_kernel_is_refused_with_both_numbers() {
    let image = bzimage32(&[0xf4; 32]);
    let cmdline = "x".repeat(300);
    let error = plan(&BootRequest {
        cmdline: &cmdline,
        ..request(&image)
    })
    .unwrap_err();
    assert_eq!(error, BootError::CommandLineTooLong { len: 300, max: 255 });
}

#[test]
fn a_command_line_with_a_nul_is_refused() {
    let image = bzimage32(&[0xf4; 32]);
    let error = plan(&BootRequest {
        cmdline: "a\0b",
        ..request(&image)
    })
    .unwrap_err();
    assert_eq!(error, BootError::CommandLineByte { at: 1 });
}

#[test]
fn images_of_no_known_format_are_refused() {
    assert_eq!(plan(&request(b"")).unwrap_err(), BootError::Empty);
    let error = plan(&request(b"#!/bin/sh")).unwrap_err();
    assert_eq!(
        error,
        BootError::UnknownFormat {
            start: b"#!/b".to_vec()
        }
    );
}

#[test]
fn an_arm64_image_is_named() {
    let mut image = [0; 4096];
    image[56..60].copy_from_slice(b"ARM\x64");
    assert_eq!(
        plan(&request(&image)).unwrap_err(),
        BootError::ForeignImage { name: "arm64" }
    );
}

#[test]
fn modules_with_a_bzimage_are_refused() {
    let image = bzimage32(&[0xf4; 32]);
    let modules = [&b"module"[..]];
    let error = plan(&BootRequest {
        modules: &modules,
        ..request(&image)
    })
    .unwrap_err();
    assert_eq!(error, BootError::ModulesNeedPvh);
}

#[test]
fn an_elf_without_the_note_is_refused_by_pvh() {
    let image = elf64(0x10_0000, &[0xf4; 64], None);
    let error = plan(&request(&image)).unwrap_err();
    assert!(
        matches!(
            error,
            BootError::Protocol {
                protocol: "PVH",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn every_truncation_of_a_bzimage_is_an_error_and_no_panic() {
    let image = bzimage32(&[0xf4; 32]);
    for len in 0..1025 {
        assert!(
            plan(&request(&image[..len])).is_err() || len > 1024,
            "{len}"
        );
    }
}

/// An ELF image with a second segment of the same kind at `paddr`.
fn two_segments(paddr: u64) -> Vec<u8> {
    let mut image = elf64(0x20_0000, &[0xf4; 64], Some(&[0, 0, 0x20, 0]));
    let (headers, note) = image.split_at(64 + 56 * 2);
    let mut second = headers[64..120].to_vec();
    second[24..32].copy_from_slice(&paddr.to_le_bytes());
    // The table goes to the end, where there is room for a third header.
    let at = (headers.len() + note.len()) as u64;
    let table = [&headers[64..], &second].concat();
    image.extend(table);
    image[32..40].copy_from_slice(&at.to_le_bytes());
    image[56] = 3;
    image
}

#[test]
fn segments_that_overlap_in_memory_are_refused() {
    let apart = two_segments(0x30_0000);
    assert!(plan(&request(&apart)).is_ok());
    let error = plan(&request(&two_segments(0x20_0010))).unwrap_err();
    assert!(matches!(error, BootError::Overlap { .. }), "{error}");
}

#[test]
fn segments_larger_than_the_file_together_are_refused() {
    let mut image = elf64(0x20_0000, &[0xf4; 5000], Some(&[0, 0, 0x20, 0]));
    let (header, note) = (image[64..120].to_vec(), image[120..176].to_vec());
    let at = image.len() as u64;
    image.extend(note);
    for index in 0..3u64 {
        let mut segment = header.clone();
        segment[24..32].copy_from_slice(&(0x20_0000 + (index << 20)).to_le_bytes());
        image.extend(segment);
    }
    image[32..40].copy_from_slice(&at.to_le_bytes());
    image[56] = 4;
    let error = plan(&request(&image)).unwrap_err();
    assert!(matches!(error, BootError::Truncated { .. }), "{error}");
}

#[test]
fn an_entry_above_four_gibibytes_is_refused() {
    let high = MemoryRange {
        gpa: 1 << 32,
        len: 64 << 20,
        kind: MemoryKind::Ram,
    };
    let memory = [RAM[0], RAM[1], high];
    let image = elf64(1 << 32, &[0xf4; 64], None);
    let error = plan(&BootRequest {
        memory: &memory,
        protocol: ProtocolChoice::Linux64,
        ..request(&image)
    })
    .unwrap_err();
    assert_eq!(error, BootError::EntryTooHigh { gpa: 1 << 32 });
}

#[test]
fn pvh_tells_of_the_first_ranges_of_a_long_memory_map() {
    let small = |index: u64| MemoryRange {
        gpa: (index + 1) << 20,
        len: 1 << 19,
        kind: MemoryKind::Ram,
    };
    let memory: Vec<_> = [RAM[0]].into_iter().chain((0..100).map(small)).collect();
    let image = elf64(0x10_0000, &[0xf4; 64], Some(&[0, 0, 0x10, 0]));
    let request = BootRequest {
        memory: &memory,
        ..request(&image)
    };
    let plan = plan(&request).unwrap();
    let info = plan.loads.iter().find(|load| load.gpa == plan.entry.rbx);
    assert_eq!(info.unwrap().bytes[48..52], 64u32.to_le_bytes());
}
