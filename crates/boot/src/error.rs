//! What is wrong with an image or a request.

use thiserror::Error;

/// Why a VM cannot be booted from what was given.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BootError {
    /// No bytes.
    #[error("the kernel image is empty. Give a bzImage (vmlinuz) or an ELF file")]
    Empty,
    /// A bzImage whose kernel has not been unpacked.
    #[error("the bzImage's kernel is packed. Unpack it first")]
    Packed,
    /// Neither an ELF file nor a bzImage.
    #[error(
        "the kernel image is neither an ELF file nor a bzImage (it starts with {start:02x?}). \
         Give an uncompressed vmlinux, a bzImage (vmlinuz) or a PVH ELF"
    )]
    UnknownFormat {
        /// The first bytes.
        start: Vec<u8>,
    },
    /// The image ends before something it announces.
    #[error(
        "the kernel image is truncated: {what} needs {needed} bytes and the image has {len}. Copy \
         or fetch the file again"
    )]
    Truncated {
        /// What lies past the end.
        what: &'static str,
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        len: u64,
    },
    /// A field with a value that makes no sense.
    #[error("the kernel image is damaged: {what} is {value:#x}. Copy or fetch the file again")]
    Damaged {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// Not a kernel for x86.
    #[error(
        "the kernel is for another architecture (ELF machine {machine}); this VM is x86-64. Give a \
         kernel for x86-64"
    )]
    Architecture {
        /// The ELF header's machine number.
        machine: u16,
    },
    /// A kernel image of another architecture's own format.
    #[error(
        "the kernel is for another architecture ({name}); this VM is x86-64. Give a kernel for \
         x86-64"
    )]
    ForeignImage {
        /// The architecture.
        name: &'static str,
    },
    /// The image cannot be booted by the protocol asked for.
    #[error(
        "the kernel cannot be booted by {protocol}: {reason}. Give protocol \"auto\" or another kernel"
    )]
    Protocol {
        /// The protocol.
        protocol: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// A compression this crate does not know.
    #[error(
        "the kernel's payload is compressed with {name}, which is not supported. Use a kernel \
         compressed with gzip, xz, lz4 or zstd, an uncompressed vmlinux, or protocol \"bzimage\""
    )]
    Compression {
        /// Its name, or "an unknown method".
        name: &'static str,
    },
    /// The payload cannot be decompressed.
    #[error("the kernel's {format} payload is damaged: {detail}. Copy or fetch the file again")]
    Payload {
        /// Compression.
        format: &'static str,
        /// The decompressor's words.
        detail: String,
    },
    /// The payload grows past every kernel.
    #[error("the kernel's payload unpacks to more than {limit} bytes. Give another kernel")]
    PayloadTooLarge {
        /// The cap.
        limit: u64,
    },
    /// A part of the image has no memory.
    #[error(
        "{what} at {gpa:#x}+{len:#x} does not lie in the guest's memory. Give the guest more memory"
    )]
    OutsideRam {
        /// The part.
        what: &'static str,
        /// First address.
        gpa: u64,
        /// Bytes.
        len: u64,
    },
    /// A part of the image lies where the boot protocol's own tables or another part are.
    #[error(
        "{what} at {gpa:#x}+{len:#x} overlaps another part or memory that the boot protocol \
         needs. Give a kernel whose parts load at 1 MiB or above, each at a place of its own"
    )]
    Overlap {
        /// The part.
        what: &'static str,
        /// First address.
        gpa: u64,
        /// Bytes.
        len: u64,
    },
    /// The kernel starts where the first page tables and 32-bit segments do not reach.
    #[error("the kernel's entry point {gpa:#x} lies above 4 GiB. Give a kernel that starts below")]
    EntryTooHigh {
        /// The entry point.
        gpa: u64,
    },
    /// The initramfs or a module does not fit.
    #[error(
        "{what} of {len} bytes does not fit into the guest's memory: {room} bytes are free below \
         {limit:#x}. Give the guest more memory"
    )]
    NoRoom {
        /// What does not fit.
        what: &'static str,
        /// Its bytes.
        len: u64,
        /// The largest free range.
        room: u64,
        /// The highest address it may reach.
        limit: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the command line has {len} bytes and this kernel takes {max}. Shorten it")]
    CommandLineTooLong {
        /// Bytes.
        len: usize,
        /// The kernel's limit.
        max: usize,
    },
    /// A byte that ends a command line early.
    #[error("the command line has a NUL or newline at byte {at}. Remove it")]
    CommandLineByte {
        /// Where.
        at: usize,
    },
    /// Modules where the protocol has none.
    #[error("modules can only be given to a PVH kernel. Give an initramfs, or protocol \"pvh\"")]
    ModulesNeedPvh,
}
