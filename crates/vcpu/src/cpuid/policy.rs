//! What of the engine's CPUID a guest sees.
//!
//! The policy `host` passes the engine's leaves on and sets what depends on the VM: APIC ids, the
//! number of vCPUs, the hypervisor bit. Nested virtualization and performance counters are hidden.
//! Sources: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E.

use super::{CpuidEntry, CpuidTable};

const LEAF_FEATURES: u32 = 1;
const LEAF_CACHES: u32 = 4;
const LEAF_PERFORMANCE: u32 = 0xa;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_SVM: u32 = 0x8000_000a;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

const ECX_VMX: u32 = 1 << 5;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const AMD_ECX_CMP_LEGACY: u32 = 1 << 1;
const AMD_ECX_SVM: u32 = 1 << 2;
const AMD_ECX_PERFCTR_CORE: u32 = 1 << 23;

/// Where a vCPU sits: `cpus` one-thread cores in one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// This vCPU's APIC id.
    pub apic_id: u32,
    /// vCPUs in the VM.
    pub cpus: u32,
    /// The engine has a local APIC with x2APIC and a TSC-deadline timer.
    pub local_apic: bool,
}

/// The table of the policy `host`: all the engine offers, fitted to one vCPU.
pub fn host_policy(supported: &CpuidTable, place: Topology) -> CpuidTable {
    let mut table = supported.clone();
    table.edit(LEAF_FEATURES, |e| features(e, place));
    table.edit(LEAF_CACHES, |e| e.eax = share_caches(e.eax, place));
    table.edit(LEAF_AMD_CACHES, |e| {
        e.eax = share_caches(e.eax, place) & 0x03ff_ffff
    });
    table.edit(LEAF_PERFORMANCE, |e| {
        *e = CpuidEntry {
            leaf: e.leaf,
            ..CpuidEntry::default()
        }
    });
    table.edit(LEAF_AMD_FEATURES, |e| amd_features(e, place));
    table.edit(LEAF_AMD_SIZES, |e| {
        e.ecx =
            (e.ecx & !0xf0ff) | (id_bits(place.cpus) << 12) | place.cpus.saturating_sub(1) & 0xff;
    });
    table.replace(LEAF_AMD_SVM, []);
    table.edit(LEAF_AMD_TOPOLOGY, |e| {
        (e.eax, e.ebx, e.ecx) = (place.apic_id, place.apic_id & 0xff, 0);
    });
    let highest = table.get(0, 0).map_or(0, |e| e.eax);
    for leaf in [LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2] {
        if highest >= leaf {
            table.replace(leaf, topology(leaf, place));
        }
    }
    table
}

fn features(e: &mut CpuidEntry, place: Topology) {
    let logical = place.cpus.clamp(1, 255);
    e.ebx = (e.ebx & 0x0000_ffff) | (logical << 16) | ((place.apic_id & 0xff) << 24);
    e.ecx = (e.ecx & !ECX_VMX) | ECX_HYPERVISOR;
    if place.local_apic {
        e.ecx |= ECX_X2APIC | ECX_TSC_DEADLINE;
    } else {
        e.ecx &= !(ECX_X2APIC | ECX_TSC_DEADLINE);
    }
    e.edx = if place.cpus > 1 {
        e.edx | EDX_HTT
    } else {
        e.edx & !EDX_HTT
    };
}

fn amd_features(e: &mut CpuidEntry, place: Topology) {
    e.ecx &= !(AMD_ECX_SVM | AMD_ECX_PERFCTR_CORE | AMD_ECX_CMP_LEGACY);
    if place.cpus > 1 {
        e.ecx |= AMD_ECX_CMP_LEGACY;
    }
}

/// Caches below the last level belong to one core, the last level to all.
fn share_caches(eax: u32, place: Topology) -> u32 {
    let level = (eax >> 5) & 7;
    let sharing = if level >= 3 {
        place.cpus.saturating_sub(1) & 0xfff
    } else {
        0
    };
    let cores = (1u32 << id_bits(place.cpus)).saturating_sub(1) & 0x3f;
    (eax & 0x0000_3fff) | (sharing << 14) | (cores << 26)
}

/// Levels "thread" and "core" of the extended topology leaves.
fn topology(leaf: u32, place: Topology) -> Vec<CpuidEntry> {
    let level = |subleaf: u32, shift: u32, count: u32, kind: u32| CpuidEntry {
        leaf,
        subleaf,
        indexed: true,
        eax: shift,
        ebx: count,
        ecx: subleaf | (kind << 8),
        edx: place.apic_id,
    };
    vec![
        level(0, 0, 1, 1),
        level(1, id_bits(place.cpus), place.cpus, 2),
        level(2, 0, 0, 0),
    ]
}

/// Bits an APIC id needs for `cpus` vCPUs.
fn id_bits(cpus: u32) -> u32 {
    cpus.max(1).next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(leaf: u32, eax: u32, ecx: u32) -> CpuidEntry {
        CpuidEntry {
            leaf,
            eax,
            ecx,
            ..CpuidEntry::default()
        }
    }

    fn host() -> CpuidTable {
        CpuidTable {
            entries: vec![
                entry(0, 0x1f, 0),
                entry(1, 0, ECX_VMX),
                entry(LEAF_PERFORMANCE, 0x0730_0404, 0),
                entry(LEAF_TOPOLOGY, 0, 0),
                entry(LEAF_AMD_FEATURES, 0, AMD_ECX_SVM),
                entry(LEAF_AMD_SIZES, 0x3030, 0),
                entry(LEAF_AMD_SVM, 1, 0),
            ],
        }
    }

    fn place(apic_id: u32, cpus: u32) -> Topology {
        Topology {
            apic_id,
            cpus,
            local_apic: true,
        }
    }

    #[test]
    fn apic_id_and_vcpu_count_reach_leaf_1() {
        let table = host_policy(&host(), place(2, 3));
        assert_eq!(table.get(1, 0).unwrap().ebx >> 16, 0x0203);
    }

    #[test]
    fn nested_virtualization_is_hidden() {
        let table = host_policy(&host(), place(0, 1));
        assert_eq!(table.get(1, 0).unwrap().ecx & ECX_VMX, 0);
        assert_eq!(
            table.get(LEAF_AMD_FEATURES, 0).unwrap().ecx & AMD_ECX_SVM,
            0
        );
        assert!(table.get(LEAF_AMD_SVM, 0).is_none());
    }

    #[test]
    fn performance_leaf_is_empty() {
        let table = host_policy(&host(), place(0, 1));
        assert_eq!(table.get(LEAF_PERFORMANCE, 0).unwrap().eax, 0);
    }

    #[test]
    fn topology_leaf_counts_cores_and_ends_with_an_invalid_level() {
        let table = host_policy(&host(), place(4, 5));
        let core = table.get(LEAF_TOPOLOGY, 1).unwrap();
        assert_eq!((core.eax, core.ebx, core.ecx >> 8, core.edx), (3, 5, 2, 4));
        assert_eq!(table.get(LEAF_TOPOLOGY, 2).unwrap().ecx >> 8, 0);
    }

    #[test]
    fn without_a_local_apic_its_timer_is_not_offered() {
        let bare = Topology {
            apic_id: 0,
            cpus: 1,
            local_apic: false,
        };
        let ecx = host_policy(&host(), bare).get(1, 0).unwrap().ecx;
        assert_eq!(ecx & (ECX_TSC_DEADLINE | ECX_X2APIC), 0);
        assert_ne!(ecx & ECX_HYPERVISOR, 0);
    }

    #[test]
    fn one_socket_needs_as_many_id_bits_as_its_vcpus() {
        assert_eq!([1, 2, 3, 4, 5, 255].map(id_bits), [0, 1, 2, 2, 3, 8]);
    }
}
