//! Rows: kicks, pauses and ends of running guests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use vmlet_memory::Gpa;
use vmlet_vcpu::{EngineError, RunEnd, Vcpu, VcpuThread, x86_64::MpState};

use crate::harness::{CODE, DATA, Guest, Place, Thread, each, guest::Options, guest::cpuid, limit};

/// Counts at `DATA` for ever.
pub(crate) fn counting() -> &'static [u8] {
    guest!("mov ebx, 0x20000", "2: inc qword ptr [rbx]", "jmp 2b")
}

fn at(place: &Place, user: bool, code: &[u8]) -> Guest {
    let mut guest = Guest::new(place);
    if user {
        guest.enter_user();
    }
    guest.load(code);
    guest.let_interrupts_in();
    guest
}

#[test]
fn a_kick_before_a_run_makes_it_return_before_the_guests_first_instruction() {
    each(|place| {
        let mut guest = at(place, false, counting());
        guest.vcpu.kicker().kick();
        assert_eq!(guest.run(), RunEnd::Kicked);
        assert_eq!(guest.vcpu.regs().unwrap().rip, CODE);
        assert_eq!(guest.word(DATA), 0);
    });
}

#[test]
fn a_kick_ends_a_spin_at_cpl0_and_at_cpl3() {
    each(|place| {
        for user in [false, true] {
            let mut guest = at(place, user, guest!("2: jmp 2b"));
            let (end, late) = guest.run_for(limit(Duration::from_millis(20)));
            assert_eq!((end, late), (RunEnd::Kicked, true));
            assert_eq!(guest.vcpu.regs().unwrap().rip, CODE);
        }
    });
}

#[test]
fn a_kick_wakes_a_halted_vcpu_which_halts_on_afterwards() {
    each(|place| {
        let mut guest = Guest::with_irqchip(place);
        guest.load(guest!("mov ebx, 7", "cli", "hlt", "mov ebx, 8", "hlt"));
        for _ in 0..3 {
            let (end, late) = guest.run_for(limit(Duration::from_millis(20)));
            assert_eq!((end, late), (RunEnd::Kicked, true));
            assert_eq!(guest.vcpu.mp_state().unwrap(), MpState::Halted);
            assert_eq!(guest.vcpu.regs().unwrap().rbx, 7);
        }
    });
}

#[test]
fn a_kick_wakes_an_application_processor_that_waits_for_its_start() {
    each(|place| {
        let options = Options {
            cpus: 2,
            irqchip: true,
            ..Options::default()
        };
        let guest = Guest::with(place, options);
        let mut vcpu = guest.vm.create_vcpu(1, &cpuid(place, 1, 2, true)).unwrap();
        let kicker = vcpu.kicker();
        vcpu.bind().unwrap();
        for _ in 0..3 {
            let kicker = Arc::clone(&kicker);
            let later = thread::spawn(move || {
                thread::sleep(Duration::from_millis(5));
                kicker.kick();
            });
            let mut bus = crate::harness::Recorder::default();
            assert_eq!(vcpu.run(&mut bus).unwrap(), RunEnd::Kicked);
            later.join().unwrap();
            assert_eq!(vcpu.mp_state().unwrap(), MpState::Uninitialized);
        }
        vcpu.unbind();
    });
}

/// Runs the guest while it is kicked thousands of times. The last kick is not lost, or this would run
/// into its limit.
pub(crate) fn run_under_kicks(guest: &mut Guest) {
    let (kicker, all_sent) = (guest.vcpu.kicker(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            for sent in 0..5000 {
                kicker.kick();
                // Now and then the vCPU shall come to run.
                if sent % 16 == 0 {
                    thread::yield_now();
                }
            }
            all_sent.store(true, Ordering::SeqCst);
            kicker.kick();
        });
        while !all_sent.load(Ordering::SeqCst) {
            assert_eq!(guest.run(), RunEnd::Kicked);
            guest.bus.seen.clear();
        }
    });
}

#[test]
fn thousands_of_kicks_leave_at_most_one_behind() {
    each(|place| {
        let mut guest = at(place, true, counting());
        run_under_kicks(&mut guest);
        guest.load(guest!("mov [r15], eax"));
        if guest.run() == RunEnd::Kicked {
            guest.finish();
        }
    });
}

/// Several askers at once, while this thread pauses and resumes.
pub(crate) fn pause_while_asked(vcpu: &VcpuThread, question: fn(&mut dyn Vcpu)) {
    let ask = || (0..400).for_each(|_| vcpu.with(question).unwrap());
    thread::scope(|scope| {
        (0..3).for_each(|_| drop(scope.spawn(ask)));
        for _ in 0..200 {
            vcpu.pause().unwrap();
            vcpu.resume().unwrap();
        }
    });
}

#[test]
fn no_request_under_load_is_lost() {
    each(|place| {
        let guest = at(place, true, counting()).into_thread();
        guest.thread.vcpu.resume().unwrap();
        pause_while_asked(&guest.thread.vcpu, |vcpu| {
            let rip = vcpu.regs().unwrap().rip;
            assert!((CODE..CODE + 16).contains(&rip));
        });
        assert!(guest.thread.still_runs());
    });
}

#[test]
fn a_paused_vcpu_stands_still_and_a_resumed_one_goes_on() {
    each(|place| {
        let guest = at(place, true, counting()).into_thread();
        let count = || {
            let mut word = [0; 8];
            guest.memory.read(Gpa(DATA), &mut word).unwrap();
            u64::from_le_bytes(word)
        };
        let mut last = 0;
        for _ in 0..20 {
            guest.thread.vcpu.resume().unwrap();
            let start = Instant::now();
            while count() == last {
                assert!(
                    start.elapsed() < limit(Duration::from_secs(10)),
                    "does not run"
                );
                thread::yield_now();
            }
            guest.thread.vcpu.pause().unwrap();
            last = count();
            thread::sleep(Duration::from_millis(1));
            assert_eq!(count(), last);
        }
    });
}

#[test]
fn a_spinning_guest_stops_at_once() {
    each(|place| {
        for user in [false, true] {
            let guest = at(place, user, guest!("2: jmp 2b")).into_thread();
            guest.thread.vcpu.resume().unwrap();
            thread::sleep(Duration::from_millis(5));
            let start = Instant::now();
            guest.thread.vcpu.finish().unwrap();
            let took = start.elapsed();
            assert!(took < limit(Duration::from_millis(500)), "{took:?}");
            let after = guest.thread.vcpu.resume();
            assert!(matches!(after, Err(EngineError::Ended { id: 0 })));
        }
    });
}

/// The thread may be on its way to wait still; then it drops the vCPU itself.
#[test]
fn a_waiting_vcpu_is_dropped_by_who_ends_it() {
    each(|place| {
        for _ in 0..50 {
            let guest = at(place, true, counting()).into_thread();
            guest.thread.vcpu.resume().unwrap();
            guest.thread.vcpu.pause().unwrap();
            let kicker = guest.thread.vcpu.with(|vcpu| vcpu.kicker()).unwrap();
            guest.thread.vcpu.ask_finish().wait();
            let dropped = [(); 2].map(|()| guest.thread.vcpu.drop_waiting());
            assert!(dropped != [true; 2], "one vCPU was dropped twice");
            kicker.kick();
            let after = guest.thread.vcpu.with(|_| ());
            assert!(matches!(after, Err(EngineError::Ended { id: 0 })));
        }
    });
}

#[test]
fn a_halted_guest_stops_at_once() {
    each(|place| {
        let mut guest = Guest::with_irqchip(place);
        guest.load(guest!("cli", "hlt"));
        let guest = guest.into_thread();
        guest.thread.vcpu.resume().unwrap();
        thread::sleep(Duration::from_millis(5));
        let start = Instant::now();
        guest.thread.vcpu.finish().unwrap();
        assert!(start.elapsed() < limit(Duration::from_millis(500)));
    });
}

/// Two vCPU threads of two VMs, kicked alternately: a kick reaches its own vCPU only.
#[test]
fn a_kick_reaches_its_own_vcpu() {
    each(|place| {
        let spinning: Vec<_> = (0..2)
            .map(|_| at(place, true, guest!("2: jmp 2b")).into_thread())
            .collect();
        let threads: Vec<&Thread> = spinning.iter().map(|guest| &guest.thread).collect();
        threads
            .iter()
            .for_each(|thread| thread.vcpu.resume().unwrap());
        for round in 0..60 {
            let thread = threads[round % 2];
            thread.vcpu.pause().unwrap();
            thread.vcpu.resume().unwrap();
        }
        assert!(threads.iter().all(|thread| thread.still_runs()));
    });
}
