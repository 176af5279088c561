//! Debug conditions as KVM takes them.

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug,
};
use vmlet_vcpu::{DebugControl, WatchLen, Watchpoint};

/// The argument of `KVM_SET_GUEST_DEBUG`.
pub(crate) fn to_kvm(control: &DebugControl) -> kvm_guest_debug {
    let mut debug = kvm_guest_debug::default();
    if control.single_step {
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
    }
    let mut dr7 = 0;
    let registers = debug.arch.debugreg.iter_mut().zip(control.breakpoints);
    for (index, ((register, at), watch)) in registers.zip(control.watchpoints).enumerate() {
        let (at, condition) = match (at, watch) {
            (Some(at), _) => (at, 0),
            (None, Some(watch)) => (watch.at, watch_condition(watch)),
            (None, None) => continue,
        };
        *register = at;
        // The register's global enable bit and its condition.
        dr7 |= 2u64 << (index * 2) | condition << (16 + index * 4);
    }
    if dr7 != 0 {
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        debug.arch.debugreg[7] = dr7;
    }
    debug
}

/// The four bits of a watchpoint in DR7 (AMD APM volume 2, section 13.1.1.4): R/W, then LEN.
fn watch_condition(watch: Watchpoint) -> u64 {
    let len = match watch.len {
        WatchLen::One => 0,
        WatchLen::Two => 1,
        WatchLen::Eight => 2,
        WatchLen::Four => 3,
    };
    len << 2 | if watch.reads { 3 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_asked_for_switches_debugging_off() {
        assert_eq!(to_kvm(&DebugControl::default()).control, 0);
    }

    #[test]
    fn a_breakpoint_goes_before_a_watchpoint_of_its_register() {
        let watch = Watchpoint {
            at: 0x2000,
            len: WatchLen::Four,
            reads: false,
        };
        let debug = to_kvm(&DebugControl {
            breakpoints: [None, Some(0x1000), None, None],
            watchpoints: [Some(watch), Some(watch), None, None],
            ..DebugControl::default()
        });
        assert_eq!(
            debug.arch.debugreg,
            [0x2000, 0x1000, 0, 0, 0, 0, 0, 0xd_000a]
        );
    }

    #[test]
    fn conditions_of_watchpoints_are_those_of_dr7() {
        let condition = |len, reads| watch_condition(Watchpoint { at: 0, len, reads });
        assert_eq!(condition(WatchLen::One, false), 0b0001);
        assert_eq!(condition(WatchLen::Four, true), 0b1111);
        assert_eq!(condition(WatchLen::Eight, false), 0b1001);
    }
}
