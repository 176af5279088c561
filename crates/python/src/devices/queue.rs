//! A virtqueue and its chains of buffers, for Python.
//!
//! Queues are worked on detached from the interpreter: a thread that waits for Python may have locks
//! of the transport.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::{exceptions::PyValueError, prelude::*, types::PyBytes};
use vmlet_bus::Dma;
use vmlet_machine::virtio::{QueueFault, VirtQueue};

use crate::finalization;

/// Whether the driver is still the one that made its queues ready.
#[derive(Debug, Default)]
pub(super) struct Live {
    ended: Mutex<bool>,
}

impl Live {
    /// The device was reset: returns once nobody uses the queues, and nobody will.
    pub(super) fn end(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Runs `work` unless the device was reset.
    fn with<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        (!*ended).then(work)
    }
}

/// A queue, and how it is used.
#[derive(Clone, Debug)]
struct Way {
    queue: Arc<VirtQueue>,
    dma: Dma,
    live: Arc<Live>,
}

/// A virtqueue, as an iterator of the chains that the driver has made available.
///
/// A chain is given back to the driver when the next one is asked for and when the callback ends,
/// unless it is kept.
#[pyclass(frozen, module = "vmlet._core")]
#[derive(Debug)]
pub(crate) struct Queue {
    way: Way,
    current: Mutex<Option<Py<Chain>>>,
}

impl Queue {
    pub(super) fn new(queue: Arc<VirtQueue>, dma: Dma, live: Arc<Live>) -> Queue {
        let way = Way { queue, dma, live };
        Queue {
            way,
            current: Mutex::default(),
        }
    }

    fn replace(&self, chain: Option<Py<Chain>>) -> Option<Py<Chain>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, chain)
    }

    /// Gives the current chain back, unless it is kept.
    fn finish_current(&self) {
        if let Some(chain) = self.replace(None) {
            chain.get().finish(false);
        }
    }

    /// The callback is over.
    pub(super) fn finish(&self) {
        self.finish_current();
        let way = &self.way;
        way.live.with(|| way.queue.notify(&way.dma.view()));
    }

    fn pop(&self) -> Option<vmlet_machine::virtio::Chain> {
        let Way { queue, dma, live } = &self.way;
        live.with(|| {
            let view = dma.view();
            loop {
                if let Some(chain) = queue.pop(&view) {
                    return Some(chain);
                }
                if !queue.enable_notifications(&view) {
                    return None;
                }
            }
        })
        .flatten()
    }
}

#[pymethods]
impl Queue {
    /// Its number.
    #[getter]
    fn index(&self) -> u16 {
        self.way.queue.index()
    }

    /// The entries that the driver gave it.
    #[getter]
    fn size(&self) -> u16 {
        self.way.queue.size()
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<Chain>>> {
        let popped = finalization::detach(py, || {
            self.finish_current();
            let popped = self.pop();
            if popped.is_none() {
                self.finish();
            }
            popped
        });
        let Some(chain) = popped else {
            return Ok(None);
        };
        let chain = Chain {
            chain,
            way: self.way.clone(),
            progress: Mutex::default(),
        };
        let chain = Py::new(py, chain)?;
        self.replace(Some(chain.clone_ref(py)));
        Ok(Some(chain))
    }
}

#[derive(Debug, Default)]
struct Progress {
    read: u64,
    written: u64,
    kept: bool,
    done: bool,
}

/// Buffers that belong together: first those that the device reads, then those that it writes.
#[pyclass(frozen, module = "vmlet._core")]
#[derive(Debug)]
pub(crate) struct Chain {
    chain: vmlet_machine::virtio::Chain,
    way: Way,
    progress: Mutex<Progress>,
}

fn broken(fault: &QueueFault) -> PyErr {
    PyValueError::new_err(fault.to_string())
}

impl Chain {
    fn with<T>(&self, work: impl FnOnce(&mut Progress) -> T) -> T {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut progress)
    }

    /// Gives it back, unless it is kept or that was done.
    fn finish(&self, kept_too: bool) {
        let written = self.with(|progress| {
            let due = !progress.done && (kept_too || !progress.kept);
            progress.done |= due;
            due.then_some(progress.written)
        });
        if let Some(written) = written {
            let Way { queue, dma, live } = &self.way;
            let written = u32::try_from(written).unwrap_or(u32::MAX);
            live.with(|| queue.push(&dma.view(), self.chain.head(), written));
        }
    }
}

#[pymethods]
impl Chain {
    /// Bytes that the device can read.
    #[getter]
    fn readable(&self) -> u64 {
        self.chain.readable_len()
    }

    /// Bytes that the device can write.
    #[getter]
    fn writable(&self) -> u64 {
        self.chain.writable_len()
    }

    /// The next `size` bytes that the driver has written, or all that are left.
    #[pyo3(signature = (size=None))]
    fn read<'py>(&self, py: Python<'py>, size: Option<u64>) -> PyResult<Bound<'py, PyBytes>> {
        let data = self.with(|progress| {
            let left = self.chain.readable_len().saturating_sub(progress.read);
            let wanted = size.map_or(left, |size| size.min(left));
            let mut data = vec![0; usize::try_from(wanted).unwrap_or(0)];
            let read = self.way.live.with(|| {
                let view = self.way.dma.view();
                self.chain.read(&view, progress.read, &mut data)
            });
            let count = read.unwrap_or(Ok(0)).map_err(|fault| broken(&fault))?;
            data.truncate(count);
            progress.read += count as u64;
            Ok::<_, PyErr>(data)
        })?;
        Ok(PyBytes::new(py, &data))
    }

    /// Writes `data` behind what was written; how many bytes there was room for.
    fn write(&self, data: &[u8]) -> PyResult<usize> {
        self.with(|progress| {
            if progress.done {
                return Ok(0);
            }
            let written = self.way.live.with(|| {
                let view = self.way.dma.view();
                self.chain.write(&view, progress.written, data)
            });
            let count = written.unwrap_or(Ok(0)).map_err(|fault| broken(&fault))?;
            progress.written += count as u64;
            Ok(count)
        })
    }

    /// It is not given back by itself: `done` does.
    fn keep(&self) {
        self.with(|progress| progress.kept = true);
    }

    /// Gives it back to the driver, from any thread; once the device was reset, nothing happens.
    fn done(&self, py: Python<'_>) {
        finalization::detach(py, || {
            self.finish(true);
            let Way { queue, dma, live } = &self.way;
            live.with(|| queue.notify(&dma.view()));
        });
    }
}
