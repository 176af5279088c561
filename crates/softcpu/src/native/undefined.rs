//! What is not compared between engine and processor, all of it in this place.
//!
//! **Flags.** The architecture leaves some undefined (Intel SDM volume 2, each instruction's "Flags
//! affected"). Those that processors of both vendors set alike are compared all the same: AF after
//! AND, OR, XOR and TEST, all but CF after BT and its kin, OF after ROL, ROR and shifts by more than
//! one place, CF after shifts by the operand's width or more. Not compared:
//!
//! | instructions | flags |
//! |---|---|
//! | MUL, IMUL | SF, ZF, AF, PF |
//! | DIV, IDIV | all |
//! | BSF, BSR | all but ZF |
//! | SHL, SHR, SAR | AF |
//! | RCL, RCR by more than one place | OF |
//! | SHLD, SHRD | AF, OF |
//!
//! **Results.** RCPPS, RSQRTPS and their scalar forms are held to the architected relative error of
//! 1.5 * 2^-12 and not to a processor's bits. x87's transcendental instructions may differ by one in the last place,
//! and with it C1 and the precision exception; their operands are in the documented range. Not tried:
//! SHLD and SHRD of 16 bits by more than 16 places, whose result is undefined.
//!
//! **Faults.** Which byte of an operand of more than 16 bytes (FXSAVE, FSAVE, FSTENV and their
//! counterparts), or of a masked store, a page fault names. For a masked store, whether a page
//! refuses in which no chosen byte lies. Bit 0 of a page fault's error code for addresses of the
//! system's half: Linux sets it.
//!
//! **Vendors.** The engine's CPU model has Intel's name; the processor of the comparison may be
//! AMD's. Not tried: 66 before near branches (AMD: a 16-bit target), 66 before MOVSXD (AMD: reads
//! four bytes), PREFETCHW of a register (AMD: #UD), bit 17 of MXCSR (AMD: misaligned operands). Of an
//! FXSAVE image the x87 pointers are compared only with an exception that waits, because AMD's
//! processors leave them alone otherwise.
//!
//! The engine does as AMD's processors do. On a host with one of Intel's these are not compared
//! (`vendor.rs`):
//!
//! | what | Intel's |
//! |---|---|
//! | OF after ROL, ROR, SHL and SHR by a number of places | as it likes; undefined but for one place |
//! | RCX, RSI and RDI after a repetition with 67 that did not begin | cut to 32 bits |
//! | flags after a repeated CMPS or SCAS that a page fault ends | of another step |
//! | an x87 store with an unmasked exception to memory that faults | no fault: the operand is not looked at |
//! | x87's top and tags after an MMX instruction that faults | changed |
//! | the stack after a CALL to an address that is not canonical, the 10 bytes of FSTP and FBSTP after a page fault | written in part |
//! | FPREM, FPREM1 by infinity and FSCALE by less than one of a denormal number, underflow unmasked | given back |
//! | FSIN, FCOS, FSINCOS, FPTAN of 0.5 and more, and of the smallest numbers | reduced by a pi of 66 bits; given back |
//!
//! **Not compared at all:** RF, which the way out clears.

use super::state::{AF, ARITHMETIC, OF, PF, SF, ZF};

/// Flags that are not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Undefined(pub(crate) u64);

impl Undefined {
    pub(crate) const NONE: Undefined = Undefined(0);
    pub(crate) const MULTIPLY: Undefined = Undefined(SF | ZF | AF | PF);
    pub(crate) const DIVIDE: Undefined = Undefined(ARITHMETIC);
    pub(crate) const SEARCH: Undefined = Undefined(ARITHMETIC & !ZF);
    pub(crate) const SHIFT: Undefined = Undefined(AF);
    pub(crate) const ROTATE_CARRY: Undefined = Undefined(OF);
    pub(crate) const DOUBLE_SHIFT: Undefined = Undefined(AF | OF);
}
