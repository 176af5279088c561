//! A machine with root ports, and probes in them.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use vmlet_machine::{
    ClockChoice, Config, EngineChoice, ErrorKind, EventKind, Machine, MachineError, PciError,
    ProtocolChoice,
    pci::{Function, testing::Probe},
};

/// Where the guest's code lies.
const ENTRY: u32 = 0x10_0000;

fn start_thread(name: String, body: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    thread::Builder::new().name(name).spawn(body).map(drop)
}

/// 32-bit code that enables memory of the function behind port 1, writes 0x1234 to its scratch
/// register and halts.
fn code() -> Vec<u8> {
    let store = |address: u32, value: u32| {
        let mut code = vec![0xc7, 0x05];
        code.extend(address.to_le_bytes());
        code.extend(value.to_le_bytes());
        code
    };
    let mut code = store(0xe010_0004, 6);
    code.extend(store(0xc000_0004, 0x1234));
    // 1: hlt; jmp 1b
    code.extend([0xf4, 0xeb, 0xfd]);
    code
}

/// An ELF file with a PVH note.
fn kernel() -> Vec<u8> {
    let code = code();
    let mut note = Vec::new();
    for word in [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), ENTRY] {
        note.extend(word.to_le_bytes());
    }
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for word in [u64::from(ENTRY), 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let (code_at, note_at) = (64 + 2 * 56, 64 + 2 * 56 + code.len() as u64);
    for (kind, flags, at, address, len) in [
        (1u32, 7u32, code_at, u64::from(ENTRY), code.len() as u64),
        (4, 4, note_at, 0, note.len() as u64),
    ] {
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        for word in [at, address, address, len, len, 4] {
            file.extend(u64::to_le_bytes(word));
        }
    }
    [file, code, note].concat()
}

fn config(pci_ports: u8) -> Config {
    Config {
        kernel: kernel().into(),
        memory: 2 << 20,
        cpus: 1,
        engine: EngineChoice::Soft,
        protocol: ProtocolChoice::Pvh,
        console_limit: 1 << 16,
        pci_ports,
        ..Config::default()
    }
}

fn machine(pci_ports: u8) -> Machine {
    Machine::new(&config(pci_ports), &start_thread).unwrap()
}

fn probe() -> (Arc<Probe>, Arc<dyn Function>) {
    let probe = Arc::new(Probe::default());
    (Arc::clone(&probe), probe)
}

/// Waits until the guest has written.
fn wait(probe: &Probe) {
    let start = Instant::now();
    while probe.scratch() != 0x1234 {
        assert!(start.elapsed() < Duration::from_secs(60));
        thread::yield_now();
    }
}

#[test]
fn before_the_start_devices_come_and_go_at_once() {
    let machine = machine(2);
    let (device, function) = probe();
    assert_eq!(machine.attach(function, None).unwrap(), 1);
    assert_eq!(machine.attach(probe().1, Some(2)).unwrap(), 2);
    let full = machine.attach(probe().1, None).unwrap_err();
    assert!(matches!(
        full,
        MachineError::Device(PciError::Full { count: 2 })
    ));
    assert_eq!(machine.devices().unwrap(), [(1, "probe"), (2, "probe")]);
    machine.begin_detach(1).unwrap();
    assert!(machine.end_detach(1, Duration::ZERO).unwrap());
    assert!(device.is_unplugged());
    let empty = machine.pull(1).unwrap_err();
    assert!(matches!(
        empty,
        MachineError::Device(PciError::Empty { port: 1 })
    ));
}

#[test]
fn a_machine_without_root_ports_takes_no_device_and_says_what_would() {
    let error = machine(0).attach(probe().1, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::State);
    assert!(error.remedy().unwrap().contains("pci_ports"));
}

#[test]
fn a_guest_reaches_a_device_where_firmware_put_it_and_is_not_asked_when_it_is_pulled() {
    let machine = machine(1);
    let (device, function) = probe();
    machine.attach(function, None).unwrap();
    machine.start().unwrap();
    wait(&device);
    // This guest does not know of hot-plug.
    machine.begin_detach(1).unwrap();
    assert!(!machine.end_detach(1, Duration::from_millis(10)).unwrap());
    machine.pull(1).unwrap();
    assert!(machine.end_detach(1, Duration::ZERO).unwrap() && device.is_unplugged());
    machine.attach(probe().1, Some(1)).unwrap();
    machine.stop().unwrap();
    let over = machine.attach(probe().1, None).unwrap_err();
    assert!(matches!(over, MachineError::State { .. }));
}

#[test]
fn a_restored_machine_goes_on_once_its_devices_are_back_with_their_state() {
    let machine = machine(3);
    let (device, function) = probe();
    machine.attach(function, Some(1)).unwrap();
    machine.attach(probe().1, Some(3)).unwrap();
    machine.start().unwrap();
    wait(&device);
    machine.pause().unwrap();
    let saved = machine.save().unwrap();
    let other = Machine::restore(&saved, &config(0), &[], &start_thread).unwrap();
    let missing = other.missing_devices().unwrap();
    assert_eq!(missing, [(1, "probe".to_owned()), (3, "probe".to_owned())]);
    let refused = other.start().unwrap_err();
    assert!(matches!(
        refused,
        MachineError::MissingDevice { port: 1, .. }
    ));
    let (device, function) = probe();
    other.attach(function, Some(1)).unwrap();
    assert_eq!(device.scratch(), 0x1234);
    // A device of a kind that is to come back takes its place, and the next one a free port.
    assert_eq!(other.attach(probe().1, None).unwrap(), 3);
    assert_eq!(other.attach(probe().1, None).unwrap(), 2);
    other.start().unwrap();
    other.pause().unwrap();
    let again = Machine::restore(&other.save().unwrap(), &config(0), &[], &start_thread).unwrap();
    assert_eq!(again.missing_devices().unwrap().len(), 3);
}

#[test]
fn in_a_counted_run_devices_come_and_go_while_it_stands_still() {
    let config = Config {
        clock: ClockChoice::Icount,
        ..config(2)
    };
    let machine = Machine::new(&config, &start_thread).unwrap();
    let (device, function) = probe();
    machine.attach(function, None).unwrap();
    machine.start().unwrap();
    wait(&device);
    let running = machine.attach(probe().1, None).unwrap_err();
    assert!(matches!(
        running,
        MachineError::State {
            needed: "paused",
            ..
        }
    ));
    machine.pause().unwrap();
    assert_eq!(machine.attach(probe().1, None).unwrap(), 2);
    let events = std::iter::from_fn(|| machine.next_event(Duration::ZERO).unwrap());
    assert!(
        events
            .take(3)
            .all(|event| event.kind != EventKind::Detached)
    );
}
