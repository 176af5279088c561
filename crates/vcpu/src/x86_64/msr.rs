//! Numbers of the model-specific registers that vmlet names (Intel SDM volume 4; AMD APM volume 2,
//! appendix A).

/// Time-stamp counter.
pub const TSC: u32 = 0x10;
/// Local APIC base.
pub const APIC_BASE: u32 = 0x1b;
/// Memory type of addresses no MTRR covers.
pub const MTRR_DEF_TYPE: u32 = 0x2ff;
/// TSC-deadline timer.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// Extended features.
pub const EFER: u32 = 0xc000_0080;
/// `syscall` target segments.
pub const STAR: u32 = 0xc000_0081;
/// `syscall` target in long mode.
pub const LSTAR: u32 = 0xc000_0082;
/// `syscall` flag mask.
pub const SFMASK: u32 = 0xc000_0084;
/// FS base.
pub const FS_BASE: u32 = 0xc000_0100;
/// GS base.
pub const GS_BASE: u32 = 0xc000_0101;
/// The GS base that `swapgs` brings.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
