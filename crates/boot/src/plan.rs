//! Requests, plans, and the way from one to the other.

use std::{borrow::Cow, ops::Range};

use crate::{BootError, bzimage, elf, elf::Elf, linux, pvh};

/// What a range of guest-physical addresses is (the e820 types).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Memory the guest may use.
    Ram,
    /// Not to be touched.
    Reserved,
    /// ACPI tables.
    Acpi,
}

impl MemoryKind {
    /// The type number of e820 and of PVH's memory map.
    pub(crate) fn number(self) -> u32 {
        match self {
            MemoryKind::Ram => 1,
            MemoryKind::Reserved => 2,
            MemoryKind::Acpi => 3,
        }
    }
}

/// A range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// First address.
    pub gpa: u64,
    /// Bytes.
    pub len: u64,
    /// What it is.
    pub kind: MemoryKind,
}

/// Which protocol the user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProtocolChoice {
    /// The quickest the image has: Linux64 for Linux, PVH for other ELF files, else BzImage.
    #[default]
    Auto,
    /// The 64-bit Linux protocol.
    Linux64,
    /// PVH.
    Pvh,
    /// The bzImage's own entry.
    BzImage,
}

/// The protocol a plan uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The 64-bit Linux protocol, straight into vmlinux.
    Linux64,
    /// PVH.
    Pvh,
    /// The bzImage's own entry; the kernel unpacks itself.
    BzImage,
}

/// What is to be booted.
#[derive(Clone, Copy, Debug)]
pub struct BootRequest<'a> {
    /// The kernel image.
    pub kernel: &'a [u8],
    /// What [`crate::unpack`] made of the payload that [`packed`] found in the image.
    pub vmlinux: Option<&'a [u8]>,
    /// The initramfs.
    pub initramfs: Option<&'a [u8]>,
    /// Further PVH modules.
    pub modules: &'a [&'a [u8]],
    /// The command line.
    pub cmdline: &'a str,
    /// The guest's memory map, sorted, without overlaps.
    pub memory: &'a [MemoryRange],
    /// Where the ACPI root pointer is.
    pub rsdp: Option<u64>,
    /// The protocol.
    pub protocol: ProtocolChoice,
}

/// Bytes for guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load<'a> {
    /// First guest-physical address.
    pub gpa: u64,
    /// The bytes.
    pub bytes: Cow<'a, [u8]>,
    /// Zeros behind them.
    pub zeros: u64,
}

/// The mode the first vCPU starts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 32-bit protected mode, flat segments, no paging.
    Flat32,
    /// 64-bit mode with page tables at this guest-physical address.
    Long64 {
        /// Top-level table.
        cr3: u64,
    },
}

/// How the first vCPU starts. Segments are those of the Linux boot protocol: code 0x10, data 0x18.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Mode.
    pub mode: Mode,
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// RBX: PVH's start information.
    pub rbx: u64,
    /// RSI: Linux's boot parameters.
    pub rsi: u64,
    /// Where the segment descriptors are.
    pub gdt: u64,
    /// The descriptor table's limit.
    pub gdt_limit: u16,
}

/// What to load and how to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootPlan<'a> {
    /// The protocol.
    pub protocol: Protocol,
    /// What to load, in order.
    pub loads: Vec<Load<'a>>,
    /// How to start.
    pub entry: Entry,
    /// Memory that the guest writes to first, as far as that is known; in that order.
    pub soon: Vec<Range<u64>>,
}

/// What an arm64 Image has at offset 56 (Linux, Documentation/arch/arm64/booting.rst, section 4).
const ARM64_MAGIC: &[u8] = b"ARM\x64";

/// The compressed kernel in `kernel`, a bzImage, if that is what is booted: [`crate::unpack`] it and give the
/// result with the request.
pub fn packed(kernel: &[u8], protocol: ProtocolChoice) -> Result<Option<&[u8]>, BootError> {
    if kernel.starts_with(&elf::MAGIC) || !bzimage::is_bzimage(kernel) {
        return Ok(None);
    }
    let header = bzimage::Header::parse(kernel)?;
    if protocol == ProtocolChoice::BzImage || !header.has_linux64_payload() {
        return Ok(None);
    }
    header.payload(kernel).map(Some)
}

/// Plans a boot.
pub fn plan<'a>(request: &BootRequest<'a>) -> Result<BootPlan<'a>, BootError> {
    check_command_line(request.cmdline)?;
    let kernel = request.kernel;
    if kernel.is_empty() {
        return Err(BootError::Empty);
    }
    if kernel.starts_with(&elf::MAGIC) {
        return plan_elf(request, kernel, None);
    }
    if !bzimage::is_bzimage(kernel) {
        if kernel.get(56..60) == Some(ARM64_MAGIC) {
            return Err(BootError::ForeignImage { name: "arm64" });
        }
        let start = kernel.iter().take(4).copied().collect();
        return Err(BootError::UnknownFormat { start });
    }
    let header = bzimage::Header::parse(kernel)?;
    if request.protocol == ProtocolChoice::BzImage || !header.has_linux64_payload() {
        return plan_bzimage(request, &header);
    }
    let vmlinux = request.vmlinux.ok_or(BootError::Packed)?;
    plan_elf(request, vmlinux, Some(&header))
}

fn plan_bzimage<'a>(
    request: &BootRequest<'a>,
    header: &bzimage::Header,
) -> Result<BootPlan<'a>, BootError> {
    match request.protocol {
        ProtocolChoice::Auto | ProtocolChoice::BzImage => {}
        ProtocolChoice::Linux64 | ProtocolChoice::Pvh => {
            let reason = "its payload is not a 64-bit Linux kernel";
            return Err(BootError::Protocol {
                protocol: "an ELF protocol",
                reason,
            });
        }
    }
    no_modules(request)?;
    linux::plan_bzimage(request, header)
}

fn plan_elf<'a>(
    request: &BootRequest<'a>,
    image: &'a [u8],
    header: Option<&bzimage::Header>,
) -> Result<BootPlan<'a>, BootError> {
    let elf = Elf::parse(image)?;
    let linux = elf.is_64bit() && (header.is_some() || elf.looks_like_linux());
    match request.protocol {
        ProtocolChoice::BzImage => {
            let reason = "it is an ELF file";
            Err(BootError::Protocol {
                protocol: "the bzImage entry",
                reason,
            })
        }
        ProtocolChoice::Linux64 if !elf.is_64bit() => {
            let reason = "it is a 32-bit ELF file";
            Err(BootError::Protocol {
                protocol: "the 64-bit Linux protocol",
                reason,
            })
        }
        ProtocolChoice::Auto if !linux => pvh::plan(request, &elf, image),
        ProtocolChoice::Pvh => pvh::plan(request, &elf, image),
        ProtocolChoice::Auto | ProtocolChoice::Linux64 => {
            no_modules(request)?;
            linux::plan_elf(request, &elf, image, header)
        }
    }
}

fn no_modules(request: &BootRequest<'_>) -> Result<(), BootError> {
    if request.modules.is_empty() {
        Ok(())
    } else {
        Err(BootError::ModulesNeedPvh)
    }
}

fn check_command_line(cmdline: &str) -> Result<(), BootError> {
    match cmdline.bytes().position(|byte| matches!(byte, 0 | b'\n')) {
        Some(at) => Err(BootError::CommandLineByte { at }),
        None => Ok(()),
    }
}
