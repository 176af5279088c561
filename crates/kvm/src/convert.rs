//! Registers and CPUID between vmlet's terms and KVM's.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED,
    kvm_cpuid_entry2, kvm_dtable, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs,
};
use vmlet_vcpu::{
    EngineError,
    cpuid::{CpuidEntry, CpuidTable},
    x86_64::{MpState, Regs, Segment, Sregs, Table},
};

pub(crate) fn regs_from_kvm(r: &kvm_regs) -> Regs {
    let kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        rip,
        rflags,
        ..
    } = *r;
    let kvm_regs {
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        ..
    } = *r;
    #[rustfmt::skip]
    let regs = Regs {
        rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags,
    };
    regs
}

pub(crate) fn regs_to_kvm(r: &Regs) -> kvm_regs {
    let Regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        rip,
        rflags,
        ..
    } = *r;
    let Regs {
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        ..
    } = *r;
    #[rustfmt::skip]
    let regs = kvm_regs {
        rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags,
    };
    regs
}

fn segment_from_kvm(s: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u32| u16::from(value & 1) << at;
    let attributes = u16::from(s.type_ & 0xf)
        | bit(s.s, 4)
        | u16::from(s.dpl & 3) << 5
        | bit(s.present, 7)
        | bit(s.avl, 12)
        | bit(s.l, 13)
        | bit(s.db, 14)
        | bit(s.g, 15);
    Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        attributes,
    }
}

fn segment_to_kvm(s: &Segment) -> kvm_segment {
    let [low, high] = s.attributes.to_le_bytes();
    let bits = |at: u32, mask: u8| {
        if at < 8 {
            (low >> at) & mask
        } else {
            (high >> (at - 8)) & mask
        }
    };
    let present = bits(7, 1);
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: bits(0, 0xf),
        s: bits(4, 1),
        dpl: bits(5, 3),
        present,
        avl: bits(12, 1),
        l: bits(13, 1),
        db: bits(14, 1),
        g: bits(15, 1),
        unusable: 1 - present,
        padding: 0,
    }
}

fn table_from_kvm(t: &kvm_dtable) -> Table {
    Table {
        base: t.base,
        limit: t.limit,
    }
}

fn table_to_kvm(t: &Table) -> kvm_dtable {
    kvm_dtable {
        base: t.base,
        limit: t.limit,
        padding: [0; 3],
    }
}

pub(crate) fn sregs_from_kvm(s: &kvm_sregs) -> Sregs {
    Sregs {
        cs: segment_from_kvm(&s.cs),
        ds: segment_from_kvm(&s.ds),
        es: segment_from_kvm(&s.es),
        fs: segment_from_kvm(&s.fs),
        gs: segment_from_kvm(&s.gs),
        ss: segment_from_kvm(&s.ss),
        tr: segment_from_kvm(&s.tr),
        ldt: segment_from_kvm(&s.ldt),
        gdt: table_from_kvm(&s.gdt),
        idt: table_from_kvm(&s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
    }
}

pub(crate) fn sregs_to_kvm(s: &Sregs) -> kvm_sregs {
    kvm_sregs {
        cs: segment_to_kvm(&s.cs),
        ds: segment_to_kvm(&s.ds),
        es: segment_to_kvm(&s.es),
        fs: segment_to_kvm(&s.fs),
        gs: segment_to_kvm(&s.gs),
        ss: segment_to_kvm(&s.ss),
        tr: segment_to_kvm(&s.tr),
        ldt: segment_to_kvm(&s.ldt),
        gdt: table_to_kvm(&s.gdt),
        idt: table_to_kvm(&s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        interrupt_bitmap: [0; 4],
    }
}

pub(crate) fn cpuid_from_kvm(cpuid: &CpuId) -> CpuidTable {
    let entry = |e: &kvm_cpuid_entry2| CpuidEntry {
        leaf: e.function,
        subleaf: e.index,
        indexed: e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
    };
    CpuidTable {
        entries: cpuid.as_slice().iter().map(entry).collect(),
    }
}

pub(crate) fn cpuid_to_kvm(table: &CpuidTable) -> Result<CpuId, EngineError> {
    let entry = |e: &CpuidEntry| kvm_cpuid_entry2 {
        function: e.leaf,
        index: e.subleaf,
        flags: if e.indexed {
            KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        } else {
            0
        },
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
        padding: [0; 3],
    };
    let entries: Vec<_> = table.entries.iter().map(entry).collect();
    CpuId::from_entries(&entries).map_err(|_| EngineError::Lacking {
        feature: "room for this many CPUID leaves",
        remedy: "Use fewer leaves.",
    })
}

pub(crate) fn mp_state_from_kvm(state: kvm_mp_state) -> MpState {
    match state.mp_state {
        KVM_MP_STATE_HALTED => MpState::Halted,
        KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
        KVM_MP_STATE_INIT_RECEIVED => MpState::InitReceived,
        KVM_MP_STATE_SIPI_RECEIVED => MpState::SipiReceived,
        _ => MpState::Runnable,
    }
}

pub(crate) fn mp_state_to_kvm(state: MpState) -> kvm_mp_state {
    let mp_state = match state {
        MpState::Runnable => KVM_MP_STATE_RUNNABLE,
        MpState::Halted => KVM_MP_STATE_HALTED,
        MpState::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
        MpState::InitReceived => KVM_MP_STATE_INIT_RECEIVED,
        MpState::SipiReceived => KVM_MP_STATE_SIPI_RECEIVED,
    };
    kvm_mp_state { mp_state }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_survive_the_way_to_kvm_and_back() {
        for attributes in [0xa09b, 0xc093, 0x008b, 0x00f3, 0x1093] {
            let segment = Segment {
                base: 0x1234,
                limit: 0xffff,
                selector: 8,
                attributes,
            };
            assert_eq!(segment_from_kvm(&segment_to_kvm(&segment)), segment);
        }
    }

    #[test]
    fn a_segment_that_is_not_present_is_unusable() {
        assert_eq!(segment_to_kvm(&Segment::default()).unusable, 1);
    }

    #[test]
    fn cpuid_survives_the_way_to_kvm_and_back() {
        let entry = CpuidEntry {
            leaf: 7,
            subleaf: 1,
            indexed: true,
            eax: 2,
            ebx: 3,
            ecx: 4,
            edx: 5,
        };
        let table = CpuidTable {
            entries: vec![entry],
        };
        assert_eq!(cpuid_from_kvm(&cpuid_to_kvm(&table).unwrap()), table);
    }
}
