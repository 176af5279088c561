//! Rows: a virtio disk, from the driver's first register to the interrupt.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc, thread};

use vmlet_devices::{
    backend::block::RawImage,
    virtio::{
        Place as Work, VirtioPci,
        blk::{Blk, BlkOptions},
    },
};
use vmlet_pci::Plug;
use vmlet_reactor::{Reactor, Spawner};

use crate::{
    harness::{DATA, Guest, each},
    pci::{handler, with_function},
};

const SECTORS: u64 = 16;
/// Of the queue, behind the handler's code.
const DESC: u64 = DATA + 0x100;
const AVAIL: u64 = DATA + 0x200;
/// A request's header, and the byte that its status goes to.
const HEADERS: u64 = DATA + 0x300;
const STATUS: u64 = DATA + 0x340;
const FROM: u64 = DATA + 0x400;
const TO: u64 = DATA + 0x600;

fn spawner() -> Arc<Spawner> {
    Arc::new(|name, body| thread::Builder::new().name(name).spawn(body).map(drop))
}

/// Request `number` in the descriptors from `3 * number` on: type, sector, data and its flags.
fn request(guest: &Guest, number: u64, kind: u32, data: u64, flags: u16) {
    let header = HEADERS + number * 16;
    let bytes = [kind.to_le_bytes(), [0; 4], [1, 0, 0, 0], [0; 4]].concat();
    guest.write(header, &bytes);
    let chain = [
        (header, 16u32, 1u16),
        (data, 512, flags | 1),
        (STATUS + number, 1, 2),
    ];
    for (index, (addr, len, flags)) in (3 * number..).zip(chain) {
        let next = u16::try_from(index + 1).unwrap();
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        guest.write(DESC + index * 16, &bytes);
    }
    let head = u16::try_from(3 * number).unwrap();
    guest.write(AVAIL + 4 + number * 2, &head.to_le_bytes());
    guest.write(STATUS + number, &[0xee]);
}

fn disk(file: File) -> Arc<VirtioPci> {
    let reactor = Reactor::start("test", &*spawner()).unwrap();
    let place = Work::Reactor(reactor);
    let image = Arc::new(RawImage::new(file, SECTORS * 512, false, false));
    let options = BlkOptions::default();
    VirtioPci::new(Blk::new(image, &options, &place, &spawner()), place)
}

#[test]
fn a_sector_is_written_and_read_by_doorbells_and_msix() {
    each(|place| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SECTORS * 512).unwrap();
        let disk = disk(file.try_clone().unwrap());
        let mut guest = with_function(place, disk, Plug::Cold);
        handler(&guest, 0x54);
        guest.write(FROM, &[0x5a; 512]);
        request(&guest, 0, 1, FROM, 0);
        request(&guest, 1, 0, TO, 2);
        guest.load(guest!(
            "mov ebx, 0xfee00000",
            "mov dword ptr [rbx + 0xf0], 0x1ff",
            "mov esi, 0xe0100000",
            "mov word ptr [rsi + 4], 6",
            "mov word ptr [rsi + 0x86], 0x8000",
            "mov edi, 0xc0004000",
            "mov dword ptr [rdi + 16], 0xfee00000",
            "mov dword ptr [rdi + 24], 0x54",
            "mov dword ptr [rdi + 28], 0",
            "mov ecx, 0xc0000000",
            "mov byte ptr [rcx + 0x14], 3",
            "mov dword ptr [rcx + 8], 1",
            "mov dword ptr [rcx + 0xc], 1",
            "mov byte ptr [rcx + 0x14], 0xb",
            "mov word ptr [rcx + 0x18], 8",
            "mov word ptr [rcx + 0x1a], 1",
            "mov dword ptr [rcx + 0x20], 0x20100",
            "mov dword ptr [rcx + 0x28], 0x20200",
            "mov dword ptr [rcx + 0x30], 0x20280",
            "mov word ptr [rcx + 0x1c], 1",
            "mov byte ptr [rcx + 0x14], 0xf",
            "movzx edx, byte ptr [rcx + 0x14]",
            "mov r10d, 0x20800",
            "mov ebp, 0x20200",
            "sti",
            "mov word ptr [rbp + 2], 1",
            "mov word ptr [rcx + 0x3000], 0",
            "2: cmp r9, 1",
            "jb 2b",
            "mov word ptr [rbp + 2], 2",
            "mov word ptr [rcx + 0x3000], 0",
            "3: cmp r9, 2",
            "jb 3b",
            "movzx r12d, word ptr [rbp + 0x82]",
            "mov [r15], eax"
        ));
        let regs = guest.finish();
        assert_eq!((regs.rdx, regs.r9, regs.r12), (0xf, 2, 2));
        let mut data = [0; 512];
        file.read_exact_at(&mut data, 512).unwrap();
        assert_eq!(data, [0x5a; 512], "what the guest wrote");
        assert_eq!(guest.read::<2>(STATUS), [0, 0]);
        assert_eq!(guest.read::<512>(TO), [0x5a; 512], "what it read back");
    });
}
