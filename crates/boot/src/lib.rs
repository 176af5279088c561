//! Kernel and initramfs formats and the boot protocols: bytes in, a plan out.
//!
//! Every image is untrusted. A parser checks each offset before it uses it, caps what it
//! allocates, and names what is wrong. Nothing here touches files (but the initramfs builder, which
//! reads a directory) or guest memory: [`plan`] says what is to be loaded where and how the first
//! vCPU starts, and the board does it.
//!
//! | protocol | images | source |
//! |---|---|---|
//! | [`Protocol::Linux64`] | ELF vmlinux, bzImage with an x86-64 payload | Linux, Documentation/arch/x86/boot.rst, "64-bit boot protocol" |
//! | [`Protocol::Pvh`] | any ELF with the note XEN_ELFNOTE_PHYS32_ENTRY | Xen, docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h |
//! | [`Protocol::BzImage`] | any bzImage, by its own 64- or 32-bit entry | boot.rst, "32-bit boot protocol" |
//!
//! Not supported: payloads compressed with bzip2, LZMA or LZO, the EFI stub, 16-bit real-mode entry,
//! multiboot, Linux kernels for other architectures.

mod bzimage;
mod elf;
mod error;
pub mod initramfs;
mod layout;
mod linux;
mod payload;
mod plan;
mod pvh;
mod soon;
mod xz;

pub use error::BootError;
pub use payload::unpack;
pub use plan::{
    BootPlan, BootRequest, Entry, Load, MemoryKind, MemoryRange, Mode, Protocol, ProtocolChoice,
    packed, plan,
};

#[cfg(test)]
mod plan_tests;
