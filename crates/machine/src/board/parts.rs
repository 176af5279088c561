//! The devices of the board and their places.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmlet_bus::{Device, IoSpace, IrqLine, MsiSink, SpaceError};
use vmlet_devices::{
    debugport::DebugPort,
    ioapic::IoApic,
    power::{PmTimer, SleepControl},
    pvpanic::PvPanic,
    reset::{KeyboardController, ResetControl},
    rtc::Rtc,
    serial::{SerialOut, SerialPort},
};
use vmlet_memory::AddressSpace;
use vmlet_vcpu::Vm;

use super::{
    Dispatch, ExitReport, Interrupts,
    exits::Exits,
    interrupts::IOAPIC_REQUESTER,
    layout::{
        IOAPIC, IRQ_COM1, PORT_COM1, PORT_DEBUG, PORT_KEYBOARD, PORT_PM_TIMER, PORT_PVPANIC,
        PORT_RESET, PORT_RTC, PORT_SLEEP, PciLayout, low_bytes,
    },
    pci::{PciBus, Surroundings},
    time::time_of,
};

/// The assembled board.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) dispatch: Dispatch,
    pub(crate) serial: Arc<SerialPort>,
    /// None on a board without root ports.
    pub(crate) pci: Option<PciBus>,
    /// In the order of the vCPUs.
    exits: Mutex<Vec<Arc<Exits>>>,
}

impl Board {
    /// Assembles the board of `vm` with `memory` bytes and its console; with a debug port where
    /// that has an output, and a PCI bus where it has a layout.
    pub(crate) fn new(
        vm: Arc<dyn Vm>,
        memory: u64,
        console: Box<dyn SerialOut>,
        debug: Option<Box<dyn SerialOut>>,
        pci: Option<(&PciLayout, Arc<AddressSpace>)>,
    ) -> Result<Board, SpaceError> {
        let time = time_of(&vm);
        let sink: Arc<dyn MsiSink> = Arc::new(Interrupts::new(Arc::clone(&vm)));
        let ioapic = Arc::new(IoApic::new(Arc::clone(&sink), IOAPIC_REQUESTER));
        let line: Arc<dyn IrqLine> = ioapic.pin(usize::from(IRQ_COM1));
        let serial = Arc::new(SerialPort::new(line, console));
        let (ports, mmio) = (IoSpace::new(), Arc::new(IoSpace::new()));
        let low = low_bytes(memory);
        let rtc = Arc::new(Rtc::with_time(low, memory - low, Arc::clone(&time)));
        let placed: [(u64, u64, Arc<dyn Device>); 7] = [
            (PORT_RTC, Rtc::LEN, rtc),
            (PORT_KEYBOARD, 1, Arc::new(KeyboardController)),
            (
                PORT_COM1.into(),
                SerialPort::LEN,
                Arc::clone(&serial) as Arc<dyn Device>,
            ),
            (PORT_PVPANIC.into(), PvPanic::LEN, Arc::new(PvPanic)),
            (PORT_SLEEP.into(), SleepControl::LEN, Arc::new(SleepControl)),
            (
                PORT_PM_TIMER.into(),
                PmTimer::LEN,
                Arc::new(PmTimer::new(time)),
            ),
            (PORT_RESET.into(), 1, Arc::new(ResetControl::default())),
        ];
        for (start, len, device) in placed {
            ports.add(start, len, device)?;
        }
        mmio.add(IOAPIC, IoApic::LEN, Arc::clone(&ioapic) as Arc<dyn Device>)?;
        if let Some(out) = debug {
            let port = Arc::new(DebugPort::new(out));
            ports.add(PORT_DEBUG.into(), DebugPort::LEN, port)?;
        }
        let pci = match pci {
            Some((layout, memory)) => {
                let around = Surroundings {
                    vm,
                    memory,
                    mmio: &mmio,
                    sink,
                    ioapic: &ioapic,
                };
                Some(PciBus::new(layout, around)?)
            }
            None => None,
        };
        let dispatch = Dispatch::new(Arc::new(ports), mmio, ioapic);
        Ok(Board {
            dispatch,
            serial,
            pci,
            exits: Mutex::default(),
        })
    }

    /// The way of the next vCPU to the board, which counts its exits.
    pub(crate) fn connect(&self) -> Dispatch {
        let exits = Arc::new(Exits::default());
        self.exits().push(Arc::clone(&exits));
        self.dispatch.counting(exits)
    }

    /// The exits of vCPU number `vcpu`.
    pub(crate) fn exits_of(&self, vcpu: usize) -> Option<ExitReport> {
        self.exits().get(vcpu).map(|exits| exits.report())
    }

    fn exits(&self) -> MutexGuard<'_, Vec<Arc<Exits>>> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
