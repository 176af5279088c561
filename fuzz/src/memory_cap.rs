//! A hard limit on what a target allocates.
#![expect(
    unsafe_code,
    reason = "an allocator; it passes every call on unchanged"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    process::abort,
    sync::atomic::{AtomicUsize, Ordering},
};

/// The system's allocator with a limit on the bytes alive at once. Past it the process aborts, with
/// the size on stderr, and libFuzzer keeps the input.
#[derive(Debug)]
pub struct MemoryCap {
    limit: usize,
    alive: AtomicUsize,
}

impl MemoryCap {
    /// A limit of `mebibytes`, the corpus and libFuzzer's Rust side included.
    pub const fn mebibytes(mebibytes: usize) -> MemoryCap {
        MemoryCap {
            limit: mebibytes << 20,
            alive: AtomicUsize::new(0),
        }
    }

    fn count(&self, size: usize) {
        let alive = self.alive.fetch_add(size, Ordering::Relaxed) + size;
        if alive > self.limit {
            // What is printed must not allocate past the limit again.
            self.alive.store(0, Ordering::Relaxed);
            eprintln!(
                "memory cap: {size} bytes more make {alive}, the limit is {}",
                self.limit
            );
            abort();
        }
    }
}

// SAFETY: every call goes to the system's allocator with the caller's own arguments.
unsafe impl GlobalAlloc for MemoryCap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size());
        // SAFETY: the caller keeps to `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size());
        // SAFETY: the caller keeps to `GlobalAlloc::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.alive.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.count(size);
        self.alive.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to `GlobalAlloc::realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
