//! Guest code, assembled with the tests.
//!
//! Invariant: a guest is a naked function that is never called; its first eight bytes are the
//! length of the code that follows them.

#![expect(unsafe_code, reason = "reads the bytes of assembled guests")]

/// The bytes of a guest given as assembly lines (Intel syntax, position-independent). Local labels
/// are the numbers 2 to 97; label 98 is the first byte.
macro_rules! guest {
    ($($line:expr),+ $(,)?) => {{
        #[expect(unsafe_code, reason = "an assembled guest")]
        fn assembled() -> &'static [u8] {
            #[unsafe(naked)]
            extern "C" fn code() {
                core::arch::naked_asm!(".quad 99f - 98f", "98:", $($line,)+ "99:", ".code64")
            }
            $crate::harness::bytes(code)
        }
        assembled()
    }};
}

/// The code of a guest made by `guest!`.
pub(crate) fn bytes(guest: extern "C" fn()) -> &'static [u8] {
    let start = guest as *const u8;
    // SAFETY: `guest!` puts an aligned-or-not 64-bit length there, and that many bytes behind it,
    // all of them constant text of this program.
    unsafe {
        let len = start.cast::<u64>().read_unaligned();
        std::slice::from_raw_parts(start.add(8), usize::try_from(len).unwrap())
    }
}
