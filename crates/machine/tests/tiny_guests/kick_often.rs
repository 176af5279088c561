//! Rows: kicks of a vCPU whose guest has accessed devices so often that its engine interrupts it in
//! another way (`vmlet-kvm`'s `kick.rs`).

use std::{sync::Arc, time::Duration};

use vmlet_vcpu::{RunEnd, x86_64::MpState};

use crate::{
    harness::{DATA, Guest, Place, bus::DONE, each, limit},
    kick::{counting, pause_while_asked, run_under_kicks},
};

/// More accesses than make a vCPU one that exits often.
const MANY: usize = 3000;

/// A guest that reads port 0x10 `MANY` times, then runs on in `code`.
fn busy(place: &Place, irqchip: bool, code: &[u8]) -> Guest {
    let mut guest = if irqchip {
        Guest::with_irqchip(place)
    } else {
        Guest::new(place)
    };
    let reads = guest!("mov ecx, 3000", "3: in al, 0x10", "dec ecx", "jnz 3b");
    guest.load(&[reads, code].concat());
    guest.let_interrupts_in();
    guest
}

#[test]
fn a_guest_that_exited_often_is_kicked_out_of_its_code() {
    each(|place| {
        let mut guest = busy(place, false, counting());
        for _ in 0..20 {
            let before = guest.word(DATA);
            let (end, late) = guest.run_for(limit(Duration::from_millis(20)));
            assert_eq!((end, late), (RunEnd::Kicked, true));
            assert!(guest.word(DATA) > before || guest.bus.seen.len() < MANY);
        }
        assert_eq!(guest.bus.seen.len(), MANY);
    });
}

#[test]
fn a_kick_before_a_run_of_it_makes_it_return_at_once() {
    each(|place| {
        let mut guest = busy(
            place,
            false,
            guest!("mov [r15], eax", "inc ebx", "mov [r15], eax"),
        );
        assert_eq!(guest.run(), RunEnd::Stopped(DONE));
        let rip = guest.vcpu.regs().unwrap().rip;
        (0..100).for_each(|_| guest.vcpu.kicker().kick());
        assert_eq!(guest.run(), RunEnd::Kicked);
        assert_eq!(guest.vcpu.regs().unwrap().rip, rip);
        assert_eq!(guest.run(), RunEnd::Stopped(DONE));
    });
}

#[test]
fn a_kick_in_an_access_that_ends_the_run_is_kept_for_the_next() {
    each(|place| {
        let mut guest = busy(place, false, guest!("2: in al, 0xf4", "inc ebx", "jmp 2b"));
        assert_eq!(guest.run(), RunEnd::Stopped(DONE));
        let kicker = guest.vcpu.kicker();
        guest.bus.hook = Some(Box::new(move |_| {
            kicker.kick();
            None
        }));
        for _ in 0..50 {
            let before = guest.vcpu.regs().unwrap();
            assert_eq!(guest.run(), RunEnd::Stopped(DONE));
            let after = guest.vcpu.regs().unwrap();
            assert_eq!(guest.run(), RunEnd::Kicked);
            assert_eq!(guest.vcpu.regs().unwrap(), after);
            assert_eq!(after.rbx, before.rbx + 1);
        }
    });
}

#[test]
fn it_is_woken_from_a_halt_and_halts_on_afterwards() {
    each(|place| {
        let mut guest = busy(
            place,
            true,
            guest!("mov ebx, 7", "cli", "hlt", "mov ebx, 8"),
        );
        let kicked = |guest: &mut Guest| {
            let (end, late) = guest.run_for(limit(Duration::from_millis(40)));
            assert_eq!((end, late), (RunEnd::Kicked, true));
        };
        while guest.vcpu.mp_state().unwrap() != MpState::Halted {
            kicked(&mut guest);
        }
        (0..3).for_each(|_| kicked(&mut guest));
        assert_eq!(guest.vcpu.mp_state().unwrap(), MpState::Halted);
        assert_eq!(guest.vcpu.regs().unwrap().rbx, 7);
    });
}

#[test]
fn of_thousands_of_kicks_amid_its_accesses_the_last_is_not_lost() {
    each(|place| {
        let mut guest = busy(place, false, guest!("2: in al, 0x10", "jmp 2b"));
        guest.bus.hook = Some(Box::new(|_| Some(vec![0])));
        run_under_kicks(&mut guest);
    });
}

#[test]
fn no_request_under_load_is_lost_by_it() {
    each(|place| {
        let guest = busy(place, false, counting()).into_thread();
        guest.thread.vcpu.resume().unwrap();
        pause_while_asked(&guest.thread.vcpu, |_| ());
        assert!(guest.thread.still_runs());
        guest.thread.vcpu.finish().unwrap();
    });
}

#[test]
fn a_bound_vcpu_goes_to_another_thread_and_is_kicked_there() {
    each(|place| {
        let mut guest = busy(place, false, counting());
        let (end, _) = guest.run_for(limit(Duration::from_millis(40)));
        assert_eq!(end, RunEnd::Kicked);
        let kicker = guest.vcpu.kicker();
        let guest = guest.into_thread();
        for _ in 0..20 {
            guest.thread.vcpu.resume().unwrap();
            Arc::clone(&kicker).kick();
            guest.thread.vcpu.pause().unwrap();
        }
    });
}
