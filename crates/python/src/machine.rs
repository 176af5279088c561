//! The class `Machine`.

use std::{os::fd::AsRawFd, path::PathBuf};

use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyBytes, PyDict},
};
use vmlet_machine::{
    ClockChoice, Config, CpuChoice, EngineChoice, Event, Identity, ProtocolChoice, RamBacking,
    State,
};

use crate::{errors, gateway, inspect, registers, view::View};

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
    machine: vmlet_machine::Machine,
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
fn choose<T: Copy>(what: &str, name: &str, choices: &[(&str, T)]) -> PyResult<T> {
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

fn start_thread(name: String, body: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
    std::thread::Builder::new().name(name).spawn(body).map(drop)
}

#[pymethods]
impl Machine {
    #[new]
    #[pyo3(signature = (*, name, kernel, initramfs, modules, cmdline, memory, cpus, engine, protocol, ram, huge_page, prefault, console_limit, debug_port, clock, cpu, tsc_khz, dirty_ring, pci_ports))]
    #[expect(
        clippy::too_many_arguments,
        reason = "one argument a setting, all by name"
    )]
    fn new(
        py: Python<'_>,
        name: String,
        kernel: Vec<u8>,
        initramfs: Option<Vec<u8>>,
        modules: Vec<Vec<u8>>,
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
            kernel,
            initramfs,
            modules,
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
        let machine = gateway::call(py, || vmlet_machine::Machine::new(&config, &start_thread))?;
        Ok(Machine { machine })
    }

    /// The VM that `save` made `saved` of.
    #[staticmethod]
    fn restore(
        py: Python<'_>,
        name: String,
        saved: Vec<u8>,
        engine: &str,
        console_limit: usize,
    ) -> PyResult<Machine> {
        let config = Config {
            name,
            engine: choose("engine", engine, &engines())?,
            console_limit,
            ..Config::default()
        };
        let restore = || vmlet_machine::Machine::restore(&saved, &config, &start_thread);
        let machine = gateway::call(py, restore)?;
        Ok(Machine { machine })
    }

    /// The whole paused VM.
    fn save<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(
            py,
            &gateway::call(py, || self.machine.save())?,
        ))
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
        gateway::call(py, || self.machine.start())
    }

    fn pause(&self, py: Python<'_>) -> PyResult<()> {
        gateway::call(py, || self.machine.pause())
    }

    fn resume(&self, py: Python<'_>) -> PyResult<()> {
        gateway::call(py, || self.machine.resume())
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        gateway::call(py, || self.machine.stop())
    }

    fn close(&self, py: Python<'_>, wait: bool) -> PyResult<()> {
        gateway::call(py, || self.machine.close(wait))
    }

    /// Instructions that all vCPUs have retired.
    fn instructions(&self, py: Python<'_>) -> PyResult<u64> {
        errors::raise(py, self.machine.instructions())
    }

    /// Starts or resumes the guest for `instructions`.
    fn begin_run_for(&self, py: Python<'_>, instructions: u64) -> PyResult<()> {
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
        let found = gateway::wait(py, timeout, |slice| self.machine.wait(slice))?;
        Ok(found.map(event))
    }

    /// The next event; None when `timeout` seconds pass before, or none will come.
    #[pyo3(signature = (timeout))]
    fn next_event(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<EventTuple>> {
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
        let limit = limit.unwrap_or(usize::MAX);
        let found = gateway::wait(py, timeout, |slice| {
            let bytes = console.read(limit, slice);
            Ok((!bytes.is_empty() || console.is_drained()).then_some(bytes))
        })?;
        Ok(PyBytes::new(py, &found.unwrap_or_default()))
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
        registers::regs_to_dict(py, &gateway::call(py, || self.machine.regs(vcpu))?)
    }

    fn sregs<'py>(&self, py: Python<'py>, vcpu: usize) -> PyResult<Bound<'py, PyDict>> {
        registers::sregs_to_dict(py, &gateway::call(py, || self.machine.sregs(vcpu))?)
    }

    /// Changes the registers that `values` names.
    fn set_regs(&self, py: Python<'_>, vcpu: usize, values: &Bound<'_, PyDict>) -> PyResult<()> {
        let mut regs = gateway::call(py, || self.machine.regs(vcpu))?;
        registers::regs_from_dict(values, &mut regs)?;
        gateway::call(py, || self.machine.set_regs(vcpu, regs))
    }

    /// Changes the registers that `values` names.
    fn set_sregs(&self, py: Python<'_>, vcpu: usize, values: &Bound<'_, PyDict>) -> PyResult<()> {
        let mut sregs = gateway::call(py, || self.machine.sregs(vcpu))?;
        registers::sregs_from_dict(values, &mut sregs)?;
        gateway::call(py, || self.machine.set_sregs(vcpu, sregs))
    }

    fn step(&self, py: Python<'_>, vcpu: usize) -> PyResult<()> {
        let mut step = gateway::call(py, || self.machine.begin_step(vcpu))?;
        gateway::wait(py, None, |slice| {
            let over = self.machine.end_step(vcpu, &mut step, slice)?;
            Ok(over.then_some(()))
        })?;
        Ok(())
    }

    fn translate(&self, py: Python<'_>, address: u64, vcpu: usize) -> PyResult<u64> {
        gateway::call(py, || self.machine.translate(address, vcpu))
    }

    /// The engine's own translation; None when the address is not mapped.
    fn engine_translate(&self, py: Python<'_>, address: u64, vcpu: usize) -> PyResult<Option<u64>> {
        gateway::call(py, || self.machine.engine_translate(address, vcpu))
    }

    fn walk<'py>(
        &self,
        py: Python<'py>,
        address: u64,
        vcpu: usize,
    ) -> PyResult<Bound<'py, PyDict>> {
        inspect::walk(py, &gateway::call(py, || self.machine.walk(address, vcpu))?)
    }

    fn page_sizes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        inspect::pages(py, &gateway::call(py, || self.machine.page_sizes())?)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        inspect::stats(py, &gateway::call(py, || self.machine.stats())?)
    }

    fn vcpu_stats<'py>(&self, py: Python<'py>, vcpu: usize) -> PyResult<Bound<'py, PyDict>> {
        inspect::stats(py, &gateway::call(py, || self.machine.vcpu_stats(vcpu))?)
    }

    /// A VM lives in one process: it cannot be pickled.
    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "a VM cannot be pickled: it lives in one process. Pickle what makes it instead",
        ))
    }
}
