//! Rows: a PCIe bus, by memory accesses alone: config space, BARs, MSI-X, INTx, hot-plug.

use std::{io, sync::Arc, sync::Mutex};

use vmlet_bus::{Device, Doorbell, Doorbells, IrqLine, Msi, MsiRoute, MsiSink, RequesterId};
use vmlet_devices::ioapic::IoApic;
use vmlet_pci::{
    Ecam, Function, Plug, Root,
    testing::{Board, ID, Nobody, Probe},
};
use vmlet_vcpu::{IoEvent, MsiMessage, MsiRoute as Route, SpaceId, Vm};
use vmm_sys_util::eventfd::EventFd;

use crate::harness::{
    DATA, Guest, Place,
    bus::Seen,
    each,
    memory::TABLES,
    paging::{ALL, Tables},
    segments,
};

const ECAM: u64 = 0xe000_0000;
const BARS: u64 = 0xc000_0000;
const IOAPIC: u64 = 0xfec0_0000;
/// A write to this port puts the function into its slot.
const PLUG: u64 = 0x80;

/// Hands messages to the engine.
#[derive(Clone, Debug)]
struct Sink(Arc<dyn Vm>);

#[derive(Debug)]
struct Way(Arc<dyn Vm>, Mutex<Option<Msi>>);

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
        let route = |(gsi, msi): (u32, &Option<Msi>)| {
            let message = message((*msi)?);
            Some(Route { gsi, message })
        };
        let routes: Vec<_> = (0..).zip(pins).filter_map(route).collect();
        self.0.set_routes(&routes).unwrap();
    }

    fn route(&self, _: RequesterId) -> Arc<dyn MsiRoute> {
        Arc::new(Way(Arc::clone(&self.0), Mutex::default()))
    }
}

impl MsiRoute for Way {
    fn set(&self, msi: Option<Msi>) {
        *self.1.lock().unwrap() = msi;
    }

    fn trigger(&self) {
        if let Some(msi) = *self.1.lock().unwrap() {
            assert!(self.0.signal_msi(message(msi)).unwrap());
        }
    }

    fn eventfd(&self) -> io::Result<EventFd> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A guest with a bus of two root ports, and a probe in the first: from the start, or once the
/// guest writes to [`PLUG`].
fn with_bus(place: &Place, plug: Plug) -> Guest {
    with_function(place, Arc::new(Probe::default()), plug)
}

/// Doorbells at the engine.
#[derive(Debug)]
struct Bells(Arc<dyn Vm>);

impl Bells {
    fn event(bell: &Doorbell) -> IoEvent {
        IoEvent {
            space: SpaceId::MMIO,
            addr: bell.addr,
            len: bell.len,
            value: bell.value,
        }
    }
}

impl Doorbells for Bells {
    fn attach(&self, bell: &Doorbell, fd: &EventFd) -> io::Result<()> {
        let done = self.0.attach_ioevent(fd, &Bells::event(bell));
        done.map_err(io::Error::other)
    }

    fn detach(&self, bell: &Doorbell, fd: &EventFd) {
        self.0.detach_ioevent(fd, &Bells::event(bell)).unwrap();
    }
}

/// As [`with_bus`], with `function` in the slot and doorbells at the engine.
pub(crate) fn with_function(place: &Place, function: Arc<dyn Function>, plug: Plug) -> Guest {
    let mut guest = Guest::with_irqchip(place);
    let mut tables = Tables::new(&guest.memory, TABLES);
    for page in [BARS, ECAM, ECAM + 0x20_0000] {
        tables.large(page, page, ALL);
    }
    let board = Board::new(Arc::clone(&guest.memory));
    let sink = Sink(Arc::clone(&guest.vm));
    let ioapic = Arc::new(IoApic::new(Arc::new(sink.clone()), RequesterId(0xf8)));
    let pin = |pin| ioapic.pin(pin) as Arc<dyn IrqLine>;
    let mut wiring = board.wiring();
    wiring.doorbells = Arc::new(Bells(Arc::clone(&guest.vm)));
    (wiring.sink, wiring.lines) = (Arc::new(sink), (16..24).map(pin).collect());
    let root = Root::new(wiring, 2);
    let mmio = Arc::clone(&board.mmio);
    let ecam = Arc::new(Ecam::new(&root));
    mmio.add(ECAM, Root::ECAM_BYTES, ecam).unwrap();
    mmio.add(IOAPIC, IoApic::LEN, Arc::clone(&ioapic) as Arc<dyn Device>)
        .unwrap();
    let insert = move || {
        let function = Arc::clone(&function);
        root.plug(function, Some(1), plug).unwrap();
    };
    if plug == Plug::Cold {
        insert();
    }
    guest.bus.on_end = Some(Box::new(move |vector| ioapic.end_of_interrupt(vector)));
    guest.bus.hook = Some(Box::new(move |seen| match seen {
        Seen::Write(SpaceId::PORT, PLUG, _) => {
            insert();
            None
        }
        Seen::Write(SpaceId::MMIO, at, data) => {
            mmio.write(&Nobody, *at, data);
            None
        }
        Seen::Read(SpaceId::MMIO, at, data) => {
            let mut answer = data.clone();
            mmio.read(&Nobody, *at, &mut answer);
            Some(answer)
        }
        _ => None,
    }));
    guest
}

/// Counts in R9, writes R11 to the address in R10, ends the interrupt.
pub(crate) fn handler(guest: &Guest, vector: u64) {
    let code = guest!(
        "inc r9",
        "mov [r10], r11d",
        "mov dword ptr [rbx + 0xb0], 0",
        "iretq"
    );
    guest.write(DATA, code);
    segments::set_gate(&guest.memory, vector, DATA, 0);
}

#[test]
fn config_space_and_bars_are_reached_by_memory_accesses_of_every_width() {
    each(|place| {
        let mut guest = with_bus(place, Plug::Cold);
        guest.load(guest!(
            "mov ebx, 0xe0100000",
            "mov eax, [rbx]",
            "movzx ecx, byte ptr [rbx + 0xb]",
            "movzx ebp, word ptr [rbx + 2]",
            "mov dword ptr [rbx + 0x10], 0xffffffff",
            "mov edx, [rbx + 0x10]",
            "mov dword ptr [rbx + 0x10], 0xc0002000",
            "mov word ptr [rbx + 4], 6",
            "mov esi, 0xc0002000",
            "mov edi, [rsi]",
            "mov dword ptr [rsi + 4], 0x55aa",
            "mov r8d, [rsi + 4]",
            "mov r10d, [rbx + 0x100000]",
            "mov [r15], eax"
        ));
        let regs = guest.finish();
        let (id, class, device) = (regs.rax, regs.rcx, regs.rbp);
        assert_eq!((id, class, device), (0x0bed_1234, 0xff, 0x0bed));
        assert_eq!((regs.rdx, regs.rdi), (0xffff_f000, u64::from(ID)));
        assert_eq!((regs.r8, regs.r10), (0x55aa, 0xffff_ffff));
    });
}

#[test]
fn a_msix_vector_arrives_and_one_that_came_while_masked_arrives_when_unmasked() {
    each(|place| {
        let mut guest = with_bus(place, Plug::Cold);
        handler(&guest, 0x51);
        guest.load(guest!(
            "mov ebx, 0xfee00000",
            "mov dword ptr [rbx + 0xf0], 0x1ff",
            "mov esi, 0xe0100000",
            "mov word ptr [rsi + 4], 6",
            "mov word ptr [rsi + 0x86], 0x8000",
            "mov edi, 0xc0001000",
            "mov dword ptr [rdi + 16], 0xfee00000",
            "mov dword ptr [rdi + 24], 0x51",
            "mov dword ptr [rdi + 28], 0",
            "mov r10d, 0x20800",
            "sti",
            "mov ecx, 0xc0000000",
            "mov dword ptr [rcx + 8], 1",
            "2: cmp r9, 1",
            "jb 2b",
            "mov dword ptr [rdi + 28], 1",
            "mov dword ptr [rcx + 8], 1",
            "mov ebp, [rdi + 64]",
            "mov r12, r9",
            "mov dword ptr [rdi + 28], 0",
            "3: cmp r9, 2",
            "jb 3b",
            "mov edx, [rdi + 64]",
            "mov [r15], eax"
        ));
        let regs = guest.finish();
        let (pending, while_masked, after) = (regs.rbp, regs.r12, regs.rdx);
        assert_eq!((pending, while_masked, after), (2, 1, 0));
        assert_eq!(regs.r9, 2);
    });
}

/// The probe's INTA is its port's: number 1, pin 17.
#[test]
fn a_line_interrupts_once_each_time_that_the_function_raises_and_lowers_it() {
    each(|place| {
        let mut guest = with_bus(place, Plug::Cold);
        handler(&guest, 0x52);
        guest.load(guest!(
            "mov ebx, 0xfee00000",
            "mov dword ptr [rbx + 0xf0], 0x1ff",
            "mov esi, 0xfec00000",
            "mov dword ptr [rsi], 0x32",
            "mov dword ptr [rsi + 0x10], 0x8052",
            "mov esi, 0xe0100000",
            "mov word ptr [rsi + 4], 6",
            "mov ecx, 0xc0000000",
            "lea r10, [rcx + 0xc]",
            "sti",
            "mov dword ptr [rcx + 0xc], 1",
            "2: cmp r9, 1",
            "jb 2b",
            "mov dword ptr [rcx + 0xc], 1",
            "3: cmp r9, 2",
            "jb 3b",
            "mov eax, 20000",
            "4: dec eax",
            "jnz 4b",
            "movzx edx, word ptr [rsi + 6]",
            "mov [r15], eax"
        ));
        let regs = guest.finish();
        let told = (regs.r9, regs.rdx & 8, guest.bus.ended.as_slice());
        assert_eq!(told, (2, 0, [0x52, 0x52].as_slice()));
    });
}

#[test]
fn a_function_plugged_in_while_the_guest_runs_is_told_by_its_ports_message() {
    each(|place| {
        let mut guest = with_bus(place, Plug::Hot);
        handler(&guest, 0x53);
        guest.load(guest!(
            "mov ebx, 0xfee00000",
            "mov dword ptr [rbx + 0xf0], 0x1ff",
            "mov esi, 0xe0008000",
            "mov dword ptr [rsi + 0x88], 0xfee00000",
            "mov word ptr [rsi + 0x90], 0x53",
            "mov word ptr [rsi + 0x86], 1",
            "mov word ptr [rsi + 0x60], 0x1329",
            "mov edi, 0xe0100000",
            "mov ebp, [rdi]",
            "mov r10d, 0x20800",
            "sti",
            "out 0x80, al",
            "2: cmp r9, 1",
            "jb 2b",
            "movzx edx, word ptr [rsi + 0x62]",
            "mov word ptr [rsi + 0x62], dx",
            "movzx ecx, word ptr [rsi + 0x62]",
            "mov edi, [rdi]",
            "mov [r15], eax"
        ));
        let regs = guest.finish();
        let (before, after) = (regs.rbp, regs.rdi);
        assert_eq!((before, after), (0xffff_ffff, 0x0bed_1234));
        let (events, left) = (regs.rdx, regs.rcx);
        assert_eq!((events, left, regs.r9), (0x148, 0x40, 1));
    });
}
