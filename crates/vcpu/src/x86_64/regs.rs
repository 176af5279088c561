//! The registers of an x86-64 vCPU in vmlet's own terms (AMD APM volume 2, chapters 3 and 4).

use serde::{Deserialize, Serialize};

/// The general registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are the architecture's own names")]
pub struct Regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

impl Regs {
    /// The sixteen general registers by their numbers in instructions, then RIP and RFLAGS.
    pub fn by_number(&self) -> [u64; 18] {
        let r = self;
        [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15, r.rip, r.rflags,
        ]
    }

    /// What [`Regs::by_number`] gave.
    pub fn from_numbers(values: [u64; 18]) -> Regs {
        let [
            rax,
            rcx,
            rdx,
            rbx,
            rsp,
            rbp,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        ] = values;
        Regs {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        }
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Linear base.
    pub base: u64,
    /// Limit in bytes, scaled: 0xffff_ffff for a flat segment.
    pub limit: u32,
    /// The visible selector.
    pub selector: u16,
    /// Bits 0-3 type, 4 S, 5-6 DPL, 7 P, 8 AVL, 9 L, 10 D/B, 11 G.
    pub attributes: u16,
}

impl Segment {
    /// A flat segment over all 4 GiB with the given selector and attributes.
    pub const fn flat(selector: u16, attributes: u16) -> Segment {
        Segment {
            base: 0,
            limit: 0xffff_ffff,
            selector,
            attributes,
        }
    }

    /// A segment as real mode loads it.
    pub const fn real(selector: u16, kind: u16) -> Segment {
        Segment {
            base: (selector as u64) << 4,
            limit: 0xffff,
            selector,
            attributes: 0x90 | kind,
        }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Linear base.
    pub base: u64,
    /// Limit in bytes, the last valid offset.
    pub limit: u16,
}

/// Segments, control registers and descriptor tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are the architecture's own names")]
pub struct Sregs {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: Table,
    pub idt: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    /// The local APIC's base address MSR (0x1b).
    pub apic_base: u64,
}
