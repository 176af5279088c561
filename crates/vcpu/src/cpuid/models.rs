//! CPU models as data: what a guest of each sees on every engine that can carry it.
//!
//! The levels are those of the x86-64 psABI (version 1.0, section 3.1.1), no less and no more: a
//! guest sees the same on Intel's and AMD's processors and, as far as it has the features, on the
//! software CPU. What only one vendor has, or both have in different form, is in none of them:
//! protection keys (another offset in the XSAVE area), XSAVEC, XSAVES, INVPCID, 1 GiB pages, the
//! invariant counter, memory types, machine checks, performance counters, a hypervisor's leaves.
//!
//! All models have Intel's vendor string, because leaves 0x15 and 0x16 spare their guests every
//! calibration of clocks, and leaves out of range follow that vendor: they repeat the highest
//! basic one. Source of the leaves: Intel SDM volume 2, CPUID.

use super::{CpuidEntry, CpuidTable, features};
use crate::x86_64::{LEVEL_MSRS, MsrPolicy};

/// The highest basic leaf.
const HIGHEST: u32 = 0x16;
const HIGHEST_EXTENDED: u32 = 0x8000_0008;
/// Family 6, model 0x1a, stepping 5: old enough that no software expects more than is here.
const SIGNATURE: u32 = 0x0001_06a5;
const CLFLUSH_64: u32 = 8 << 8;
/// The local APIC's timer goes on in every idle state.
const ARAT: u32 = 1 << 2;
const INVARIANT_TSC: u32 = 1 << 8;
const LINEAR_BITS: u32 = 48;
/// Hertz of the crystal that leaf 0x15 names.
pub const CRYSTAL_HZ: u32 = 25_000_000;
/// x87, SSE and AVX: the states that XCR0 may have, and the bytes of their area.
const AVX_STATES: u32 = 7;
const AVX_AREA: u32 = 0x340;
/// The area's size while XCR0 has its value after reset, and where AVX begins in it.
const LEGACY_AREA: u32 = 0x240;
const AVX_BYTES: u32 = 0x100;
/// 256 KiB in 8 ways with lines of 64 bytes, as leaf 0x80000006 says it.
const EXTENDED_L2: u32 = 256 << 16 | 6 << 12 | 64;

/// A cache as leaf 4 describes it; lines have 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cache {
    level: u32,
    /// 1 data, 2 instructions, 3 both.
    kind: u32,
    ways: u32,
    sets: u32,
}

/// 32 KiB each for data and instructions, 256 KiB, 8 MiB: software tunes its copies by these, and
/// takes every copy for a large one where there are none.
const CACHES: [Cache; 4] = [
    cache(1, 1, 8, 64),
    cache(1, 2, 8, 64),
    cache(2, 3, 8, 512),
    cache(3, 3, 16, 8192),
];

const fn cache(level: u32, kind: u32, ways: u32, sets: u32) -> Cache {
    Cache {
        level,
        kind,
        ways,
        sets,
    }
}

/// A CPU model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuModel {
    /// The name users give.
    pub name: &'static str,
    /// The text of leaves 0x80000002 to 0x80000004.
    brand: &'static str,
    /// Features by their names in Linux's /proc/cpuinfo.
    features: &'static [&'static str],
    /// Bits of a guest-physical address. A level has those of the narrowest processor that has its
    /// features, so that no processor is too narrow for what a guest believes.
    pub physical_bits: u32,
    /// Whether the counter is said to run at one rate in every state of the processor.
    invariant_tsc: bool,
    caches: &'static [Cache],
    /// The model-specific registers that guests see; none: those of the engine.
    pub msrs: Option<&'static MsrPolicy>,
}

const BASELINE: &str = "fpu de pse tsc msr pae cx8 apic sep pge cmov pse36 clflush mmx fxsr sse \
                        sse2 syscall nx lm";
const LEVEL_2: &str = "pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm";
const LEVEL_3: &str = "fma movbe xsave avx f16c bmi1 avx2 bmi2 abm";
const SOFTWARE: &str = "cx16 lahf_lm pdpe1gb arch_capabilities";

/// What the software CPU is where nobody asks for a level.
pub const SOFT_V1: CpuModel = CpuModel {
    name: "soft-v1",
    brand: "vmlet software CPU soft-v1",
    features: &[BASELINE, SOFTWARE],
    physical_bits: 40,
    invariant_tsc: true,
    caches: &[],
    msrs: None,
};

/// The psABI's baseline: every x86-64 processor, and the software CPU.
pub const X86_64_V1: CpuModel = CpuModel {
    name: "x86-64-v1",
    brand: "vmlet x86-64-v1",
    features: &[BASELINE],
    physical_bits: 36,
    invariant_tsc: false,
    caches: &CACHES,
    msrs: Some(&LEVEL_MSRS),
};

/// With SSE3 to SSE4.2, POPCNT, CMPXCHG16B, LAHF: processors since 2008 or so.
pub const X86_64_V2: CpuModel = CpuModel {
    name: "x86-64-v2",
    brand: "vmlet x86-64-v2",
    features: &[BASELINE, LEVEL_2],
    ..X86_64_V1
};

/// With AVX2, BMI, FMA, F16C, MOVBE, LZCNT: Intel's since 2013, AMD's since 2015.
pub const X86_64_V3: CpuModel = CpuModel {
    name: "x86-64-v3",
    brand: "vmlet x86-64-v3",
    features: &[BASELINE, LEVEL_2, LEVEL_3],
    physical_bits: 39,
    ..X86_64_V1
};

/// All models.
pub const MODELS: [&CpuModel; 4] = [&SOFT_V1, &X86_64_V1, &X86_64_V2, &X86_64_V3];

impl CpuModel {
    /// The model of that name.
    pub fn named(name: &str) -> Option<&'static CpuModel> {
        MODELS.into_iter().find(|model| model.name == name)
    }

    /// Whether guests can use XSAVE, and so have extended control registers.
    pub fn has_xsave(&self) -> bool {
        self.names().any(|name| name == "xsave")
    }

    /// What `cpuid` answers where the time-stamp counter runs at `tsc_khz`, before policy.
    pub fn cpuid(&self, tsc_khz: u32) -> CpuidTable {
        let mut entries = vec![
            vendor(),
            leaf(1, [SIGNATURE, CLFLUSH_64, 0, 0]),
            leaf(2, [1, 0, 0, 0]),
            leaf(6, [ARAT, 0, 0, 0]),
            indexed(7, 0, [0; 4]),
            leaf(0xb, [0; 4]),
            leaf(0x8000_0000, [HIGHEST_EXTENDED, 0, 0, 0]),
            leaf(0x8000_0001, [0; 4]),
        ];
        entries.extend((0..).zip(self.caches).map(|(at, cache)| cache.leaf(at)));
        entries.extend(clock(tsc_khz));
        entries.extend(self.brand());
        entries.extend(self.sizes());
        if self.has_xsave() {
            entries.extend(states());
        }
        let mut table = CpuidTable { entries };
        table.entries.sort_by_key(|e| (e.leaf, e.subleaf));
        for name in self.names() {
            features::set(&mut table, name);
        }
        table
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.features
            .iter()
            .flat_map(|names| names.split_whitespace())
    }

    fn brand(&self) -> [CpuidEntry; 3] {
        let words = |number, at: usize| {
            let text = self.brand.as_bytes();
            leaf(number, [0, 4, 8, 12].map(|i| word(text, at + i)))
        };
        [
            words(0x8000_0002, 0),
            words(0x8000_0003, 16),
            words(0x8000_0004, 32),
        ]
    }

    /// The extended leaves of caches, clock and addresses.
    fn sizes(&self) -> [CpuidEntry; 3] {
        let l2 = if self.caches.is_empty() {
            0
        } else {
            EXTENDED_L2
        };
        let power = if self.invariant_tsc { INVARIANT_TSC } else { 0 };
        let addresses = self.physical_bits | LINEAR_BITS << 8;
        [
            leaf(0x8000_0006, [0, 0, l2, 0]),
            leaf(0x8000_0007, [0, 0, 0, power]),
            leaf(HIGHEST_EXTENDED, [addresses, 0, 0, 0]),
        ]
    }
}

impl Cache {
    fn leaf(&self, at: u32) -> CpuidEntry {
        let initializes_itself = 1 << 8;
        let kind = self.kind | self.level << 5 | initializes_itself;
        let shape = 63 | (self.ways - 1) << 22;
        indexed(4, at, [kind, shape, self.sets - 1, 0])
    }
}

fn leaf(leaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry {
        leaf,
        eax,
        ebx,
        ecx,
        edx,
        ..CpuidEntry::default()
    }
}

fn indexed(number: u32, subleaf: u32, registers: [u32; 4]) -> CpuidEntry {
    CpuidEntry {
        subleaf,
        indexed: true,
        ..leaf(number, registers)
    }
}

fn word(text: &[u8], at: usize) -> u32 {
    let byte = |i: usize| u32::from(text.get(at + i).copied().unwrap_or(0));
    byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
}

fn vendor() -> CpuidEntry {
    let [ebx, edx, ecx] = [0, 4, 8].map(|at| word(b"GenuineIntel", at));
    leaf(0, [HIGHEST, ebx, ecx, edx])
}

fn clock(tsc_khz: u32) -> [CpuidEntry; 2] {
    let (mhz, (numerator, denominator)) = (tsc_khz / 1000, ratio(tsc_khz));
    [
        leaf(0x15, [denominator, numerator, CRYSTAL_HZ, 0]),
        leaf(HIGHEST, [mhz, mhz, 100, 0]),
    ]
}

/// The counter's rate over the crystal's, as near as 32 bits allow: Linux multiplies the crystal's
/// kilohertz by the numerator in so many.
fn ratio(tsc_khz: u32) -> (u32, u32) {
    let crystal_khz = u64::from(CRYSTAL_HZ / 1000);
    let most = u64::from(u32::MAX) / crystal_khz;
    let denominator = (most * crystal_khz / u64::from(tsc_khz.max(1))).clamp(1, 1000);
    let numerator = (u64::from(tsc_khz) * denominator + crystal_khz / 2) / crystal_khz;
    let word = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    (word(numerator.min(most)), word(denominator))
}

fn states() -> [CpuidEntry; 2] {
    [
        indexed(0xd, 0, [AVX_STATES, LEGACY_AREA, AVX_AREA, 0]),
        indexed(0xd, 2, [AVX_BYTES, LEGACY_AREA, 0, 0]),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::missing_features;
    use super::*;

    const KHZ: u32 = 2_000_000;

    fn lacking(wanted: &CpuModel, offered: &CpuModel) -> Vec<String> {
        let missing = missing_features(&wanted.cpuid(KHZ), &offered.cpuid(KHZ));
        missing.into_iter().map(|feature| feature.name).collect()
    }

    #[test]
    fn every_feature_of_a_model_is_a_bit_of_its_table() {
        for model in MODELS {
            let table = model.cpuid(KHZ);
            for name in model.names() {
                assert!(features::has(&table, name), "{name} of {}", model.name);
            }
        }
    }

    #[test]
    fn each_level_is_the_one_below_and_what_the_psabi_adds() {
        let v2 = lacking(&X86_64_V2, &X86_64_V1);
        let mut expected: Vec<_> = LEVEL_2.split_whitespace().collect();
        let mut found: Vec<_> = v2.iter().map(String::as_str).collect();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(lacking(&X86_64_V3, &X86_64_V2).len(), 9);
        assert!(lacking(&X86_64_V1, &X86_64_V2).is_empty());
        assert!(lacking(&X86_64_V2, &X86_64_V3).is_empty());
    }

    #[test]
    fn the_software_cpu_can_be_the_first_level_and_says_what_it_lacks_of_the_second() {
        assert!(lacking(&X86_64_V1, &SOFT_V1).is_empty());
        assert_eq!(
            lacking(&X86_64_V2, &SOFT_V1),
            ["pni", "ssse3", "sse4_1", "sse4_2", "popcnt"]
        );
    }

    #[test]
    fn a_model_is_found_by_its_name_only() {
        assert_eq!(CpuModel::named("x86-64-v2"), Some(&X86_64_V2));
        assert_eq!(CpuModel::named("host"), None);
    }

    #[test]
    fn no_leaf_stands_twice_or_beyond_the_ends() {
        for model in MODELS {
            let table = model.cpuid(KHZ);
            let keys: Vec<_> = table.entries.iter().map(|e| (e.leaf, e.subleaf)).collect();
            let mut unique = keys.clone();
            unique.dedup();
            assert_eq!(keys, unique);
            assert!(keys.iter().all(
                |(leaf, _)| *leaf <= HIGHEST || (0x8000_0000..=HIGHEST_EXTENDED).contains(leaf)
            ));
        }
    }

    #[test]
    fn caches_multiply_to_their_sizes() {
        let table = X86_64_V1.cpuid(KHZ);
        let size = |at| {
            let e = table.get(4, at).unwrap();
            ((e.ebx >> 22) + 1) * ((e.ebx & 0xfff) + 1) * (e.ecx + 1)
        };
        assert_eq!(
            [0, 1, 2, 3].map(size),
            [32 << 10, 32 << 10, 256 << 10, 8 << 20]
        );
        assert!(table.get(4, 4).is_none());
    }

    #[test]
    fn the_clock_leaf_gives_the_rate_in_32_bits_of_arithmetic() {
        for khz in [1_000_000, 2_099_998, 3_700_001, 6_000_000] {
            let [clock, _] = clock(khz);
            let found = (clock.ecx / 1000).checked_mul(clock.ebx).unwrap() / clock.eax;
            assert!(found.abs_diff(khz) <= 25, "{found} for {khz}");
        }
        let [clock, _] = clock(1_000_000);
        assert_eq!(clock.ecx / clock.eax * clock.ebx, 1_000_000_000);
    }
}
