//! A policy of model-specific registers as KVM's filter of them.
//!
//! The filter denies what no range of it allows; a denied access is a general protection fault in
//! the guest. KVM leaves the x2APIC's registers out of it.

use kvm_ioctls::{Cap, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use vmlet_vcpu::{EngineError, x86_64::MsrPolicy};

use crate::system::call;

/// Registers a range covers, from a multiple of this on.
const SPAN: u32 = 1024;

/// What of one range may be read or written, one bit a register.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    base: u32,
    reads: Vec<u8>,
    writes: Vec<u8>,
}

impl Range {
    fn of(base: u32, policy: &MsrPolicy) -> Range {
        let bytes = usize::try_from(SPAN / 8).unwrap_or(0);
        let (mut reads, mut writes) = (vec![0; bytes], vec![0; bytes]);
        policy
            .rules
            .iter()
            .for_each(|(index, _)| allow(&mut reads, base, *index));
        policy
            .writable()
            .for_each(|index| allow(&mut writes, base, index));
        Range {
            base,
            reads,
            writes,
        }
    }

    fn parts(&self) -> [MsrFilterRange<'_>; 2] {
        let part = |flags, bitmap| MsrFilterRange {
            flags,
            base: self.base,
            msr_count: SPAN,
            bitmap,
        };
        [
            part(MsrFilterRangeFlags::READ, &self.reads),
            part(MsrFilterRangeFlags::WRITE, &self.writes),
        ]
    }
}

fn allow(bits: &mut [u8], base: u32, index: u32) {
    let Some(at) = index.checked_sub(base).filter(|at| *at < SPAN) else {
        return;
    };
    let byte = usize::try_from(at / 8).ok().and_then(|at| bits.get_mut(at));
    if let Some(byte) = byte {
        *byte |= 1 << (at % 8);
    }
}

fn ranges(policy: &MsrPolicy) -> Vec<Range> {
    let mut bases: Vec<u32> = policy
        .rules
        .iter()
        .map(|(index, _)| index & !(SPAN - 1))
        .collect();
    bases.dedup();
    bases
        .into_iter()
        .map(|base| Range::of(base, policy))
        .collect()
}

/// Restricts guests of `vm` to `policy`.
pub(crate) fn set(vm: &VmFd, policy: &MsrPolicy) -> Result<(), EngineError> {
    if !vm.check_extension(Cap::X86MsrFilter) {
        return Err(EngineError::Lacking {
            feature: "KVM_CAP_X86_MSR_FILTER",
            remedy: "Use Linux 5.10 or newer, cpu=\"host\", or the software engine.",
        });
    }
    let ranges = ranges(policy);
    let parts: Vec<_> = ranges.iter().flat_map(Range::parts).collect();
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &parts)
        .map_err(call("KVM_X86_SET_MSR_FILTER"))
}

#[cfg(test)]
mod tests {
    use vmlet_vcpu::x86_64::{LEVEL_MSRS, MsrAccess, msr};

    use super::*;

    fn allows(ranges: &[Range], index: u32) -> (bool, bool) {
        let range = ranges.iter().find(|r| index.wrapping_sub(r.base) < SPAN);
        range.map_or((false, false), |range| {
            let at = index - range.base;
            let bit = |bits: &[u8]| bits[usize::try_from(at / 8).unwrap()] >> (at % 8) & 1 == 1;
            (bit(&range.reads), bit(&range.writes))
        })
    }

    #[test]
    fn the_filter_allows_what_the_policy_lists_and_nothing_else() {
        let ranges = ranges(&LEVEL_MSRS);
        assert!(ranges.len() * 2 <= 16);
        for index in (0..0x2000).chain(0xc000_0000..0xc001_2000) {
            let expected = match LEVEL_MSRS.access(index) {
                None => (false, false),
                Some(MsrAccess::Constant(_)) => (true, false),
                Some(_) => (true, true),
            };
            assert_eq!(allows(&ranges, index), expected, "{index:#x}");
        }
        assert_eq!(allows(&ranges, msr::EFER), (true, true));
    }
}
