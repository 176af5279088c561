//! The bytes of a kernel and the like, wherever they are.

use std::{fmt, ops::Deref, sync::Arc};

/// Bytes of a caller's, without a copy.
#[derive(Clone)]
pub struct Image(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl Image {
    /// The bytes of `owner`.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Image {
        Image(Arc::new(owner))
    }
}

impl Deref for Image {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        (*self.0).as_ref()
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
