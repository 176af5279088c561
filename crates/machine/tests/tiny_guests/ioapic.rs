//! Rows: interrupts through our own I/O APIC on the engine's local APICs.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use vmlet_bus::{self as bus, Device, IrqLine, Msi, MsiSink, RequesterId};
use vmlet_devices::ioapic::IoApic;
use vmlet_vcpu::{MsiMessage, MsiRoute, SpaceId, Vm};

use crate::harness::{DATA, Guest, Place, bus::Seen, each, segments};

const IOAPIC: u64 = 0xfec0_0000;
/// The guest's word that it waits.
const READY: u64 = 0x80;
/// The guest's word to the device that its interrupt is being served.
const SERVED: u64 = 0x81;

/// Hands messages to the engine as the board does.
#[derive(Debug)]
struct Sink(Arc<dyn Vm>);

fn message(msi: Msi) -> MsiMessage {
    MsiMessage {
        address: msi.address,
        data: msi.data,
    }
}

impl MsiSink for Sink {
    fn send(&self, _: RequesterId, msi: Msi) {
        assert!(self.0.signal_msi(message(msi)).unwrap());
    }

    fn level_pins(&self, _: RequesterId, pins: &[Option<Msi>]) {
        let routes: Vec<_> = (0..)
            .zip(pins)
            .filter_map(|(gsi, msi)| {
                msi.map(|msi| MsiRoute {
                    gsi,
                    message: message(msi),
                })
            })
            .collect();
        self.0.set_routes(&routes).unwrap();
    }

    fn route(&self, _: RequesterId) -> Arc<dyn bus::MsiRoute> {
        unreachable!("an I/O APIC sends by its pins")
    }
}

/// The context of an access to the I/O APIC, which looks at none of it.
struct Anywhere;

impl bus::AccessContext for Anywhere {
    fn vcpu(&self) -> u32 {
        0
    }

    fn rip(&self) -> u64 {
        0
    }

    fn instructions(&self) -> Option<u64> {
        None
    }
}

/// What `attempt` comes to where the engine tells what the guest does in the guest's order: a KVM that
/// interprets supervisor code tells of an interrupt's end before the port that was written first,
/// once in some hundred times.
fn in_order<T>(mut attempt: impl FnMut() -> (T, Arc<AtomicBool>)) -> T {
    let mut results = (0..5).map(|_| attempt());
    let sound = results.find(|(_, disorder)| !disorder.load(Ordering::Relaxed));
    sound.expect("five times in another order").0
}

/// A guest with an I/O APIC; `port` sees the ports it writes. True in the end: the engine told of an
/// interrupt's end before its handler told the device.
fn with_ioapic(
    place: &Place,
    mut port: impl FnMut(u64, &Arc<IoApic>) + Send + 'static,
) -> (Guest, Arc<AtomicBool>) {
    let disorder = Arc::<AtomicBool>::default();
    let (told, served) = (Arc::clone(&disorder), Arc::<AtomicUsize>::default());
    let (counted, mut ended) = (Arc::clone(&served), 0);
    let mut guest = Guest::with_irqchip(place);
    let sink = Arc::new(Sink(Arc::clone(&guest.vm)));
    let ioapic = Arc::new(IoApic::new(sink, RequesterId(0xf8)));
    let ends = Arc::clone(&ioapic);
    guest.bus.on_end = Some(Box::new(move |vector| {
        ended += 1;
        told.fetch_or(ended > counted.load(Ordering::Relaxed), Ordering::Relaxed);
        ends.end_of_interrupt(vector);
    }));
    guest.bus.hook = Some(Box::new(move |seen| match seen {
        Seen::Write(SpaceId::PORT, at, _) => {
            served.fetch_add(usize::from(*at == SERVED), Ordering::Relaxed);
            port(*at, &ioapic);
            None
        }
        Seen::Write(SpaceId::MMIO, at, data) if *at >= IOAPIC => {
            ioapic.write(&Anywhere, at - IOAPIC, data);
            None
        }
        Seen::Read(SpaceId::MMIO, at, data) if *at >= IOAPIC => {
            let mut answer = data.clone();
            ioapic.read(&Anywhere, at - IOAPIC, &mut answer);
            Some(answer)
        }
        _ => None,
    }));
    (guest, disorder)
}

/// Counts in R9, tells the device, ends the interrupt.
fn handler(guest: &Guest, vector: u64) {
    let code = guest!(
        "inc r9",
        "out 0x81, al",
        "mov dword ptr [rbx + 0xb0], 0",
        "iretq"
    );
    guest.write(DATA, code);
    segments::set_gate(&guest.memory, vector, DATA, 0);
}

/// Programs pin 5 (low half in EDI), says that it is ready, waits for R8 interrupts and then a
/// while for one too many.
fn waiting() -> &'static [u8] {
    guest!(
        "mov ebx, 0xfee00000",
        "mov dword ptr [rbx + 0xf0], 0x1ff",
        "mov esi, 0xfec00000",
        "mov dword ptr [rsi], 0x1a",
        "mov [rsi + 0x10], edi",
        "sti",
        "out 0x80, al",
        "2: cmp r9, r8",
        "jb 2b",
        "mov ecx, 2000",
        "3: loop 3b",
        "mov eax, [rsi + 0x10]",
        "mov [r15], eax"
    )
}

fn start(guest: &mut Guest, entry: u64, count: u64) {
    guest.load(waiting());
    let mut regs = guest.vcpu.regs().unwrap();
    (regs.rdi, regs.r8) = (entry, count);
    guest.vcpu.set_regs(&regs).unwrap();
}

#[test]
fn a_level_interrupt_whose_pin_is_high_after_its_end_arrives_twice() {
    each(|place| {
        let (regs, ended) = in_order(|| {
            let mut served = 0;
            let (mut guest, disorder) = with_ioapic(place, move |port, ioapic| {
                served += usize::from(port == SERVED);
                match (port, served) {
                    (READY, _) => ioapic.pin(5).set(true),
                    (SERVED, 2) => ioapic.pin(5).set(false),
                    _ => {}
                }
            });
            handler(&guest, 0x31);
            start(&mut guest, 0x8031, 2);
            ((guest.finish(), guest.bus.ended.clone()), disorder)
        });
        assert_eq!((regs.r9, ended), (2, vec![0x31, 0x31]));
        // Remote IRR is clear again.
        assert_eq!(regs.rax, 0x8031);
    });
}

#[test]
fn a_level_interrupt_whose_pin_falls_before_its_end_arrives_once() {
    each(|place| {
        let (regs, ended) = in_order(|| {
            let (mut guest, disorder) = with_ioapic(place, |port, ioapic| match port {
                READY => ioapic.pin(5).set(true),
                SERVED => ioapic.pin(5).set(false),
                _ => {}
            });
            handler(&guest, 0x32);
            start(&mut guest, 0x8032, 1);
            ((guest.finish(), guest.bus.ended.clone()), disorder)
        });
        assert_eq!((regs.r9, ended), (1, vec![0x32]));
    });
}

#[test]
fn an_edge_arrives_once_and_its_end_is_not_reported() {
    each(|place| {
        let (mut guest, _) = with_ioapic(place, |port, ioapic| {
            if port == READY {
                ioapic.pin(5).set(true);
            }
        });
        handler(&guest, 0x33);
        start(&mut guest, 0x33, 1);
        assert_eq!((guest.finish().r9, guest.bus.ended.len()), (1, 0));
    });
}

#[test]
fn a_masked_level_pin_arrives_when_it_is_unmasked() {
    each(|place| {
        let (regs, ended) = in_order(|| {
            let mut served = false;
            let (mut guest, disorder) = with_ioapic(place, move |port, ioapic| match port {
                READY if !served => {
                    ioapic.pin(5).set(true);
                    served = true;
                }
                SERVED => ioapic.pin(5).set(false),
                _ => {}
            });
            handler(&guest, 0x34);
            start(&mut guest, 0x1_8034, 0);
            assert_eq!(guest.finish().r9, 0);
            start(&mut guest, 0x8034, 1);
            ((guest.finish(), guest.bus.ended.clone()), disorder)
        });
        assert_eq!((regs.r9, ended), (1, vec![0x34]));
    });
}
