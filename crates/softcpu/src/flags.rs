//! The arithmetic flags, kept lazily.
//!
//! Two words stand for CF, PF, AF, ZF, SF and OF (Intel SDM volume 1, section 3.4.3.1): the result,
//! sign-extended to 64 bits, and `aux`:
//!
//! | bits of `aux` | meaning |
//! |---|---|
//! | 63 | CF |
//! | 62 | CF xor OF: the carry into the highest bit |
//! | 3 | AF |
//! | 8-15 | correction of the byte that PF is taken from |
//! | 0 | correction of SF |
//!
//! An addition needs its result and its vector of carries only; every state that `popf` can load is
//! representable.

use crate::int::Int;

pub(crate) const CF: u64 = 1;
pub(crate) const PF: u64 = 1 << 2;
pub(crate) const AF: u64 = 1 << 4;
pub(crate) const ZF: u64 = 1 << 6;
pub(crate) const SF: u64 = 1 << 7;
pub(crate) const TF: u64 = 1 << 8;
pub(crate) const IF: u64 = 1 << 9;
pub(crate) const DF: u64 = 1 << 10;
pub(crate) const OF: u64 = 1 << 11;
pub(crate) const IOPL: u64 = 3 << 12;
pub(crate) const NT: u64 = 1 << 14;
pub(crate) const RF: u64 = 1 << 16;
pub(crate) const VM: u64 = 1 << 17;
pub(crate) const AC: u64 = 1 << 18;
pub(crate) const VIF: u64 = 1 << 19;
pub(crate) const VIP: u64 = 1 << 20;
pub(crate) const ID: u64 = 1 << 21;
/// The flags this file keeps.
pub(crate) const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

const AUX_CF: u64 = 1 << 63;
const AUX_PO: u64 = 1 << 62;
const AUX_AF: u64 = 1 << 3;

/// See the module's text.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lazy {
    res: u64,
    aux: u64,
}

impl Lazy {
    /// The result `res` with the carries out of each bit.
    #[inline(always)]
    pub(crate) fn carries<T: Int>(&mut self, res: T, carries: u64) {
        self.res = res.s();
        self.aux = if T::BITS == 64 {
            carries & (AUX_CF | AUX_PO | AUX_AF)
        } else {
            (carries << (64 - T::BITS)) | (carries & AUX_AF)
        };
    }

    /// As [`Lazy::carries`], CF kept.
    #[inline(always)]
    pub(crate) fn carries_but_cf<T: Int>(&mut self, res: T, carries: u64) {
        let cf = self.aux & AUX_CF;
        self.carries(res, carries);
        let of = (self.aux ^ (self.aux << 1)) & AUX_CF;
        self.aux = (self.aux & !(AUX_CF | AUX_PO)) | cf | ((cf ^ of) >> 1);
    }

    /// A result with CF, OF and AF clear.
    #[inline(always)]
    pub(crate) fn logic<T: Int>(&mut self, res: T) {
        self.res = res.s();
        self.aux = 0;
    }

    /// A result, sign-extended, with CF and OF given and AF clear.
    #[inline(always)]
    pub(crate) fn result(&mut self, res: u64, cf: bool, of: bool) {
        self.res = res;
        self.aux = 0;
        self.set_co(cf, of);
    }

    /// Sets CF and OF, the others stay.
    #[inline(always)]
    pub(crate) fn set_co(&mut self, cf: bool, of: bool) {
        let rest = self.aux & !(AUX_CF | AUX_PO);
        self.aux = rest | (u64::from(cf) << 63) | (u64::from(cf != of) << 62);
    }

    /// Sets CF, the others stay.
    #[inline]
    pub(crate) fn set_cf(&mut self, cf: bool) {
        let of = self.of();
        self.set_co(cf, of);
    }

    #[inline(always)]
    pub(crate) fn cf(self) -> bool {
        self.aux & AUX_CF != 0
    }

    #[inline(always)]
    pub(crate) fn of(self) -> bool {
        (self.aux ^ (self.aux << 1)) & AUX_CF != 0
    }

    #[inline(always)]
    pub(crate) fn zf(self) -> bool {
        self.res == 0
    }

    #[inline(always)]
    pub(crate) fn sf(self) -> bool {
        (self.res >> 63) ^ (self.aux & 1) != 0
    }

    #[inline(always)]
    pub(crate) fn pf(self) -> bool {
        ((self.res ^ (self.aux >> 8)) & 0xff)
            .count_ones()
            .is_multiple_of(2)
    }

    pub(crate) fn af(self) -> bool {
        self.aux & AUX_AF != 0
    }

    /// The flags in their places of RFLAGS.
    pub(crate) fn bits(self) -> u64 {
        let put = |set: bool, flag: u64| if set { flag } else { 0 };
        put(self.cf(), CF)
            | put(self.pf(), PF)
            | put(self.af(), AF)
            | put(self.zf(), ZF)
            | put(self.sf(), SF)
            | put(self.of(), OF)
    }

    /// Takes the flags from their places of RFLAGS.
    pub(crate) fn load(&mut self, bits: u64) {
        self.res = u64::from(bits & ZF == 0);
        self.aux = u64::from(bits & SF != 0);
        // The parity byte is the result's low byte, 0 or 1; one more bit makes the parity wanted.
        let even = self.res == 0;
        if even != (bits & PF != 0) {
            self.aux |= 2 << 8;
        }
        if bits & AF != 0 {
            self.aux |= AUX_AF;
        }
        self.set_co(bits & CF != 0, bits & OF != 0);
    }

    /// Condition code `code` (Intel SDM volume 2, appendix B.1.4.7).
    #[inline(always)]
    pub(crate) fn condition(self, code: u8) -> bool {
        let holds = match (code >> 1) & 7 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        holds != (code & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_flags_survives_loading() {
        for n in 0..64u64 {
            let bit = |i: u64, flag: u64| if n >> i & 1 != 0 { flag } else { 0 };
            let flags = bit(0, CF) | bit(1, PF) | bit(2, AF) | bit(3, ZF) | bit(4, SF) | bit(5, OF);
            let mut lazy = Lazy::default();
            lazy.load(flags);
            assert_eq!(lazy.bits(), flags);
        }
    }

    #[test]
    fn an_increment_keeps_the_carry() {
        for cf in [false, true] {
            let mut lazy = Lazy::default();
            lazy.set_cf(cf);
            lazy.carries_but_cf(0x80u8, 0x7f);
            assert_eq!(
                (lazy.cf(), lazy.of(), lazy.sf(), lazy.af()),
                (cf, true, true, true)
            );
        }
    }

    #[test]
    fn an_addition_that_overflows_sets_of_and_not_cf() {
        let (a, b) = (0x7fff_ffffu64, 1u64);
        let res = a + b;
        let mut lazy = Lazy::default();
        lazy.carries(res as u32, (a & b) | ((a | b) & !res));
        assert_eq!(lazy.bits(), OF | SF | AF | PF);
    }
}
