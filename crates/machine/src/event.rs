//! What happens to a machine, as its user sees it.

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Guest code runs for the first time.
    Started,
    /// Guest code stands still.
    Paused,
    /// Guest code runs again.
    Resumed,
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel crashed.
    Panic,
    /// The guest's CPU met a fault it could not report: it shut down.
    TripleFault,
    /// The guest halted with nobody to wake it.
    Halt,
    /// The user stopped it.
    Stopped,
    /// The engine cannot go on with this guest.
    Error,
    /// The guest has let go of a device that was asked for.
    Detached,
    /// The host wants a device back, and waits until it is detached.
    DeviceRemoval,
    /// A device of the host has reported an error that it does not recover from.
    DeviceFailure,
}

impl EventKind {
    /// The kind's name as users see it.
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Started => "started",
            EventKind::Paused => "paused",
            EventKind::Resumed => "resumed",
            EventKind::PowerOff => "poweroff",
            EventKind::Reset => "reset",
            EventKind::Panic => "panic",
            EventKind::TripleFault => "triple-fault",
            EventKind::Halt => "halt",
            EventKind::Stopped => "stopped",
            EventKind::Error => "error",
            EventKind::Detached => "detached",
            EventKind::DeviceRemoval => "device-removal",
            EventKind::DeviceFailure => "device-failure",
        }
    }
}

/// An instruction that the engine does not carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LackingInstruction {
    /// Where.
    pub rip: u64,
    /// Its first bytes; none where the engine does not tell.
    pub bytes: Vec<u8>,
    /// Its mnemonic and what of it is lacking, where the engine tells.
    pub name: Option<&'static str>,
}

/// Something that happened to a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// On which vCPU.
    pub vcpu: Option<u32>,
    /// Who says so: a device, the console, the engine or the user.
    pub source: &'static str,
    /// More, for people.
    pub detail: String,
    /// The instruction that ended the run.
    pub instruction: Option<LackingInstruction>,
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} by the {}", self.kind.name(), self.source)?;
        if self.detail.is_empty() {
            return Ok(());
        }
        write!(f, ": {}", self.detail)
    }
}

impl Event {
    /// An event of the user's making.
    pub(crate) fn by_user(kind: EventKind) -> Event {
        Event {
            kind,
            vcpu: None,
            source: "user",
            detail: String::new(),
            instruction: None,
        }
    }
}
