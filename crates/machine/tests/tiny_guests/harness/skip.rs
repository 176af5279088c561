//! Tests that find no engine to run on: named at once, counted at the end.
//!
//! Invariant: the exit handler touches nothing but an atomic and standard error.

#![expect(unsafe_code, reason = "registers an exit handler")]

use std::{
    io::{Write, stderr},
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering},
    },
};

static SKIPPED: AtomicUsize = AtomicUsize::new(0);
static CLOSING_LINE: Once = Once::new();

extern "C" fn print_count() {
    let count = SKIPPED.load(Ordering::SeqCst);
    let _ = writeln!(stderr(), "tiny guests: {count} tests SKIPPED on this host");
}

/// Says that `test` did not run; a failure when `engine` is among those that VMLET_REQUIRE lists.
/// Written past the test harness, which would keep the output of a passed test to itself.
pub(crate) fn skip(test: &str, engine: &str, reason: &str) {
    assert!(!required(engine), "{test} must run: {reason}");
    CLOSING_LINE.call_once(|| {
        // SAFETY: `print_count` is a function of this program and never unwinds.
        unsafe { libc::atexit(print_count) };
    });
    SKIPPED.fetch_add(1, Ordering::SeqCst);
    // The harness may have written a part of a line.
    let _ = writeln!(stderr(), "\nSKIPPED {test}: {reason}");
}

fn required(engine: &str) -> bool {
    std::env::var("VMLET_REQUIRE").is_ok_and(|list| list.split([',', ' ']).any(|e| e == engine))
}
