//! On a tree of files whose kernel acts on what is written.

use std::{
    cell::{Cell, RefCell},
    fs, io,
    ops::Deref,
    os::unix::fs::symlink,
    path::Path,
    process,
};

use vmlet_host::{PciAddress, PciDevice};

use super::{
    lifecycle::{PhysicalFunction, VfRequest},
    note::{Lock, Note},
    nvme::{AdminCommand, AdminQueue},
};
use crate::{VfioError, noted::Noted, sysfs::Attributes, testing::Tree};

mod nvme;

const PF: &str = "0000:01:00.0";
/// A network card's.
const CLASS: &str = "0x020000";
const TWO: VfRequest = VfRequest {
    count: 2,
    bind: true,
    lent: false,
    queues: None,
    interrupts: None,
};

fn vf(number: u32) -> String {
    format!("0000:01:10.{number}")
}

/// A host with one card.
struct Host {
    tree: Tree,
    /// Its driver makes no virtual functions, or one too few.
    unable: Cell<bool>,
    short: Cell<bool>,
    /// The process is killed at this write.
    killed_at: Cell<Option<usize>>,
    writes: RefCell<Vec<String>>,
    /// The card is an NVMe controller.
    controller: RefCell<Option<nvme::Controller>>,
}

impl Host {
    fn new() -> Host {
        Host::with(["0x8086", "0x10c9", CLASS], "igb")
    }

    fn with(ids: [&str; 3], driver: &str) -> Host {
        let host = Host {
            tree: Tree::new(),
            unable: Cell::new(false),
            short: Cell::new(false),
            killed_at: Cell::new(None),
            writes: RefCell::default(),
            controller: RefCell::default(),
        };
        host.function(PF, ids, 11);
        for (name, text) in [
            ("sriov_totalvfs", "7\n"),
            ("sriov_numvfs", "0\n"),
            ("sriov_drivers_autoprobe", "1\n"),
        ] {
            host.file(&format!("sys/bus/pci/devices/{PF}/{name}"), text);
        }
        host.set_driver(PF, Some(driver));
        host.file("sys/bus/pci/drivers/vfio-pci/bind", "");
        let id = process::id();
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
        host.file(&format!("proc/{id}/stat"), &stat);
        host
    }

    fn value(&self, name: &str) -> String {
        let path = self.path(&format!("sys/bus/pci/devices/{PF}/{name}"));
        fs::read_to_string(path).unwrap().trim().to_owned()
    }

    fn run<T>(&self, work: impl FnOnce(&PhysicalFunction<'_>) -> T) -> T {
        let root = self.root();
        work(&PhysicalFunction::new(&root, PF.parse().unwrap(), self))
    }

    fn create(&self, request: VfRequest) -> Result<Vec<PciAddress>, VfioError> {
        self.run(|card| card.create(request))
    }

    /// A process that was killed at its write of this number, counted from 0.
    fn killed(&self, at: usize, work: impl FnOnce(&PhysicalFunction<'_>)) {
        self.killed_at.set(Some(self.writes.borrow().len() + at));
        self.run(work);
        self.killed_at.set(None);
        self.forge_owner();
    }

    /// The note is one of a process that is gone.
    fn forge_owner(&self) {
        let path = Note::path(&self.root(), PF.parse().unwrap());
        let Ok(text) = fs::read_to_string(&path) else {
            return;
        };
        let id = process::id();
        fs::write(
            path,
            text.replace(&format!("\"pid\":{id}"), "\"pid\":99999999"),
        )
        .unwrap();
    }

    /// What the kernel is asked for, unless the process has been killed.
    fn count(&self, what: String) -> io::Result<()> {
        let number = self.writes.borrow().len();
        if self.killed_at.get().is_some_and(|at| number >= at) {
            return Err(io::Error::other("killed"));
        }
        self.writes.borrow_mut().push(what);
        Ok(())
    }

    fn reset(&self) {
        assert_eq!(self.value("sriov_numvfs"), "0", "a reset takes them away");
        self.controller.borrow_mut().as_mut().unwrap().reset();
    }

    fn driver(&self, address: &str) -> Option<String> {
        let found = PciDevice::read(&self.root(), address.parse().unwrap());
        found.unwrap().driver
    }

    /// As it was before anything was done.
    fn assert_untouched(&self) {
        assert_eq!(self.value("sriov_numvfs"), "0");
        assert_eq!(self.value("sriov_drivers_autoprobe"), "1");
        let driver = self.controller.borrow().as_ref().map_or("igb", |_| "nvme");
        assert_eq!(self.driver(PF).as_deref(), Some(driver));
        assert!(!Note::path(&self.root(), PF.parse().unwrap()).exists());
        let bindings = fs::read_dir(self.path("run/vmlet/vfio"));
        assert_eq!(bindings.map_or(0, Iterator::count), 0);
    }

    fn enable(&self, count: u32) {
        for number in 0..count {
            let address = vf(number);
            self.function(&address, ["0x8086", "0x10ca", CLASS], 12 + number);
            symlink(
                format!("../{address}"),
                self.path(&format!("sys/bus/pci/devices/{PF}/virtfn{number}")),
            )
            .unwrap();
            if self.value("sriov_drivers_autoprobe") == "1" {
                self.set_driver(&address, Some("igbvf"));
            }
        }
    }

    fn disable(&self) {
        for number in 0..7 {
            let _ = fs::remove_dir_all(self.path(&format!("sys/bus/pci/devices/{}", vf(number))));
            let link = format!("sys/bus/pci/devices/{PF}/virtfn{number}");
            let _ = fs::remove_file(self.path(&link));
        }
    }
}

impl Deref for Host {
    type Target = Tree;

    fn deref(&self) -> &Tree {
        &self.tree
    }
}

impl Attributes for Host {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let name = self.name(path);
        self.count(format!("{name}={text}"))?;
        let address = name.split('/').nth(4).unwrap_or_default().to_owned();
        if name.ends_with("/sriov_numvfs") {
            if self.unable.get() {
                return Err(io::Error::from_raw_os_error(libc::ENOENT));
            }
            let count: u32 = text.parse().unwrap();
            if let Some(controller) = &mut *self.controller.borrow_mut() {
                controller.functions_change();
            }
            match count {
                0 => self.disable(),
                count if self.short.get() => self.enable(count - 1),
                count => self.enable(count),
            }
            self.file(name, text);
        } else if name.ends_with("/driver_override") {
            let kept = text.trim_end();
            self.file(name, if kept.is_empty() { "(null)" } else { kept });
        } else if name.ends_with("/unbind") {
            self.set_driver(&address, None);
        } else if name == "sys/bus/pci/drivers_probe" {
            let wanted = self.path(&format!("sys/bus/pci/devices/{text}/driver_override"));
            self.set_driver(text, Some(&fs::read_to_string(wanted).unwrap()));
        } else if name.ends_with("/reset") {
            self.reset();
        } else {
            self.file(name, text);
        }
        Ok(())
    }
}

impl AdminQueue for Host {
    fn admin(&self, file: &Path, command: AdminCommand, data: &mut [u8]) -> io::Result<u16> {
        assert_eq!(self.name(file), "dev/nvme0");
        if data.is_empty() {
            self.count(format!("{command:x?}"))?;
        }
        let mut controller = self.controller.borrow_mut();
        Ok(controller.as_mut().unwrap().admin(command, data))
    }
}

#[test]
fn virtual_functions_are_made_given_to_vfio_and_removed() {
    let host = Host::new();
    let made = host.create(TWO).unwrap();
    assert_eq!(
        made.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [vf(0), vf(1)]
    );
    assert_eq!(host.driver(&vf(1)).as_deref(), Some("vfio-pci"));
    assert_eq!(host.value("sriov_drivers_autoprobe"), "1");
    host.run(|card| card.remove()).unwrap();
    host.assert_untouched();
}

#[test]
fn they_have_no_driver_of_the_host_and_none_of_vfio_unless_asked_for() {
    let host = Host::new();
    host.create(VfRequest { bind: false, ..TWO }).unwrap();
    assert_eq!((host.driver(&vf(0)), host.driver(&vf(1))), (None, None));
    host.run(|card| card.remove()).unwrap();
    host.assert_untouched();
}

#[test]
fn a_count_that_cannot_be_is_refused_with_the_numbers() {
    let host = Host::new();
    for count in [0, 8, u32::MAX] {
        let error = host.create(VfRequest { count, ..TWO }).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("up to 7 virtual functions, not {count}")),
            "{error}"
        );
    }
    assert!(host.writes.borrow().is_empty());
    host.assert_untouched();
}

#[test]
fn a_function_without_sriov_and_one_without_a_driver_are_refused() {
    let host = Host::new();
    host.set_driver(PF, None);
    let error = host.create(TWO).unwrap_err();
    assert!(error.to_string().contains("no driver has it"), "{error}");
    fs::remove_file(host.path(&format!("sys/bus/pci/devices/{PF}/sriov_totalvfs"))).unwrap();
    let error = host.create(TWO).unwrap_err();
    assert!(matches!(error, VfioError::NoSriov { .. }), "{error}");
    assert!(host.writes.borrow().is_empty());
}

#[test]
fn a_driver_that_makes_none_is_named_and_all_is_as_before() {
    let host = Host::new();
    host.unable.set(true);
    let error = host.create(TWO).unwrap_err();
    assert!(error.to_string().contains("igb does not"), "{error}");
    host.assert_untouched();
}

#[test]
fn too_few_are_none() {
    let host = Host::new();
    host.short.set(true);
    let error = host.create(TWO).unwrap_err();
    assert!(error.to_string().contains("1 of 2"), "{error}");
    host.assert_untouched();
}

#[test]
fn those_that_are_there_are_neither_made_again_nor_taken_from_somebody_else() {
    let host = Host::new();
    host.create(TWO).unwrap();
    let error = host.create(TWO).unwrap_err();
    assert!(
        matches!(error, VfioError::VfsThere { enabled: 2, .. }),
        "{error}"
    );
    fs::remove_file(Note::path(&host.root(), PF.parse().unwrap())).unwrap();
    for error in [
        host.create(TWO).unwrap_err(),
        host.run(|card| card.remove()).unwrap_err(),
    ] {
        assert!(
            matches!(error, VfioError::VfsNotOurs { enabled: 2, .. }),
            "{error}"
        );
    }
    assert_eq!(host.value("sriov_numvfs"), "2");
}

#[test]
fn those_of_another_process_that_lives_are_left_alone() {
    let host = Host::new();
    host.create(VfRequest { lent: true, ..TWO }).unwrap();
    let id = process::id();
    let path = Note::path(&host.root(), PF.parse().unwrap());
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        text.replace(&format!("\"pid\":{id}"), "\"pid\":4711"),
    )
    .unwrap();
    fs::create_dir_all(host.path("proc/4711")).unwrap();
    let stat = host.path(&format!("proc/{id}/stat"));
    fs::copy(stat, host.path("proc/4711/stat")).unwrap();
    for error in [
        host.create(TWO).unwrap_err(),
        host.run(|card| card.remove()).unwrap_err(),
    ] {
        assert!(
            matches!(error, VfioError::VfsHeld { pid: 4711, .. }),
            "{error}"
        );
    }
    assert!(!host.run(|card| card.mend()).unwrap());
    fs::remove_dir_all(host.path("proc/4711")).unwrap();
    assert!(host.run(|card| card.mend()).unwrap());
    host.assert_untouched();
}

#[test]
fn one_at_a_time_changes_them() {
    let host = Host::new();
    let lock = Lock::take(&host.root(), PF.parse().unwrap()).unwrap();
    let error = host.create(TWO).unwrap_err();
    assert!(matches!(error, VfioError::VfsChanging { .. }), "{error}");
    assert!(!host.run(|card| card.mend()).unwrap());
    drop(lock);
    host.create(TWO).unwrap();
}

#[test]
fn a_process_killed_at_any_write_leaves_what_is_mended() {
    let whole = Host::new();
    whole.create(TWO).unwrap();
    let making = whole.writes.borrow().len();
    whole.run(|card| card.remove()).unwrap();
    let removing = whole.writes.borrow().len() - making;
    assert!(making >= 6 && removing >= 6, "{making}, {removing}");
    for at in 0..making {
        let host = Host::new();
        host.killed(at, |card| {
            card.create(TWO).unwrap_err();
        });
        assert!(host.run(|card| card.mend()).unwrap(), "at {at}");
        host.assert_untouched();
    }
    for at in 0..removing {
        let host = Host::new();
        host.create(TWO).unwrap();
        host.killed(at, |card| {
            card.remove().unwrap_err();
        });
        assert!(host.run(|card| card.mend()).unwrap(), "at {at}");
        host.assert_untouched();
    }
}

#[test]
fn the_next_use_mends_too() {
    let host = Host::new();
    host.killed(3, |card| {
        card.create(TWO).unwrap_err();
    });
    assert_eq!(host.value("sriov_numvfs"), "2");
    let made = host.create(VfRequest { count: 3, ..TWO }).unwrap();
    assert_eq!(made.len(), 3);
    host.run(|card| card.remove()).unwrap();
    host.assert_untouched();
}

#[test]
fn a_note_of_another_card_in_the_slot_is_not_looked_at() {
    let host = Host::new();
    host.file(
        &format!("{}/{PF}", Note::FOLDER),
        r#"{"vendor":1,"device":2,"autoprobe":"0","owner":null}"#,
    );
    assert!(!host.run(|card| card.mend()).unwrap());
    host.create(TWO).unwrap();
    host.run(|card| card.remove()).unwrap();
    host.assert_untouched();
}

#[test]
fn those_that_stay_are_not_mended_away() {
    let host = Host::new();
    host.create(TWO).unwrap();
    assert!(!host.run(|card| card.mend()).unwrap());
    assert_eq!(host.value("sriov_numvfs"), "2");
}
