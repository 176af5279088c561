//! What `cpuid` answers of a table.

use vmlet_vcpu::cpuid::{CpuidTable, SOFT_V1};

use crate::clock::TSC_KHZ;

const LEAF_FEATURES: u32 = 1;
const LEAF_TOPOLOGY: u32 = 0xb;
const EDX_APIC: u32 = 1 << 9;

/// The leaves of the model `soft-v1` with the engine's own rate of the time-stamp counter.
pub(crate) fn table() -> CpuidTable {
    SOFT_V1.cpuid(TSC_KHZ)
}

/// What `cpuid` answers: leaves out of range as the highest basic one, like the CPUs of the models'
/// vendor. The hypervisor's range, from 0x40000000 on, is there if the table has it.
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
    match entry {
        Some(e) => [e.eax, e.ebx, e.ecx, e.edx],
        None if inside && number == LEAF_TOPOLOGY => beyond_topology(table, subleaf),
        None => [0; 4],
    }
}

/// The extended topology's levels that are not there still give their number and the x2APIC id
/// (Intel SDM volume 2, CPUID, leaf 0BH).
fn beyond_topology(table: &CpuidTable, subleaf: u32) -> [u32; 4] {
    let id = table.get(LEAF_TOPOLOGY, 0).map_or(0, |e| e.edx);
    [0, 0, subleaf & 0xff, id]
}

/// As [`answer`], by a vCPU whose local APIC may be switched off.
pub(crate) fn answer_with_apic(
    table: &CpuidTable,
    number: u32,
    subleaf: u32,
    apic: bool,
) -> [u32; 4] {
    let [a, b, c, d] = answer(table, number, subleaf);
    let hidden = if number == LEAF_FEATURES && !apic {
        EDX_APIC
    } else {
        0
    };
    [a, b, c, d & !hidden]
}

#[cfg(test)]
mod tests {
    use vmlet_vcpu::cpuid::{CpuidEntry, Topology, host_policy};

    use super::*;

    const HIGHEST: u32 = 0x16;

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
        let leaf = CpuidEntry {
            leaf: 0x4000_0000,
            eax: 0x4000_0001,
            ebx: 1,
            ecx: 2,
            edx: 3,
            ..CpuidEntry::default()
        };
        table.replace(0x4000_0000, [leaf]);
        assert_eq!(answer(&table, 0x4000_0000, 0), [0x4000_0001, 1, 2, 3]);
        assert_eq!(answer(&table, 0x4000_0001, 0), [0; 4]);
        assert_eq!(answer(&table, 0x4000_0002, 0), answer(&table, HIGHEST, 0));
    }

    #[test]
    fn levels_of_the_topology_that_are_not_there_give_their_number_and_the_id() {
        let place = Topology {
            apic_id: 3,
            cpus: 4,
            local_apic: true,
        };
        let table = host_policy(&table(), place);
        assert_eq!(answer(&table, LEAF_TOPOLOGY, 0x105), [0, 0, 5, 3]);
    }

    #[test]
    fn a_local_apic_that_is_switched_off_is_not_shown() {
        let shown = |apic| answer_with_apic(&table(), 1, 0, apic)[3] & EDX_APIC != 0;
        assert!(shown(true) && !shown(false));
        assert_eq!(
            answer_with_apic(&table(), 2, 0, false),
            answer(&table(), 2, 0)
        );
    }
}
