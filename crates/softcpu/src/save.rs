//! A vCPU's whole state, in the terms both engines share.

use vmlet_vcpu::{
    EngineError, MissingFeature, Vcpu,
    cpuid::missing_features,
    x86_64::{DebugRegs, Events, MpState, VcpuState, msr},
};

use crate::{
    cpu::{CR4_KNOWN, Fault},
    entry::CR4_LA57,
    fp::{Fpu, IMAGE_BYTES},
    msr::SAVED,
    vcpu::SoftVcpu,
};

/// Bytes of the XSAVE header behind the legacy image.
const HEADER: usize = 64;
/// x87 and SSE in the header's XSTATE_BV.
const X87_SSE: u8 = 3;

pub(crate) fn save(vcpu: &mut SoftVcpu) -> VcpuState {
    let cpu = &vcpu.cpu;
    let mut xsave = cpu.fpu.save(true).to_vec();
    xsave.push(X87_SSE);
    xsave.resize(IMAGE_BYTES + HEADER, 0);
    let [d0, d1, d2, d3, _, _, dr6, dr7] = cpu.dr;
    let msrs = SAVED
        .iter()
        .filter_map(|index| Some((*index, cpu.read_msr(*index)?)));
    VcpuState {
        cpuid: cpu.cpuid.clone(),
        tsc_khz: cpu.msrs.tsc_khz,
        mp_state: if cpu.halted { MpState::Halted } else { vcpu.mp },
        regs: cpu.all_regs(),
        sregs: cpu.all_sregs(),
        xsave,
        xcrs: Vec::new(),
        debug: DebugRegs {
            db: [d0, d1, d2, d3],
            dr6,
            dr7,
        },
        lapic: cpu
            .lapic
            .as_ref()
            .map(|l| l.save(cpu.clock.now()))
            .unwrap_or_default(),
        msrs: msrs.collect(),
        events: Events {
            exception: cpu.pending.map(|fault| (fault.vector, fault.code)),
            exception_injected: cpu.pending.is_some(),
            interrupt: cpu.injected,
            shadow: cpu.shadow,
            nmi_pending: cpu.signal.nmi_waits(),
            nmi_masked: cpu.nmi_masked,
            ..Events::default()
        },
    }
}

/// What of `state` this engine lacks.
fn missing(vcpu: &SoftVcpu, state: &VcpuState) -> Vec<MissingFeature> {
    let mut names = Vec::new();
    let more = state.sregs.cr4 & !CR4_KNOWN;
    if more != 0 {
        let name = if more & CR4_LA57 != 0 { " (LA57)" } else { "" };
        names.push(format!("bits {more:#x} of CR4{name}"));
    }
    if let Some((_, xcr0)) = state
        .xcrs
        .iter()
        .find(|(index, x)| *index == 0 && x & !3 != 0)
    {
        names.push(format!("states {xcr0:#x} of XCR0"));
    }
    for (index, _) in &state.msrs {
        if *index != msr::TSC_DEADLINE && vcpu.cpu.read_msr(*index).is_none() {
            names.push(format!("MSR {index:#x}"));
        }
    }
    if state
        .xsave
        .iter()
        .skip(IMAGE_BYTES + HEADER)
        .any(|byte| *byte != 0)
    {
        names.push(format!("an xsave area of {} bytes", state.xsave.len()));
    }
    let mut missing = missing_features(&state.cpuid, &crate::cpuid::table());
    missing.extend(names.into_iter().map(|name| MissingFeature { name }));
    missing
}

pub(crate) fn restore(vcpu: &mut SoftVcpu, state: &VcpuState) -> Result<(), EngineError> {
    let missing = missing(vcpu, state);
    if !missing.is_empty() {
        return Err(EngineError::State { missing });
    }
    vcpu.set_mp_state(state.mp_state)?;
    if state.tsc_khz != 0 {
        vcpu.set_tsc_khz(state.tsc_khz)?;
    }
    let cpu = &mut vcpu.cpu;
    cpu.cpuid = state.cpuid.clone();
    cpu.set_all_sregs(&state.sregs);
    cpu.set_all_regs(&state.regs);
    let mut fpu = Fpu::default();
    if let Some(image) = state.xsave.first_chunk::<IMAGE_BYTES>()
        && fpu.restore(image, true, 16).is_err()
    {
        let name = "reserved bits of MXCSR".to_owned();
        let missing = vec![MissingFeature { name }];
        return Err(EngineError::State { missing });
    }
    cpu.fpu = fpu;
    let [d0, d1, d2, d3] = state.debug.db;
    cpu.dr = [d0, d1, d2, d3, 0, 0, state.debug.dr6, state.debug.dr7];
    cpu.debug_changed();
    if let Some(lapic) = cpu.lapic.clone().filter(|_| !state.lapic.is_empty()) {
        lapic.restore(&state.lapic, cpu.clock.now());
    }
    for (index, value) in &state.msrs {
        // These came with the segments.
        let known = matches!(*index, msr::EFER | msr::FS_BASE | msr::GS_BASE);
        if !known && !cpu.write_msr(*index, *value) {
            return Err(EngineError::Msr { index: *index });
        }
    }
    let events = &state.events;
    cpu.pending = events
        .exception
        .map(|(vector, code)| Fault { vector, code });
    cpu.injected = events.interrupt;
    cpu.shadow = events.shadow;
    cpu.nmi_masked = events.nmi_masked;
    cpu.signal
        .set_nmi(events.nmi_pending || events.nmi_injected);
    cpu.look = true;
    Ok(())
}
