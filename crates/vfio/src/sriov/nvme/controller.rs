//! A primary controller: it parts with resources, gives them to its secondary ones and gets them back.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use super::{
    command::{self, Action, AdminCommand, AdminQueue, MOST_LISTED, Pool, Resource, STRUCTURE},
    share::{Crowd, Share, room},
};
use crate::{VfioError, error::file_error, sysfs::Function};

/// Class, subclass and programming interface of NVMe controllers.
const CLASS: u32 = 0x01_0802;
/// How long a controller may take to be ready after a reset; its own word for it goes up to 127 s.
const PATIENCE: Duration = Duration::from_secs(130);
const PAUSE: Duration = Duration::from_millis(10);
/// Lists of secondary controllers that are asked for: their numbers have 16 bits.
const MOST_LISTS: usize = (1 << 16) / MOST_LISTED + 1;

/// What an NVMe controller that shares has, or a virtual function of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NvmeFunction {
    /// Its number as a controller.
    pub controller: u16,
    /// Whether it works.
    pub online: bool,
    /// Queues, one of them for administration.
    pub queues: u16,
    /// Interrupts.
    pub interrupts: u16,
}

/// A number of one resource; 0 where it is not flexible.
fn of(pools: &[(Resource, Pool)], wanted: Resource, number: impl Fn(&Pool) -> u16) -> u16 {
    let found = pools.iter().find(|(resource, _)| *resource == wanted);
    found.map_or(0, |(_, pool)| number(pool))
}

/// The physical function of an NVMe card.
pub(in crate::sriov) struct Controller<'a> {
    function: Function<'a>,
    queue: &'a dyn AdminQueue,
    /// Its name: `nvme0`.
    name: String,
    id: u16,
}

impl<'a> Controller<'a> {
    /// The controller that a physical function is, if it has virtualization management. The host's
    /// driver of it has to be there.
    pub(in crate::sriov) fn find(
        function: Function<'a>,
        queue: &'a dyn AdminQueue,
    ) -> Result<Option<Controller<'a>>, VfioError> {
        if function.device()?.class != CLASS {
            return Ok(None);
        }
        let entries = fs::read_dir(function.attribute("nvme"));
        let mut names = entries.into_iter().flatten().flatten();
        let Some(name) = names.find_map(|entry| entry.file_name().into_string().ok()) else {
            return Ok(None);
        };
        let mut controller = Controller {
            function,
            queue,
            name,
            id: 0,
        };
        let identity = controller.ask(AdminCommand::identify_controller(), "say what it is")?;
        Ok(command::manager(&identity).map(|id| {
            controller.id = id;
            controller
        }))
    }

    /// What the physical function has of what is flexible.
    pub(in crate::sriov) fn primary(&self) -> Result<Share, VfioError> {
        let pools = self.pools()?;
        Ok(Share::each(|resource| {
            of(&pools, resource, |pool| pool.primary)
        }))
    }

    /// All that the physical function has.
    pub(in crate::sriov) fn own(&self) -> Result<NvmeFunction, VfioError> {
        let pools = self.pools()?;
        let all = |pool: &Pool| pool.private.saturating_add(pool.primary);
        Ok(NvmeFunction {
            controller: self.id,
            online: true,
            queues: of(&pools, Resource::Queues, all),
            interrupts: of(&pools, Resource::Interrupts, all),
        })
    }

    /// What each of `count` virtual functions gets.
    pub(in crate::sriov) fn share(
        &self,
        count: u32,
        total: u16,
        asked: [Option<u16>; 2],
    ) -> Result<Share, VfioError> {
        let crowd = Crowd {
            address: self.function.address,
            count: u16::try_from(count).unwrap_or(u16::MAX),
            total,
        };
        let mut share = Share::default();
        for (resource, pool) in self.pools()? {
            match resource {
                Resource::Queues => share.queues = crowd.share(resource, &pool, asked[0])?,
                Resource::Interrupts => {
                    share.interrupts = crowd.share(resource, &pool, asked[1])?
                }
            }
        }
        Ok(share)
    }

    /// Has the physical function give up what `count` virtual ones need. It is reset where it does.
    pub(in crate::sriov) fn make_room(&self, count: u32, share: Share) -> Result<(), VfioError> {
        let mut changed = false;
        for (resource, pool) in self.pools()? {
            let wanted = u32::from(share.of(resource)).saturating_mul(count);
            if let Some(left) = room(&pool, wanted) {
                self.allocate(resource, left)?;
                changed = true;
            }
        }
        if changed { self.reset() } else { Ok(()) }
    }

    /// Gives the virtual function with this number, from 1, its share and brings it online.
    pub(in crate::sriov) fn give(&self, number: u16, share: Share) -> Result<(), VfioError> {
        let id = self.secondary(number)?.controller;
        for (resource, _) in self.pools()? {
            let count = share.of(resource);
            self.virtualize(Action::Assign, id, resource, count, "assign resources")?;
        }
        let online = "bring a virtual function online";
        self.virtualize(Action::Online, id, Resource::Queues, 0, online)
    }

    /// Takes all shares of virtual functions back, which do not work any more then.
    pub(in crate::sriov) fn take_back(&self) -> Result<(), VfioError> {
        for one in self.secondaries()? {
            if one.online {
                let offline = "take a virtual function offline";
                self.virtualize(Action::Offline, one.id, Resource::Queues, 0, offline)?;
            }
            for (resource, has) in [
                (Resource::Queues, one.queues),
                (Resource::Interrupts, one.interrupts),
            ] {
                if has != 0 {
                    self.virtualize(Action::Assign, one.id, resource, 0, "take resources back")?;
                }
            }
        }
        Ok(())
    }

    /// Gives the physical function what it had. It is reset where that is not what it has.
    pub(in crate::sriov) fn restore(&self, before: Share) -> Result<(), VfioError> {
        let pools = self.pools()?;
        for (resource, _) in &pools {
            // Where it has it, too: a process that was killed may have asked for less.
            self.allocate(*resource, before.of(*resource))?;
        }
        let differs = |(resource, pool): &(Resource, Pool)| pool.primary != before.of(*resource);
        if pools.iter().any(differs) {
            return self.reset();
        }
        Ok(())
    }

    /// What the virtual function with this number, from 1, has.
    pub(in crate::sriov) fn secondary(&self, number: u16) -> Result<NvmeFunction, VfioError> {
        let every = self.secondaries()?;
        let found = every.iter().find(|one| one.number == number);
        let found = found.ok_or(VfioError::NvmeUnknown {
            address: self.function.address,
            number,
        })?;
        Ok(NvmeFunction {
            controller: found.id,
            online: found.online,
            queues: found.queues,
            interrupts: found.interrupts,
        })
    }

    fn secondaries(&self) -> Result<Vec<command::Secondary>, VfioError> {
        let mut every: Vec<command::Secondary> = Vec::new();
        for _ in 0..MOST_LISTS {
            let next = every.last().map_or(Some(0), |last| last.id.checked_add(1));
            let Some(next) = next else { break };
            let list = AdminCommand::list_secondaries(next);
            let found = command::secondaries(&self.ask(list, "list virtual functions")?);
            let more = found.len() >= MOST_LISTED && found.iter().all(|one| one.id >= next);
            every.extend(found);
            if !more {
                break;
            }
        }
        Ok(every)
    }

    fn pools(&self) -> Result<Vec<(Resource, Pool)>, VfioError> {
        let capabilities = AdminCommand::identify_primary(self.id);
        let told = self.ask(capabilities, "say what it can share")?;
        let pool = |resource| Some((resource, Pool::of(&told, resource)?));
        Ok(Resource::ALL.into_iter().filter_map(pool).collect())
    }

    fn allocate(&self, resource: Resource, count: u16) -> Result<(), VfioError> {
        let what = "give the physical function its part";
        self.virtualize(Action::Allocate, self.id, resource, count, what)
    }

    fn virtualize(
        &self,
        action: Action,
        id: u16,
        resource: Resource,
        count: u16,
        what: &'static str,
    ) -> Result<(), VfioError> {
        let command = AdminCommand::virtualize(action, id, resource, count);
        self.send(command, &mut [], what)
    }

    fn ask(&self, command: AdminCommand, what: &'static str) -> Result<Vec<u8>, VfioError> {
        let mut data = vec![0; STRUCTURE];
        self.send(command, &mut data, what)?;
        Ok(data)
    }

    fn send(
        &self,
        command: AdminCommand,
        data: &mut [u8],
        what: &'static str,
    ) -> Result<(), VfioError> {
        let file = self.function.root.path(format!("dev/{}", self.name));
        let done = self.queue.admin(&file, command, data);
        let done = done.map_err(|source| file_error(&file, false, source))?;
        match done {
            0 => Ok(()),
            status => Err(VfioError::NvmeRefused {
                address: self.function.address,
                what,
                status,
            }),
        }
    }

    /// The kernel lets requests wait, resets the function and has its driver start it anew.
    fn reset(&self) -> Result<(), VfioError> {
        self.function
            .write(&self.function.attribute("reset"), "1")?;
        let end = Instant::now() + PATIENCE;
        loop {
            let state = fs::read_to_string(self.state()).unwrap_or_default();
            match state.trim() {
                "live" => return Ok(()),
                state if state == "dead" || Instant::now() >= end => {
                    return Err(VfioError::NvmeNotLive {
                        address: self.function.address,
                        state: state.to_owned(),
                    });
                }
                _ => thread::sleep(PAUSE),
            }
        }
    }

    fn state(&self) -> PathBuf {
        self.function
            .attribute(&format!("nvme/{}/state", self.name))
    }
}
