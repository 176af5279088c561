//! Kernels that were unpacked before, kept on disk.
//!
//! To unpack a distribution's kernel takes longer than all else that makes a VM. The result is kept in
//! a folder of the user's, one file a kernel:
//!
//! ```text
//! "VMLETKRN"  version:u32  sum:u32  packed:u64  unpacked:u64  boot id:36 bytes  zeros to 4096
//! packed kernel, zeros to a multiple of 4096, unpacked kernel
//! ```
//!
//! Numbers are little-endian. A file is found by its name and taken if the packed kernel in it is the
//! one that is wanted, byte for byte. The sum, CRC-32 (IEEE 802.3) of the unpacked kernel, is checked
//! once in each boot of the host: what a crash leaves of a file is seen before it is used. Files come
//! into place by `rename` and are not written afterwards, but for the boot id.
//!
//! Only files and folders of the user's own that nobody else can write to are used. What fails here
//! costs time and nothing else.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    ops::{Deref, Range},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use vmlet_boot::BootError;
use vmlet_memory::FileMap;

const MAGIC: &[u8; 8] = b"VMLETKRN";
const VERSION: u32 = 1;
const PAGE: usize = 4096;
/// Kernels that are kept; the oldest go first.
const MOST: usize = 8;
/// Bytes at both ends of a packed kernel that name its file.
const SAMPLE: usize = 64 << 10;
const ENDING: &str = "kernel";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const BOOT_ID_AT: u64 = 32;
const BOOT_ID_LEN: usize = 36;
/// Others may write.
const OPEN_TO_OTHERS: u32 = 0o022;

/// An unpacked kernel.
#[derive(Debug)]
pub(crate) enum Unpacked {
    /// Unpacked just now.
    Fresh(Vec<u8>),
    /// As it is kept, and where in the file's mapping.
    Kept(FileMap, Range<usize>),
}

impl Deref for Unpacked {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Unpacked::Fresh(bytes) => bytes,
            Unpacked::Kept(map, range) => map.get(range.clone()).unwrap_or_default(),
        }
    }
}

/// What `packed` unpacks to: as it is kept in `folder`, or new, and kept then.
pub(crate) fn unpack(packed: &[u8], folder: Option<&Path>) -> Result<Unpacked, BootError> {
    let Some(folder) = folder else {
        return Ok(Unpacked::Fresh(vmlet_boot::unpack(packed)?));
    };
    let path = folder.join(name(packed));
    match find(&path, packed) {
        Ok(Some(kept)) => return Ok(kept),
        Ok(None) => {}
        Err(error) => log::debug!(target: "vmlet.kernels", "{}: {error}", path.display()),
    }
    let unpacked = vmlet_boot::unpack(packed)?;
    match keep(&path, packed, &unpacked) {
        Ok(()) => log::debug!(target: "vmlet.kernels", "unpacked and kept in {}", path.display()),
        Err(error) => {
            log::debug!(target: "vmlet.kernels", "not kept in {}: {error}", path.display());
        }
    }
    Ok(Unpacked::Fresh(unpacked))
}

fn name(packed: &[u8]) -> String {
    let mut sum = crc32fast::Hasher::new();
    let (first, last) = (
        packed.len().min(SAMPLE),
        packed.len().saturating_sub(SAMPLE),
    );
    sum.update(packed.get(..first).unwrap_or_default());
    sum.update(packed.get(last..).unwrap_or_default());
    format!("{:08x}-{:x}.{ENDING}", sum.finalize(), packed.len())
}

fn boot_id() -> io::Result<[u8; BOOT_ID_LEN]> {
    let text = fs::read(BOOT_ID)?;
    let id = text.first_chunk().copied();
    id.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Where what lies in a file.
struct Places {
    packed: Range<usize>,
    unpacked: Range<usize>,
}

impl Places {
    /// Behind the header's page.
    fn of(packed: usize, unpacked: usize) -> Option<Places> {
        let start = packed.checked_next_multiple_of(PAGE)?;
        Some(Places {
            packed: 0..packed,
            unpacked: start..start.checked_add(unpacked)?,
        })
    }
}

struct Header {
    sum: u32,
    packed: u64,
    unpacked: u64,
    boot_id: [u8; BOOT_ID_LEN],
}

impl Header {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.sum.to_le_bytes());
        bytes.extend(self.packed.to_le_bytes());
        bytes.extend(self.unpacked.to_le_bytes());
        bytes.extend(self.boot_id);
        bytes.resize(PAGE, 0);
        bytes
    }

    /// `None`: not one of ours, or of another version.
    fn parse(bytes: &[u8; PAGE]) -> Option<Header> {
        let (magic, rest) = bytes.split_first_chunk()?;
        let (version, rest) = rest.split_first_chunk()?;
        let (sum, rest) = rest.split_first_chunk()?;
        let (packed, rest) = rest.split_first_chunk()?;
        let (unpacked, rest) = rest.split_first_chunk()?;
        (magic == MAGIC && u32::from_le_bytes(*version) == VERSION).then_some(Header {
            sum: u32::from_le_bytes(*sum),
            packed: u64::from_le_bytes(*packed),
            unpacked: u64::from_le_bytes(*unpacked),
            boot_id: *rest.first_chunk()?,
        })
    }
}

/// The kept kernel at `path`; `None`: there is none, or that of another one.
fn find(path: &Path, packed: &[u8]) -> io::Result<Option<Unpacked>> {
    let options = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path);
    let file = match options {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    own(&file.metadata()?)?;
    own(&fs::symlink_metadata(path.parent().unwrap_or(path))?)?;
    let mut page = [0; PAGE];
    file.read_exact_at(&mut page, 0)?;
    let Some(header) = Header::parse(&page).filter(|h| h.packed == packed.len() as u64) else {
        return Ok(None);
    };
    let damaged = || io::Error::from(io::ErrorKind::InvalidData);
    let unpacked = usize::try_from(header.unpacked).map_err(|_| damaged())?;
    let places = Places::of(packed.len(), unpacked).ok_or_else(damaged)?;
    let map = FileMap::new(&file, PAGE as u64, places.unpacked.end)?;
    if map.get(places.packed) != Some(packed) {
        return Ok(None);
    }
    let id = boot_id()?;
    if id != header.boot_id {
        let content = map.get(places.unpacked.clone()).ok_or_else(damaged)?;
        if crc32fast::hash(content) != header.sum {
            return Err(damaged());
        }
        file.write_all_at(&id, BOOT_ID_AT)?;
    }
    Ok(Some(Unpacked::Kept(map, places.unpacked)))
}

/// Refuses what others own or can write to.
fn own(metadata: &fs::Metadata) -> io::Result<()> {
    let me = fs::metadata("/proc/self")?.uid();
    if metadata.uid() == me && metadata.mode() & OPEN_TO_OTHERS == 0 {
        return Ok(());
    }
    Err(io::ErrorKind::PermissionDenied.into())
}

/// Keeps a kernel at `path`.
fn keep(path: &Path, packed: &[u8], unpacked: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::NotFound)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    own(&fs::symlink_metadata(folder)?)?;
    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    let places = Places::of(packed.len(), unpacked.len()).ok_or_else(wrong)?;
    let header = Header {
        sum: crc32fast::hash(unpacked),
        packed: packed.len() as u64,
        unpacked: unpacked.len() as u64,
        boot_id: boot_id()?,
    };
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let written = write(
        &new,
        &header.bytes(),
        packed,
        (places.unpacked.start, unpacked),
    );
    match written.and_then(|()| fs::rename(&new, path)) {
        Ok(()) => tidy(folder),
        Err(error) => {
            let _ = fs::remove_file(&new);
            Err(error)
        }
    }
}

fn write(path: &Path, header: &[u8], packed: &[u8], behind: (usize, &[u8])) -> io::Result<()> {
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(header)?;
    file.write_all(packed)?;
    let (at, unpacked) = behind;
    file.write_all_at(unpacked, (header.len() + at) as u64)
}

/// Removes the oldest files: complete ones beyond those that are kept, and what others left.
fn tidy(folder: &Path) -> io::Result<()> {
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| {
            name.ends_with(".new") || name.strip_suffix(ENDING).is_some_and(|n| n.ends_with('.'))
        });
        if ours {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    found.sort();
    let excess = found.len().saturating_sub(MOST);
    for (_, path) in found.into_iter().take(excess) {
        fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// What unpacks to itself.
    fn kernel(filling: u8) -> Vec<u8> {
        [b"\x7fELF", &[filling; 10_000][..]].concat()
    }

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("vmlet/kernels");
        (temporary, folder)
    }

    fn kept(packed: &[u8], folder: &Path) -> bool {
        let unpacked = unpack(packed, Some(folder)).unwrap();
        assert!(*unpacked == *packed);
        matches!(unpacked, Unpacked::Kept(..))
    }

    #[test]
    fn a_kernel_is_unpacked_once() {
        let (_temporary, folder) = folder();
        for filling in [1, 2] {
            assert!(!kept(&kernel(filling), &folder));
        }
        for filling in [1, 2] {
            assert!(kept(&kernel(filling), &folder));
        }
    }

    #[test]
    fn without_a_folder_nothing_is_kept() {
        for _ in 0..2 {
            let unpacked = unpack(&kernel(1), None).unwrap();
            assert!(matches!(unpacked, Unpacked::Fresh(_)));
        }
    }

    #[test]
    fn another_kernel_of_the_same_name_is_not_taken() {
        let (_temporary, folder) = folder();
        let mut packed = vec![0x7f; 3 * SAMPLE];
        packed[..4].copy_from_slice(b"\x7fELF");
        assert!(!kept(&packed, &folder));
        packed[3 * SAMPLE / 2] = 1;
        assert!(!kept(&packed, &folder));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert!(kept(&packed, &folder));
    }

    #[test]
    fn what_a_crash_of_the_host_leaves_is_not_used_and_made_anew() {
        let (_temporary, folder) = folder();
        let packed = kernel(1);
        assert!(!kept(&packed, &folder));
        let path = folder.join(name(&packed));
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let other = [b'x'; BOOT_ID_LEN];
        file.write_all_at(&other, BOOT_ID_AT).unwrap();
        assert!(kept(&packed, &folder), "whole, after a boot of the host");
        file.write_all_at(&other, BOOT_ID_AT).unwrap();
        file.write_all_at(&[0; 100], file.metadata().unwrap().len() - 100)
            .unwrap();
        assert!(!kept(&packed, &folder));
        assert!(kept(&packed, &folder));
    }

    #[test]
    fn every_cut_of_a_kept_kernel_is_refused() {
        let (_temporary, folder) = folder();
        let packed = kernel(1);
        assert!(!kept(&packed, &folder));
        let path = folder.join(name(&packed));
        let whole = fs::read(&path).unwrap();
        for len in (0..whole.len()).step_by(997) {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(!matches!(find(&path, &packed), Ok(Some(_))), "{len}");
        }
    }

    #[test]
    fn a_folder_or_a_file_that_others_can_write_to_is_not_used() {
        let (_temporary, folder) = folder();
        let packed = kernel(1);
        assert!(!kept(&packed, &folder));
        for path in [folder.clone(), folder.join(name(&packed))] {
            let before = fs::metadata(&path).unwrap().permissions();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
            let found = find(&folder.join(name(&packed)), &packed);
            assert!(found.is_err(), "{}", path.display());
            fs::set_permissions(&path, before).unwrap();
        }
        assert!(kept(&packed, &folder));
    }

    #[test]
    fn the_oldest_kernels_go_first() {
        let (_temporary, folder) = folder();
        for filling in 0..12 {
            assert!(!kept(&kernel(filling), &folder));
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), MOST);
        assert!(kept(&kernel(11), &folder));
        assert!(!kept(&kernel(0), &folder));
    }
}
