//! A vCPU of the CPU model `soft-v1` goes on under the other engine.
//!
//! Each test runs from KVM's side and makes the software engine's VM itself.

use std::sync::Arc;

use vmlet_memory::Gpa;
use vmlet_softcpu::Soft;
use vmlet_vcpu::{
    EngineError, RunEnd,
    cpuid::{CpuidTable, SOFT_V1, Topology, host_policy, missing_features},
    x86_64::{PORTABLE_MSRS, Regs, VcpuState},
};

use crate::harness::{DATA, Guest, Place, each, guest::Options, memory::RAM_SIZE};

/// The rate that leaves 0x15 and 0x16 tell.
const KHZ: u32 = 1_000_000;
const PATTERN: [u8; 16] = *b"sixteen bytes in";

fn model(table: &mut CpuidTable) {
    let place = Topology {
        apic_id: 0,
        cpus: 1,
        local_apic: false,
    };
    *table = host_policy(&SOFT_V1.cpuid(KHZ), place);
}

fn guest(place: &Place) -> Guest {
    let cpuid: Option<fn(&mut CpuidTable)> = Some(model);
    Guest::with(
        place,
        Options {
            cpuid,
            ..Options::default()
        },
    )
}

fn soft(place: &Place) -> Place {
    let mut soft = place.clone();
    (soft.engine, soft.interpreted) = (Arc::new(Soft::default()), false);
    soft
}

fn state(guest: &mut Guest) -> VcpuState {
    let mut state = guest.vcpu.save().unwrap();
    let model = |(index, _): &(u32, u64)| PORTABLE_MSRS.contains(index);
    state.msrs.retain(model);
    state.xcrs.clear();
    state
}

/// A program's first half on one engine, its second half on the other.
fn relay(from: &Place, to: &Place, khz: u32) {
    let mut first = guest(from);
    first.vcpu.set_tsc_khz(khz).unwrap();
    first.write(DATA, &PATTERN);
    let code = guest!(
        "movups xmm3, [rbx]",
        "rdtsc",
        "shl rdx, 32",
        "or rdx, rax",
        "mov r12, rdx",
        "std",
        "hlt",
        "movups [rbx + 16], xmm3",
        "rdtsc",
        "shl rdx, 32",
        "or rdx, rax",
        "sub rdx, r12",
        "mov [rbx + 32], rdx",
        "pushfq",
        "pop rcx",
        "hlt"
    );
    let rbx = DATA;
    first.load_with(
        code,
        Regs {
            rbx,
            ..Regs::default()
        },
    );
    assert_eq!(first.run(), RunEnd::Halt);
    let (state, mut second) = (state(&mut first), guest(to));
    let mut memory = vec![0; usize::try_from(RAM_SIZE).unwrap()];
    first.memory.read(Gpa(0), &mut memory).unwrap();
    second.memory.load(Gpa(0), &memory).unwrap();
    let lacking = missing_features(&state.cpuid, &to.engine.supported_cpuid().unwrap());
    match second.vcpu.restore(&state) {
        Err(EngineError::State { missing }) => {
            // This KVM's guests see the processor's own features whatever the model.
            assert!(!lacking.is_empty() && to.is_soft(), "{missing:?}");
            assert!(lacking.iter().all(|feature| missing.contains(feature)));
            return;
        }
        restored => restored.unwrap(),
    }
    assert_eq!(second.run(), RunEnd::Halt);
    assert_eq!(second.read::<16>(DATA + 16), PATTERN);
    if to.native() {
        // Elsewhere guests see the host's own counter.
        assert!((1..1 << 40).contains(&second.word(DATA + 32)));
    }
    assert_eq!(second.vcpu.regs().unwrap().rcx & 1 << 10, 1 << 10);
}

#[test]
fn a_program_is_carried_on_by_the_other_engine_both_ways() {
    each(|kvm| {
        if kvm.is_soft() {
            return;
        }
        let khz = guest(kvm).vcpu.save().unwrap().tsc_khz;
        relay(kvm, &soft(kvm), khz);
        relay(&soft(kvm), kvm, khz);
    });
}

#[test]
fn a_state_of_a_richer_processor_is_refused_by_the_names_of_its_features() {
    each(|kvm| {
        if kvm.is_soft() {
            return;
        }
        let rich = state(&mut Guest::new(kvm));
        let lacking = missing_features(&rich.cpuid, &SOFT_V1.cpuid(KHZ));
        assert!(!lacking.is_empty());
        let mut poor = Guest::new(&soft(kvm));
        let before = poor.vcpu.save().unwrap();
        let Err(EngineError::State { missing }) = poor.vcpu.restore(&rich) else {
            panic!("taken");
        };
        assert!(lacking.iter().all(|feature| missing.contains(feature)));
        assert_eq!(poor.vcpu.save().unwrap().regs, before.regs);
    });
}

#[test]
fn a_rate_the_host_cannot_carry_is_refused_with_both_rates() {
    each(|place| {
        let mut guest = guest(place);
        let have = guest.vcpu.save().unwrap().tsc_khz;
        let wanted = have / 2;
        match guest.vcpu.set_tsc_khz(wanted) {
            Ok(()) => assert_eq!(guest.vcpu.save().unwrap().tsc_khz, wanted),
            Err(error) => {
                assert!(!place.is_soft());
                let numbers = (wanted.to_string(), have.to_string());
                let text = error.to_string();
                assert!(
                    text.contains(&numbers.0) && text.contains(&numbers.1),
                    "{text}"
                );
                assert_eq!(guest.vcpu.save().unwrap().tsc_khz, have);
            }
        }
    });
}
