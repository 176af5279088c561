//! RAM: host memory that backs guest memory.
//!
//! Invariant: `base..base + len` is a mapping this [`Ram`] made and alone unmaps, in the process
//! that made it; a guest, the kernel and the holders of leases may change its bytes at any time, so
//! no Rust reference is ever formed over them: every access is a volatile or atomic copy through
//! [`VolatileSlice`].

#![expect(unsafe_code, reason = "maps memory and copies from and to it")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "sizes are checked; hosts are 64-bit"
)]

use std::{
    fs::File,
    io::{self, Seek},
    ops::Range,
    os::fd::{AsRawFd, FromRawFd},
    ptr,
    sync::{Arc, atomic::Ordering},
};

use vm_memory::{Bytes, VolatileSlice};

use crate::{
    HugePool, Hva, IoLease, Lease, LeaseKind, MemoryError, PAGE_SIZE, PageBitmap, foreign,
    fork::{self, Origin, Watch},
    guest_memory::Written,
    lease::LeaseTable,
};

/// Alignment of every mapping, so that second-stage tables can use 2 MiB pages. Mappings of larger
/// pages start at a multiple of those.
const HUGE_PAGE: u64 = 2 << 20;
/// Where the page size stands in the flags of `memfd_create`.
const MFD_SIZE_SHIFT: u32 = 26;

/// Pages are not set aside when they are mapped; a host without memory kills at the first access.
const NO_PROMISE: i32 = libc::MAP_NORESERVE;

/// What stands behind RAM.
#[derive(Debug)]
pub enum Backing {
    /// Anonymous memory of this process.
    Anon,
    /// A sealed memfd, which can be shared with other processes.
    Memfd,
    /// A sealed memfd of huge pages, all of them taken from the host's pool at once.
    HugeTlb {
        /// Bytes a page: 2 MiB or 1 GiB on x86.
        page_size: u64,
    },
    /// A file's content; guest writes stay private.
    ///
    /// A file that another process cuts short would kill this one by SIGBUS: so the content is
    /// copied into a sealed memfd, unless the user answers for the file.
    FilePrivate {
        /// The file.
        file: File,
        /// Map the file itself.
        trusted: bool,
    },
}

/// How pages go back to the host.
#[derive(Clone, Copy, Debug)]
enum Discards {
    Never,
    Advice,
    Hole { page_size: u64 },
}

/// A host mapping that backs guest memory.
#[derive(Debug)]
pub struct Ram {
    base: *mut u8,
    len: u64,
    largest_page: u64,
    file: Option<File>,
    discards: Discards,
    written: PageBitmap,
    leases: LeaseTable,
    origin: Origin,
    _hole: Option<Watch>,
}

// SAFETY: the mapping is valid from every thread, and all accesses are volatile or atomic copies.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    /// `len` bytes of zeros, or of the file's content. `len` is a multiple of 4 KiB.
    pub fn new(len: u64, backing: Backing) -> Result<Arc<Ram>, MemoryError> {
        if len == 0 || !len.is_multiple_of(PAGE_SIZE) || len > i64::MAX as u64 - HUGE_PAGE {
            return Err(MemoryError::BadRange { gpa: 0, len });
        }
        let mut pool = None;
        let discards = match &backing {
            Backing::Anon => Discards::Advice,
            Backing::FilePrivate { trusted: true, .. } => Discards::Never,
            Backing::HugeTlb { page_size } => Discards::Hole {
                page_size: *page_size,
            },
            _ => Discards::Hole {
                page_size: PAGE_SIZE,
            },
        };
        let (file, kind) = match backing {
            Backing::Anon => (None, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | NO_PROMISE),
            Backing::Memfd => (Some(memfd(len, 0)?), libc::MAP_SHARED | NO_PROMISE),
            Backing::HugeTlb { page_size } => {
                let found = pool.insert(HugePool::of(page_size)?);
                (Some(huge_memfd(len, found)?), libc::MAP_SHARED)
            }
            Backing::FilePrivate {
                file,
                trusted: true,
            } => (Some(file), libc::MAP_PRIVATE | NO_PROMISE),
            Backing::FilePrivate {
                file,
                trusted: false,
            } => (Some(copy(file, len)?), libc::MAP_SHARED | NO_PROMISE),
        };
        let largest_page = pool.map_or(HUGE_PAGE, |pool: HugePool| pool.page_size);
        let base = map(len, file.as_ref(), kind, largest_page.max(HUGE_PAGE))
            .map_err(|error| pool.map_or(error, |pool| refused(&pool, len)))?;
        let hole = isolate_from_children(base, len, file.is_none());
        Ok(Arc::new(Ram {
            base,
            len,
            largest_page,
            file,
            discards,
            written: PageBitmap::new(len),
            leases: LeaseTable::default(),
            origin: Origin::here(),
            _hole: hole,
        }))
    }

    /// Bytes.
    #[expect(clippy::len_without_is_empty, reason = "RAM is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Where the mapping starts in this process, a multiple of 2 MiB.
    pub fn hva(&self) -> Hva {
        Hva(self.base.expose_provenance() as u64)
    }

    /// The largest page that the host may use for it: that of the pool, else 2 MiB (transparent
    /// huge pages, where the host's settings and its memory allow them).
    pub fn largest_page(&self) -> u64 {
        self.largest_page
    }

    /// Has the host give all pages now, writable, instead of at the first access to each.
    pub fn prefault(&self) -> Result<(), MemoryError> {
        self.populate(0, self.len)
    }

    /// The same for the pages of `len` bytes from `offset` on.
    pub fn populate(&self, offset: u64, len: u64) -> Result<(), MemoryError> {
        self.origin.check()?;
        let first = offset / PAGE_SIZE * PAGE_SIZE;
        let slice = self.slice(first, (offset - first).saturating_add(len))?;
        loop {
            let (start, len) = (slice.ptr_guard_mut().as_ptr().cast(), slice.len());
            // SAFETY: advises on our own mapping; the content stays as it is.
            if unsafe { libc::madvise(start, len, libc::MADV_POPULATE_WRITE) } == 0 {
                return Ok(());
            }
            match io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => {}
                Some(libc::EINVAL) => return Err(MemoryError::file("MADV_POPULATE_WRITE")),
                _ => return Err(MemoryError::no_memory(self.len)),
            }
        }
    }

    /// The file behind the memory, if there is one.
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Copies `data.len()` bytes from `offset` on.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        self.slice(offset, data.len() as u64)?.copy_to(data);
        Ok(())
    }

    /// Copies `data` to `offset` and marks its pages as written.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.slice(offset, data.len() as u64)?.copy_from(data);
        self.note_written(offset, data.len() as u64);
        Ok(())
    }

    /// What this process, or the kernel on its behalf, has written.
    pub(crate) fn note_written(&self, offset: u64, len: u64) {
        foreign::note(self.hva().0.saturating_add(offset), len);
        self.written.mark(offset, len);
    }

    /// One aligned 64-bit word, read in one piece.
    pub fn load_u64(&self, offset: u64) -> Result<u64, MemoryError> {
        let slice = self.slice(offset, 8)?;
        slice
            .load(0, Ordering::Acquire)
            .map_err(|_| self.outside(offset, 8))
    }

    /// Gives whole pages back to the host: they read as zeros from now on. Refused while somebody holds
    /// a part of them, and for a file's content, which would come back instead of zeros. `false`: these
    /// are no whole pages of this memory's (huge) page size, and nothing is changed.
    pub fn discard(&self, offset: u64, len: u64) -> Result<bool, MemoryError> {
        self.origin.check()?;
        self.check(offset, len)?;
        self.check_unleased(offset..offset + len, "discarding pages")?;
        let page = match self.discards {
            Discards::Never => return Ok(false),
            Discards::Advice => PAGE_SIZE,
            Discards::Hole { page_size } => page_size,
        };
        if len == 0 || !(offset | len).is_multiple_of(page) {
            return Ok(false);
        }
        let done = match (&self.file, self.discards) {
            (Some(file), Discards::Hole { .. }) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                let (start, len) = (offset as i64, len as i64);
                // SAFETY: a hole in a memfd of ours: its pages read as zeros.
                unsafe { libc::fallocate(file.as_raw_fd(), mode, start, len) }
            }
            // SAFETY: pages of our own private mapping of no file: they read as zeros.
            _ => unsafe {
                let start = self.base.add(offset as usize).cast();
                libc::madvise(start, len as usize, libc::MADV_DONTNEED)
            },
        };
        if done != 0 {
            return Err(MemoryError::file("discarding pages"));
        }
        self.note_written(offset, len);
        Ok(true)
    }

    /// A hold on `range` for `holder`.
    pub fn lease(
        self: &Arc<Self>,
        kind: LeaseKind,
        range: Range<u64>,
        holder: String,
    ) -> Result<Lease, MemoryError> {
        self.check(range.start, range.end.saturating_sub(range.start))?;
        Ok(Lease::new(Arc::clone(self), kind, range, holder))
    }

    /// A hold of an I/O request on `ranges`; `writes`: it writes to them. `holder` is named to who is
    /// refused meanwhile.
    pub fn lease_io(
        self: &Arc<Self>,
        ranges: Vec<Range<u64>>,
        writes: bool,
        holder: &'static str,
    ) -> Result<IoLease, MemoryError> {
        for range in &ranges {
            self.check(range.start, range.end.saturating_sub(range.start))?;
        }
        Ok(IoLease::new(Arc::clone(self), ranges, writes, holder))
    }

    /// Refuses `action` while somebody holds a part of `range`.
    pub fn check_unleased(
        &self,
        range: Range<u64>,
        action: &'static str,
    ) -> Result<(), MemoryError> {
        self.leases.check(&range, action)
    }

    /// Where `offset..offset + len` lies in this process, for a view that a lease keeps alive.
    ///
    /// The bytes may change at any time; in a forked child they are zero.
    pub fn address_of(&self, offset: u64, len: u64) -> Result<*mut u8, MemoryError> {
        Ok(self.slice(offset, len)?.ptr_guard_mut().as_ptr())
    }

    /// The bytes at `offset`, for copies whose writes count as this process's.
    pub(crate) fn tracked(
        &self,
        offset: u64,
        len: u64,
    ) -> Result<VolatileSlice<'_, Written<'_>>, MemoryError> {
        self.check(offset, len)?;
        let written = Written::new(self, offset);
        // SAFETY: as in `slice`.
        Ok(unsafe {
            VolatileSlice::with_bitmap(self.base.add(offset as usize), len as usize, written, None)
        })
    }

    pub(crate) fn leases(&self) -> &LeaseTable {
        &self.leases
    }

    pub(crate) fn mark_dirty(&self, range: Range<u64>) {
        self.written
            .mark(range.start, range.end.saturating_sub(range.start));
    }

    /// The pages written by this process, or perhaps by the holder of a lease, since the last call.
    pub(crate) fn take_written(&self, offset: u64, len: u64) -> Vec<u64> {
        let (first, pages) = (offset / PAGE_SIZE, len / PAGE_SIZE);
        for range in self.leases.unseen() {
            self.mark_dirty(range);
        }
        self.written.take(first, pages)
    }

    fn slice(&self, offset: u64, len: u64) -> Result<VolatileSlice<'_>, MemoryError> {
        self.check(offset, len)?;
        // SAFETY: `offset + len` bytes from `base` on are mapped, readable and writable as long as
        // `self` lives; in a forked child the same addresses hold private zero pages.
        Ok(unsafe { VolatileSlice::new(self.base.add(offset as usize), len as usize) })
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), MemoryError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(self.outside(offset, len)),
        }
    }

    fn outside(&self, offset: u64, len: u64) -> MemoryError {
        MemoryError::OutsideRam {
            offset,
            len,
            size: self.len,
        }
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        if self.origin.is_here() {
            // SAFETY: this is the mapping made in `new`; nobody uses it any more.
            unsafe { libc::munmap(self.base.cast(), self.len as usize) };
        }
    }
}

/// An address range of `len` bytes at a multiple of `align`, filled with the mapping.
fn map(len: u64, file: Option<&File>, kind: i32, align: u64) -> Result<*mut u8, MemoryError> {
    let reserved = (len + align) as usize;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(ptr::null_mut(), reserved, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(MemoryError::no_memory(len));
    }
    let start = start.cast::<u8>();
    let front = start.align_offset(align as usize);
    // SAFETY: `front` is below `align`, so the result lies in the reserved range.
    let base = unsafe { start.add(front) };
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = kind | libc::MAP_FIXED;
    // SAFETY: replaces a part of the range reserved above and nothing else.
    let mapped = unsafe { libc::mmap(base.cast(), len as usize, access, flags, fd, 0) };
    let failed = mapped == libc::MAP_FAILED;
    let error = failed.then(|| MemoryError::no_memory(len));
    let kept = if failed { 0 } else { len as usize };
    // SAFETY: unmaps what is left of the reservation before and after the mapping.
    unsafe {
        if front > 0 {
            libc::munmap(start.cast(), front);
        }
        libc::munmap(base.add(kept).cast(), reserved - front - kept);
        libc::madvise(base.cast(), kept, libc::MADV_HUGEPAGE);
    }
    error.map_or(Ok(base), Err)
}

/// A memfd of pages from `pool`.
fn huge_memfd(len: u64, pool: &HugePool) -> Result<File, MemoryError> {
    let page_size = pool.page_size;
    if !len.is_multiple_of(page_size) {
        return Err(MemoryError::NotHugePages { len, page_size });
    }
    memfd(
        len,
        libc::MFD_HUGETLB | page_size.trailing_zeros() << MFD_SIZE_SHIFT,
    )
}

/// Why a mapping of huge pages failed: what the pool has now.
fn refused(pool: &HugePool, len: u64) -> MemoryError {
    let now = HugePool::of(pool.page_size).unwrap_or(*pool);
    now.too_small(len / pool.page_size)
}

/// A memfd of `len` bytes whose size nobody can change.
fn memfd(len: u64, more: u32) -> Result<File, MemoryError> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | more;
    // SAFETY: the name is a C string; the descriptor is new.
    let fd = unsafe { libc::memfd_create(c"vmlet-ram".as_ptr(), flags) };
    if fd < 0 {
        return Err(MemoryError::file("memfd_create"));
    }
    // SAFETY: the descriptor is open and owned by nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)
        .map_err(|source| as_file_error("ftruncate", source))?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: seals an open memfd.
    if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } != 0 {
        return Err(MemoryError::file("F_ADD_SEALS"));
    }
    Ok(file)
}

/// A sealed memfd with the file's first `len` bytes.
fn copy(mut file: File, len: u64) -> Result<File, MemoryError> {
    let mut target = memfd(len, 0)?;
    file.rewind()
        .map_err(|source| as_file_error("lseek", source))?;
    io::copy(&mut io::Read::take(file, len), &mut target)
        .map_err(|source| as_file_error("read", source))?;
    Ok(target)
}

fn as_file_error(call: &'static str, source: io::Error) -> MemoryError {
    MemoryError::File {
        call,
        errno: source.raw_os_error().unwrap_or(0),
        source,
    }
}

/// A child finds zeros: wiped where the kernel can, else a hole that is covered.
fn isolate_from_children(base: *mut u8, len: u64, anonymous: bool) -> Option<Watch> {
    let advice = if anonymous {
        libc::MADV_WIPEONFORK
    } else {
        libc::MADV_DONTFORK
    };
    // SAFETY: advises on our own mapping.
    unsafe { libc::madvise(base.cast(), len as usize, advice) };
    if anonymous {
        None
    } else {
        fork::watch_hole(base.expose_provenance(), len as usize)
    }
}

#[cfg(test)]
mod tests;
