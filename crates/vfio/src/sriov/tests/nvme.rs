//! Virtual functions of an NVMe controller, which has twelve queues and seven interrupts to share.

use std::fs;

use super::{Host, PF, TWO, vf};
use crate::{
    VfRequest, VfioError,
    sriov::nvme::{AdminCommand, NvmeFunction},
};

const QUEUES: usize = 0;
const INTERRUPTS: usize = 1;
const TOTAL: [u16; 2] = [14, 7];
const FUNCTIONS: usize = 7;
/// Status: invalid field; invalid state of a secondary controller; invalid number of resources.
const FIELD: u16 = 0x002;
const STATE: u16 = 0x120;
const NUMBER: u16 = 0x121;

/// A controller that answers as the specification says.
pub(super) struct Controller {
    primary: [u16; 2],
    /// What the primary one has after its next reset.
    next: [u16; 2],
    secondaries: [Secondary; FUNCTIONS],
    resets: usize,
}

#[derive(Clone, Copy, Default)]
struct Secondary {
    online: bool,
    has: [u16; 2],
}

impl Controller {
    fn new() -> Controller {
        Controller {
            primary: TOTAL,
            next: TOTAL,
            secondaries: [Secondary::default(); FUNCTIONS],
            resets: 0,
        }
    }

    pub(super) fn reset(&mut self) {
        self.primary = self.next;
        self.resets += 1;
    }

    pub(super) fn functions_change(&mut self) {
        self.secondaries
            .iter_mut()
            .for_each(|one| one.online = false);
    }

    fn assigned(&self, resource: usize) -> u16 {
        self.secondaries.iter().map(|one| one.has[resource]).sum()
    }

    pub(super) fn admin(&mut self, command: AdminCommand, data: &mut [u8]) -> u16 {
        let [first, second] = command.dwords;
        match (command.opcode, first & 0xff) {
            (0x06, 0x01) => data[256] = 0x80,
            (0x06, 0x14) => self.tell_capabilities(data),
            (0x06, 0x15) => self.tell_secondaries(data, first >> 16),
            (0x1c, _) => return self.manage(first, u16::try_from(second).unwrap()),
            _ => return FIELD,
        }
        0
    }

    fn tell_capabilities(&self, data: &mut [u8]) {
        data[4] = 3;
        for (resource, at) in [(QUEUES, 32), (INTERRUPTS, 64)] {
            let numbers = [
                TOTAL[resource],
                0,
                self.assigned(resource),
                0,
                self.primary[resource],
                1,
                8,
                1,
            ];
            for (number, place) in numbers.iter().zip((at..).step_by(2)) {
                data[place..place + 2].copy_from_slice(&number.to_le_bytes());
            }
        }
    }

    fn tell_secondaries(&self, data: &mut [u8], from: u32) {
        for (number, one) in (1..)
            .zip(&self.secondaries)
            .filter(|(number, _)| *number >= from)
        {
            let at = 32 + 32 * usize::from(data[0]);
            data[0] += 1;
            data[at] = u8::try_from(number).unwrap();
            data[at + 4] = u8::from(one.online);
            data[at + 8] = data[at];
            data[at + 10..at + 12].copy_from_slice(&one.has[QUEUES].to_le_bytes());
            data[at + 12..at + 14].copy_from_slice(&one.has[INTERRUPTS].to_le_bytes());
        }
    }

    fn manage(&mut self, word: u32, count: u16) -> u16 {
        let (id, resource) = (word >> 16, usize::try_from(word >> 8 & 7).unwrap());
        let assigned = self.assigned(resource);
        let number = usize::try_from(id).unwrap().wrapping_sub(1);
        match (word & 0xf, self.secondaries.get_mut(number)) {
            (1, None) if count <= TOTAL[resource] - assigned => self.next[resource] = count,
            (7, Some(one)) => one.online = false,
            (8, Some(one)) if one.online => return STATE,
            (8, Some(one)) => {
                let others = assigned - one.has[resource];
                if count > TOTAL[resource] - self.primary[resource] - others {
                    return NUMBER;
                }
                one.has[resource] = count;
            }
            (9, Some(one)) if one.has[QUEUES] < 2 || one.has[INTERRUPTS] < 1 => return STATE,
            (9, Some(one)) => one.online = true,
            _ => return FIELD,
        }
        0
    }
}

/// A host whose card is such a controller.
fn host() -> Host {
    let host = Host::with(["0x1b36", "0x0010", "0x010802"], "nvme");
    let nvme = format!("sys/bus/pci/devices/{PF}/nvme/nvme0/state");
    host.file(&nvme, "live\n");
    host.controller.replace(Some(Controller::new()));
    host
}

fn function(host: &Host, number: u32) -> NvmeFunction {
    let address = vf(number).parse().unwrap();
    host.run(|card| card.nvme_function(address)).unwrap()
}

fn resets(host: &Host) -> usize {
    host.controller.borrow().as_ref().unwrap().resets
}

/// All is the primary controller's.
fn assert_given_back(host: &Host) {
    host.assert_untouched();
    let controller = host.controller.borrow();
    let controller = controller.as_ref().unwrap();
    assert_eq!((controller.primary, controller.next), (TOTAL, TOTAL));
    for one in &controller.secondaries {
        assert!(!one.online && one.has == [0, 0]);
    }
}

#[test]
fn each_gets_an_equal_part_and_is_online() {
    let host = host();
    host.create(TWO).unwrap();
    for number in 0..2 {
        let found = function(&host, number);
        assert_eq!((found.online, found.queues, found.interrupts), (true, 2, 1));
    }
    let card = PF.parse().unwrap();
    let own = host.run(|pf| pf.nvme_function(card)).unwrap();
    assert_eq!((own.queues, own.interrupts), (10 + 1, 5 + 1));
    host.run(|card| card.remove()).unwrap();
    assert_given_back(&host);
    assert_eq!(resets(&host), 2);
}

#[test]
fn each_gets_what_is_asked_for() {
    let host = host();
    let request = VfRequest {
        queues: Some(7),
        interrupts: Some(3),
        ..TWO
    };
    host.create(request).unwrap();
    let found = function(&host, 1);
    assert_eq!(
        (found.controller, found.queues, found.interrupts),
        (2, 7, 3)
    );
    host.run(|card| card.remove()).unwrap();
    assert_given_back(&host);
}

#[test]
fn a_controller_that_has_given_up_enough_is_not_reset() {
    let host = host();
    let mut controller = Controller::new();
    (controller.primary, controller.next) = ([4, 4], [4, 4]);
    host.controller.replace(Some(controller));
    host.create(VfRequest { count: 1, ..TWO }).unwrap();
    host.run(|card| card.remove()).unwrap();
    assert_eq!(resets(&host), 0);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_changed() {
    let host = host();
    for (queues, interrupts) in [(Some(1), None), (Some(8), None), (None, Some(4))] {
        let request = VfRequest {
            queues,
            interrupts,
            ..TWO
        };
        let error = host.create(request).unwrap_err();
        assert!(matches!(error, VfioError::NvmeShare { .. }), "{error}");
    }
    assert!(host.writes.borrow().is_empty());
    let other = Host::new();
    let request = VfRequest {
        queues: Some(2),
        ..TWO
    };
    let error = other.create(request).unwrap_err();
    assert!(matches!(error, VfioError::NoNvme { .. }), "{error}");
    other.assert_untouched();
}

#[test]
fn a_process_killed_at_any_write_or_command_leaves_what_is_mended() {
    let whole = host();
    whole.create(TWO).unwrap();
    let making = whole.writes.borrow().len();
    whole.run(|card| card.remove()).unwrap();
    let removing = whole.writes.borrow().len() - making;
    assert!(making >= 14 && removing >= 14, "{making}, {removing}");
    for at in 0..making {
        let host = host();
        host.killed(at, |card| {
            card.create(TWO).unwrap_err();
        });
        assert!(host.run(|card| card.mend()).unwrap(), "at {at}");
        assert_given_back(&host);
    }
    for at in 0..removing {
        let host = host();
        host.create(TWO).unwrap();
        host.killed(at, |card| {
            card.remove().unwrap_err();
        });
        assert!(host.run(|card| card.mend()).unwrap(), "at {at}");
        assert_given_back(&host);
    }
}

#[test]
fn a_controller_without_its_driver_keeps_its_note() {
    let host = host();
    host.create(TWO).unwrap();
    let folder = host.path(&format!("sys/bus/pci/devices/{PF}/nvme"));
    fs::rename(&folder, folder.with_extension("away")).unwrap();
    let error = host.run(|card| card.remove()).unwrap_err();
    assert!(
        matches!(error, VfioError::NvmeWithoutDriver { .. }),
        "{error}"
    );
    fs::rename(folder.with_extension("away"), &folder).unwrap();
    host.run(|card| card.remove()).unwrap();
    assert_given_back(&host);
}

#[test]
fn a_controller_that_does_not_come_back_is_told_of() {
    let host = host();
    let nvme = format!("sys/bus/pci/devices/{PF}/nvme/nvme0/state");
    host.file(&nvme, "dead\n");
    let error = host.create(TWO).unwrap_err();
    assert!(error.to_string().contains("not live"), "{error}");
}
