//! The class `Machine`.

use std::{os::fd::AsRawFd, path::PathBuf, sync::Arc, thread, time::Duration};

use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    pybacked::PyBackedBytes,
    types::{PyBytes, PyDict},
};
use vmlet_machine::{
    ClockChoice, Config, CpuChoice, EngineChoice, Event, Identity, Image, ProtocolChoice,
    RamBacking, State, ThreadStarter,
};

use crate::{
    console, devices::DeviceSet, errors, finalization, gateway, inspect, kernel::Kernel, registers,
    view::View,
};

/// Kind, vCPU, source, detail.
/// Where an instruction was, its bytes, and its name.
type InstructionTuple = (u64, Vec<u8>, Option<&'static str>);
type EventTuple = (
    &'static str,
    Option<u32>,
    &'static str,
    String,
    Option<InstructionTuple>,
);
/// Address, length, whether it was a write, value.
type AccessTuple = (u64, usize, bool, u64);

/// A virtual machine; `vmlet.VM` is its face.
#[pyclass(frozen, weakref, module = "vmlet._core")]
#[derive(Debug)]
pub(crate) struct Machine {
    machine: Arc<vmlet_machine::Machine>,
    /// Those written in Python.
    devices: DeviceSet,
}

fn event(event: Event) -> EventTuple {
    let instruction = event.instruction.map(|i| (i.rip, i.bytes, i.name));
    (
        event.kind.name(),
        event.vcpu,
        event.source,
        event.detail,
        instruction,
    )
}

/// The choice called `name`.
pub(crate) fn choose<T: Copy>(what: &str, name: &str, choices: &[(&str, T)]) -> PyResult<T> {
    let found = choices
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, choice)| *choice);
    found.ok_or_else(|| {
        let names: Vec<_> = choices
            .iter()
            .map(|(name, _)| format!("{name:?}"))
            .collect();
        PyValueError::new_err(format!(
            "{what} cannot be {name:?}: give {}",
            names.join(" or ")
        ))
    })
}

fn engines() -> [(&'static str, EngineChoice); 3] {
    [EngineChoice::Auto, EngineChoice::Kvm, EngineChoice::Soft]
        .map(|choice| (choice.name(), choice))
}

/// How long waiting threads of a VM may take to deliver what a run has left, if nobody says.
const DELIVERY: f64 = 5.0;

impl Machine {
    /// The machine itself.
    pub(crate) fn core(&self) -> &vmlet_machine::Machine {
        &self.machine
    }

    /// Its devices written in Python.
    pub(crate) fn devices(&self) -> &DeviceSet {
        &self.devices
    }

    /// The starter of its threads: those that call Python keep their interpreter state.
    fn starter(devices: &DeviceSet) -> &'static ThreadStarter {
        if devices.is_empty() {
            &start_thread
        } else {
            &finalization::start_attached
        }
    }

    /// Has every vCPU stand still, interruptible while a callback does not return.
    fn settle(&self, py: Python<'_>, action: &str, timeout: Option<f64>) -> PyResult<()> {
        self.devices.refuse_inside(py, action)?;
        if self.devices.is_empty() {
            return Ok(());
        }
        gateway::call(py, || self.machine.ask_pause())?;
        match self.devices.settle(py, timeout) {
            Ok(true) => Ok(()),
            Ok(false) => Err(errors::hanging(py, action, timeout)),
            Err(error) => Err(error),
        }
    }

    /// Makes way for a call that a vCPU's thread has to carry out.
    fn reach(&self, py: Python<'_>, action: &str) -> PyResult<()> {
        self.devices.refuse_inside(py, action)?;
        self.devices.settle(py, None).map(drop)
    }

    /// Delivers what was posted, and raises what callbacks have raised.
    fn deliver(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        if self.devices.is_empty() {
            return Ok(());
        }
        let limit = timeout.map(|timeout| timeout.max(DELIVERY));
        if !self.devices.deliver(py, limit)? {
            return Err(errors::hanging(py, "delivering posted writes", limit));
        }
        self.devices.raise(py)
    }
}

impl Drop for Machine {
    /// Its vCPUs may be about to call Python, on threads that wait for the one that drops it, or on
    /// this very thread: then another one waits for their end.
    fn drop(&mut self) {
        if self.devices.is_empty() {
            return;
        }
        self.devices.close();
        if matches!(self.machine.state(), Ok(State::Closed) | Err(_)) {
            return;
        }
        let machine = Arc::clone(&self.machine);
        let _ = thread::Builder::new().spawn(move || {
            while Arc::strong_count(&machine) > 1 {
                thread::sleep(Duration::from_millis(1));
            }
        });
    }
}

/// Starts a thread of the core's.
pub(crate) fn start_thread(name: String, body: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
    std::thread::Builder::new().name(name).spawn(body).map(drop)
}

#[pymethods]
impl Machine {
    #[new]
    #[pyo3(signature = (*, name, kernel, kernel_cache, initramfs, modules, cmdline, memory, cpus, engine, protocol, ram, huge_page, prefault, console_limit, debug_port, clock, cpu, tsc_khz, dirty_ring, pci_ports, devices, calls_python))]
    #[expect(
        clippy::too_many_arguments,
        reason = "one argument a setting, all by name"
    )]
    fn new(
        py: Python<'_>,
        name: String,
        kernel: Kernel<'_>,
        kernel_cache: Option<PathBuf>,
        initramfs: Option<PyBackedBytes>,
        modules: Vec<PyBackedBytes>,
        cmdline: String,
        memory: u64,
        cpus: u32,
        engine: &str,
        protocol: &str,
        ram: &str,
        huge_page: u64,
        prefault: bool,
        console_limit: usize,
        debug_port: bool,
        clock: &str,
        cpu: &str,
        tsc_khz: Option<u32>,
        dirty_ring: Option<u32>,
        pci_ports: u8,
        devices: Vec<Bound<'_, PyAny>>,
        calls_python: bool,
    ) -> PyResult<Machine> {
        let protocols = [
            ("auto", ProtocolChoice::Auto),
            ("linux64", ProtocolChoice::Linux64),
            ("pvh", ProtocolChoice::Pvh),
            ("bzimage", ProtocolChoice::BzImage),
        ];
        let clocks = [
            ("realtime", ClockChoice::Realtime),
            ("icount", ClockChoice::Icount),
        ];
        let huge = RamBacking::HugeTlb {
            page_size: huge_page,
        };
        let backings = [
            ("anon", RamBacking::Anon),
            ("memfd", RamBacking::Memfd),
            ("hugetlb", huge),
        ];
        let models: Vec<_> = CpuChoice::all().map(|cpu| (cpu.name(), cpu)).collect();
        let config = Config {
            name,
            kernel: kernel.into(),
            kernel_cache,
            initramfs: initramfs.map(Image::new),
            modules: modules.into_iter().map(Image::new).collect(),
            cmdline,
            memory,
            cpus,
            engine: choose("engine", engine, &engines())?,
            clock: choose("clock", clock, &clocks)?,
            tsc_khz,
            dirty_ring,
            pci_ports,
            cpu: choose("cpu", cpu, &models)?,
            protocol: choose("protocol", protocol, &protocols)?,
            ram: choose("ram", ram, &backings)?,
            prefault,
            console_limit,
            debug_port,
        };
        let devices = DeviceSet::new(&devices, calls_python)?;
        let (places, starter) = (devices.places(), Machine::starter(&devices));
        let make = || vmlet_machine::Machine::with_devices(&config, places, starter);
        let machine = Arc::new(gateway::call(py, make)?);
        Ok(Machine { machine, devices })
    }

    /// The VM that `save` made `saved` of.
    #[staticmethod]
    #[expect(clippy::too_many_arguments, reason = "one argument a setting")]
    fn restore(
        py: Python<'_>,
        name: String,
        saved: Vec<u8>,
        engine: &str,
        console_limit: usize,
        devices: Vec<Bound<'_, PyAny>>,
        calls_python: bool,
    ) -> PyResult<Machine> {
        let config = Config {
            name,
            engine: choose("engine", engine, &engines())?,
            console_limit,
            ..Config::default()
        };
        let devices = DeviceSet::new(&devices, calls_python)?;
        let (places, starter) = (devices.places(), Machine::starter(&devices));
        let restore = || vmlet_machine::Machine::restore(&saved, &config, places, starter);
        let restored = gateway::call(py, restore);
        devices.raise_of_hook(py)?;
        let machine = Arc::new(restored?);
        Ok(Machine { machine, devices })
    }

    /// The whole paused VM.
    fn save<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.reach(py, "save")?;
        self.deliver(py, None)?;
        let saved = gateway::call(py, || self.machine.save())?;
        self.devices.raise_of_hook(py)?;
        Ok(PyBytes::new(py, &saved))
    }

    /// Raises where this is called in a callback of one of the devices, which `action` would wait for.
    fn refuse_inside(&self, py: Python<'_>, action: &str) -> PyResult<()> {
        self.devices.refuse_inside(py, action)
    }

    #[getter]
    fn cmdline(&self) -> &str {
        self.machine.cmdline()
    }

    #[getter]
    fn engine(&self, py: Python<'_>) -> PyResult<&'static str> {
        errors::raise(py, self.machine.engine())
    }

    #[getter]
    fn memory_size(&self, py: Python<'_>) -> PyResult<u64> {
        errors::raise(py, self.machine.memory_size())
    }

    #[getter]
    fn cpus(&self, py: Python<'_>) -> PyResult<usize> {
        errors::raise(py, self.machine.cpus())
    }

    #[getter]
    fn state(&self, py: Python<'_>) -> PyResult<&'static str> {
        errors::raise(py, self.machine.state().map(State::name))
    }

    /// The descriptor that becomes readable by the first event or output after `arm_bell`. It stays
    /// this object's own.
    fn bell(&self, py: Python<'_>) -> PyResult<i32> {
        let bell = errors::raise(py, self.machine.bell())?;
        Ok(bell.as_raw_fd())
    }

    fn arm_bell(&self, py: Python<'_>) -> PyResult<()> {
        errors::raise(py, self.machine.bell())?.arm();
        Ok(())
    }

    fn start(&self, py: Python<'_>) -> PyResult<()> {
        self.devices.refuse_inside(py, "start")?;
        gateway::call(py, || self.machine.start())
    }

    fn pause(&self, py: Python<'_>) -> PyResult<()> {
        if let Err(error) = self.settle(py, "pause", None) {
            let _ = self.machine.run_on();
            return Err(error);
        }
        gateway::call(py, || self.machine.pause())?;
        self.deliver(py, None)
    }

    fn resume(&self, py: Python<'_>) -> PyResult<()> {
        self.devices.refuse_inside(py, "resume")?;
        gateway::call(py, || self.machine.resume())
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        self.settle(py, "stop", None)?;
        gateway::call(py, || self.machine.stop())?;
        self.devices.deliver(py, None).map(drop)
    }

    /// `TimeoutError` when a callback of a device still runs after `timeout` seconds.
    #[pyo3(signature = (wait, timeout=None))]
    fn close(&self, py: Python<'_>, wait: bool, timeout: Option<f64>) -> PyResult<()> {
        if errors::raise(py, self.machine.state())? != State::Closed {
            self.settle(py, "close", timeout)?;
            self.devices.close();
        }
        gateway::call(py, || self.machine.close(wait))
    }

    /// Raises `SystemExit` in the callbacks of devices that run, at the interpreter's end.
    fn interrupt_callbacks(&self, py: Python<'_>) {
        self.devices.interrupt(py);
    }

    /// Instructions that all vCPUs have retired.
    fn instructions(&self, py: Python<'_>) -> PyResult<u64> {
        errors::raise(py, self.machine.instructions())
    }

    /// Starts or resumes the guest for `instructions`.
    fn begin_run_for(&self, py: Python<'_>, instructions: u64) -> PyResult<()> {
        self.devices.refuse_inside(py, "run_for")?;
        gateway::call(py, || self.machine.begin_run_for(instructions).map(drop))
    }

    /// Whether it stands still again; False when `timeout` seconds pass before.
    #[pyo3(signature = (timeout))]
    fn end_run_for(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let done = gateway::wait(py, timeout, |slice| {
            Ok(self.machine.end_run_for(slice)?.then_some(()))
        })?;
        Ok(done.is_some())
    }

    /// Records the inputs of the run to come.
    fn record(&self, py: Python<'_>, path: PathBuf, identity: Identity) -> PyResult<()> {
        gateway::call(py, || self.machine.record(&path, &identity))
    }

    /// Takes the inputs of the run to come from a record.
    fn replay(&self, py: Python<'_>, path: PathBuf, identity: Identity) -> PyResult<()> {
        gateway::call(py, || self.machine.replay(&path, &identity))
    }

    /// The event that ended the run; None when `timeout` seconds pass before.
    #[pyo3(signature = (timeout))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<EventTuple>> {
        self.devices.refuse_inside(py, "wait")?;
        let found = gateway::wait(py, timeout, |slice| self.machine.wait(slice))?;
        if found.is_some() {
            self.deliver(py, timeout)?;
        }
        Ok(found.map(event))
    }

    /// The next event; None when `timeout` seconds pass before, or none will come.
    #[pyo3(signature = (timeout))]
    fn next_event(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<EventTuple>> {
        self.devices.refuse_inside(py, "waiting for events")?;
        let found = gateway::wait(py, timeout, |slice| {
            let found = self.machine.next_event(slice)?;
            let over = matches!(self.machine.state()?, State::Ended | State::Closed);
            Ok(if found.is_some() || over {
                Some(found)
            } else {
                None
            })
        })?;
        Ok(found.flatten().map(event))
    }

    /// Up to `limit` bytes of console output, waiting up to `timeout` seconds for the first.
    #[pyo3(signature = (limit, timeout))]
    fn console_read<'py>(
        &self,
        py: Python<'py>,
        limit: Option<usize>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let console = errors::raise(py, self.machine.console())?;
        console::read(py, self, &console, limit, timeout)
    }

    /// Whether all console output has been read and none will come.
    fn console_is_drained(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(errors::raise(py, self.machine.console())?.is_drained())
    }

    /// Bytes of console output lost because nobody read them in time.
    #[getter]
    fn console_dropped(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(errors::raise(py, self.machine.console())?.dropped())
    }

    /// Gives the guest console input; how many bytes were taken.
    fn console_write(&self, py: Python<'_>, data: &[u8]) -> PyResult<usize> {
        errors::raise(py, self.machine.console_input(data))
    }

    fn read_memory<'py>(
        &self,
        py: Python<'py>,
        gpa: u64,
        length: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let data = gateway::call(py, || self.machine.read_memory(gpa, length))?;
        Ok(PyBytes::new(py, &data))
    }

    fn write_memory(&self, py: Python<'_>, gpa: u64, data: &[u8]) -> PyResult<()> {
        let data = data.to_vec();
        if self.devices.in_access() {
            return gateway::call(py, || self.machine.write_memory_in_access(gpa, &data));
        }
        gateway::call(py, || self.machine.write_memory(gpa, &data))
    }

    fn view_memory(&self, py: Python<'_>, gpa: u64, length: u64, writable: bool) -> PyResult<View> {
        let lease = errors::raise(py, self.machine.lease_memory(gpa, length, writable))?;
        Ok(View::new(lease, writable))
    }

    /// (first address, bytes, kind) of each range of guest memory.
    fn regions(&self, py: Python<'_>) -> PyResult<Vec<(u64, u64, &'static str)>> {
        let regions = errors::raise(py, self.machine.regions())?;
        Ok(regions
            .into_iter()
            .map(|region| (region.gpa, region.len, region.kind))
            .collect())
    }

    /// (first address, bytes) of what was written since the last call.
    fn dirty(&self, py: Python<'_>) -> PyResult<Vec<(u64, u64)>> {
        self.devices.refuse_inside(py, "dirty")?;
        gateway::call(py, || self.machine.dirty())
    }

    /// Port and memory accesses no device claimed: how many, and the last of them.
    fn unclaimed(&self, py: Python<'_>) -> PyResult<[(u64, Vec<AccessTuple>); 2]> {
        let (ports, mmio) = errors::raise(py, self.machine.unclaimed())?;
        Ok([ports, mmio].map(|unclaimed| {
            let recent = unclaimed.recent.iter();
            (
                unclaimed.total,
                recent.map(|a| (a.addr, a.len, a.write, a.value)).collect(),
            )
        }))
    }

    fn exits<'py>(&self, py: Python<'py>, vcpu: usize) -> PyResult<Bound<'py, PyDict>> {
        inspect::exits(py, &errors::raise(py, self.machine.exits(vcpu))?)
    }

    fn regs<'py>(&self, py: Python<'py>, vcpu: usize) -> PyResult<Bound<'py, PyDict>> {
        if let Some(regs) = self.devices.regs_inside(vcpu) {
            return registers::regs_to_dict(py, &regs);
        }
        self.reach(py, "reading registers")?;
        registers::regs_to_dict(py, &gateway::call(py, || self.machine.regs(vcpu))?)
    }

    fn sregs<'py>(&self, py: Python<'py>, vcpu: usize) -> PyResult<Bound<'py, PyDict>> {
        self.reach(py, "reading control registers")?;
        registers::sregs_to_dict(py, &gateway::call(py, || self.machine.sregs(vcpu))?)
    }

    /// Changes the registers that `values` names.
    fn set_regs(&self, py: Python<'_>, vcpu: usize, values: &Bound<'_, PyDict>) -> PyResult<()> {
        self.reach(py, "setting registers")?;
        let mut regs = gateway::call(py, || self.machine.regs(vcpu))?;
        registers::regs_from_dict(values, &mut regs)?;
        gateway::call(py, || self.machine.set_regs(vcpu, regs))
    }

    /// Changes the registers that `values` names.
    fn set_sregs(&self, py: Python<'_>, vcpu: usize, values: &Bound<'_, PyDict>) -> PyResult<()> {
        self.reach(py, "setting registers")?;
        let mut sregs = gateway::call(py, || self.machine.sregs(vcpu))?;
        registers::sregs_from_dict(values, &mut sregs)?;
        gateway::call(py, || self.machine.set_sregs(vcpu, sregs))
    }

    fn step(&self, py: Python<'_>, vcpu: usize) -> PyResult<()> {
        self.reach(py, "step")?;
        let mut step = gateway::call(py, || self.machine.begin_step(vcpu))?;
        gateway::wait(py, None, |slice| {
            let over = self.machine.end_step(vcpu, &mut step, slice)?;
            Ok(over.then_some(()))
        })?;
        self.devices.raise(py)
    }

    fn translate(&self, py: Python<'_>, address: u64, vcpu: usize) -> PyResult<u64> {
        self.reach(py, "translate")?;
        gateway::call(py, || self.machine.translate(address, vcpu))
    }

    /// The engine's own translation; None when the address is not mapped.
    fn engine_translate(&self, py: Python<'_>, address: u64, vcpu: usize) -> PyResult<Option<u64>> {
        self.reach(py, "translate")?;
        gateway::call(py, || self.machine.engine_translate(address, vcpu))
    }

    fn walk<'py>(
        &self,
        py: Python<'py>,
        address: u64,
        vcpu: usize,
    ) -> PyResult<Bound<'py, PyDict>> {
        self.reach(py, "walk")?;
        inspect::walk(py, &gateway::call(py, || self.machine.walk(address, vcpu))?)
    }

    fn page_sizes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        inspect::pages(py, &gateway::call(py, || self.machine.page_sizes())?)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        inspect::stats(py, &gateway::call(py, || self.machine.stats())?)
    }

    fn vcpu_stats<'py>(&self, py: Python<'py>, vcpu: usize) -> PyResult<Bound<'py, PyDict>> {
        self.reach(py, "a vCPU's stats")?;
        inspect::stats(py, &gateway::call(py, || self.machine.vcpu_stats(vcpu))?)
    }

    /// A VM lives in one process: it cannot be pickled.
    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "a VM cannot be pickled: it lives in one process. Pickle what makes it instead",
        ))
    }
}
