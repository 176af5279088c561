//! Which model-specific registers a guest sees, as data that every engine follows.
//!
//! Source of the registers: Intel SDM volume 4.

use super::msr;

const PLATFORM_ID: u32 = 0x17;
const MICROCODE_REVISION: u32 = 0x8b;
const MISC_ENABLE: u32 = 0x1a0;
/// Fast strings, no branch trace store, no event-based sampling.
const MISC_ENABLE_VALUE: u64 = 1 | 1 << 11 | 1 << 12;

/// The registers of the x2APIC, which no policy is asked about: the APIC's mode decides.
pub const X2APIC: std::ops::RangeInclusive<u32> = 0x800..=0x8ff;

/// What a guest may do with a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrAccess {
    /// Read and write, as the architecture says.
    State,
    /// Read this value; writes fault.
    Constant(u64),
    /// Read this value; writes change nothing.
    Ignored(u64),
}

/// A policy: a register that it does not list faults, like one that does not exist.
#[derive(Debug, PartialEq, Eq)]
pub struct MsrPolicy {
    /// Numbers, ascending, and what a guest may do.
    pub rules: &'static [(u32, MsrAccess)],
}

/// The policy of the levels: what both vendors and the software CPU have in the same form, and
/// what operating systems read without asking whether it is there.
pub const LEVEL_MSRS: MsrPolicy = MsrPolicy {
    rules: &[
        (msr::TSC, MsrAccess::State),
        (PLATFORM_ID, MsrAccess::Constant(0)),
        (msr::APIC_BASE, MsrAccess::State),
        (MICROCODE_REVISION, MsrAccess::Ignored(0)),
        (msr::SYSENTER_CS, MsrAccess::State),
        (msr::SYSENTER_ESP, MsrAccess::State),
        (msr::SYSENTER_EIP, MsrAccess::State),
        (MISC_ENABLE, MsrAccess::Constant(MISC_ENABLE_VALUE)),
        (msr::TSC_DEADLINE, MsrAccess::State),
        (msr::EFER, MsrAccess::State),
        (msr::STAR, MsrAccess::State),
        (msr::LSTAR, MsrAccess::State),
        (msr::CSTAR, MsrAccess::State),
        (msr::SFMASK, MsrAccess::State),
        (msr::FS_BASE, MsrAccess::State),
        (msr::GS_BASE, MsrAccess::State),
        (msr::KERNEL_GS_BASE, MsrAccess::State),
    ],
};

/// Registers that a guest can have changed, that every engine has, and that are not among the
/// segments and control registers; in the order they are to be set.
pub const PORTABLE_MSRS: [u32; 10] = [
    msr::TSC,
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::KERNEL_GS_BASE,
    msr::TSC_DEADLINE,
];

impl MsrPolicy {
    /// What a guest may do with register `index`; none: it faults.
    pub fn access(&self, index: u32) -> Option<MsrAccess> {
        let rule = self.rules.iter().find(|(number, _)| *number == index);
        rule.map(|(_, access)| *access)
    }

    /// The registers that always have the same value, and that value.
    pub fn fixed(&self) -> impl Iterator<Item = (u32, u64)> {
        self.rules
            .iter()
            .filter_map(|(index, access)| match access {
                MsrAccess::State => None,
                MsrAccess::Constant(value) | MsrAccess::Ignored(value) => Some((*index, *value)),
            })
    }

    /// The registers that a guest may write.
    pub fn writable(&self) -> impl Iterator<Item = u32> {
        let takes = |access: &MsrAccess| !matches!(access, MsrAccess::Constant(_));
        let rules = self.rules.iter();
        rules.filter_map(move |(index, access)| takes(access).then_some(*index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_ascend_so_that_none_stands_twice() {
        let rules = LEVEL_MSRS.rules;
        assert!(rules.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn what_moves_between_engines_is_what_a_guest_can_change() {
        // These go with the segments and control registers, or do not change.
        let elsewhere = [
            msr::APIC_BASE,
            msr::EFER,
            msr::FS_BASE,
            msr::GS_BASE,
            MICROCODE_REVISION,
        ];
        let mut expected: Vec<_> = LEVEL_MSRS
            .writable()
            .filter(|index| !elsewhere.contains(index))
            .collect();
        let mut moved = PORTABLE_MSRS.to_vec();
        expected.sort_unstable();
        moved.sort_unstable();
        assert_eq!(moved, expected);
    }

    #[test]
    fn a_register_that_is_not_listed_faults() {
        assert_eq!(LEVEL_MSRS.access(0x277), None);
        assert_eq!(LEVEL_MSRS.access(0x17), Some(MsrAccess::Constant(0)));
    }
}
