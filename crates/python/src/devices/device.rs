//! An object of Python as a device of the board.

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use pyo3::prelude::*;
use vmlet_bus::{AccessContext, Device, Flow, SavedError, SavedState};
use vmlet_machine::{AttachedDevice, Link};

use super::{
    WriteBatch,
    callee::{Callee, add, float, words},
    method::Method,
    ring::{Record, Ring},
    ticks::Ticks,
    turn::Held,
};
use crate::finalization;

/// The methods of the object, looked up once.
#[derive(Debug)]
pub(super) struct Methods {
    read: Method,
    write: Method,
    writes: Py<PyAny>,
    reset: Py<PyAny>,
    save: Py<PyAny>,
    restore: Py<PyAny>,
}

impl Methods {
    pub(super) fn of(object: &Bound<'_, PyAny>) -> PyResult<Methods> {
        let method = |name: &str| object.getattr(name).map(Bound::unbind);
        Ok(Methods {
            read: Method::of(object, "read")?,
            write: Method::of(object, "write")?,
            writes: method("writes")?,
            reset: method("reset")?,
            save: method("save")?,
            restore: method("restore")?,
        })
    }
}

/// A device written in Python.
#[derive(Debug)]
pub(crate) struct PythonDevice {
    pub(super) callee: Arc<Callee>,
    methods: Methods,
    /// Where writes are posted.
    pub(super) ring: Option<Arc<Ring>>,
    pub(super) link: OnceLock<Link>,
    /// The clock counts: nothing happens off the guest's thread.
    counted: AtomicBool,
    itself: Weak<PythonDevice>,
}

impl PythonDevice {
    pub(super) fn new(
        callee: Arc<Callee>,
        methods: Methods,
        posted: Option<(usize, Duration)>,
    ) -> Arc<PythonDevice> {
        Arc::new_cyclic(|itself| PythonDevice {
            callee,
            methods,
            ring: posted.map(|(room, delay)| Arc::new(Ring::new(room, delay))),
            link: OnceLock::new(),
            counted: AtomicBool::new(false),
            itself: Weak::clone(itself),
        })
    }

    /// No callback is made any more.
    pub(super) fn close(&self) {
        self.callee.turn.close();
        if let Some(ring) = &self.ring {
            ring.close();
        }
    }

    /// Delivers what is posted. With the turn.
    fn deliver(&self, py: Python<'_>, ring: &Ring) -> Flow {
        let begun = Ticks::now();
        let records = ring.take();
        let count = records.len();
        if count == 0 {
            return Flow::Continue;
        }
        let flow = self.callee.callback(py, "writes", None, || {
            let batch = Bound::new(py, WriteBatch::new(records))?;
            self.methods.writes.bind(py).call1((batch,)).map(drop)
        });
        self.callee.costs.batches.add(begun);
        add(&self.callee.costs.writes, count as u64);
        ring.finished(count);
        flow
    }

    /// The life of the thread that delivers.
    fn deliver_all(ring: &Ring, device: &Weak<PythonDevice>) {
        let mut quiet = u32::MAX;
        while ring.wait_for_work(&mut quiet) {
            let Some(device) = device.upgrade() else {
                return;
            };
            let Some(_turn) = device.callee.turn.take() else {
                return;
            };
            let flow = finalization::attach(|py| device.deliver(py, ring));
            device.callee.end_by(flow);
        }
    }

    fn post(&self, ring: &Ring, records: impl Iterator<Item = Record>) -> Flow {
        let full = ring.push(records);
        if !full && !self.counted.load(Ordering::Relaxed) {
            return Flow::Continue;
        }
        match self.callee.turn.take() {
            Some(_turn) => finalization::attach(|py| self.deliver(py, ring)),
            None => Flow::Continue,
        }
    }

    fn write_each(
        &self,
        _turn: &Held<'_>,
        cx: &dyn AccessContext,
        begun: Ticks,
        pieces: impl Iterator<Item = (u64, u64, usize)>,
    ) -> Flow {
        let flow = finalization::attach_for_access(|py| {
            self.callee.callback(py, "write", Some(cx), || {
                for (offset, value, size) in pieces {
                    self.methods.write.call(py, [offset, size as u64, value])?;
                }
                Ok(())
            })
        });
        self.callee.costs.calls.add(begun);
        flow
    }
}

fn record(cx: &dyn AccessContext, (offset, value, size): (u64, u64, usize)) -> Record {
    Record {
        offset,
        value,
        size: u32::try_from(size).unwrap_or(0),
        vcpu: cx.vcpu(),
    }
}

impl Device for PythonDevice {
    fn name(&self) -> &'static str {
        self.callee.name
    }

    fn read(&self, cx: &dyn AccessContext, offset: u64, data: &mut [u8]) -> Flow {
        float(data);
        let begun = Ticks::now();
        let Some(_turn) = self.callee.turn.take() else {
            return Flow::Continue;
        };
        let flow = finalization::attach_for_access(|py| {
            if let Some(ring) = &self.ring
                && let Flow::Stop(request) = self.deliver(py, ring)
            {
                return Flow::Stop(request);
            }
            self.callee.read(py, cx, offset, data, |at, size| {
                self.methods.read.call(py, [at, size])
            })
        });
        self.callee.costs.calls.add(begun);
        flow
    }

    fn write(&self, cx: &dyn AccessContext, offset: u64, data: &[u8]) -> Flow {
        if let Some(ring) = &self.ring {
            return self.post(ring, words(offset, data).map(|word| record(cx, word)));
        }
        let begun = Ticks::now();
        match self.callee.turn.take() {
            Some(turn) => self.write_each(&turn, cx, begun, words(offset, data)),
            None => Flow::Continue,
        }
    }

    fn write_string(&self, cx: &dyn AccessContext, offset: u64, size: usize, data: &[u8]) -> Flow {
        let elements = data
            .chunks(size.max(1))
            .flat_map(|element| words(offset, element));
        if let Some(ring) = &self.ring {
            return self.post(ring, elements.map(|word| record(cx, word)));
        }
        let begun = Ticks::now();
        match self.callee.turn.take() {
            Some(turn) => self.write_each(&turn, cx, begun, elements),
            None => Flow::Continue,
        }
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
}

impl AttachedDevice for PythonDevice {
    fn connect(&self, link: Link) {
        self.counted.store(link.counted, Ordering::Relaxed);
        let counted = link.counted;
        let _ = self.callee.run.set(link.run.clone());
        let _ = self.link.set(link);
        let Some(ring) = self.ring.as_ref().filter(|_| !counted) else {
            return;
        };
        let (ring, device) = (Arc::clone(ring), Weak::clone(&self.itself));
        let life = Box::new(move || PythonDevice::deliver_all(&ring, &device));
        if finalization::start_attached("vmlet-posted".to_owned(), life).is_err() {
            // Without the thread every write is delivered where it is made.
            self.counted.store(true, Ordering::Relaxed);
        }
    }
}
