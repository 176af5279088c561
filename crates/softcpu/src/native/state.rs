//! What goes into a run and comes out of it.

/// Bytes of an FXSAVE image.
pub(crate) const IMAGE: usize = 512;
pub(crate) const ST: usize = 32;
pub(crate) const XMM: usize = 160;
pub(crate) const RSP: u8 = 4;

pub(crate) const CF: u64 = 1;
pub(crate) const PF: u64 = 1 << 2;
pub(crate) const AF: u64 = 1 << 4;
pub(crate) const ZF: u64 = 1 << 6;
pub(crate) const SF: u64 = 1 << 7;
pub(crate) const TF: u64 = 1 << 8;
pub(crate) const IF: u64 = 1 << 9;
pub(crate) const DF: u64 = 1 << 10;
pub(crate) const OF: u64 = 1 << 11;
pub(crate) const NT: u64 = 1 << 14;
pub(crate) const RF: u64 = 1 << 16;
pub(crate) const AC: u64 = 1 << 18;
pub(crate) const ID: u64 = 1 << 21;
pub(crate) const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// An FXSAVE image.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub(crate) struct Image(pub(crate) [u8; IMAGE]);

impl Image {
    pub(crate) fn new() -> Image {
        let mut image = Image([0; IMAGE]);
        image.put(0, &0x37f_u16.to_le_bytes());
        image.put(24, &0x1f80_u32.to_le_bytes());
        image
    }

    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0[at..at + N].try_into().unwrap()
    }

    /// x87 control word.
    pub(crate) fn control(&self) -> u16 {
        u16::from_le_bytes(self.get(0))
    }

    /// x87 status word.
    pub(crate) fn status(&self) -> u16 {
        u16::from_le_bytes(self.get(2))
    }

    pub(crate) fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.get(24))
    }

    /// ST(i): significand, then sign and exponent.
    pub(crate) fn st(&self, index: usize) -> (u64, u16) {
        let at = ST + 16 * index;
        (
            u64::from_le_bytes(self.get(at)),
            u16::from_le_bytes(self.get(at + 8)),
        )
    }

    pub(crate) fn put_st(&mut self, index: usize, (significand, sign_exponent): (u64, u16)) {
        let at = ST + 16 * index;
        self.put(at, &significand.to_le_bytes());
        self.put(at + 8, &sign_exponent.to_le_bytes());
    }
}

/// How a run ended: an exception, the `int3` behind the instruction included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) vector: u8,
    /// The error code, 0 where there is none.
    pub(crate) code: u64,
    pub(crate) rip: u64,
    /// CR2 of a page fault, else 0.
    pub(crate) cr2: u64,
}

/// The registers before or after.
#[derive(Clone, Debug)]
pub(crate) struct Registers {
    pub(crate) gpr: [u64; 16],
    pub(crate) flags: u64,
    pub(crate) fx: Image,
}

impl Registers {
    pub(crate) fn new() -> Registers {
        Registers {
            gpr: [0; 16],
            flags: 2 | IF,
            fx: Image::new(),
        }
    }
}
