//! Descriptor tables, exception entry points and the segment registers of CPL 0 and 3.

use vmlet_memory::{AddressSpace, Gpa};
use vmlet_vcpu::x86_64::{BOOT_CS, Segment, Sregs, Table};

use super::memory::{GDT, HANDLERS, IDT, STACK, TSS};

pub(crate) const KERNEL_CS: u16 = BOOT_CS;
pub(crate) const USER_CS32: u16 = 0x23;
pub(crate) const USER_DS: u16 = 0x2b;
pub(crate) const USER_CS: u16 = 0x33;
const TSS_SELECTOR: u16 = 0x38;
/// 32-bit code at CPL 0.
pub(crate) const KERNEL_CS32: u16 = 0x48;
/// A task-state segment that is not busy, for `ltr`.
pub(crate) const FREE_TSS: u16 = 0x50;
/// A local descriptor table, for `lldt`.
pub(crate) const LDT: u16 = 0x60;
const GDT_ENTRIES: usize = 14;

const CR0_MP_NE_WP: u64 = 1 << 1 | 1 << 5 | 1 << 16;
const CR4_OSFXSR_OSXMMEXCPT: u64 = 1 << 9 | 1 << 10;

/// Exceptions that push an error code.
const WITH_CODE: [u64; 8] = [8, 10, 11, 12, 13, 14, 17, 21];

/// Fills the tables and the entry points. Every vector ends the run with its number in RAX, error
/// code in RBX, return address in RCX, return CS in RDX, CR2 in RSI, and RDI = 0xe5ce.
pub(crate) fn install(memory: &AddressSpace) {
    let put = |at: u64, bytes: &[u8]| memory.write(Gpa(at), bytes).unwrap();
    for (at, entry) in (GDT..).step_by(8).zip(descriptors()) {
        put(at, &entry.to_le_bytes());
    }
    put(TSS + 4, &STACK.to_le_bytes());
    // The I/O permission map lies behind the segment's limit: no port is open.
    put(TSS + 0x66, &0x68u16.to_le_bytes());
    let common = HANDLERS + 256 * 16;
    for vector in 0..256 {
        let at = HANDLERS + vector * 16;
        put(at, &entry_point(at, vector, common));
        let dpl = if matches!(vector, 3 | 0x30 | 0x80) {
            3
        } else {
            0
        };
        set_gate(memory, vector, at, dpl);
    }
    put(
        common,
        guest!(
            "pop rax",
            "pop rbx",
            "pop rcx",
            "pop rdx",
            "mov rsi, cr2",
            "mov edi, 0xe5ce",
            "out 0xf5, al"
        ),
    );
}

fn entry_point(at: u64, vector: u64, common: u64) -> Vec<u8> {
    let mut code = Vec::new();
    if !WITH_CODE.contains(&vector) {
        code.extend([0x6a, 0]);
    }
    code.push(0x68);
    code.extend(u32::try_from(vector).unwrap().to_le_bytes());
    let next = at + code.len() as u64 + 5;
    code.push(0xe9);
    code.extend(u32::try_from(common - next).unwrap().to_le_bytes());
    code
}

/// Points `vector` to the 64-bit code at `at`.
pub(crate) fn set_gate(memory: &AddressSpace, vector: u64, at: u64, dpl: u64) {
    let low = at & 0xffff
        | u64::from(KERNEL_CS) << 16
        | (0x8e | dpl << 5) << 40
        | (at >> 16 & 0xffff) << 48;
    let gate = [low.to_le_bytes(), (at >> 32).to_le_bytes()].concat();
    memory.write(Gpa(IDT + vector * 16), &gate).unwrap();
}

fn descriptors() -> [u64; GDT_ENTRIES] {
    let tss = |kind: u64| 0x67 | (TSS & 0xff_ffff) << 16 | kind << 40;
    [
        0,
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        tss(0x8b),
        0,
        0x00cf_9b00_0000_ffff,
        tss(0x89),
        0,
        0x0000_8200_3000_0fff,
        0,
    ]
}

/// The GDT's place and size.
pub(crate) fn gdt() -> Table {
    let limit = u16::try_from(GDT_ENTRIES * 8 - 1).unwrap();
    Table { base: GDT, limit }
}

/// 64-bit mode at CPL 0 with the tables of this file.
pub(crate) fn kernel(reset: Sregs, cr3: u64) -> Sregs {
    let long = reset.enter_long64(cr3, gdt());
    let tr = Segment {
        base: TSS,
        limit: 0x67,
        selector: TSS_SELECTOR,
        attributes: 0x8b,
    };
    Sregs {
        tr,
        idt: Table {
            base: IDT,
            limit: 0xfff,
        },
        cr0: long.cr0 | CR0_MP_NE_WP,
        cr4: long.cr4 | CR4_OSFXSR_OSXMMEXCPT,
        ..long
    }
}

/// The segments of 64-bit code at CPL 3.
pub(crate) fn user(sregs: Sregs) -> Sregs {
    with_user_code(sregs, Segment::flat(USER_CS, 0xa0fb))
}

/// The segments of 32-bit code at CPL 3.
pub(crate) fn user32(sregs: Sregs) -> Sregs {
    with_user_code(sregs, Segment::flat(USER_CS32, 0xc0fb))
}

fn with_user_code(sregs: Sregs, cs: Segment) -> Sregs {
    let data = Segment::flat(USER_DS, 0xc0f3);
    Sregs {
        cs,
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ..sregs
    }
}
