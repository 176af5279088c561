//! A vCPU's whole state, saved and restored.
//!
//! Order of restoring: CPUID first, since it decides what else is taken; run state; registers; the
//! local APIC after `sregs`, which hold its base; MSRs after the local APIC, since the deadline
//! timer is one of them; pending events last, because setting other state can clear them.

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_VCPUEVENT_VALID_SIPI_VECTOR,
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_msr_entry, kvm_vcpu_events, kvm_xcr, kvm_xcrs,
    kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use vmlet_vcpu::{
    EngineError, MissingFeature,
    x86_64::{DebugRegs, Events, VcpuState, msr},
};

use crate::{convert, ext, system::call};

/// MSRs the kernel takes in one call.
const BATCH: usize = 128;

/// All but CPUID, which the vCPU knows.
pub(crate) fn save(fd: &VcpuFd, indices: &[u32]) -> Result<VcpuState, EngineError> {
    let sregs = fd.get_sregs().map_err(call("KVM_GET_SREGS"))?;
    let xsave = fd.get_xsave().map_err(call("KVM_GET_XSAVE"))?;
    let xcrs = fd.get_xcrs().map_err(call("KVM_GET_XCRS"))?;
    Ok(VcpuState {
        tsc_khz: fd.get_tsc_khz().unwrap_or(0),
        mp_state: convert::mp_state_from_kvm(fd.get_mp_state().map_err(call("KVM_GET_MP_STATE"))?),
        regs: convert::regs_from_kvm(&fd.get_regs().map_err(call("KVM_GET_REGS"))?),
        sregs: convert::sregs_from_kvm(&sregs),
        xsave: xsave
            .region
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect(),
        xcrs: listed_xcrs(&xcrs),
        debug: debug(&fd.get_debug_regs().map_err(call("KVM_GET_DEBUGREGS"))?),
        lapic: lapic(fd),
        msrs: get_msrs(fd, indices)?,
        events: events(&fd.get_vcpu_events().map_err(call("KVM_GET_VCPU_EVENTS"))?),
        ..VcpuState::default()
    })
}

pub(crate) fn restore(
    fd: &VcpuFd,
    indices: &[u32],
    tsc_scales: bool,
    state: &VcpuState,
) -> Result<(), EngineError> {
    check(indices, state)?;
    fd.set_cpuid2(&convert::cpuid_to_kvm(&state.cpuid)?)
        .map_err(call("KVM_SET_CPUID2"))?;
    if state.tsc_khz != 0 {
        set_tsc_khz(fd, tsc_scales, state.tsc_khz)?;
    }
    let mp_state = convert::mp_state_to_kvm(state.mp_state);
    fd.set_mp_state(mp_state)
        .map_err(call("KVM_SET_MP_STATE"))?;
    fd.set_regs(&convert::regs_to_kvm(&state.regs))
        .map_err(call("KVM_SET_REGS"))?;
    fd.set_sregs(&convert::sregs_to_kvm(&state.sregs))
        .map_err(call("KVM_SET_SREGS"))?;
    fd.set_xcrs(&xcrs(&state.xcrs))
        .map_err(call("KVM_SET_XCRS"))?;
    ext::set_xsave(fd, &xsave(&state.xsave))?;
    fd.set_debug_regs(&debugregs(&state.debug))
        .map_err(call("KVM_SET_DEBUGREGS"))?;
    if !state.lapic.is_empty() {
        let mut lapic = kvm_lapic_state::default();
        lapic
            .regs
            .iter_mut()
            .zip(&state.lapic)
            .for_each(|(to, from)| *to = from.cast_signed());
        fd.set_lapic(&lapic).map_err(call("KVM_SET_LAPIC"))?;
    }
    set_or_find_msrs(fd, &state.msrs)?;
    fd.set_vcpu_events(&vcpu_events(&state.events))
        .map_err(call("KVM_SET_VCPU_EVENTS"))
}

/// Sets the rate of the time-stamp counter. Without scaling KVM takes a rate that is near the
/// processor's as it is; it would take a higher one too, and correct the counter at every exit,
/// which no guest can use as a clock.
pub(crate) fn set_tsc_khz(fd: &VcpuFd, scales: bool, wanted: u32) -> Result<(), EngineError> {
    let host = fd.get_tsc_khz().map_err(call("KVM_GET_TSC_KHZ"))?;
    if host == wanted {
        return Ok(());
    }
    if !scales && !is_near(wanted, host) {
        return Err(EngineError::TscRate { wanted, host });
    }
    fd.set_tsc_khz(wanted).map_err(call("KVM_SET_TSC_KHZ"))
}

/// Within KVM's tolerance, 250 parts in a million (its parameter tsc_tolerance_ppm).
fn is_near(wanted: u32, host: u32) -> bool {
    u64::from(wanted.abs_diff(host)) * 4_000 <= u64::from(host)
}

/// Refuses a state before anything is changed.
fn check(indices: &[u32], state: &VcpuState) -> Result<(), EngineError> {
    let mut missing: Vec<MissingFeature> = state
        .msrs
        .iter()
        .filter(|(index, _)| !indices.contains(index))
        .map(|(index, _)| MissingFeature {
            name: format!("MSR {index:#x}"),
        })
        .collect();
    let room = size_of::<kvm_xsave>();
    if state.xsave.len() > room && state.xsave.iter().skip(room).any(|byte| *byte != 0) {
        let name = format!("an xsave area of {} bytes", state.xsave.len());
        missing.push(MissingFeature { name });
    }
    if state.xcrs.len() > kvm_xcrs::default().xcrs.len() {
        missing.push(MissingFeature {
            name: format!("{} XCRs", state.xcrs.len()),
        });
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(EngineError::State { missing })
    }
}

/// The MSRs of `indices` that the vCPU has; the deadline timer last.
pub(crate) fn get_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, EngineError> {
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while let Some(first) = rest.first() {
        let batch: Vec<_> = rest
            .iter()
            .take(BATCH)
            .map(|index| kvm_msr_entry {
                index: *index,
                ..kvm_msr_entry::default()
            })
            .collect();
        let mut msrs = list(&batch, *first)?;
        let count = fd.get_msrs(&mut msrs).map_err(call("KVM_GET_MSRS"))?;
        values.extend(
            msrs.as_slice()
                .iter()
                .take(count)
                .map(|entry| (entry.index, entry.data)),
        );
        // The kernel stops at the first it refuses: one the guest's CPUID does not have.
        let skip = if count < batch.len() {
            count + 1
        } else {
            count
        };
        rest = rest.get(skip..).unwrap_or_default();
    }
    values.sort_by_key(|(index, _)| *index == msr::TSC_DEADLINE);
    Ok(values)
}

pub(crate) fn set_msrs(fd: &VcpuFd, values: &[(u32, u64)]) -> Result<(), EngineError> {
    for chunk in values.chunks(BATCH) {
        let entries: Vec<_> = chunk
            .iter()
            .map(|(index, data)| kvm_msr_entry {
                index: *index,
                data: *data,
                reserved: 0,
            })
            .collect();
        let Some((first, _)) = chunk.first() else {
            continue;
        };
        let count = fd
            .set_msrs(&list(&entries, *first)?)
            .map_err(call("KVM_SET_MSRS"))?;
        if let Some((index, _)) = chunk.get(count) {
            return Err(EngineError::Msr { index: *index });
        }
    }
    Ok(())
}

/// As [`set_msrs`], but an MSR that KVM lets nobody write in this configuration and that has the
/// value already is no loss (the asynchronous-fault vector without a local APIC, for one).
pub(crate) fn set_or_find_msrs(fd: &VcpuFd, values: &[(u32, u64)]) -> Result<(), EngineError> {
    let mut rest = values;
    while let Err(error) = set_msrs(fd, rest) {
        let EngineError::Msr { index } = error else {
            return Err(error);
        };
        let at = rest.iter().position(|(other, _)| *other == index);
        let (refused, behind) = at
            .and_then(|at| rest.get(at..))
            .and_then(<[_]>::split_first)
            .ok_or(EngineError::Msr { index })?;
        if get_msrs(fd, &[index])?.first() != Some(refused) {
            return Err(EngineError::Msr { index });
        }
        rest = behind;
    }
    Ok(())
}

fn list(entries: &[kvm_msr_entry], first: u32) -> Result<Msrs, EngineError> {
    Msrs::from_entries(entries).map_err(|_| EngineError::Msr { index: first })
}

fn listed_xcrs(xcrs: &kvm_xcrs) -> Vec<(u32, u64)> {
    let count = usize::try_from(xcrs.nr_xcrs).unwrap_or(0);
    xcrs.xcrs
        .iter()
        .take(count)
        .map(|xcr| (xcr.xcr, xcr.value))
        .collect()
}

fn xcrs(listed: &[(u32, u64)]) -> kvm_xcrs {
    let mut xcrs = kvm_xcrs {
        nr_xcrs: u32::try_from(listed.len()).unwrap_or(0),
        ..kvm_xcrs::default()
    };
    for (to, (xcr, value)) in xcrs.xcrs.iter_mut().zip(listed) {
        *to = kvm_xcr {
            xcr: *xcr,
            value: *value,
            reserved: 0,
        };
    }
    xcrs
}

fn xsave(bytes: &[u8]) -> kvm_xsave {
    let mut xsave = kvm_xsave::default();
    for (word, chunk) in xsave.region.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = chunk
            .iter()
            .rev()
            .fold(0, |word, byte| (word << 8) | u32::from(*byte));
    }
    xsave
}

fn lapic(fd: &VcpuFd) -> Vec<u8> {
    let lapic = fd.get_lapic();
    lapic
        .map(|lapic| lapic.regs.iter().map(|byte| byte.cast_unsigned()).collect())
        .unwrap_or_default()
}

fn debug(regs: &kvm_debugregs) -> DebugRegs {
    DebugRegs {
        db: regs.db,
        dr6: regs.dr6,
        dr7: regs.dr7,
    }
}

fn debugregs(debug: &DebugRegs) -> kvm_debugregs {
    kvm_debugregs {
        db: debug.db,
        dr6: debug.dr6,
        dr7: debug.dr7,
        ..kvm_debugregs::default()
    }
}

fn events(events: &kvm_vcpu_events) -> Events {
    let exception = &events.exception;
    let present = exception.injected != 0 || exception.pending != 0;
    let code = (exception.has_error_code != 0).then_some(exception.error_code);
    Events {
        exception: present.then_some((exception.nr, code)),
        exception_injected: exception.injected != 0,
        interrupt: (events.interrupt.injected != 0).then_some(events.interrupt.nr),
        interrupt_soft: events.interrupt.soft != 0,
        shadow: events.interrupt.shadow,
        nmi_injected: events.nmi.injected != 0,
        nmi_pending: events.nmi.pending != 0,
        nmi_masked: events.nmi.masked != 0,
        sipi_vector: events.sipi_vector,
    }
}

fn vcpu_events(events: &Events) -> kvm_vcpu_events {
    let mut out = kvm_vcpu_events::default();
    if let Some((vector, code)) = events.exception {
        // Without KVM_CAP_EXCEPTION_PAYLOAD a pending exception is restored as injected.
        out.exception.injected = 1;
        out.exception.nr = vector;
        out.exception.has_error_code = u8::from(code.is_some());
        out.exception.error_code = code.unwrap_or(0);
    }
    if let Some(vector) = events.interrupt {
        out.interrupt.injected = 1;
        out.interrupt.nr = vector;
    }
    out.interrupt.soft = u8::from(events.interrupt_soft);
    out.interrupt.shadow = events.shadow;
    out.nmi.injected = u8::from(events.nmi_injected);
    out.nmi.pending = u8::from(events.nmi_pending);
    out.nmi.masked = u8::from(events.nmi_masked);
    out.sipi_vector = events.sipi_vector;
    out.flags = KVM_VCPUEVENT_VALID_NMI_PENDING
        | KVM_VCPUEVENT_VALID_SIPI_VECTOR
        | KVM_VCPUEVENT_VALID_SHADOW;
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_way_to_kvm_and_back() {
        let with_interrupt = Events {
            interrupt: Some(0x41),
            interrupt_soft: true,
            shadow: 3,
            nmi_pending: true,
            nmi_masked: true,
            sipi_vector: 7,
            ..Events::default()
        };
        let with_exception = Events {
            exception: Some((14, Some(2))),
            exception_injected: true,
            nmi_injected: true,
            ..Events::default()
        };
        for all in [Events::default(), with_interrupt, with_exception] {
            assert_eq!(events(&vcpu_events(&all)), all);
        }
    }

    #[test]
    fn an_xsave_area_keeps_its_bytes() {
        let bytes: Vec<u8> = (0u8..=255).cycle().take(4096).collect();
        let words = xsave(&bytes).region;
        let back: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(back, bytes);
    }

    #[test]
    fn a_longer_xsave_area_is_taken_only_if_the_rest_is_empty() {
        let mut state = VcpuState {
            xsave: vec![0; 8192],
            ..VcpuState::default()
        };
        assert!(check(&[], &state).is_ok());
        state.xsave[5000] = 1;
        assert!(
            matches!(check(&[], &state), Err(EngineError::State { missing }) if missing.len() == 1)
        );
    }

    #[test]
    fn everything_that_is_missing_is_named() {
        let state = VcpuState {
            msrs: vec![(0x10, 0), (0xbad, 0), (0xbae, 0)],
            xcrs: vec![(0, 1); 17],
            ..VcpuState::default()
        };
        let Err(EngineError::State { missing }) = check(&[0x10], &state) else {
            panic!("taken")
        };
        let names: Vec<_> = missing.into_iter().map(|feature| feature.name).collect();
        assert_eq!(names, ["MSR 0xbad", "MSR 0xbae", "17 XCRs"]);
    }

    #[test]
    fn extended_control_registers_keep_index_and_value() {
        let listed = [(0, 7), (1, 9)];
        assert_eq!(listed_xcrs(&xcrs(&listed)), listed);
    }

    #[test]
    fn a_rate_counts_as_near_within_two_hundred_and_fifty_parts_in_a_million() {
        assert!(is_near(1_000_000, 999_800));
        assert!(is_near(1_000_000, 1_000_200));
        assert!(!is_near(1_000_000, 1_000_300));
        assert!(!is_near(1_000_000, 2_000_000));
    }
}
