//! Guest code, assembled with the tests.
//!
//! Invariant: a guest is a naked function that is never called; its first eight bytes are the
//! length of the code that follows them.

#![expect(
    unsafe_code,
    reason = "reads assembled guests; runs one instruction itself"
)]

/// The bytes of a guest given as assembly lines (Intel syntax, position-independent). Local labels
/// are the numbers 2 to 97; label 98 is the first byte. R15 holds the stop address at the start.
macro_rules! guest {
    ($($line:expr),+ $(,)?) => {{
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

/// Divides 1.0 by 0.0 with the divide-by-zero exception of SSE unmasked.
pub(crate) fn divide_unmasked() {
    let (unmasked, masked, one) = (0x1d80u32, 0x1f80u32, 1.0f32);
    // SAFETY: changes MXCSR and registers it names; MXCSR is as before at the end.
    unsafe {
        core::arch::asm!(
            "ldmxcsr [{0}]", "xorps {2}, {2}", "divss {3}, {2}", "ldmxcsr [{1}]",
            in(reg) &raw const unmasked, in(reg) &raw const masked, out(xmm_reg) _, inout(xmm_reg) one => _,
        );
    }
}
