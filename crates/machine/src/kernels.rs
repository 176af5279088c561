//! Kernels that were unpacked before, kept on disk.
//!
//! To unpack a distribution's kernel takes longer than all else that makes a VM. The result is kept in
//! a folder of the user's, one file a kernel:
//!
//! ```text
//! "VMLETKRN"  version:u32  sum:u32  image:u64  unpacked:u64  boot id:36 bytes  origin:56 bytes
//! zeros to 4096, image, zeros to a multiple of 4096, unpacked kernel
//! ```
//!
//! Numbers are little-endian. A file is found by its name and taken if the kernel image in it is the
//! one that is wanted, byte for byte, or comes from the very file that the user names, unchanged since
//! ([`Origin`]): then that is not even read. The sum, CRC-32 (IEEE 802.3) of the unpacked kernel, is checked
//! once in each boot of the host: what a crash leaves of a file is seen before it is used. Files come
//! into place by `rename` and are not written afterwards, but for the boot id and the origin.
//!
//! Only files and folders of the user's own that nobody else can write to are used. What fails here
//! costs time and nothing else.

mod origin;

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    ops::{Deref, Range},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use vmlet_boot::BootError;
use vmlet_memory::FileMap;

use self::origin::Origin;
use crate::Image;

const MAGIC: &[u8; 8] = b"VMLETKRN";
const VERSION: u32 = 2;
const PAGE: usize = 4096;
/// Kernels that are kept; the oldest go first.
const MOST: usize = 8;
/// Bytes at both ends of an image that name its file.
const SAMPLE: usize = 64 << 10;
const ENDING: &str = "kernel";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const BOOT_ID_AT: u64 = 32;
const BOOT_ID_LEN: usize = 36;
const ORIGIN_AT: u64 = BOOT_ID_AT + BOOT_ID_LEN as u64;
/// Others may write.
const OPEN_TO_OTHERS: u32 = 0o022;

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub(crate) enum Unpacked {
    /// Unpacked just now.
    Fresh(Arc<Vec<u8>>),
    /// As it is kept.
    Kept(Arc<FileMap>),
}

impl Deref for Unpacked {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Unpacked::Fresh(bytes) => bytes,
            Unpacked::Kept(map) => map,
        }
    }
}

/// What is known of an image beside its bytes.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    /// Nothing.
    Bytes,
    /// The file that it was read from.
    Read(Origin),
    /// What it unpacks to.
    Unpacked(Unpacked),
}

/// The kernel image in the file at `path`, and what is kept of it in `folder`.
pub(crate) fn open(path: &Path, folder: Option<&Path>) -> io::Result<Image> {
    let mut file = File::open(path)?;
    let origin = Origin::of_file(&file)?;
    if let Some((origin, folder)) = origin.zip(folder) {
        match known(&file, origin, folder) {
            Ok(Some(image)) => return Ok(image),
            Ok(None) => {}
            Err(error) => log::debug!(target: "vmlet.kernels", "{}: {error}", path.display()),
        }
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Image::known(
        bytes,
        origin.map_or(Known::Bytes, Known::Read),
    ))
}

/// The image that `file` is, if its kernel is kept and `file` is as it was then.
fn known(file: &File, origin: Origin, folder: &Path) -> io::Result<Option<Image>> {
    let len = origin.len();
    let mut ends = [0; 2 * SAMPLE];
    let Some((first, last)) = ends.split_at_mut_checked(SAMPLE) else {
        return Ok(None);
    };
    if len < SAMPLE as u64 {
        return Ok(None);
    }
    file.read_exact_at(first, 0)?;
    file.read_exact_at(last, len - SAMPLE as u64)?;
    let Some(kept) = Kept::open(&folder.join(named(first, last, len)))? else {
        return Ok(None);
    };
    if kept.header.origin != origin || kept.header.image != len {
        return Ok(None);
    }
    let image = FileMap::lazy(&kept.file, PAGE as u64, kept.places.image.len())?;
    let unpacked = Unpacked::Kept(Arc::new(kept.unpacked()?));
    Ok(Some(Image::known(image, Known::Unpacked(unpacked))))
}

/// What `packed`, the kernel in `image`, unpacks to: as it is kept in `folder`, or new, and kept then.
pub(crate) fn unpack(
    image: &Image,
    packed: &[u8],
    folder: Option<&Path>,
) -> Result<Unpacked, BootError> {
    if let Known::Unpacked(unpacked) = &image.known {
        return Ok(unpacked.clone());
    }
    let fresh = || Ok(Unpacked::Fresh(Arc::new(vmlet_boot::unpack(packed)?)));
    let Some(folder) = folder else {
        return fresh();
    };
    let path = folder.join(name(image));
    match find(&path, image) {
        Ok(Some(kept)) => return Ok(kept),
        Ok(None) => {}
        Err(error) => log::debug!(target: "vmlet.kernels", "{}: {error}", path.display()),
    }
    let unpacked = fresh()?;
    match keep(&path, image, &unpacked) {
        Ok(()) => log::debug!(target: "vmlet.kernels", "unpacked and kept in {}", path.display()),
        Err(error) => {
            log::debug!(target: "vmlet.kernels", "not kept in {}: {error}", path.display());
        }
    }
    Ok(unpacked)
}

fn name(image: &[u8]) -> String {
    let (first, last) = (image.len().min(SAMPLE), image.len().saturating_sub(SAMPLE));
    let first = image.get(..first).unwrap_or_default();
    let last = image.get(last..).unwrap_or_default();
    named(first, last, image.len() as u64)
}

fn named(first: &[u8], last: &[u8], len: u64) -> String {
    let mut sum = crc32fast::Hasher::new();
    sum.update(first);
    sum.update(last);
    format!("{:08x}-{len:x}.{ENDING}", sum.finalize())
}

fn boot_id() -> io::Result<[u8; BOOT_ID_LEN]> {
    let text = fs::read(BOOT_ID)?;
    let id = text.first_chunk().copied();
    id.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Where what lies behind the header's page of a file.
#[derive(Clone)]
struct Places {
    image: Range<usize>,
    unpacked: Range<usize>,
}

impl Places {
    fn of(image: usize, unpacked: usize) -> Option<Places> {
        let start = image.checked_next_multiple_of(PAGE)?;
        Some(Places {
            image: 0..image,
            unpacked: start..start.checked_add(unpacked)?,
        })
    }
}

struct Header {
    sum: u32,
    image: u64,
    unpacked: u64,
    boot_id: [u8; BOOT_ID_LEN],
    origin: Origin,
}

impl Header {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.sum.to_le_bytes());
        bytes.extend(self.image.to_le_bytes());
        bytes.extend(self.unpacked.to_le_bytes());
        bytes.extend(self.boot_id);
        bytes.extend(self.origin.bytes());
        bytes.resize(PAGE, 0);
        bytes
    }

    /// `None`: not one of ours, or of another version.
    fn parse(bytes: &[u8; PAGE]) -> Option<Header> {
        let (magic, rest) = bytes.split_first_chunk()?;
        let (version, rest) = rest.split_first_chunk()?;
        let (sum, rest) = rest.split_first_chunk()?;
        let (image, rest) = rest.split_first_chunk()?;
        let (unpacked, rest) = rest.split_first_chunk()?;
        let (boot_id, rest) = rest.split_first_chunk()?;
        (magic == MAGIC && u32::from_le_bytes(*version) == VERSION).then_some(Header {
            sum: u32::from_le_bytes(*sum),
            image: u64::from_le_bytes(*image),
            unpacked: u64::from_le_bytes(*unpacked),
            boot_id: *boot_id,
            origin: Origin::parse(rest.first_chunk()?),
        })
    }
}

/// An open file of a kept kernel.
struct Kept {
    file: File,
    header: Header,
    places: Places,
}

impl Kept {
    /// The one at `path`; `None`: there is none that this version understands.
    fn open(path: &Path) -> io::Result<Option<Kept>> {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        own(&file.metadata()?)?;
        own(&fs::symlink_metadata(path.parent().unwrap_or(path))?)?;
        let mut page = [0; PAGE];
        file.read_exact_at(&mut page, 0)?;
        let Some(header) = Header::parse(&page) else {
            return Ok(None);
        };
        let size = |bytes| usize::try_from(bytes).map_err(|_| damaged());
        let places = Places::of(size(header.image)?, size(header.unpacked)?).ok_or_else(damaged)?;
        Ok(Some(Kept {
            file,
            header,
            places,
        }))
    }

    /// The kernel, whose sum is right.
    fn unpacked(&self) -> io::Result<FileMap> {
        let (at, len) = (self.places.unpacked.start, self.places.unpacked.len());
        let map = FileMap::new(&self.file, (PAGE + at) as u64, len)?;
        let id = boot_id()?;
        if id != self.header.boot_id {
            if crc32fast::hash(&map) != self.header.sum {
                return Err(damaged());
            }
            self.file.write_all_at(&id, BOOT_ID_AT)?;
        }
        Ok(map)
    }

    /// The image is that of `origin`, too.
    fn note(&self, origin: Origin) -> io::Result<()> {
        if self.header.origin == origin {
            return Ok(());
        }
        self.file.write_all_at(&origin.bytes(), ORIGIN_AT)
    }
}

fn damaged() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// The kept kernel at `path`; `None`: there is none, or that of another image.
fn find(path: &Path, image: &Image) -> io::Result<Option<Unpacked>> {
    let Some(kept) = Kept::open(path)?.filter(|kept| kept.header.image == image.len() as u64)
    else {
        return Ok(None);
    };
    let map = FileMap::new(&kept.file, PAGE as u64, kept.places.image.len())?;
    if *map != **image {
        return Ok(None);
    }
    let unpacked = kept.unpacked()?;
    if let Some(origin) = origin_of(image) {
        kept.note(origin)?;
    }
    Ok(Some(Unpacked::Kept(Arc::new(unpacked))))
}

/// The file that `image` was read from, if it will be known again.
fn origin_of(image: &Image) -> Option<Origin> {
    match &image.known {
        Known::Read(origin) if origin.is_settled() => Some(*origin),
        _ => None,
    }
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
fn keep(path: &Path, image: &Image, unpacked: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::NotFound)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    own(&fs::symlink_metadata(folder)?)?;
    let places = Places::of(image.len(), unpacked.len()).ok_or_else(damaged)?;
    let header = Header {
        sum: crc32fast::hash(unpacked),
        image: image.len() as u64,
        unpacked: unpacked.len() as u64,
        boot_id: boot_id()?,
        origin: origin_of(image).unwrap_or(Origin::NONE),
    };
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let written = write(
        &new,
        &header.bytes(),
        image,
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

fn write(path: &Path, header: &[u8], image: &[u8], behind: (usize, &[u8])) -> io::Result<()> {
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(header)?;
    file.write_all(image)?;
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
    fn kernel(filling: u8) -> Image {
        [b"\x7fELF", &[filling; 10_000][..]].concat().into()
    }

    /// The same, large enough to be known by its file.
    fn large(filling: u8) -> Vec<u8> {
        [b"\x7fELF", &vec![filling; 3 * SAMPLE][..]].concat()
    }

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("vmlet/kernels");
        (temporary, folder)
    }

    fn kept(image: &Image, folder: &Path) -> bool {
        let unpacked = unpack(image, image, Some(folder)).unwrap();
        assert!(*unpacked == **image);
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
            let unpacked = unpack(&kernel(1), &kernel(1), None).unwrap();
            assert!(matches!(unpacked, Unpacked::Fresh(_)));
        }
    }

    #[test]
    fn another_kernel_of_the_same_name_is_not_taken() {
        let (_temporary, folder) = folder();
        let mut bytes = large(0x7f);
        assert!(!kept(&bytes.clone().into(), &folder));
        bytes[3 * SAMPLE / 2] = 1;
        assert!(!kept(&bytes.clone().into(), &folder));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert!(kept(&bytes.into(), &folder));
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

    /// The file at `path` with `bytes`, changed so long ago that it is settled.
    fn settled(path: &Path, bytes: &[u8]) {
        fs::write(path, bytes).unwrap();
        let of = |path: &Path| Origin::of(&fs::metadata(path).unwrap());
        while !of(path).is_settled() {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    fn is_known(path: &Path, folder: &Path) -> bool {
        let image = open(path, Some(folder)).unwrap();
        let known = matches!(image.known, Known::Unpacked(_));
        let unpacked = unpack(&image, &image, Some(folder)).unwrap();
        assert!(
            *unpacked == *fs::read(path).unwrap(),
            "what the file holds now"
        );
        known
    }

    #[test]
    fn a_file_that_has_not_changed_is_not_read_again() {
        let (temporary, folder) = folder();
        let path = temporary.path().join("vmlinuz");
        settled(&path, &large(1));
        assert!(!is_known(&path, &folder));
        assert!(is_known(&path, &folder));
        assert!(!is_known(&path, &temporary.path().join("elsewhere")));
    }

    #[test]
    fn a_file_that_changed_in_its_middle_is_read_and_known_by_its_new_content() {
        let (temporary, folder) = folder();
        let path = temporary.path().join("vmlinuz");
        settled(&path, &large(1));
        assert!(!is_known(&path, &folder));
        let (modified, mut bytes) = (fs::metadata(&path).unwrap().modified().unwrap(), large(1));
        bytes[3 * SAMPLE / 2] = 2;
        settled(&path, &bytes);
        // Whoever sets its time back, as tools that copy files do, changes its status.
        File::open(&path).unwrap().set_modified(modified).unwrap();
        assert!(!is_known(&path, &folder));
    }

    #[test]
    fn a_file_that_changed_a_moment_ago_may_change_again_and_is_read() {
        let (temporary, folder) = folder();
        let path = temporary.path().join("vmlinuz");
        fs::write(&path, large(1)).unwrap();
        assert!(!is_known(&path, &folder));
        assert!(!is_known(&path, &folder));
    }
}
