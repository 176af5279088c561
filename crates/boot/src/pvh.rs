//! PVH: an ELF note names a 32-bit entry, EBX points to the start information.
//!
//! Source: Xen, docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h.

use std::borrow::Cow;

use crate::{
    BootError, BootPlan, BootRequest, Entry, Load, Mode, Protocol,
    elf::Elf,
    layout::{self, CODE32, COMMAND_LINE, GDT, GDT_LIMIT, STACK, START_INFO},
};

const NOTE_PHYS32_ENTRY: u32 = 18;
const START_MAGIC: u32 = 0x336e_c578;
const START_VERSION: u32 = 1;
const START_LEN: u64 = 56;
const MODULE_LEN: u64 = 32;
const MEMORY_LEN: u64 = 24;
/// Modules and memory ranges fit between the start information and the zero page.
const MAX_MODULES: usize = 32;
const MAX_RANGES: usize = 64;
const MODULE_LIMIT: u64 = 0x1_0000_0000;

/// Plans the start of a PVH image. The initramfs is the first module.
pub(crate) fn plan<'a>(
    request: &BootRequest<'a>,
    elf: &Elf,
    image: &'a [u8],
) -> Result<BootPlan<'a>, BootError> {
    let rip = entry_point(elf, image)?;
    let mut loads = elf.load(image)?;
    layout::check_all(request, &loads)?;
    layout::check_entry(request, rip)?;
    let modules = place_modules(request, elf.end(), &mut loads)?;
    loads.push(layout::command_line(
        request.cmdline,
        layout::COMMAND_LINE_ROOM - 1,
    )?);
    loads.push(layout::load(START_INFO, start_info(request, &modules)));
    loads.push(layout::gdt(CODE32));
    let entry = Entry {
        mode: Mode::Flat32,
        rip,
        rsp: STACK,
        rbx: START_INFO,
        rsi: 0,
        gdt: GDT,
        gdt_limit: GDT_LIMIT,
    };
    Ok(BootPlan {
        protocol: Protocol::Pvh,
        loads,
        entry,
        soon: Vec::new(),
    })
}

/// The note's content has four bytes or eight, whatever the container.
fn entry_point(elf: &Elf, image: &[u8]) -> Result<u64, BootError> {
    match elf.note(image, b"Xen", NOTE_PHYS32_ENTRY) {
        Some(&[a, b, c, d] | &[a, b, c, d, 0, 0, 0, 0]) => {
            Ok(u32::from_le_bytes([a, b, c, d]).into())
        }
        Some(note) => {
            let value = note.len() as u64;
            Err(BootError::Damaged {
                what: "size or value of the PVH note",
                value,
            })
        }
        None => {
            let reason = "it has no note XEN_ELFNOTE_PHYS32_ENTRY";
            Err(BootError::Protocol {
                protocol: "PVH",
                reason,
            })
        }
    }
}

/// Loads initramfs and modules, highest first, and gives their places in order.
fn place_modules<'a>(
    request: &BootRequest<'a>,
    kernel_end: u64,
    loads: &mut Vec<Load<'a>>,
) -> Result<Vec<(u64, u64)>, BootError> {
    let all: Vec<&'a [u8]> = request
        .initramfs
        .into_iter()
        .chain(request.modules.iter().copied())
        .collect();
    if all.len() > MAX_MODULES {
        return Err(BootError::Damaged {
            what: "number of modules",
            value: all.len() as u64,
        });
    }
    let mut limit = MODULE_LIMIT;
    let mut places = Vec::new();
    for module in all.into_iter().rev() {
        let len = module.len() as u64;
        let at = layout::place(request, "a module", len, kernel_end, limit)?;
        limit = at;
        places.push((at, len));
        loads.push(Load {
            gpa: at,
            bytes: Cow::Borrowed(module),
            zeros: 0,
        });
    }
    places.reverse();
    Ok(places)
}

/// `hvm_start_info`, then the module list, then the memory map.
fn start_info(request: &BootRequest<'_>, modules: &[(u64, u64)]) -> Vec<u8> {
    let module_list = START_INFO + START_LEN;
    let memory_map = module_list + MODULE_LEN * modules.len() as u64;
    let ranges = request.memory.iter().take(MAX_RANGES);
    let count = ranges.len() as u64;
    let word = |value: usize| u32::try_from(value).unwrap_or(0).to_le_bytes();
    let mut bytes = [START_MAGIC, START_VERSION, 0]
        .map(u32::to_le_bytes)
        .concat();
    bytes.extend(word(modules.len()));
    let list = if modules.is_empty() { 0 } else { module_list };
    let pointers = [list, COMMAND_LINE, request.rsdp.unwrap_or(0), memory_map];
    bytes.extend(pointers.map(u64::to_le_bytes).concat());
    bytes.extend(word(ranges.len()));
    bytes.extend([0; 4]);
    for (at, len) in modules {
        bytes.extend([*at, *len, 0, 0].map(u64::to_le_bytes).concat());
    }
    for range in ranges {
        bytes.extend([range.gpa, range.len].map(u64::to_le_bytes).concat());
        bytes.extend([range.kind.number(), 0].map(u32::to_le_bytes).concat());
    }
    debug_assert!(bytes.len() as u64 >= START_LEN + MEMORY_LEN * count);
    bytes
}
