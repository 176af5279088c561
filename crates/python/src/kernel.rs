//! Kernel images in files.

use std::path::PathBuf;

use pyo3::{prelude::*, pybacked::PyBackedBytes};
use vmlet_machine::Image;

use crate::finalization;

/// A kernel image that the core has opened.
#[pyclass(frozen, module = "vmlet._core")]
#[derive(Debug)]
pub(crate) struct KernelImage(Image);

/// What a VM's kernel is given as.
#[derive(FromPyObject)]
pub(crate) enum Kernel<'py> {
    /// A file's.
    Opened(Bound<'py, KernelImage>),
    /// Bytes.
    Bytes(PyBackedBytes),
}

impl From<Kernel<'_>> for Image {
    fn from(kernel: Kernel<'_>) -> Image {
        match kernel {
            Kernel::Opened(opened) => opened.get().0.clone(),
            Kernel::Bytes(bytes) => Image::new(bytes),
        }
    }
}

/// The image in the file at `path`, not read where it is kept unpacked in `kept`. `None`: it cannot be
/// read; who reads it sees why.
#[pyfunction]
#[pyo3(signature = (path, kept))]
pub(crate) fn open_kernel(
    py: Python<'_>,
    path: PathBuf,
    kept: Option<PathBuf>,
) -> Option<KernelImage> {
    let opened = finalization::detach(py, || Image::open(&path, kept.as_deref()));
    opened.ok().map(KernelImage)
}
