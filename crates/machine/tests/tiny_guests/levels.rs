//! The levels of the x86-64 psABI: what their guests see is the same everywhere.
//!
//! A guest reads CPUID, or an MSR, and the test compares what it got with a dump in `tests/data`.
//! Every place compares itself with the same dump, so all places agree: KVM on Intel's and on
//! AMD's processors, and the software engine. The guests do not switch OSXSAVE or OSPKE on and run
//! on the vCPU with APIC id 0; the state that XCR0 names is that after reset.

use std::fmt::Write;

use vmlet_kvm::unmasked_features;
use vmlet_vcpu::{
    RunEnd,
    cpuid::{
        CpuModel, CpuidTable, Topology, X86_64_V1, X86_64_V2, X86_64_V3, host_policy,
        missing_features,
    },
    x86_64::{LEVEL_MSRS, MsrAccess, Regs, msr},
};

use crate::harness::{
    CODE, DATA, Guest, Place, STACK,
    bus::{DONE, EXCEPTION},
    each,
    guest::Options,
    segments::{KERNEL_CS, user32},
    skip::skip,
};

/// The rate that leaves 0x15 and 0x16 tell.
const KHZ: u32 = 2_000_000;
const CPUS: u32 = 2;
/// A leaf, a subleaf and the four registers.
const ROW: usize = 24;
const UNDEFINED_OPCODE: u64 = 6;
const GENERAL_PROTECTION: u64 = 13;

/// Registers that a level lists, and a choice of what one vendor, both or a hypervisor have.
const REGISTERS: [u32; 66] = [
    0,
    0x1,
    0x10,
    0x17,
    0x1b,
    0x3a,
    0x3b,
    0x48,
    0x49,
    0x79,
    0x8b,
    0xc1,
    0xcd,
    0xce,
    0xe7,
    0xfe,
    0x10a,
    0x10b,
    0x11e,
    0x122,
    0x140,
    0x174,
    0x175,
    0x176,
    0x179,
    0x17a,
    0x186,
    0x198,
    0x19c,
    0x1a0,
    0x1a2,
    0x1d9,
    0x1fc,
    0x200,
    0x250,
    0x277,
    0x2ff,
    0x345,
    0x38d,
    0x400,
    0x480,
    0x606,
    0x6e0,
    0x802,
    0xd90,
    0xda0,
    0x4000_0000,
    0x4b56_4d00,
    0x4b56_4d01,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc000_0103,
    0xc000_0104,
    0xc001_0000,
    0xc001_0010,
    0xc001_0015,
    0xc001_001f,
    0xc001_0114,
    0xc001_0117,
    0xc001_1029,
];

fn table(model: &CpuModel) -> CpuidTable {
    let place = Topology {
        apic_id: 0,
        cpus: CPUS,
        local_apic: true,
    };
    host_policy(&model.cpuid(KHZ), place)
}

/// A guest of `model`, one of several vCPUs.
fn guest(place: &Place, model: &CpuModel) -> Guest {
    Guest::with(
        place,
        Options {
            table: Some(table(model)),
            msrs: model.msrs,
            irqchip: true,
            ..Options::default()
        },
    )
}

/// Runs `test` where the engine has the features of `model` and its guests see no others.
fn where_carried(name: &str, model: &CpuModel, test: impl Fn(&Place)) {
    each(|place| {
        if place.interpreted {
            println!("{name}: this KVM's guests see the processor's features whatever the table");
            return;
        }
        let offered = place.engine.supported_cpuid().unwrap();
        let missing = missing_features(&model.cpuid(KHZ), &offered);
        if missing.is_empty() {
            return test(place);
        }
        let names: Vec<_> = missing.into_iter().map(|feature| feature.name).collect();
        // Every engine carries the first level, and the software engine no other.
        assert_ne!(model.name, X86_64_V1.name, "{names:?}");
        if place.is_soft() {
            println!("{name}: soft lacks {names:?}");
        } else {
            let reason = format!("this KVM lacks {}", names.join(", "));
            skip(name, model.name, &reason);
        }
    });
}

/// All leaves in range with the subleaves they have, one more each, and the ranges' ends.
fn questions() -> Vec<(u32, u32)> {
    let with = |leaf: u32, subleaves: &'static [u32]| subleaves.iter().map(move |at| (leaf, *at));
    let basic = (0..=0x19).map(|leaf| (leaf, 0));
    let ends = [
        0x1f,
        0x20,
        0x3fff_ffff,
        0x4000_0000,
        0x4000_0001,
        0x4000_0002,
        0x4000_0010,
        0x4000_0100,
        0x4fff_ffff,
        0x7fff_ffff,
        0x8000_0009,
        0x8000_000a,
        0x8000_001d,
        0x8000_001e,
        0x8000_0021,
        0x8000_ffff,
        0x8086_0000,
        0xc000_0000,
        0xc000_0001,
        0xffff_ffff,
    ];
    basic
        .chain(with(2, &[1]))
        .chain(with(4, &[1, 2, 3, 4, u32::MAX]))
        .chain(with(7, &[1, 2, u32::MAX]))
        .chain(with(0xb, &[1, 2, 3, 0x105]))
        .chain(with(0xd, &[1, 2, 3, 9, 62, 63, 64]))
        .chain(with(0x14, &[1]))
        .chain(with(0x17, &[1]))
        .chain((0x8000_0000..=0x8000_0008).map(|leaf| (leaf, 0)))
        .chain(ends.map(|leaf| (leaf, 0)))
        .collect()
}

/// What the guest's `cpuid` answers, a line a question.
fn dump(place: &Place, model: &CpuModel) -> String {
    let (questions, mut guest) = (questions(), guest(place, model));
    for (at, (leaf, subleaf)) in (DATA..).step_by(ROW).zip(&questions) {
        guest.write(at, &[leaf.to_le_bytes(), subleaf.to_le_bytes()].concat());
    }
    let code = guest!(
        "2:",
        "mov eax, [r8]",
        "mov ecx, [r8 + 4]",
        "cpuid",
        "mov [r8 + 8], eax",
        "mov [r8 + 12], ebx",
        "mov [r8 + 16], ecx",
        "mov [r8 + 20], edx",
        "add r8, 24",
        "dec r9",
        "jnz 2b",
        "out 0xf4, al"
    );
    let regs = Regs {
        r8: DATA,
        r9: questions.len() as u64,
        ..Regs::default()
    };
    guest.load_with(code, regs);
    guest.finish();
    let mut text = String::new();
    for at in (DATA..).step_by(ROW).take(questions.len()) {
        let row = guest.read::<ROW>(at);
        let words: Vec<_> = row.chunks_exact(4).map(word).collect();
        writeln!(
            text,
            "{:08x} {:<8x}  {:08x} {:08x} {:08x} {:08x}",
            words[0], words[1], words[2], words[3], words[4], words[5]
        )
        .unwrap();
    }
    text
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().unwrap())
}

/// The lines of `recorded` that are no comment.
fn lines(recorded: &str) -> Vec<&str> {
    recorded
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect()
}

fn compare(place: &Place, found: &str, recorded: &str) {
    let (found_lines, expected) = (lines(found), lines(recorded));
    let differ: Vec<_> = found_lines
        .iter()
        .zip(&expected)
        .filter(|(found, expected)| found != expected)
        .collect();
    let name = place.engine.name();
    assert!(
        differ.is_empty() && found_lines.len() == expected.len(),
        "{name} differs in {} of {} rows (found, recorded): {differ:#?}\n{found}",
        differ.len(),
        expected.len()
    );
    println!(
        "{} of {} rows on {name} are those recorded",
        found_lines.len(),
        expected.len()
    );
}

#[test]
fn cpuid_of_x86_64_v1_is_the_recorded_one_on_every_engine() {
    let name = "levels::cpuid_of_x86_64_v1_is_the_recorded_one_on_every_engine";
    where_carried(name, &X86_64_V1, |place| {
        let recorded = include_str!("../../../../tests/data/cpuid-x86-64-v1.txt");
        compare(place, &dump(place, &X86_64_V1), recorded);
    });
}

#[test]
fn cpuid_of_x86_64_v2_is_the_recorded_one_on_every_processor() {
    let name = "levels::cpuid_of_x86_64_v2_is_the_recorded_one_on_every_processor";
    where_carried(name, &X86_64_V2, |place| {
        let recorded = include_str!("../../../../tests/data/cpuid-x86-64-v2.txt");
        compare(place, &dump(place, &X86_64_V2), recorded);
    });
}

#[test]
fn cpuid_of_x86_64_v3_is_the_recorded_one_on_every_processor() {
    let name = "levels::cpuid_of_x86_64_v3_is_the_recorded_one_on_every_processor";
    where_carried(name, &X86_64_V3, |place| {
        let recorded = include_str!("../../../../tests/data/cpuid-x86-64-v3.txt");
        compare(place, &dump(place, &X86_64_V3), recorded);
    });
}

/// What became of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done(u64),
    Fault,
}

fn access(guest: &mut Guest, code: &[u8], index: u32, value: u64) -> Outcome {
    let regs = Regs {
        rcx: index.into(),
        rax: value & 0xffff_ffff,
        rdx: value >> 32,
        ..Regs::default()
    };
    guest.load_with(code, regs);
    let end = guest.run();
    let regs = guest.vcpu.regs().unwrap();
    match end {
        RunEnd::Stopped(DONE) => Outcome::Done(regs.rdx << 32 | regs.rax & 0xffff_ffff),
        RunEnd::Stopped(EXCEPTION) => {
            assert_eq!(regs.rax, GENERAL_PROTECTION, "MSR {index:#x}");
            Outcome::Fault
        }
        other => panic!("MSR {index:#x}: {other:?}"),
    }
}

fn read(guest: &mut Guest, index: u32) -> Outcome {
    access(guest, guest!("rdmsr", "out 0xf4, al"), index, 0)
}

fn write(guest: &mut Guest, index: u32, value: u64) -> Outcome {
    access(guest, guest!("wrmsr", "out 0xf4, al"), index, value)
}

#[test]
fn msrs_of_the_levels_are_the_recorded_ones_on_every_engine() {
    let name = "levels::msrs_of_the_levels_are_the_recorded_ones_on_every_engine";
    where_carried(name, &X86_64_V1, |place| {
        let mut guest = guest(place, &X86_64_V1);
        let mut text = String::new();
        for index in REGISTERS {
            let found = match read(&mut guest, index) {
                Outcome::Fault => "#GP".to_owned(),
                Outcome::Done(_) if index == msr::TSC => "counts".to_owned(),
                Outcome::Done(value) => format!("{value:x}"),
            };
            writeln!(text, "{index:08x} {found}").unwrap();
        }
        compare(
            place,
            &text,
            include_str!("../../../../tests/data/msrs-of-levels.txt"),
        );
    });
}

#[test]
fn writes_to_what_a_level_does_not_list_fault_and_constants_stay() {
    let name = "levels::writes_to_what_a_level_does_not_list_fault_and_constants_stay";
    where_carried(name, &X86_64_V1, |place| {
        let mut guest = guest(place, &X86_64_V1);
        for index in REGISTERS {
            match LEVEL_MSRS.access(index) {
                None => assert_eq!(write(&mut guest, index, 0), Outcome::Fault, "{index:#x}"),
                Some(MsrAccess::Constant(value)) => {
                    assert_eq!(
                        write(&mut guest, index, value),
                        Outcome::Fault,
                        "{index:#x}"
                    );
                    assert_eq!(read(&mut guest, index), Outcome::Done(value), "{index:#x}");
                }
                Some(MsrAccess::Ignored(value)) => {
                    write(&mut guest, index, !0);
                    assert_eq!(read(&mut guest, index), Outcome::Done(value), "{index:#x}");
                }
                Some(MsrAccess::State) => {}
            }
        }
        for (index, value) in [
            (msr::STAR, 0x23_0010_0000_0000),
            (msr::KERNEL_GS_BASE, 0x5000),
        ] {
            write(&mut guest, index, value);
            assert_eq!(read(&mut guest, index), Outcome::Done(value), "{index:#x}");
        }
    });
}

/// CPUID hides a feature, and most instructions do not ask it: documented, so tested.
#[test]
fn an_instruction_that_is_hidden_works_on_a_processor_that_has_it() {
    let name = "levels::an_instruction_that_is_hidden_works_on_a_processor_that_has_it";
    where_carried(name, &X86_64_V1, |place| {
        let mut guest = guest(place, &X86_64_V1);
        let offered = place.engine.supported_cpuid().unwrap();
        let has = offered.get(1, 0).unwrap().ecx >> 23 & 1 == 1;
        guest.load(guest!("mov ecx, 0xff", "popcnt eax, ecx", "out 0xf4, al"));
        if has {
            assert_eq!(guest.finish().rax, 8);
        } else {
            assert_eq!(guest.exception().vector, UNDEFINED_OPCODE);
        }
    });
}

#[test]
fn what_has_to_be_switched_on_stays_off_where_it_is_hidden() {
    let name = "levels::what_has_to_be_switched_on_stays_off_where_it_is_hidden";
    where_carried(name, &X86_64_V1, |place| {
        let mut guest = guest(place, &X86_64_V1);
        // OSXSAVE, SMEP, PCIDE, FSGSBASE.
        for bit in [18, 20, 17, 16u64] {
            let regs = Regs {
                rcx: 1 << bit,
                ..Regs::default()
            };
            let code = guest!(
                "mov rax, cr4",
                "or rax, rcx",
                "mov cr4, rax",
                "out 0xf4, al"
            );
            guest.load_with(code, regs);
            assert_eq!(
                guest.exception().vector,
                GENERAL_PROTECTION,
                "CR4 bit {bit}"
            );
        }
    });
}

/// Linux's 32-bit programs enter the kernel by `sysenter` where they see Intel's name; AMD's
/// processors have it in legacy mode only, and KVM carries it out there.
#[test]
fn sysenter_works_in_compatibility_mode_on_both_vendors() {
    let name = "levels::sysenter_works_in_compatibility_mode_on_both_vendors";
    where_carried(name, &X86_64_V1, |place| {
        let mut guest = guest(place, &X86_64_V1);
        guest.change_sregs(|sregs| *sregs = user32(*sregs));
        for (index, value) in [
            (msr::SYSENTER_CS, KERNEL_CS.into()),
            (msr::SYSENTER_ESP, STACK),
            (msr::SYSENTER_EIP, CODE + 2),
        ] {
            guest.vcpu.set_msr(index, value).unwrap();
        }
        guest.load(guest!("sysenter", "mov eax, cs", "out 0xf4, al"));
        assert_eq!(guest.finish().rax, u64::from(KERNEL_CS));
    });
}

#[test]
fn a_kvm_shows_what_a_model_hides_only_where_it_interprets() {
    each(|place| {
        if place.is_soft() {
            return;
        }
        let shown = unmasked_features().unwrap();
        assert_eq!(shown.is_empty(), place.native(), "{shown:?}");
    });
}
