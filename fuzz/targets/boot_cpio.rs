//! Initramfs archives of any names and contents, read back by a reader that shares no code.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use vmlet_boot::initramfs::{Archive, Node};
use vmlet_fuzz::{Input, MemoryCap, seeds};

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

/// The file type bits of a mode.
const KIND: u32 = 0o170_000;

fuzz_target!(init: seeds::plant("boot_cpio"), |data: &[u8]| {
    let mut input = Input::new(data);
    let mut archive = Archive::new();
    let mut wanted = BTreeMap::new();
    while !input.is_empty() {
        let (kind, len) = (input.byte(), usize::from(input.byte() % 32));
        let name = String::from_utf8_lossy(input.bytes(len)).into_owned();
        let len = usize::from(input.byte());
        let content = input.bytes(len).to_vec();
        if archive.add(&name, node(kind, content.clone())).is_ok() {
            assert!(!name.starts_with('/') && !name.split('/').any(|part| part == ".."));
            wanted.insert(name, (kind % 4, content));
        }
    }
    check(&read_back(&archive.finish().expect("small files")), &wanted);
});

fn node(kind: u8, content: Vec<u8>) -> Node {
    let mode = u32::from(kind) << 4;
    match kind % 4 {
        0 => Node::File { mode, content },
        1 => Node::Directory { mode },
        2 => Node::Symlink {
            target: String::from_utf8_lossy(&content).into_owned(),
        },
        _ => Node::Character {
            mode,
            major: 5,
            minor: 1,
        },
    }
}

/// Names with their modes and contents, in order.
fn read_back(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
    let (mut at, mut entries) = (0, Vec::new());
    loop {
        let field = |index: usize| {
            let start = at + 6 + 8 * index;
            let text = std::str::from_utf8(&archive[start..start + 8]).expect("ASCII");
            usize::from_str_radix(text, 16).expect("hexadecimal")
        };
        assert_eq!(&archive[at..at + 6], b"070701");
        let (mode, size, name_size) = (field(1), field(6), field(11));
        let name = &archive[at + 110..at + 110 + name_size - 1];
        assert_eq!(archive[at + 110 + name_size - 1], 0);
        let start = (at + 110 + name_size).next_multiple_of(4);
        if name == b"TRAILER!!!" && field(0) == 0 {
            assert_eq!(start, archive.len());
            return entries;
        }
        let name = String::from_utf8(name.to_vec()).expect("UTF-8");
        let mode = u32::try_from(mode).expect("32 bits");
        entries.push((name, mode, archive[start..start + size].to_vec()));
        at = (start + size).next_multiple_of(4);
    }
}

fn check(entries: &[(String, u32, Vec<u8>)], wanted: &BTreeMap<String, (u8, Vec<u8>)>) {
    let mut seen: Vec<&str> = Vec::new();
    for (name, mode, content) in entries {
        if let Some((above, _)) = name.rsplit_once('/') {
            assert!(seen.contains(&above), "{name} comes before what it is in");
        }
        assert!(!seen.contains(&name.as_str()), "{name} comes twice");
        seen.push(name);
        match wanted.get(name) {
            Some((0, bytes)) => assert_eq!((mode & KIND, content), (0o100_000, bytes)),
            Some((2, bytes)) => {
                let target = String::from_utf8_lossy(bytes).into_owned();
                assert_eq!((mode & KIND, &content[..]), (0o120_000, target.as_bytes()));
            }
            Some((3, _)) => assert_eq!(mode & KIND, 0o020_000),
            _ => assert_eq!(mode & KIND, 0o040_000),
        }
    }
    assert!(wanted.keys().all(|name| seen.contains(&name.as_str())));
}
