//! Numbers of the model-specific registers that vmlet names (Intel SDM volume 4; AMD APM volume 2,
//! appendix A).

/// Time-stamp counter.
pub const TSC: u32 = 0x10;
/// Local APIC base.
pub const APIC_BASE: u32 = 0x1b;
/// `sysenter` target segment.
pub const SYSENTER_CS: u32 = 0x174;
/// `sysenter` target stack.
pub const SYSENTER_ESP: u32 = 0x175;
/// `sysenter` target.
pub const SYSENTER_EIP: u32 = 0x176;
/// Memory type of addresses no MTRR covers.
pub const MTRR_DEF_TYPE: u32 = 0x2ff;
/// Base and mask of the eight variable memory-type ranges.
pub const MTRR_VARIABLE: std::ops::RangeInclusive<u32> = 0x200..=0x20f;
/// Memory types of the first MiB.
pub const MTRR_FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];
/// TSC-deadline timer.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// Extended features.
pub const EFER: u32 = 0xc000_0080;
/// `syscall` target segments.
pub const STAR: u32 = 0xc000_0081;
/// `syscall` target in long mode.
pub const LSTAR: u32 = 0xc000_0082;
/// `syscall` target in compatibility mode.
pub const CSTAR: u32 = 0xc000_0083;
/// `syscall` flag mask.
pub const SFMASK: u32 = 0xc000_0084;
/// FS base.
pub const FS_BASE: u32 = 0xc000_0100;
/// GS base.
pub const GS_BASE: u32 = 0xc000_0101;
/// The GS base that `swapgs` brings.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
