//! qcow2 images, by imago. Nothing that an image names is opened: neither what it lies on nor a data
//! file of its own.

use std::{
    fs::File,
    io,
    ops::Range,
    path::Path,
    sync::{PoisonError, RwLock},
};

use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions, file, qcow2::Qcow2,
};

use super::{BlockError, DiskFormat, GuestIo, Image, image::PIECE};

/// A qcow2 image.
#[derive(Debug)]
pub struct Qcow2Image {
    /// Discarding wants it alone.
    access: RwLock<FormatAccess<file::File>>,
    /// The same open file, for its lock.
    file: File,
    len: u64,
    readonly: bool,
}

impl Qcow2Image {
    /// The image in `file`, which was opened at `path`.
    pub fn open(file: File, path: &Path, readonly: bool) -> Result<Qcow2Image, BlockError> {
        let refuse = |source| BlockError::Format {
            path: path.to_owned(),
            named: DiskFormat::Qcow2,
            source,
        };
        let options = StorageOpenOptions::new().write(!readonly);
        let locked = file.try_clone().map_err(refuse)?;
        let storage = file::File::from_open_file(file, options).map_err(refuse)?;
        let image: Qcow2<file::File> = Qcow2::builder(storage)
            .write(!readonly)
            .backing(None)
            .data_file(None)
            .open(DenyImplicitOpenGate::default())
            .map_err(refuse)?;
        let data = image.requires_external_data_file();
        let data = data.then(|| image.implicit_external_data_file().cloned());
        let other = image.implicit_backing_file().cloned();
        if let Some(other) = other.or(data.map(Option::unwrap_or_default)) {
            let path = path.to_owned();
            return Err(BlockError::NotNamed { path, other });
        }
        let access = FormatAccess::new(image);
        Ok(Qcow2Image {
            len: access.size(),
            access: RwLock::new(access),
            file: locked,
            readonly,
        })
    }

    fn with<T>(&self, call: impl FnOnce(&FormatAccess<file::File>) -> T) -> T {
        call(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Calls `each` with offset and length of pieces of `range`.
fn pieces(range: Range<u64>, mut each: impl FnMut(u64, usize) -> io::Result<()>) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let len = usize::try_from(range.end - at).map_or(PIECE, |len| len.min(PIECE));
        each(at, len)?;
        at += len as u64;
    }
    Ok(())
}

impl Image for Qcow2Image {
    fn len(&self) -> u64 {
        self.len
    }

    fn is_readonly(&self) -> bool {
        self.readonly
    }

    fn read(&self, offset: u64, to: &GuestIo) -> io::Result<()> {
        self.read_part(offset, to, 0..to.len())
    }

    fn read_bytes(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.with(|access| access.read(data, offset))
    }

    fn write(&self, offset: u64, from: &GuestIo) -> io::Result<()> {
        let mut bytes = vec![0; PIECE];
        pieces(0..from.len(), |at, len| {
            let part = bytes.get_mut(..len).unwrap_or_default();
            from.copy(at, part);
            self.with(|access| access.write(&*part, offset + at))
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.with(|access| {
            access.flush()?;
            access.sync()
        })
    }

    fn close(&self) -> io::Result<()> {
        let flushed = if self.readonly { Ok(()) } else { self.flush() };
        let _ = self.file.unlock();
        flushed
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let access = self.access.write();
        let mut access = access.unwrap_or_else(PoisonError::into_inner);
        match access.discard_to_any(offset, len) {
            // Version 2 has no mark for what reads as zeros.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            done => done,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: bool) -> io::Result<()> {
        let done = self.with(|access| access.write_zeroes(offset, len));
        match done {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                let zeros = vec![0; PIECE];
                pieces(offset..offset + len, |at, len| {
                    let part = zeros.get(..len).unwrap_or_default();
                    self.with(|access| access.write(part, at))
                })
            }
            done => done,
        }
    }
}
