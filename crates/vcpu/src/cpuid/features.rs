//! Features by name: what a table asks for and another does not offer.
//!
//! Names are those of Linux's /proc/cpuinfo; a bit without one is named by its place. Sources: Intel
//! SDM volume 2, CPUID; AMD APM volume 3, appendix E.

use super::{CpuidEntry, CpuidTable};
use crate::MissingFeature;

#[derive(Clone, Copy, Debug)]
enum Register {
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn of(self, entry: &CpuidEntry) -> u32 {
        match self {
            Register::Ebx => entry.ebx,
            Register::Ecx => entry.ecx,
            Register::Edx => entry.edx,
        }
    }

    fn of_mut(self, entry: &mut CpuidEntry) -> &mut u32 {
        match self {
            Register::Ebx => &mut entry.ebx,
            Register::Ecx => &mut entry.ecx,
            Register::Edx => &mut entry.edx,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Register::Ebx => "EBX",
            Register::Ecx => "ECX",
            Register::Edx => "EDX",
        }
    }
}

/// A register of feature bits: its leaf, the bits that are a policy's and no feature of the
/// processor, and the names from bit 0 on, "-" for none.
struct Features {
    leaf: u32,
    register: Register,
    policy: u32,
    names: &'static str,
}

const FEATURES: [Features; 7] = [
    Features {
        leaf: 1,
        register: Register::Edx,
        // HTT: more than one thread or core.
        policy: 1 << 28,
        names: "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush \
                - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    },
    Features {
        leaf: 1,
        register: Register::Ecx,
        // x2APIC, deadline timer, OSXSAVE, hypervisor.
        policy: 1 << 21 | 1 << 24 | 1 << 27 | 1 << 31,
        names: "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr \
                pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave \
                osxsave avx f16c rdrand hypervisor",
    },
    Features {
        leaf: 7,
        register: Register::Ebx,
        policy: 0,
        names: "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm \
                cqm zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt \
                clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    },
    Features {
        leaf: 7,
        register: Register::Ecx,
        // OSPKE.
        policy: 1 << 4,
        names: "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 cet_ss gfni vaes \
                vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57",
    },
    Features {
        leaf: 7,
        register: Register::Edx,
        // An engine emulates the MSR behind arch_capabilities.
        policy: 1 << 29,
        names: "- - avx512_4vnniw avx512_4fmaps fsrm - - - - - md_clear - - - serialize - tsxldtrk - \
                - - ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d \
                arch_capabilities",
    },
    Features {
        leaf: 0x8000_0001,
        register: Register::Ecx,
        // cmp_legacy: more than one core.
        policy: 1 << 1,
        names: "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw \
                ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext",
    },
    Features {
        leaf: 0x8000_0001,
        register: Register::Edx,
        // AMD repeats bits of leaf 1 here.
        policy: 0x0183_f3ff,
        names: "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb \
                rdtscp - lm 3dnowext 3dnow",
    },
];

impl Features {
    fn bits(&self, table: &CpuidTable) -> u32 {
        let entry = table.get(self.leaf, 0);
        entry.map_or(0, |entry| self.register.of(entry)) & !self.policy
    }

    fn name(&self, bit: u32) -> String {
        let known = usize::try_from(bit).ok();
        match known.and_then(|bit| self.names.split_whitespace().nth(bit)) {
            Some(name) if name != "-" => name.to_owned(),
            _ => format!(
                "CPUID leaf {:#x} {} bit {bit}",
                self.leaf,
                self.register.name()
            ),
        }
    }
}

/// The register of the feature `name` and its bit.
fn place(name: &str) -> Option<(&'static Features, u32)> {
    FEATURES.iter().find_map(|features| {
        let mut bits = (0..).zip(features.names.split_whitespace());
        let (bit, _) = bits.find(|(_, known)| *known == name)?;
        Some((features, 1 << bit))
    })
}

/// Gives `table` the feature `name`, if there is one of that name.
pub(super) fn set(table: &mut CpuidTable, name: &str) {
    if let Some((features, bit)) = place(name) {
        table.edit(features.leaf, |e| *features.register.of_mut(e) |= bit);
    }
}

#[cfg(test)]
pub(super) fn has(table: &CpuidTable, name: &str) -> bool {
    place(name).is_some_and(|(features, bit)| {
        let entry = table.get(features.leaf, 0);
        entry.is_some_and(|entry| features.register.of(entry) & bit != 0)
    })
}

/// The features that `wanted` has and `offered` has not.
pub fn missing_features(wanted: &CpuidTable, offered: &CpuidTable) -> Vec<MissingFeature> {
    FEATURES
        .iter()
        .flat_map(|features| {
            let missing = features.bits(wanted) & !features.bits(offered);
            (0..32)
                .filter(move |bit| missing & 1 << bit != 0)
                .map(|bit| MissingFeature {
                    name: features.name(bit),
                })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(u32, u32, u32, u32)]) -> CpuidTable {
        let entry = |&(leaf, ebx, ecx, edx): &(u32, u32, u32, u32)| CpuidEntry {
            leaf,
            ebx,
            ecx,
            edx,
            ..CpuidEntry::default()
        };
        CpuidTable {
            entries: entries.iter().map(entry).collect(),
        }
    }

    fn names(wanted: &CpuidTable, offered: &CpuidTable) -> Vec<String> {
        let missing = missing_features(wanted, offered);
        missing.into_iter().map(|feature| feature.name).collect()
    }

    #[test]
    fn missing_features_are_named() {
        let wanted = table(&[
            (1, 0, 1 << 28 | 1 << 23 | 1 << 9, 1 << 26),
            (7, 1 << 31 | 1 << 5, 0, 1 << 4 | 1 << 18),
            (0x8000_0001, 0, 1 << 5, 1 << 26),
        ]);
        let offered = table(&[(1, 0, 1 << 9, 0)]);
        assert_eq!(
            names(&wanted, &offered),
            [
                "sse2",
                "popcnt",
                "avx",
                "avx2",
                "avx512vl",
                "fsrm",
                "CPUID leaf 0x7 EDX bit 18",
                "abm",
                "pdpe1gb"
            ]
        );
    }

    #[test]
    fn what_a_policy_sets_is_no_feature() {
        let wanted = table(&[(1, 0, 1 << 31 | 1 << 24 | 1 << 21, 1 << 28)]);
        assert!(names(&wanted, &table(&[])).is_empty());
        assert!(names(&wanted, &wanted).is_empty());
    }

    #[test]
    fn every_register_has_at_most_thirty_two_names() {
        for features in &FEATURES {
            assert!(
                features.names.split_whitespace().count() <= 32,
                "{:#x}",
                features.leaf
            );
        }
    }
}
