//! Rows: what a guest sees of its CPUID table, and its time-stamp counter.

use vmlet_vcpu::{
    cpuid::{CpuidEntry, CpuidTable},
    x86_64::{Regs, msr},
};

use crate::harness::{Guest, Place, each, guest::Options};

const AVX: u32 = 1 << 28;

/// What leaf `leaf` shows in a guest whose table `change` has been at.
fn shown(place: &Place, leaf: u32, change: fn(&mut CpuidTable)) -> [u64; 4] {
    let options = Options {
        cpuid: Some(change),
        ..Options::default()
    };
    let mut guest = Guest::with(place, options);
    let regs = Regs {
        rax: leaf.into(),
        ..Regs::default()
    };
    guest.load_with(guest!("cpuid", "out 0xf4, al"), regs);
    let regs = guest.finish();
    [regs.rax, regs.rbx, regs.rcx, regs.rdx]
}

fn bit(register: u64, mask: u32) -> bool {
    register & u64::from(mask) != 0
}

#[test]
fn a_feature_taken_from_the_table() {
    each(|place| {
        let with = shown(place, 1, |_| ())[2];
        let without = shown(place, 1, |table| table.edit(1, |e| e.ecx &= !AVX))[2];
        if place.native() {
            assert!(!bit(without, AVX));
        } else {
            // Where supervisor code is interpreted, the processor's features stay.
            assert_eq!(bit(without, AVX), bit(with, AVX));
        }
    });
}

#[test]
fn identity_leaves_and_the_hypervisors_signature_are_the_tables() {
    each(|place| {
        let [_, b, c, d] = shown(place, 0, |table| {
            table.edit(0, |e| {
                (e.ebx, e.edx, e.ecx) = (0x6c6d_7661, 0x6574_7465, 0x7473_6574);
            });
        });
        assert_eq!((b, d, c), (0x6c6d_7661, 0x6574_7465, 0x7473_6574));
        let [a, b, c, d] = shown(place, 0x4000_0000, |table| {
            let entry = CpuidEntry {
                leaf: 0x4000_0000,
                eax: 0x4000_0000,
                ebx: 1,
                ecx: 2,
                edx: 3,
                ..CpuidEntry::default()
            };
            table.replace(0x4000_0000, [entry]);
        });
        assert_eq!((a, b, c, d), (0x4000_0000, 1, 2, 3));
    });
}

#[test]
fn the_apic_id_and_the_number_of_processors_are_the_policys() {
    each(|place| {
        let options = Options {
            cpus: 3,
            ..Options::default()
        };
        let mut guest = Guest::with(place, options);
        guest.load(guest!("mov eax, 1", "cpuid", "out 0xf4, al"));
        let regs = guest.finish();
        assert_eq!(regs.rbx >> 16, 3);
        assert!(bit(regs.rcx, 1 << 31) && !bit(regs.rcx, 1 << 5));
    });
}

#[test]
fn a_time_stamp_counter_that_is_set() {
    each(|place| {
        let mut guest = Guest::new(place);
        guest.vcpu.set_msr(msr::TSC, 1 << 60).unwrap();
        guest.load(guest!(
            "rdtsc",
            "shl rdx, 32",
            "or rax, rdx",
            "out 0xf4, al"
        ));
        let counter = guest.finish().rax;
        // Where supervisor code is interpreted, the guest reads the host's.
        assert_eq!(counter >= 1 << 60, place.native(), "{counter:#x}");
    });
}
