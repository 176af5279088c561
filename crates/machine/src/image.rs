//! The bytes of a kernel and the like, wherever they are.

use std::{fmt, io, ops::Deref, path::Path, sync::Arc};

use crate::kernels::{self, Known};

/// Bytes of a caller's, without a copy.
#[derive(Clone)]
pub struct Image {
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    pub(crate) known: Known,
}

impl Image {
    /// The bytes of `owner`.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Image {
        Image::known(owner, Known::Bytes)
    }

    /// The kernel in the file at `path`. Where it is kept, unpacked, in `folder`, and the file is as it
    /// was then, it is not read.
    pub fn open(path: &Path, folder: Option<&Path>) -> io::Result<Image> {
        kernels::open(path, folder)
    }

    /// Itself, if it is a kernel that is kept unpacked: files, mapped.
    pub(crate) fn kept(&self) -> Option<Image> {
        matches!(self.known, Known::Unpacked(_)).then(|| self.clone())
    }

    pub(crate) fn known(owner: impl AsRef<[u8]> + Send + Sync + 'static, known: Known) -> Image {
        let bytes = Arc::new(owner);
        Image { bytes, known }
    }
}

impl Deref for Image {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }
}

impl Default for Image {
    fn default() -> Image {
        Image::new([])
    }
}

impl From<Vec<u8>> for Image {
    fn from(bytes: Vec<u8>) -> Image {
        Image::new(bytes)
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} bytes)", self.len())
    }
}
