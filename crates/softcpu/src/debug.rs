//! Breakpoints on instructions, data and ports, of the guest and of the VM's user; single steps.
//!
//! A page with a data breakpoint is never in the TLB, so that every access of it takes the slow
//! half, which looks. Instruction breakpoints make the vCPU go instruction by instruction.
//!
//! Source: Intel SDM volume 3, section 19.2 "Debug registers" and 19.3 "Debug exceptions".

use vmlet_vcpu::{DebugControl, DebugStop, RunEnd, WatchLen};

use crate::{
    cpu::{CR4_DE, CS, Cpu, DB, Exec, Fault},
    flags,
    vcpu::SoftVcpu,
};

const DR6_STEP: u64 = 1 << 14;
const DR6_ACCESS: u64 = 1 << 13;
const DR6_HITS: u64 = 0xf;
/// DR6 with nothing to tell.
pub(crate) const DR6_NONE: u64 = 0xffff_0ff0;
const DR7_GENERAL: u64 = 1 << 13;
const DR7_ENABLED: u64 = 0xff;
const PAGE: u64 = 4096;

const ON_EXECUTE: u64 = 0;
const ON_WRITE: u64 = 1;
const ON_PORT: u64 = 2;

/// Whose breakpoint it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Guest,
    User,
}

/// A range whose accesses are told.
#[derive(Clone, Copy, Debug)]
struct Watched {
    first: u64,
    last: u64,
    reads: bool,
    owner: Owner,
    /// Its bit of DR6.
    bit: u64,
}

impl Watched {
    fn meets(&self, first: u64, last: u64) -> bool {
        first <= self.last && self.first <= last
    }
}

/// What is watched, and what was met since the last look.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    data: Vec<Watched>,
    ports: Vec<Watched>,
    control: DebugControl,
    guest: u64,
    user: u64,
}

impl Watch {
    /// Whether the page at `addr` has to stay out of the TLB.
    pub(crate) fn keeps_out(&self, addr: u64) -> bool {
        let first = addr & !(PAGE - 1);
        self.data.iter().any(|w| w.meets(first, first | (PAGE - 1)))
    }

    fn tell(&mut self, hit: Watched) {
        match hit.owner {
            Owner::Guest => self.guest |= hit.bit,
            Owner::User => self.user |= hit.bit,
        }
    }

    fn met(&self) -> bool {
        self.guest | self.user != 0
    }

    /// Forgets what an instruction met that was not completed.
    pub(crate) fn forget(&mut self) {
        (self.guest, self.user) = (0, 0);
    }
}

/// One of the guest's four: address, kind and length as DR7 has them.
fn registers(dr: &[u64; 8]) -> impl Iterator<Item = (usize, u64, u64, u64)> + '_ {
    let dr7 = dr[7];
    let enabled = move |n: &usize| dr7 >> (2 * n) & 3 != 0;
    (0..4).filter(enabled).map(move |n| {
        let length = match dr7 >> (18 + 4 * n) & 3 {
            2 => 8,
            other => other + 1,
        };
        let at = dr.get(n).copied().unwrap_or(0);
        (n, at, dr7 >> (16 + 4 * n) & 3, length)
    })
}

impl Cpu {
    /// Takes up the debug registers.
    pub(crate) fn debug_changed(&mut self) {
        let mut data = users(&self.watch.control);
        let mut ports = Vec::new();
        for (n, at, kind, length) in registers(&self.dr) {
            let first = at & !(length - 1);
            let watched = Watched {
                first,
                last: first + (length - 1),
                reads: kind != ON_WRITE,
                owner: Owner::Guest,
                bit: 1 << n,
            };
            match kind {
                ON_EXECUTE => {}
                ON_PORT if self.cr4 & CR4_DE == 0 => {}
                ON_PORT => ports.push(watched),
                _ => data.push(watched),
            }
        }
        if !(data.is_empty() && self.watch.data.is_empty()) {
            self.flush_all();
        }
        (self.watch.data, self.watch.ports) = (data, ports);
        (self.cut, self.look) = (true, true);
    }

    /// An access of `bytes` bytes at a linear address is being made.
    #[inline(always)]
    pub(crate) fn watch_data(&mut self, addr: u64, bytes: u64, write: bool) {
        if !self.watch.data.is_empty() {
            self.look_at_data(addr, bytes, write);
        }
    }

    #[cold]
    fn look_at_data(&mut self, addr: u64, bytes: u64, write: bool) {
        let last = addr.saturating_add(bytes - 1);
        for at in 0..self.watch.data.len() {
            let Some(watched) = self.watch.data.get(at).copied() else {
                return;
            };
            if watched.meets(addr, last) && (write || watched.reads) {
                self.watch.tell(watched);
                (self.cut, self.look) = (true, true);
            }
        }
    }

    /// An access of `bytes` ports from `port` on has been made.
    pub(crate) fn watch_port(&mut self, port: u16, bytes: u16) {
        let (first, last) = (u64::from(port), u64::from(port) + u64::from(bytes) - 1);
        for at in 0..self.watch.ports.len() {
            let Some(watched) = self.watch.ports.get(at).copied() else {
                return;
            };
            if watched.meets(first, last) {
                self.watch.tell(watched);
                (self.cut, self.look) = (true, true);
            }
        }
    }

    /// What a move from or to a debug register meets first: #DB where DR7 says so.
    pub(crate) fn check_debug_access(&mut self) -> Exec {
        if self.dr[7] & DR7_GENERAL == 0 {
            return Ok(());
        }
        self.dr[6] |= DR6_ACCESS;
        self.raise(DB)
    }

    /// The handler of a debug exception may use the registers.
    pub(crate) fn open_debug_registers(&mut self) {
        self.dr[7] &= !DR7_GENERAL;
    }

    /// The linear address of RIP.
    fn code_linear(&self) -> u64 {
        if self.is64() {
            self.rip
        } else {
            self.seg(CS).base.wrapping_add(self.rip) & 0xffff_ffff
        }
    }

    fn instruction_breakpoints(&self) -> bool {
        self.dr[7] & DR7_ENABLED != 0 && registers(&self.dr).any(|(_, _, kind, _)| kind == 0)
    }
}

/// The user's watchpoints: those whose register no breakpoint takes.
fn users(control: &DebugControl) -> Vec<Watched> {
    let both = control.watchpoints.iter().zip(control.breakpoints);
    let numbered = both.enumerate().filter_map(|(n, (watch, taken))| {
        let watch = watch.filter(|_| taken.is_none())?;
        let length = match watch.len {
            WatchLen::One => 1,
            WatchLen::Two => 2,
            WatchLen::Four => 4,
            WatchLen::Eight => 8,
        };
        let first = watch.at & !(length - 1);
        Some(Watched {
            first,
            last: first + (length - 1),
            reads: watch.reads,
            owner: Owner::User,
            bit: 1 << n,
        })
    });
    numbered.collect()
}

impl SoftVcpu {
    /// Takes up the user's debug conditions.
    pub(crate) fn control(&mut self, control: &DebugControl) {
        self.cpu.watch.control = *control;
        self.cpu.debug_changed();
        self.cpu.cut = false;
    }

    /// Whether a debugger runs this vCPU alone, for one instruction.
    pub(crate) fn is_single_step(&self) -> bool {
        self.cpu.watch.control.single_step
    }

    /// Whether instructions are run one at a time.
    pub(crate) fn stepping(&self) -> bool {
        let control = &self.cpu.watch.control;
        self.cpu.rflags & flags::TF != 0
            || control.single_step
            || control.breakpoints.iter().any(Option::is_some)
            || self.cpu.instruction_breakpoints()
            || self.cpu.watch.met()
    }

    /// Runs one instruction with all that debugging wants.
    pub(crate) fn step(&mut self) -> Option<RunEnd> {
        if let Some(end) = self.breakpoint() {
            return end;
        }
        let trap = self.cpu.rflags & flags::TF != 0;
        self.cpu.rflags &= !flags::RF;
        if let Err(stop) = self.one() {
            if let Some(end) = self.stopped(stop) {
                return Some(end);
            }
        } else if trap {
            self.cpu.watch.guest |= DR6_STEP;
        }
        if let Some(end) = self.traps() {
            return Some(end);
        }
        self.cpu.look = true;
        if !self.cpu.watch.control.single_step {
            return None;
        }
        self.ended().or_else(|| Some(self.debug_stop(DR6_STEP)))
    }

    /// What the last instruction met: a stop for the user, or a trap for the guest.
    pub(crate) fn traps(&mut self) -> Option<RunEnd> {
        let user = std::mem::take(&mut self.cpu.watch.user);
        let guest = std::mem::take(&mut self.cpu.watch.guest);
        let end = if guest == 0 { None } else { self.trap(guest) };
        if user != 0 && end.is_none() {
            return Some(self.debug_stop(user));
        }
        end
    }

    fn trap(&mut self, bits: u64) -> Option<RunEnd> {
        self.cpu.dr[6] = self.cpu.dr[6] & !DR6_HITS | bits;
        self.raise(Fault {
            vector: DB,
            code: None,
        })
    }

    fn debug_stop(&self, dr6: u64) -> RunEnd {
        RunEnd::Debug(DebugStop {
            rip: self.cpu.code_linear(),
            exception: DB.into(),
            dr6: DR6_NONE | dr6,
        })
    }

    /// Whether a breakpoint at RIP ends the run (`Some(Some(..))`) or is the guest's own
    /// (`Some(None)`).
    fn breakpoint(&mut self) -> Option<Option<RunEnd>> {
        if self.cpu.rflags & flags::RF != 0 {
            return None;
        }
        let at = self.cpu.code_linear();
        let mut users = self.cpu.watch.control.breakpoints.iter();
        if let Some(number) = users.position(|b| *b == Some(at)) {
            return Some(Some(self.debug_stop(1 << number)));
        }
        let (hit, ..) = registers(&self.cpu.dr)
            .find(|(_, address, kind, length)| (*address, *kind, *length) == (at, 0, 1))?;
        Some(self.trap(1 << hit))
    }
}
