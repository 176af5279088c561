//! Admin commands about virtual functions, and what they answer.
//!
//! The bytes come from a device: what lies outside of them is not there.

use std::{io, path::Path};

/// Opcodes.
const IDENTIFY: u8 = 0x06;
const VIRTUALIZATION: u8 = 0x1c;
/// Which structure `IDENTIFY` asks for.
const CONTROLLER: u32 = 0x01;
const PRIMARY: u32 = 0x14;
const SECONDARIES: u32 = 0x15;
/// Bytes of each.
pub(super) const STRUCTURE: usize = 4096;
/// The most entries in one list of secondary controllers.
pub(super) const MOST_LISTED: usize = 127;
/// Of optional admin commands: Virtualization Management.
const MANAGES: u16 = 1 << 7;

/// The admin queue of a controller.
pub(crate) trait AdminQueue {
    /// Has the controller with this device file do it, with `data` for its answer; status code and
    /// type, 0 where it is done.
    fn admin(&self, file: &Path, command: AdminCommand, data: &mut [u8]) -> io::Result<u16>;
}

/// An admin command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AdminCommand {
    /// What.
    pub(crate) opcode: u8,
    /// Command dwords 10 and 11.
    pub(crate) dwords: [u32; 2],
}

/// What Virtualization Management does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The primary controller has so much of what is flexible after its next reset.
    Allocate = 1,
    Offline = 7,
    /// A secondary controller has so much.
    Assign = 8,
    Online = 9,
}

/// What is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    Queues = 0,
    Interrupts = 1,
}

impl Resource {
    pub(super) const ALL: [Resource; 2] = [Resource::Queues, Resource::Interrupts];

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Resource::Queues => "queues",
            Resource::Interrupts => "interrupts",
        }
    }
}

impl AdminCommand {
    fn identify(structure: u32, controller: u16) -> AdminCommand {
        AdminCommand {
            opcode: IDENTIFY,
            dwords: [u32::from(controller) << 16 | structure, 0],
        }
    }

    /// What the controller is.
    pub(super) fn identify_controller() -> AdminCommand {
        AdminCommand::identify(CONTROLLER, 0)
    }

    /// What a primary controller can share.
    pub(super) fn identify_primary(controller: u16) -> AdminCommand {
        AdminCommand::identify(PRIMARY, controller)
    }

    /// Its secondary controllers from this number on.
    pub(super) fn list_secondaries(from: u16) -> AdminCommand {
        AdminCommand::identify(SECONDARIES, from)
    }

    /// Virtualization Management.
    pub(super) fn virtualize(
        action: Action,
        controller: u16,
        resource: Resource,
        count: u16,
    ) -> AdminCommand {
        let about = u32::from(controller) << 16 | (resource as u32) << 8;
        AdminCommand {
            opcode: VIRTUALIZATION,
            dwords: [about | action as u32, u32::from(count)],
        }
    }
}

fn word(data: &[u8], at: usize) -> Option<u16> {
    let bytes = data.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

fn dword(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The number of a controller that has Virtualization Management.
pub(super) fn manager(identity: &[u8]) -> Option<u16> {
    (word(identity, 256)? & MANAGES != 0).then(|| word(identity, 78))?
}

/// How much there is of one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pool {
    /// All that is flexible.
    pub(super) total: u32,
    /// What secondary controllers have of it.
    pub(super) assigned: u32,
    /// What the primary controller has of it.
    pub(super) primary: u16,
    /// What the primary controller has beside, and keeps.
    pub(super) private: u16,
    /// The most that a secondary controller can have.
    pub(super) most: u16,
    /// Numbers are multiples of this.
    pub(super) step: u16,
}

impl Pool {
    /// Of the Primary Controller Capabilities; none where the resource is not flexible.
    pub(super) fn of(capabilities: &[u8], resource: Resource) -> Option<Pool> {
        let kinds = capabilities.get(4)?;
        if kinds >> resource as u8 & 1 == 0 {
            return None;
        }
        let at = match resource {
            Resource::Queues => 32,
            Resource::Interrupts => 64,
        };
        Some(Pool {
            total: dword(capabilities, at)?,
            assigned: dword(capabilities, at + 4)?,
            primary: word(capabilities, at + 8)?,
            private: word(capabilities, at + 10)?,
            most: word(capabilities, at + 12)?,
            step: word(capabilities, at + 14)?.max(1),
        })
    }
}

/// A secondary controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Secondary {
    pub(super) id: u16,
    pub(super) online: bool,
    /// Which virtual function it is, from 1.
    pub(super) number: u16,
    pub(super) queues: u16,
    pub(super) interrupts: u16,
}

/// The entries of a Secondary Controller List.
pub(super) fn secondaries(list: &[u8]) -> Vec<Secondary> {
    let count = list.first().map_or(0, |count| usize::from(*count));
    let entries = list.get(32..).unwrap_or_default().chunks_exact(32);
    let entry = |data: &[u8]| {
        Some(Secondary {
            id: word(data, 0)?,
            online: data.get(4)? & 1 != 0,
            number: word(data, 8)?,
            queues: word(data, 10)?,
            interrupts: word(data, 12)?,
        })
    };
    let all = entries.take(count.min(MOST_LISTED));
    all.filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_bits_of_the_specification() {
        let command = AdminCommand::virtualize(Action::Assign, 3, Resource::Interrupts, 2);
        assert_eq!((command.opcode, command.dwords), (0x1c, [0x0003_0108, 2]));
        let command = AdminCommand::list_secondaries(5);
        assert_eq!((command.opcode, command.dwords), (0x06, [0x0005_0015, 0]));
    }

    #[test]
    fn a_controller_without_virtualization_management_manages_none() {
        let mut identity = vec![0; STRUCTURE];
        identity[78] = 7;
        assert_eq!(manager(&identity), None);
        identity[256] = 0x80;
        assert_eq!(manager(&identity), Some(7));
        assert_eq!(manager(&[0; 80]), None);
    }

    #[test]
    fn a_resource_that_is_not_flexible_has_no_pool() {
        let mut capabilities = vec![0; STRUCTURE];
        capabilities[4] = 2;
        capabilities[64] = 9;
        assert_eq!(Pool::of(&capabilities, Resource::Queues), None);
        let pool = Pool::of(&capabilities, Resource::Interrupts).unwrap();
        assert_eq!((pool.total, pool.step), (9, 1));
    }

    #[test]
    fn a_list_has_no_more_entries_than_there_are_bytes() {
        for len in [0, 1, 31, 33, 64, 95, STRUCTURE] {
            let found = secondaries(&vec![0xff; len]);
            assert_eq!(found.len(), (len.max(32) - 32) / 32, "{len}");
        }
    }
}
