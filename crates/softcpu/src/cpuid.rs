//! The CPU model `soft-v1`: what `cpuid` answers before policy.
//!
//! Intel's vendor string, because leaves 0x15 and 0x16 spare such guests every calibration of
//! clocks. Source of the leaves: Intel SDM volume 2, CPUID.

use vmlet_vcpu::cpuid::{CpuidEntry, CpuidTable};

use crate::clock::{CRYSTAL_HZ, TSC_KHZ};

/// FPU DE PSE TSC MSR PAE CX8 APIC SEP PGE CMOV PSE36 CLFSH MMX FXSR SSE SSE2.
const FEATURES: u32 = 1
    | 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 9
    | 1 << 11
    | 1 << 13
    | 1 << 15
    | 1 << 17
    | 1 << 19
    | 1 << 23
    | 1 << 24
    | 1 << 25
    | 1 << 26;
const CX16: u32 = 1 << 13;
const ARAT: u32 = 1 << 2;
const ARCH_CAPABILITIES: u32 = 1 << 29;
const LAHF: u32 = 1;
const SYSCALL_NX_1G_LM: u32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 29;
const INVARIANT_TSC: u32 = 1 << 8;
const HIGHEST: u32 = 0x16;
/// Family 6, model 0x1a, stepping 5: old enough that no software expects more than is here.
const SIGNATURE: u32 = 0x0001_06a5;
const CLFLUSH_64: u32 = 8 << 8;
/// 40 physical and 48 linear address bits.
const ADDRESS_BITS: u32 = 0x3028;

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

fn word(text: &[u8], at: usize) -> u32 {
    let byte = |i: usize| u32::from(text.get(at + i).copied().unwrap_or(0));
    byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
}

/// The leaves of the model with its own rate of the time-stamp counter.
pub(crate) fn table() -> CpuidTable {
    table_at(TSC_KHZ)
}

/// The leaves of the model whose time-stamp counter runs at `tsc_khz`.
pub(crate) fn table_at(tsc_khz: u32) -> CpuidTable {
    let vendor = b"GenuineIntel";
    let [b, d, c] = [0, 4, 8].map(|at| word(vendor, at));
    let mhz = tsc_khz / 1000;
    let (numerator, denominator) = ratio(tsc_khz);
    let mut entries = vec![
        leaf(0, [HIGHEST, b, c, d]),
        leaf(1, [SIGNATURE, CLFLUSH_64, CX16, FEATURES]),
        leaf(2, [1, 0, 0, 0]),
        leaf(4, [0; 4]),
        leaf(6, [ARAT, 0, 0, 0]),
        leaf(7, [0, 0, 0, ARCH_CAPABILITIES]),
        leaf(0xb, [0; 4]),
        leaf(0xd, [0; 4]),
        leaf(0x15, [denominator, numerator, CRYSTAL_HZ, 0]),
        leaf(HIGHEST, [mhz, mhz, 100, 0]),
        leaf(0x8000_0000, [0x8000_0008, 0, 0, 0]),
        leaf(0x8000_0001, [0, 0, LAHF, SYSCALL_NX_1G_LM]),
    ];
    let brand = b"vmlet software CPU soft-v1";
    for (number, at) in (0x8000_0002..).zip([0, 16, 32]) {
        entries.push(leaf(number, [0, 4, 8, 12].map(|i| word(brand, at + i))));
    }
    entries.push(leaf(0x8000_0007, [0, 0, 0, INVARIANT_TSC]));
    entries.push(leaf(0x8000_0008, [ADDRESS_BITS, 0, 0, 0]));
    CpuidTable { entries }
}

/// The counter's rate over the crystal's, as near as 32 bits allow: Linux multiplies the crystal's
/// kilohertz by the numerator in so many.
fn ratio(tsc_khz: u32) -> (u32, u32) {
    let crystal_khz = u64::from(CRYSTAL_HZ / 1000);
    let most = u64::from(u32::MAX) / crystal_khz;
    let denominator = (most * crystal_khz / u64::from(tsc_khz.max(1))).clamp(1, 1000);
    let numerator = (u64::from(tsc_khz) * denominator + crystal_khz / 2) / crystal_khz;
    let [numerator, denominator] = [numerator.min(most), denominator].map(|n| n as u32);
    (numerator, denominator)
}

/// What `cpuid` answers: leaves out of range as the highest basic one, like the vendor's CPUs. The
/// hypervisor's range, from 0x40000000 on, is there if the table has it.
pub(crate) fn answer(table: &CpuidTable, number: u32, subleaf: u32) -> [u32; 4] {
    let range = number & 0xc000_0000;
    let highest = table.get(range, 0).map_or(0, |e| e.eax);
    let inside = number <= highest && (range == 0 || highest >= range);
    let entry = if inside {
        table.get(number, subleaf)
    } else {
        let basic = table.get(0, 0).map_or(0, |e| e.eax);
        table.get(basic, subleaf)
    };
    entry.map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_out_of_range_answer_as_the_highest_basic_one() {
        let table = table();
        assert_eq!(answer(&table, 0x4000_0000, 0), answer(&table, HIGHEST, 0));
        assert_eq!(answer(&table, 0x8000_0009, 0), answer(&table, HIGHEST, 0));
        assert_eq!(answer(&table, 3, 0), [0; 4]);
    }

    #[test]
    fn a_hypervisors_leaves_answer_if_the_table_has_them() {
        let mut table = table();
        table.replace(0x4000_0000, [leaf(0x4000_0000, [0x4000_0001, 1, 2, 3])]);
        assert_eq!(answer(&table, 0x4000_0000, 0), [0x4000_0001, 1, 2, 3]);
        assert_eq!(answer(&table, 0x4000_0001, 0), [0; 4]);
        assert_eq!(answer(&table, 0x4000_0002, 0), answer(&table, HIGHEST, 0));
    }

    #[test]
    fn the_clock_leaf_gives_the_rate_in_32_bits_of_arithmetic() {
        for khz in [TSC_KHZ, 2_099_998, 3_700_001, 6_000_000] {
            let [denominator, numerator, crystal, _] = answer(&table_at(khz), 0x15, 0);
            let found = (crystal / 1000).checked_mul(numerator).unwrap() / denominator;
            assert!(found.abs_diff(khz) <= 25, "{found} for {khz}");
        }
        let [denominator, numerator, crystal, _] = answer(&table(), 0x15, 0);
        assert_eq!(crystal / denominator * numerator, TSC_KHZ * 1000);
    }
}
