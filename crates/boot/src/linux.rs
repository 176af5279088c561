//! The Linux boot protocols: the zero page (`struct boot_params`) and the entry state.
//!
//! Source: Linux, Documentation/arch/x86/boot.rst and zero-page.rst.

use std::borrow::Cow;

use crate::{
    BootError, BootPlan, BootRequest, Entry, Load, MemoryRange, Mode, Protocol,
    bzimage::Header,
    elf::Elf,
    layout::{self, CODE32, CODE64, COMMAND_LINE, GDT, GDT_LIMIT, PAGE_TABLES, STACK, ZERO_PAGE},
    soon,
};

const ZERO_PAGE_LEN: usize = 4096;
const HEADER_AT: usize = 0x1f1;
const E820_MAX: usize = 128;
/// Linux's own limit where no header says another (`COMMAND_LINE_SIZE` on x86).
const CMDLINE_MAX: usize = 2047;
/// Where an initramfs ends at the latest where no header says another.
const INITRAMFS_MAX: u64 = 0x8000_0000;
/// "Other" boot loader, without a number of its own.
const LOADER_TYPE: u8 = 0xff;
const CAN_USE_HEAP: u8 = 0x80;
const LOADED_HIGH: u8 = 1;
const ENTRY_64: u64 = 0x200;

/// Linux by the 64-bit protocol: the uncompressed kernel's entry point.
pub(crate) fn plan_elf<'a>(
    request: &BootRequest<'a>,
    elf: &Elf,
    image: &'a [u8],
    header: Option<&Header>,
) -> Result<BootPlan<'a>, BootError> {
    let mut loads = elf.load(image)?;
    layout::check_all(request, &loads)?;
    let soon = soon::ranges(request.memory, elf.end(), &loads);
    layout::check_entry(request, elf.entry())?;
    let initramfs_max = header.map_or(INITRAMFS_MAX, |header| header.initramfs_max);
    let page = ZeroPage::new(request, header, elf.end(), initramfs_max, &mut loads)?;
    loads.push(page.finish());
    loads.push(layout::identity_tables());
    loads.push(layout::gdt(CODE64));
    let entry = long_entry(elf.entry());
    Ok(BootPlan {
        protocol: Protocol::Linux64,
        loads,
        entry,
        soon,
    })
}

/// A bzImage by its own entry: it unpacks and moves itself.
pub(crate) fn plan_bzimage<'a>(
    request: &BootRequest<'a>,
    header: &Header,
) -> Result<BootPlan<'a>, BootError> {
    let kernel = header.kernel(request.kernel)?;
    let room = header.init_size.max(kernel.len() as u64);
    layout::check(
        request,
        "the kernel with the room to unpack itself",
        header.load_address,
        room,
    )?;
    let gpa = header.load_address;
    layout::check_entry(request, gpa.saturating_add(ENTRY_64))?;
    let mut loads = vec![Load {
        gpa,
        bytes: Cow::Borrowed(kernel),
        zeros: 0,
    }];
    let end = gpa.saturating_add(room);
    let page = ZeroPage::new(request, Some(header), end, header.initramfs_max, &mut loads)?;
    let code32 = u32::try_from(gpa).unwrap_or(0);
    loads.push(page.with(0x214, &code32.to_le_bytes()).finish());
    let entry = if header.is_64bit() {
        loads.push(layout::identity_tables());
        loads.push(layout::gdt(CODE64));
        long_entry(gpa + ENTRY_64)
    } else {
        loads.push(layout::gdt(CODE32));
        Entry {
            mode: Mode::Flat32,
            ..long_entry(gpa)
        }
    };
    Ok(BootPlan {
        protocol: Protocol::BzImage,
        loads,
        entry,
        soon: Vec::new(),
    })
}

fn long_entry(rip: u64) -> Entry {
    Entry {
        mode: Mode::Long64 { cr3: PAGE_TABLES },
        rip,
        rsp: STACK,
        rbx: 0,
        rsi: ZERO_PAGE,
        gdt: GDT,
        gdt_limit: GDT_LIMIT,
    }
}

struct ZeroPage {
    bytes: Vec<u8>,
}

impl ZeroPage {
    /// The page with command line, memory map and initramfs; the last two kinds of bytes are
    /// added to `loads`.
    fn new<'a>(
        request: &BootRequest<'a>,
        header: Option<&Header>,
        kernel_end: u64,
        initramfs_max: u64,
        loads: &mut Vec<Load<'a>>,
    ) -> Result<ZeroPage, BootError> {
        let mut page = ZeroPage {
            bytes: vec![0; ZERO_PAGE_LEN],
        };
        match header {
            Some(header) => page.put(HEADER_AT, &header.bytes),
            None => page.put_bare_header(),
        }
        let loadflags = page.bytes.get(0x211).copied().unwrap_or(0);
        page.put(
            0x210,
            &[LOADER_TYPE, loadflags | CAN_USE_HEAP | LOADED_HIGH],
        );
        page.put(0x224, &0xfe00u16.to_le_bytes());
        let max = header.map_or(CMDLINE_MAX, |header| header.cmdline_max);
        loads.push(layout::command_line(request.cmdline, max)?);
        page.put(0x228, &low(COMMAND_LINE));
        if let Some(initramfs) = request.initramfs.filter(|image| !image.is_empty()) {
            let len = initramfs.len() as u64;
            let at = layout::place(request, "the initramfs", len, kernel_end, initramfs_max)?;
            page.put(0x218, &[low(at), low(len)].concat());
            loads.push(Load {
                gpa: at,
                bytes: Cow::Borrowed(initramfs),
                zeros: 0,
            });
        }
        page.put(0x70, &request.rsdp.unwrap_or(0).to_le_bytes());
        page.put_memory_map(request.memory);
        Ok(page)
    }

    /// What the header of a bzImage says, for an image without one.
    fn put_bare_header(&mut self) {
        self.put(0x1fe, &0xaa55u16.to_le_bytes());
        self.put(0x202, b"HdrS");
        self.put(0x206, &0x20fu16.to_le_bytes());
        self.put(0x230, &0x20_0000u32.to_le_bytes());
        self.put(0x238, &low(CMDLINE_MAX as u64));
    }

    fn put_memory_map(&mut self, memory: &[MemoryRange]) {
        let count = memory.len().min(E820_MAX);
        self.put(0x1e8, &[u8::try_from(count).unwrap_or(0)]);
        for (index, range) in memory.iter().take(E820_MAX).enumerate() {
            let words = [range.gpa.to_le_bytes(), range.len.to_le_bytes()].concat();
            self.put(0x2d0 + index * 20, &words);
            self.put(0x2d0 + index * 20 + 16, &range.kind.number().to_le_bytes());
        }
    }

    fn with(mut self, at: usize, bytes: &[u8]) -> ZeroPage {
        self.put(at, bytes);
        self
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes
            .iter_mut()
            .skip(at)
            .zip(bytes)
            .for_each(|(to, from)| *to = *from);
    }

    fn finish(self) -> Load<'static> {
        layout::load(ZERO_PAGE, self.bytes)
    }
}

/// The lower half of an address below 4 GiB.
fn low(value: u64) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes()
}
