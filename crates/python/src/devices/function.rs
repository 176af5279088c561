//! An object of Python as a PCI function.

use std::sync::{Arc, OnceLock};

use pyo3::{exceptions::PyValueError, prelude::*};
use vmlet_bus::{AccessContext, Flow, SavedError, SavedState};
use vmlet_pci::{
    BarKind, BarLayout, Function, FunctionLayout, Links, MsixLayout, VendorCapability,
};

use super::{
    DeviceLink,
    callee::{Callee, float, number, store, words},
    method::Method,
    ticks::Ticks,
};
use crate::{finalization, gateway, machine::Machine};

/// A PCI function written in Python.
#[derive(Debug)]
pub(crate) struct PythonFunction {
    pub(super) callee: Arc<Callee>,
    layout: FunctionLayout,
    pub(super) links: OnceLock<Links>,
    methods: Methods,
}

#[derive(Debug)]
struct Methods {
    read: Method,
    write: Method,
    /// None where the class does not override them: the bus's answers do.
    read_config: Option<Py<PyAny>>,
    write_config: Option<Py<PyAny>>,
    reset: Py<PyAny>,
    save: Py<PyAny>,
    restore: Py<PyAny>,
}

impl Methods {
    fn of(object: &Bound<'_, PyAny>, config: (bool, bool)) -> PyResult<Methods> {
        let method = |name: &str| object.getattr(name).map(Bound::unbind);
        let where_wanted = |wanted: bool, name| wanted.then(|| method(name)).transpose();
        Ok(Methods {
            read: Method::of(object, "read")?,
            write: Method::of(object, "write")?,
            read_config: where_wanted(config.0, "read_config")?,
            write_config: where_wanted(config.1, "write_config")?,
            reset: method("reset")?,
            save: method("save")?,
            restore: method("restore")?,
        })
    }
}

impl Function for PythonFunction {
    fn name(&self) -> &'static str {
        self.callee.name
    }

    fn layout(&self) -> FunctionLayout {
        self.layout.clone()
    }

    fn connect(&self, links: Links) {
        let _ = self.links.set(links);
    }

    fn read_bar(&self, cx: &dyn AccessContext, bar: u8, offset: u64, data: &mut [u8]) -> Flow {
        float(data);
        let begun = Ticks::now();
        let Some(_turn) = self.callee.turn.take() else {
            return Flow::Continue;
        };
        let flow = finalization::attach_for_access(|py| {
            self.callee.read(py, cx, offset, data, |at, size| {
                self.methods.read.call(py, [bar.into(), at, size])
            })
        });
        self.callee.costs.calls.add(begun);
        flow
    }

    fn write_bar(&self, cx: &dyn AccessContext, bar: u8, offset: u64, data: &[u8]) -> Flow {
        let begun = Ticks::now();
        let Some(_turn) = self.callee.turn.take() else {
            return Flow::Continue;
        };
        let flow = finalization::attach_for_access(|py| {
            self.callee.callback(py, "write", Some(cx), || {
                for (at, value, size) in words(offset, data) {
                    let arguments = [bar.into(), at, size as u64, value];
                    self.methods.write.call(py, arguments)?;
                }
                Ok(())
            })
        });
        self.callee.costs.calls.add(begun);
        flow
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) -> bool {
        let Some(method) = &self.methods.read_config else {
            return false;
        };
        let (size, value) = (data.len(), number(data));
        let answered = self.callee.hook("read_config", |py| {
            let given = method.call1(py, (offset, size, value))?;
            let given = given.bind(py);
            if given.is_none() {
                return Ok(false);
            }
            store(given, data).map(|()| true)
        });
        answered == Some(true)
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> bool {
        let Some(method) = &self.methods.write_config else {
            return false;
        };
        let call = |py: Python<'_>| {
            let given = method.call1(py, (offset, data.len(), number(data)));
            given.map(drop)
        };
        self.callee.hook("write_config", call).is_some()
    }

    fn reset(&self) {
        let reset = &self.methods.reset;
        self.callee.hook("reset", |py| reset.call0(py).map(drop));
    }

    fn save(&self) -> Option<SavedState> {
        self.callee.save(&self.methods.save)
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        self.callee.restore(&self.methods.restore, saved)
    }

    fn unplug(&self) {
        self.callee.turn.close();
    }
}

/// BAR register, bytes, "32", "64" or "prefetchable".
type BarTuple = (u8, u64, String);

fn bar((index, size, kind): BarTuple) -> PyResult<BarLayout> {
    let kind = match kind.as_str() {
        "32" => BarKind::Memory32,
        "64" => BarKind::Memory64,
        "prefetchable" => BarKind::Prefetchable64,
        other => {
            let text = format!("the kind of a BAR cannot be {other:?}");
            return Err(PyValueError::new_err(text));
        }
    };
    Ok(BarLayout { index, size, kind })
}

fn capability((body, writable): (Vec<u8>, Vec<u8>)) -> PyResult<VendorCapability> {
    let Some((id, body)) = body.split_first() else {
        return Err(PyValueError::new_err("a capability cannot be empty"));
    };
    Ok(VendorCapability {
        id: *id,
        body: body.to_vec(),
        writable: writable.get(1..).unwrap_or_default().to_vec(),
    })
}

/// Puts an object of Python into a root port as a PCI function; gives which. `ids` are vendor,
/// device, subsystem vendor, subsystem; `config` says which config methods it overrides.
#[pyfunction]
#[pyo3(signature = (machine, port, device, *, ids, revision, class_code, bars, msix, intx, capabilities, config))]
#[expect(
    clippy::too_many_arguments,
    reason = "one argument a setting, all by name"
)]
pub(crate) fn attach_pci(
    py: Python<'_>,
    machine: &Machine,
    port: Option<u8>,
    device: &Bound<'_, PyAny>,
    ids: (u16, u16, u16, u16),
    revision: u8,
    class_code: [u8; 3],
    bars: Vec<BarTuple>,
    msix: Option<(u16, u8)>,
    intx: bool,
    capabilities: Vec<(Vec<u8>, Vec<u8>)>,
    config: (bool, bool),
) -> PyResult<u8> {
    let layout = FunctionLayout {
        vendor: ids.0,
        device: ids.1,
        subsystem_vendor: ids.2,
        subsystem: ids.3,
        revision,
        class: class_code,
        bars: bars.into_iter().map(bar).collect::<PyResult<_>>()?,
        msix: msix.map(|(vectors, bar)| MsixLayout {
            vectors,
            bar,
            inside: None,
        }),
        msi: false,
        intx,
        capabilities: capabilities
            .into_iter()
            .map(capability)
            .collect::<PyResult<_>>()?,
    };
    let callee = machine.devices().adopt(device)?;
    let run = gateway::call(py, || machine.core().run_handle())?;
    let _ = callee.run.set(run);
    let function = Arc::new(PythonFunction {
        callee,
        layout,
        links: OnceLock::new(),
        methods: Methods::of(device, config)?,
    });
    device.setattr("_link", DeviceLink::of_function(&function))?;
    let made = Arc::clone(&function) as Arc<dyn Function>;
    let attached = gateway::call(py, || machine.core().attach(made, port));
    machine.devices().raise_of_hook(py)?;
    if attached.is_err() {
        function.callee.turn.close();
    }
    attached
}
