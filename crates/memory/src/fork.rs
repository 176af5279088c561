//! What a forked child finds of this process's VMs: nothing that lives.
//!
//! A child of `fork` has no vCPU threads, and KVM refuses it. So the child must not reach the
//! parent's guest, by accident or through an object it inherited:
//!
//! * anonymous RAM is advised `MADV_WIPEONFORK`: the child reads zeros;
//! * other mappings are advised `MADV_DONTFORK`, and the hole this leaves in the child is covered
//!   with private zero pages before any of its code can run, else a later `mmap` could land there
//!   and an old pointer would read somebody else's bytes: [`watch_hole`];
//! * descriptors are closed: [`watch_fd`];
//! * what every process has one of is made anew: [`PerProcess`];
//! * every handle remembers the generation it was made in and refuses to work in another:
//!   [`Origin`], [`ParentOnly`].
//!
//! Invariant: between two forks each table entry is either free (zero) or names a mapping or a
//! descriptor that its token's owner keeps open; the child handler reads entries and calls only
//! async-signal-safe functions.

#![expect(
    unsafe_code,
    reason = "pthread_atfork, mmap and close in a forked child"
)]

use std::{
    cell::UnsafeCell,
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
    os::fd::RawFd,
    ptr,
    sync::{
        Once,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
    },
};

use crate::MemoryError;

const CHUNK: usize = 1024;
const CHUNKS: usize = 1024;

static GENERATION: AtomicU64 = AtomicU64::new(1);
static INSTALL: Once = Once::new();
static HOLES: Table = Table::new();
static FDS: Table = Table::new();

/// The number of forks between the first process and this one, plus one.
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// Remembers the process something was made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin(u64);

impl Origin {
    /// This process.
    pub fn here() -> Origin {
        install();
        Origin(generation())
    }

    /// Whether this is still the process.
    pub fn is_here(self) -> bool {
        self.0 == generation()
    }

    /// An error in a forked child.
    pub fn check(self) -> Result<(), MemoryError> {
        if self.is_here() {
            Ok(())
        } else {
            Err(MemoryError::Forked)
        }
    }
}

/// A value that only the process that made it drops: in a child its descriptors and mappings are
/// gone or belong to something else.
#[derive(Debug)]
pub struct ParentOnly<T> {
    origin: Origin,
    value: ManuallyDrop<T>,
}

impl<T> ParentOnly<T> {
    /// Binds `value` to this process.
    pub fn new(value: T) -> Self {
        ParentOnly {
            origin: Origin::here(),
            value: ManuallyDrop::new(value),
        }
    }
}

impl<T> Deref for ParentOnly<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for ParentOnly<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for ParentOnly<T> {
    fn drop(&mut self) {
        if self.origin.is_here() {
            // SAFETY: the value is dropped once, here, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.value) }
        }
    }
}

/// A value that each process makes for itself when it first needs it. There is no lock, which a
/// thread of the parent could hold while it forks; a value stays for the life of its process.
#[derive(Debug)]
pub struct PerProcess<T: 'static> {
    made: AtomicPtr<(Origin, T)>,
}

impl<T: Send + Sync> PerProcess<T> {
    /// Nothing yet.
    pub const fn new() -> Self {
        PerProcess {
            made: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// This process' value, by `make` if there is none. Of two threads that make one at once, the
    /// second drops its own.
    pub fn get_or_make(&self, make: impl FnOnce() -> Option<T>) -> Option<&'static T> {
        let old = self.made.load(Ordering::Acquire);
        if let Some(value) = Self::of_this_process(old) {
            return Some(value);
        }
        let new = Box::into_raw(Box::new((Origin::here(), make()?)));
        match self
            .made
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => Self::of_this_process(new),
            Err(others) => {
                // SAFETY: `new` came from a box just now and was not stored.
                drop(unsafe { Box::from_raw(new) });
                Self::of_this_process(others)
            }
        }
    }

    fn of_this_process(made: *mut (Origin, T)) -> Option<&'static T> {
        // SAFETY: null or a box that was leaked for good once it was stored.
        let (origin, value) = unsafe { made.as_ref() }?;
        origin.is_here().then_some(value)
    }
}

impl<T: Send + Sync> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// A place in a table; freed when dropped.
#[derive(Debug)]
pub struct Watch {
    table: &'static Table,
    index: usize,
    origin: Origin,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.origin.is_here() {
            self.table.free(self.index);
        }
    }
}

/// Covers `addr..addr + len` with private zero pages in every child; the caller has advised the
/// range `MADV_DONTFORK`. `None` when the table is full (about a million entries).
pub fn watch_hole(addr: usize, len: usize) -> Option<Watch> {
    watch(&HOLES, addr, len)
}

/// Closes `fd` in every child.
pub fn watch_fd(fd: RawFd) -> Option<Watch> {
    // Descriptor 0 is stored as 1, since zero means a free entry.
    watch(&FDS, usize::try_from(fd).ok()?.checked_add(1)?, 1)
}

fn watch(table: &'static Table, addr: usize, len: usize) -> Option<Watch> {
    let origin = Origin::here();
    table.add(addr, len).map(|index| Watch {
        table,
        index,
        origin,
    })
}

#[derive(Debug)]
struct Entry {
    addr: AtomicUsize,
    len: AtomicUsize,
}

/// A growing table whose entries never move, so that the child handler can read it without locks.
#[derive(Debug)]
struct Table {
    chunks: [AtomicPtr<[Entry; CHUNK]>; CHUNKS],
    used: AtomicUsize,
    lock: AtomicBool,
    free: UnsafeCell<Vec<usize>>,
}

// SAFETY: `free` is touched only with `lock` held; everything else is atomic.
unsafe impl Sync for Table {}

impl Table {
    const fn new() -> Table {
        Table {
            chunks: [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS],
            used: AtomicUsize::new(0),
            lock: AtomicBool::new(false),
            free: UnsafeCell::new(Vec::new()),
        }
    }

    fn lock(&self) {
        while self
            .lock
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            std::thread::yield_now();
        }
    }

    fn unlock(&self) {
        self.lock.store(false, Ordering::Release);
    }

    fn add(&self, addr: usize, len: usize) -> Option<usize> {
        self.lock();
        // SAFETY: the lock is held.
        let free = unsafe { &mut *self.free.get() };
        let index = free.pop().or_else(|| self.grow());
        self.unlock();
        let entry = self.entry(index?)?;
        entry.len.store(len, Ordering::Relaxed);
        entry.addr.store(addr, Ordering::Release);
        index
    }

    /// One more entry; called with the lock held.
    fn grow(&self) -> Option<usize> {
        let index = self.used.load(Ordering::Relaxed);
        let chunk = self.chunks.get(index / CHUNK)?;
        if chunk.load(Ordering::Relaxed).is_null() {
            let fresh: Box<[Entry; CHUNK]> = Box::new(
                [const {
                    Entry {
                        addr: AtomicUsize::new(0),
                        len: AtomicUsize::new(0),
                    }
                }; CHUNK],
            );
            chunk.store(Box::into_raw(fresh), Ordering::Release);
        }
        self.used.store(index + 1, Ordering::Release);
        Some(index)
    }

    fn entry(&self, index: usize) -> Option<&'static Entry> {
        let chunk = self.chunks.get(index / CHUNK)?.load(Ordering::Acquire);
        // SAFETY: a chunk is either null or a leaked box, valid for the life of the process.
        unsafe { chunk.as_ref() }?.get(index % CHUNK)
    }

    fn free(&self, index: usize) {
        if let Some(entry) = self.entry(index) {
            entry.addr.store(0, Ordering::Release);
        }
        self.lock();
        // SAFETY: the lock is held.
        unsafe { &mut *self.free.get() }.push(index);
        self.unlock();
    }

    fn drain(&self, mut each: impl FnMut(usize, usize)) {
        for index in 0..self.used.load(Ordering::Acquire) {
            if let Some(entry) = self.entry(index) {
                let addr = entry.addr.swap(0, Ordering::Acquire);
                if addr != 0 {
                    each(addr, entry.len.load(Ordering::Relaxed));
                }
            }
        }
    }
}

fn install() {
    INSTALL.call_once(|| {
        // SAFETY: the handlers are functions of this library, which is never unloaded.
        unsafe { libc::pthread_atfork(Some(before), Some(after_in_parent), Some(after_in_child)) };
    });
}

extern "C" fn before() {
    HOLES.lock();
    FDS.lock();
}

extern "C" fn after_in_parent() {
    FDS.unlock();
    HOLES.unlock();
}

extern "C" fn after_in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    HOLES.drain(cover);
    FDS.drain(|stored, _| {
        if let Ok(fd) = RawFd::try_from(stored - 1) {
            // SAFETY: the descriptor is the parent's VM's; every handle on it is `ParentOnly`.
            unsafe { libc::close(fd) };
        }
    });
    FDS.unlock();
    HOLES.unlock();
}

/// Maps zero pages where nothing is; what is there already stays.
fn cover(addr: usize, len: usize) {
    let flags =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    let target = ptr::with_exposed_provenance_mut(addr);
    // SAFETY: MAP_FIXED_NOREPLACE replaces no mapping.
    unsafe {
        libc::mmap(
            target,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
    };
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Forks, runs `child` and gives its exit status.
    pub(crate) fn status_of_child(child: impl FnOnce() -> bool) -> i32 {
        // SAFETY: the child only reads memory, closes and exits.
        match unsafe { libc::fork() } {
            0 => {
                let status = if child() { 0 } else { 1 };
                // SAFETY: ends the child without running the parent's destructors.
                unsafe { libc::_exit(status) }
            }
            pid => {
                let mut status = 0;
                // SAFETY: `status` is a valid place.
                unsafe { libc::waitpid(pid, &raw mut status, 0) };
                status
            }
        }
    }

    #[test]
    fn origin_is_refused_in_a_child() {
        let origin = Origin::here();
        assert_eq!(status_of_child(|| origin.check().is_err()), 0);
        assert!(origin.check().is_ok());
    }

    #[test]
    fn watched_descriptor_is_closed_in_a_child_only() {
        // SAFETY: plain eventfd.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        let watch = watch_fd(fd);
        // SAFETY: asks for flags of a number that may be closed.
        let open = || unsafe { libc::fcntl(fd, libc::F_GETFD) } != -1;
        assert_eq!(status_of_child(|| !open()), 0);
        assert!(open());
        drop(watch);
        assert_eq!(status_of_child(open), 0);
    }

    #[test]
    fn each_process_makes_its_own_value() {
        static VALUE: PerProcess<u32> = PerProcess::new();
        assert_eq!(VALUE.get_or_make(|| None), None);
        assert_eq!(VALUE.get_or_make(|| Some(1)), Some(&1));
        assert_eq!(VALUE.get_or_make(|| Some(2)), Some(&1));
        assert_eq!(
            status_of_child(|| VALUE.get_or_make(|| Some(3)) == Some(&3)),
            0
        );
    }

    #[test]
    fn entries_are_reused() {
        static TABLE: Table = Table::new();
        let first = TABLE.add(1, 1).unwrap();
        TABLE.free(first);
        assert_eq!(TABLE.add(2, 1), Some(first));
    }

    #[test]
    fn table_holds_more_than_one_chunk() {
        static TABLE: Table = Table::new();
        for index in 0..=CHUNK {
            assert_eq!(TABLE.add(index + 1, 1), Some(index));
        }
    }
}
