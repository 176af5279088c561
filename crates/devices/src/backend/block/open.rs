//! What a user names, opened and checked. A format is what the user says it is: a guest that can
//! write the first bytes of its disk must not choose.

use std::{
    fs::{self, File, FileType, OpenOptions, TryLockError},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{BlockError, Image, Overlay, Qcow2Image, RawImage};

const SECTOR: u32 = 512;
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// How an image's bytes are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskFormat {
    /// As the guest sees them.
    #[default]
    Raw,
    /// QEMU's format, version 2 or 3.
    Qcow2,
}

impl DiskFormat {
    /// The name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        }
    }

    /// The format of that name.
    pub fn named(name: &str) -> Option<DiskFormat> {
        let all = [DiskFormat::Raw, DiskFormat::Qcow2];
        all.into_iter().find(|format| format.name() == name)
    }
}

/// What a user says of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// Where it is.
    pub path: PathBuf,
    /// The guest cannot write.
    pub readonly: bool,
    /// What the guest writes is thrown away.
    pub overlay: bool,
    /// How its bytes are laid out.
    pub format: DiskFormat,
    /// Past the host's page cache.
    pub direct: bool,
}

/// The image that `options` name.
pub fn open(options: &DiskOptions) -> Result<Arc<dyn Image>, BlockError> {
    let path = options.path.as_path();
    check_combination(options)?;
    let keep = options.readonly || options.overlay;
    let file = open_file(path, keep, options.direct)?;
    lock(&file, path, keep)?;
    let image: Arc<dyn Image> = match options.format {
        DiskFormat::Raw => {
            let len = length(&file, path)?;
            Arc::new(RawImage::new(file, len, keep, options.direct))
        }
        DiskFormat::Qcow2 => {
            let mut magic = [0; QCOW2_MAGIC.len()];
            let read = file.read_exact_at(&mut magic, 0);
            if read.is_err() || magic != QCOW2_MAGIC {
                let (path, named) = (path.to_owned(), options.format);
                return Err(BlockError::WrongFormat { path, named });
            }
            Arc::new(Qcow2Image::open(file, path, keep)?)
        }
    };
    check_length(path, image.len(), image.block_size())?;
    if options.overlay && !options.readonly {
        return overlay(path, image);
    }
    Ok(image)
}

fn check_combination(options: &DiskOptions) -> Result<(), BlockError> {
    let refuse = |option, reason| {
        let path = options.path.clone();
        Err(BlockError::Option {
            path,
            option,
            reason,
        })
    };
    if options.direct && options.format != DiskFormat::Raw {
        return refuse(
            "opened with direct=True",
            "only raw images can. Leave direct=True out",
        );
    }
    Ok(())
}

fn open_file(path: &Path, readonly: bool, direct: bool) -> Result<File, BlockError> {
    let refuse = |source: io::Error| BlockError::Open {
        path: path.to_owned(),
        remedy: remedy(&source, readonly, direct),
        source,
    };
    let kind = fs::metadata(path).map_err(refuse)?.file_type();
    if let Some(kind) = unusable(kind) {
        let path = path.to_owned();
        return Err(BlockError::NotAnImage { path, kind });
    }
    let direct = if direct { libc::O_DIRECT } else { 0 };
    OpenOptions::new()
        .read(true)
        .write(!readonly)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | direct)
        .open(path)
        .map_err(refuse)
}

fn unusable(kind: FileType) -> Option<&'static str> {
    let names = [
        (kind.is_dir(), "folder"),
        (kind.is_char_device(), "character device"),
        (kind.is_fifo(), "pipe"),
        (kind.is_socket(), "socket"),
    ];
    let found = names.into_iter().find(|(is, _)| *is);
    found.map(|(_, name)| name)
}

fn remedy(error: &io::Error, readonly: bool, direct: bool) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "Check the path, or make an image with truncate -s 1G",
        Some(libc::EACCES | libc::EPERM | libc::EROFS) if !readonly => {
            "Ask for readonly=True or overlay=True, or give yourself the right to write"
        }
        Some(libc::EACCES | libc::EPERM) => "Give yourself the right to read it",
        Some(libc::EINVAL) if direct => "Its file system has no direct I/O: leave direct=True out",
        _ => "Check the path and the file system it is on",
    }
}

/// One writer, or any number of readers: two kernels that write to one file system destroy it.
fn lock(file: &File, path: &Path, shared: bool) -> Result<(), BlockError> {
    let locked = if shared {
        file.try_lock_shared()
    } else {
        file.try_lock()
    };
    match locked {
        Err(TryLockError::WouldBlock) => Err(BlockError::InUse {
            path: path.to_owned(),
        }),
        // A file system without locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

fn length(file: &File, path: &Path) -> Result<u64, BlockError> {
    let mut at_end = file;
    at_end
        .seek(SeekFrom::End(0))
        .map_err(|source| BlockError::Open {
            path: path.to_owned(),
            remedy: "Check the path and the file system it is on",
            source,
        })
}

fn check_length(path: &Path, len: u64, block: u32) -> Result<(), BlockError> {
    let path = || path.to_owned();
    if len < u64::from(SECTOR) {
        return Err(BlockError::TooShort { path: path(), len });
    }
    let unit = block.max(SECTOR);
    if !len.is_multiple_of(u64::from(unit)) {
        let path = path();
        return Err(BlockError::Ragged { path, len, unit });
    }
    Ok(())
}

fn overlay(path: &Path, below: Arc<dyn Image>) -> Result<Arc<dyn Image>, BlockError> {
    let made = tempfile::tempfile().and_then(|file| Overlay::new(below, file));
    match made {
        Ok(overlay) => Ok(Arc::new(overlay)),
        Err(source) => Err(BlockError::Overlay {
            path: path.to_owned(),
            source,
        }),
    }
}
