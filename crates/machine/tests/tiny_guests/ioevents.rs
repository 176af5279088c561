//! Rows: guest writes that signal an eventfd.

use vmlet_vcpu::{EngineError, IoEvent, SpaceId};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::harness::{Guest, MMIO, each};

fn event(space: SpaceId, addr: u64, len: u32, value: Option<u64>) -> IoEvent {
    IoEvent {
        space,
        addr,
        len,
        value,
    }
}

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

/// Signals since the last call.
fn signals(fd: &EventFd) -> u64 {
    fd.read().unwrap_or(0)
}

#[test]
fn a_port_write_of_the_right_width_signals_and_nothing_else() {
    each(|place| {
        let mut guest = Guest::new(place);
        let fd = eventfd();
        let event = event(SpaceId::PORT, 0x700, 2, None);
        guest.vm.attach_ioevent(&fd, &event).unwrap();
        let code = guest!(
            "mov edx, 0x700",
            "out dx, ax",
            "out dx, ax",
            "out dx, al",
            "in ax, dx",
            "out 0xf4, al"
        );
        guest.load(code);
        guest.finish();
        assert_eq!(signals(&fd), 2);
        // The byte and the read reach the board.
        assert_eq!(guest.bus.seen.len(), 2);
        guest.vm.detach_ioevent(&fd, &event).unwrap();
        guest.load(code);
        guest.finish();
        assert_eq!((signals(&fd), guest.bus.seen.len()), (0, 6));
    });
}

#[test]
fn a_memory_write_of_the_right_value_signals() {
    each(|place| {
        for user in [false, true] {
            let mut guest = Guest::new(place);
            let (fd, other) = (eventfd(), eventfd());
            let five = event(SpaceId::MMIO, MMIO, 4, Some(5));
            let six = event(SpaceId::MMIO, MMIO, 4, Some(6));
            guest.vm.attach_ioevent(&fd, &five).unwrap();
            guest.vm.attach_ioevent(&other, &six).unwrap();
            if user {
                guest.enter_user();
            }
            guest.load(guest!(
                "mov ebx, 0xd0000000",
                "mov dword ptr [rbx], 5",
                "mov dword ptr [rbx], 6",
                "mov dword ptr [rbx], 5",
                "mov dword ptr [rbx], 7",
                "mov word ptr [rbx], 5",
                "mov [r15], eax"
            ));
            guest.finish();
            assert_eq!((signals(&fd), signals(&other)), (2, 1));
            let left = [(MMIO, vec![7, 0, 0, 0]), (MMIO, vec![5, 0])];
            assert_eq!(guest.bus.writes(), left);
        }
    });
}

#[test]
fn an_event_of_length_0_takes_every_width() {
    each(|place| {
        for user in [false, true] {
            let mut guest = Guest::new(place);
            let fd = eventfd();
            let any = event(SpaceId::MMIO, MMIO, 0, None);
            guest.vm.attach_ioevent(&fd, &any).unwrap();
            if user {
                guest.enter_user();
            }
            guest.load(guest!(
                "mov ebx, 0xd0000000",
                "mov [rbx], al",
                "mov [rbx], ax",
                "mov [rbx], eax",
                "mov [rbx], rax",
                "mov [rbx + 8], eax",
                "mov [r15], eax"
            ));
            guest.finish();
            assert_eq!((signals(&fd), guest.bus.writes().len()), (4, 1));
        }
    });
}

#[test]
fn the_same_event_twice_is_refused() {
    each(|place| {
        let guest = Guest::new(place);
        let event = event(SpaceId::MMIO, MMIO, 4, None);
        guest.vm.attach_ioevent(&eventfd(), &event).unwrap();
        let refused = guest.vm.attach_ioevent(&eventfd(), &event).unwrap_err();
        assert!(matches!(refused, EngineError::Call { .. }), "{refused:?}");
    });
}
