//! The root bus: a host bridge, root ports, and config space by memory accesses (ECAM).

use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use vmlet_bus::{AccessContext, Device, Flow, SavedError, SavedState};

use crate::{
    Bdf, Function, PciError,
    assign::{self, Needs},
    decode::Decoder,
    endpoint::Endpoint,
    intx::{Intx, SharedLine},
    port::{Port, SavedPort},
    registers::Registers,
    wiring::Wiring,
};

/// When a function is put into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plug {
    /// Before the guest starts: the bus gives BARs their places, and the guest finds the function at
    /// its boot.
    Cold,
    /// While the guest runs: it gets an interrupt and gives BARs their places.
    Hot,
}

/// Bus 0: a host bridge as device 0, root ports from device 1 on.
#[derive(Debug)]
pub struct Root {
    wiring: Wiring,
    decoder: Arc<Decoder>,
    lines: Vec<Arc<SharedLine>>,
    bridge: Mutex<Registers>,
    ports: Vec<Port>,
    /// Held while slots change hands.
    plugging: Mutex<()>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    bridge: Vec<u8>,
    ports: Vec<SavedPort>,
}

const KIND: &str = "PCIe root bus";
const LAYOUT: u16 = 1;

fn host_bridge() -> Registers {
    let mut registers = Registers::default();
    // A host bridge that is nobody's product in particular: it has no registers of its own.
    registers.fix(0x00, &[0x36, 0x1b, 0x08, 0x00]);
    registers.fix(0x08, &[0, 0, 0, 6]);
    registers.allow(0x3c, &[0xff]);
    registers
}

impl Root {
    /// The most ports: the last device number is the I/O APIC's.
    pub const MAX_PORTS: u8 = 30;
    /// Bytes of config space of one bus.
    pub const BUS_BYTES: u64 = 1 << 20;
    /// Bytes of the whole ECAM range.
    pub const ECAM_BYTES: u64 = Self::BUS_BYTES * 256;

    /// A bus with `ports` root ports, [`Root::MAX_PORTS`] at most. Every port has its windows.
    pub fn new(wiring: Wiring, ports: u8) -> Arc<Root> {
        let lines = wiring.lines.iter();
        let lines: Vec<_> = lines
            .map(|line| Arc::new(SharedLine::new(Arc::clone(line))))
            .collect();
        let decoder = Arc::new(Decoder::new(Arc::clone(&wiring.mmio)));
        let port = |number| {
            let sink = Arc::clone(&wiring.sink);
            Port::new(number, sink, Intx::new(line(&lines, number)))
        };
        let ports = (1..=ports.min(Self::MAX_PORTS)).map(port).collect();
        let root = Root {
            decoder,
            lines,
            bridge: Mutex::new(host_bridge()),
            ports,
            plugging: Mutex::default(),
            wiring,
        };
        // Nothing is there yet that would not fit.
        let _ = root.assign();
        Arc::new(root)
    }

    /// Root ports.
    pub fn ports(&self) -> u8 {
        u8::try_from(self.ports.len()).unwrap_or(u8::MAX)
    }

    fn port(&self, port: u8) -> Result<&Port, PciError> {
        let found = usize::from(port).checked_sub(1);
        let found = found.and_then(|at| self.ports.get(at));
        found.ok_or(PciError::NoPort {
            port,
            count: self.ports(),
        })
    }

    /// Puts `function` into root port `port` (from 1 on), or into the first that is free; gives
    /// which. A function whose state was restored before takes that state now.
    pub fn plug(
        &self,
        function: Arc<dyn Function>,
        port: Option<u8>,
        plug: Plug,
    ) -> Result<u8, PciError> {
        let _turn = self.plugging.lock().unwrap_or_else(PoisonError::into_inner);
        let free = || self.ports.iter().find(|port| port.is_free());
        let port = match port {
            Some(number) => self.port(number)?,
            None => free().ok_or(PciError::Full {
                count: self.ports(),
            })?,
        };
        let number = port.bdf.device();
        if let Some(other) = port.function() {
            return Err(PciError::Taken {
                port: number,
                device: other.name(),
            });
        }
        let (restored, device) = (port.waits_for().is_some(), function.name());
        function.layout().check(device)?;
        if plug == Plug::Cold && !restored {
            self.plan(Some((number, &function)))?;
        }
        let bdf = Bdf::new(port.buses().0, 0, 0);
        // INTA of device 0 behind a port is the port's own INTA (section 2.2.8.1).
        let line = line(&self.lines, number);
        let endpoint = Endpoint::connect(function, bdf, &self.wiring, &self.decoder, line)?;
        port.insert(endpoint, plug == Plug::Hot)?;
        if plug == Plug::Cold && !restored {
            self.assign()?;
        }
        Ok(number)
    }

    /// Asks the guest for the function in `port`: its driver hears of a pressed attention button
    /// and switches the slot off, some seconds later. [`crate::SlotEvents`] hears of the end.
    pub fn request_unplug(&self, port: u8) -> Result<(), PciError> {
        let port = self.port(port)?;
        let gone = port.request()?;
        self.let_go(port, gone);
        Ok(())
    }

    /// Takes the function in `port` without asking (surprise removal), or before the guest starts.
    /// Nobody is told but the guest.
    pub fn pull(&self, port: u8, plug: Plug) -> Result<(), PciError> {
        let port = self.port(port)?;
        if let Some(endpoint) = port.pull(plug == Plug::Hot)? {
            end(port, endpoint);
        }
        Ok(())
    }

    fn let_go(&self, port: &Port, gone: Option<Arc<Endpoint>>) {
        if let Some(endpoint) = gone {
            end(port, endpoint);
            self.wiring.events.ejected(port.bdf.device());
        }
    }

    /// The function in `port`.
    pub fn function(&self, port: u8) -> Option<Arc<dyn Function>> {
        self.port(port).ok()?.function()
    }

    /// Whether nothing is in `port`: what was there has ended, and holds nothing of the host any more.
    pub fn is_empty(&self, port: u8) -> bool {
        self.port(port).map_or(true, Port::is_empty)
    }

    /// Ports whose functions are to be put back after a restore, with the functions' names.
    pub fn waiting(&self) -> Vec<(u8, String)> {
        let waits = |port: &Port| Some((port.bdf.device(), port.waits_for()?));
        self.ports.iter().filter_map(waits).collect()
    }

    /// Guest code stands still: returns once no function has work in flight.
    pub fn pause(&self) {
        self.functions().for_each(|function| function.pause());
    }

    /// Guest code goes on.
    pub fn resume(&self) {
        self.functions().for_each(|function| function.resume());
    }

    /// The machine ends, and every function with it. Slots stay as they are: nobody looks at them.
    pub fn end(&self) {
        for endpoint in self.ports.iter().filter_map(Port::endpoint) {
            endpoint.unplug();
        }
    }

    fn functions(&self) -> impl Iterator<Item = Arc<dyn Function>> {
        self.ports.iter().filter_map(Port::function)
    }

    /// Shares addresses among ports, with one more function in one of them.
    fn plan(&self, more: Option<(u8, &Arc<dyn Function>)>) -> Result<Vec<assign::Share>, PciError> {
        let needs = |port: &Port| {
            let there = port.endpoint().map(|endpoint| Needs {
                device: endpoint.function.name(),
                bars: endpoint.bars.iter().map(|bar| bar.layout).collect(),
            });
            let more = more.filter(|(number, _)| *number == port.bdf.device());
            there.or_else(|| {
                more.map(|(_, function)| Needs {
                    device: function.name(),
                    bars: function.layout().all_bars(),
                })
            })
        };
        let needs: Vec<_> = self.ports.iter().map(needs).collect();
        assign::plan(&self.wiring.windows, &needs)
    }

    fn assign(&self) -> Result<(), PciError> {
        let shares = self.plan(None)?;
        for (port, share) in self.ports.iter().zip(&shares) {
            port.assign(share);
        }
        Ok(())
    }

    /// The guest reads config space; what is not there reads as all ones (section 2.3.2).
    pub fn read_config(&self, bdf: Bdf, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        match self.target(bdf) {
            Target::Bridge => {
                let bridge = self.bridge.lock();
                let bridge = bridge.unwrap_or_else(PoisonError::into_inner);
                bridge.read(offset, data);
            }
            Target::Port(port) => port.read_config(offset, data),
            Target::Function(endpoint) => endpoint.read_config(offset, data),
            Target::Nothing => {}
        }
    }

    /// The guest writes config space.
    pub fn write_config(&self, bdf: Bdf, offset: u16, data: &[u8]) {
        match self.target(bdf) {
            Target::Bridge => {
                let bridge = self.bridge.lock();
                let mut bridge = bridge.unwrap_or_else(PoisonError::into_inner);
                bridge.write(offset, data);
            }
            Target::Port(port) => {
                let gone = port.write_config(offset, data);
                self.let_go(port, gone);
            }
            Target::Function(endpoint) => endpoint.write_config(offset, data),
            Target::Nothing => {}
        }
    }

    fn target(&self, bdf: Bdf) -> Target<'_> {
        if bdf.function() != 0 {
            return Target::Nothing;
        }
        if bdf.bus() == 0 {
            return match self.port(bdf.device()) {
                Ok(port) => Target::Port(port),
                Err(_) if bdf.device() == 0 => Target::Bridge,
                Err(_) => Target::Nothing,
            };
        }
        let behind = |port: &&Port| {
            let (secondary, subordinate) = port.buses();
            secondary != 0 && (secondary..=subordinate).contains(&bdf.bus())
        };
        let port = self.ports.iter().find(behind);
        // A link has one device, and there are no switches.
        let direct = port.filter(|port| port.buses().0 == bdf.bus() && bdf.device() == 0);
        let endpoint = direct.and_then(Port::reachable);
        endpoint.map_or(Target::Nothing, Target::Function)
    }
}

impl Drop for Root {
    /// Functions end with their bus.
    fn drop(&mut self) {
        self.end();
    }
}

/// Who has a piece of config space.
enum Target<'a> {
    Bridge,
    Port(&'a Port),
    Function(Arc<Endpoint>),
    Nothing,
}

/// Ends what was in a port. Whoever waits for the slot to be empty finds nothing of it left: neither
/// its work nor its descriptors.
fn end(port: &Port, endpoint: Arc<Endpoint>) {
    endpoint.unplug();
    drop(endpoint);
    port.left();
}

fn line(lines: &[Arc<SharedLine>], device: u8) -> Arc<SharedLine> {
    let at = usize::from(device).checked_rem(lines.len()).unwrap_or(0);
    let nowhere = || Arc::new(SharedLine::new(Arc::new(vmlet_bus::NoIrq)));
    lines.get(at).map_or_else(nowhere, Arc::clone)
}

/// The config space of all buses in memory (ECAM, section 7.2.2): a megabyte a bus. It saves and
/// restores the whole bus. The board holds the bus: here it would hold itself, by its address space.
#[derive(Debug)]
pub struct Ecam(Weak<Root>);

impl Ecam {
    /// The config space of `root`.
    pub fn new(root: &Arc<Root>) -> Ecam {
        Ecam(Arc::downgrade(root))
    }

    /// Whose registers lie at `offset`, and which.
    fn find(offset: u64, len: usize) -> Option<(Bdf, u16)> {
        let bdf = u16::try_from(offset >> 12).ok()?;
        let [low, bus] = bdf.to_le_bytes();
        let register = (offset & 0xfff) as u16;
        // An access that leaves the function's registers is nobody's.
        (usize::from(register) + len <= 0x1000)
            .then(|| (Bdf::new(bus, low >> 3, low & 7), register))
    }
}

impl Device for Ecam {
    fn name(&self) -> &'static str {
        "PCIe config space"
    }

    fn read(&self, _: &dyn AccessContext, offset: u64, data: &mut [u8]) -> Flow {
        match (self.0.upgrade(), Ecam::find(offset, data.len())) {
            (Some(root), Some((bdf, register))) => root.read_config(bdf, register, data),
            _ => data.fill(0xff),
        }
        Flow::Continue
    }

    fn write(&self, _: &dyn AccessContext, offset: u64, data: &[u8]) -> Flow {
        if let (Some(root), Some((bdf, register))) =
            (self.0.upgrade(), Ecam::find(offset, data.len()))
        {
            root.write_config(bdf, register, data);
        }
        Flow::Continue
    }

    fn reset(&self) {
        let Some(root) = self.0.upgrade() else {
            return;
        };
        let bridge = root.bridge.lock();
        *bridge.unwrap_or_else(PoisonError::into_inner) = host_bridge();
        root.ports.iter().for_each(Port::reset);
        // What is there fitted before.
        let _ = root.assign();
    }

    fn save(&self) -> Option<SavedState> {
        let root = self.0.upgrade()?;
        let bridge = root.bridge.lock();
        let bridge = bridge.unwrap_or_else(PoisonError::into_inner).save();
        let ports = root.ports.iter().map(Port::save).collect();
        Some(SavedState::new(KIND, LAYOUT, &Fields { bridge, ports }))
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        let fields: Fields = saved.read(KIND, LAYOUT)?;
        let kind = KIND;
        let Some(root) = self.0.upgrade() else {
            return Ok(());
        };
        let damaged = |detail| SavedError::Damaged { kind, detail };
        if fields.ports.len() != root.ports.len() {
            let (found, here) = (fields.ports.len(), root.ports.len());
            return Err(damaged(format!("{found} root ports, and there are {here}")));
        }
        let mut bridge = host_bridge();
        bridge
            .restore(&fields.bridge)
            .map_err(|at| damaged(format!("the host bridge differs at {at:#x}")))?;
        for (port, saved) in root.ports.iter().zip(&fields.ports) {
            port.check(saved)?;
        }
        for (port, saved) in root.ports.iter().zip(fields.ports) {
            port.restore(saved)?;
        }
        let here = root.bridge.lock();
        *here.unwrap_or_else(PoisonError::into_inner) = bridge;
        Ok(())
    }
}
