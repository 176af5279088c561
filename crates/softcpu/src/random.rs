//! Operands that matter: zeros, denormals, infinities, NaNs, ties and limits beside random ones.

/// A small generator (SplitMix64), seeded and repeatable.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Seeded by VMLET_SEED, else by the clock; the seed is printed.
    pub(crate) fn from_environment(test: &str) -> Self {
        let seed = std::env::var("VMLET_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.unwrap().as_nanos() as u64
        });
        println!("{test}: VMLET_SEED={seed}");
        Self::seeded(seed)
    }

    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (u128::from(self.next()) * u128::from(limit)).wrapping_shr(64) as u64
    }

    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// An integer: any, small, of few bits, or close to a power of two, of either sign.
    pub(crate) fn number(&mut self) -> u64 {
        let any = self.next();
        let pick = self.next();
        let shift = (pick >> 8) as u32 & 63;
        match pick & 15 {
            0..=4 => any,
            5 | 6 => any >> 58,
            7 => (any >> 56).wrapping_sub(128),
            8 => any >> shift,
            9 => (any.cast_signed() >> shift).cast_unsigned(),
            10 => 1 << shift,
            11 => (1_u64 << shift).wrapping_sub(1),
            12 => (1_u64 << shift).wrapping_neg(),
            13 => any & 0xff00_00ff_0080_7fff,
            14 => any & any.rotate_left(17),
            _ => any >> 32 | any << 32 & 0x8000_0000_0000_0000,
        }
    }

    /// A floating-point number of this many fraction and exponent bits.
    fn float(&mut self, fraction_bits: u32, exponent_bits: u32) -> u64 {
        let fraction_mask = (1_u64 << fraction_bits) - 1;
        let max = (1_u64 << exponent_bits) - 1;
        let bias = max >> 1;
        let fraction = match self.below(8) {
            0 => 0,
            1 => fraction_mask,
            2 => 1,
            3 => 1 << self.below(u64::from(fraction_bits)),
            4 => fraction_mask & !(1 << self.below(u64::from(fraction_bits))),
            5 => self.next() << self.below(u64::from(fraction_bits)) & fraction_mask,
            _ => self.next() & fraction_mask,
        };
        let exponent = match self.below(16) {
            0 => 0,
            1 => max,
            2 => max - 1,
            3 => 1,
            4 => self.below(max + 1),
            5 => u64::from(fraction_bits) + self.below(4),
            6 => bias.wrapping_sub(bias / 2).wrapping_add(self.below(5)),
            7 => bias + bias / 2 - self.below(5),
            8..=9 => bias + self.below(66),
            _ => bias - 4 + self.below(8),
        };
        (self.next() & 1) << (fraction_bits + exponent_bits)
            | (exponent.min(max)) << fraction_bits
            | fraction
    }

    pub(crate) fn single(&mut self) -> u32 {
        self.float(23, 8) as u32
    }

    pub(crate) fn double(&mut self) -> u64 {
        self.float(52, 11)
    }

    /// An 80-bit operand: significand, then sign and exponent; unsupported encodings too.
    pub(crate) fn extended(&mut self) -> (u64, u16) {
        let exponent = match self.below(16) {
            0 => 0,
            1 => 0x7fff,
            2 => 0x7ffe,
            3 => 1 + self.below(2) as u16,
            4 => self.below(0x8000) as u16,
            5 => 0x3fff + 1023 - 2 + self.below(4) as u16,
            6 => 0x3fff - 1022 - self.below(56) as u16,
            7 => 0x3fff + 127 - 2 + self.below(4) as u16,
            8 => 0x3fff - 126 - self.below(26) as u16,
            9 => 0x3fff + 10 + self.below(56) as u16,
            _ => 0x3fff - 4 + self.below(8) as u16,
        };
        let fraction = match self.below(8) {
            0 => 0,
            1 => u64::MAX >> 1,
            2 => 1 << self.below(63),
            3 => self.next() << self.below(64),
            4 => (self.next() & !0x7ff) | 0x400,
            5 => (self.next() & !0xff_ffff_ffff) | 0x80_0000_0000,
            _ => self.next(),
        };
        let integer = if exponent & 0x7fff == 0 {
            self.one_in(8)
        } else {
            !self.one_in(24)
        };
        let significand = fraction & (u64::MAX >> 1) | u64::from(integer) << 63;
        (significand, exponent | (self.next() as u16 & 0x8000))
    }

    pub(crate) fn vector(&mut self) -> u128 {
        match self.below(3) {
            0 => (0..4).fold(0, |v, _| v << 32 | u128::from(self.single())),
            1 => u128::from(self.double()) << 64 | u128::from(self.double()),
            _ => {
                let small = self.one_in(3);
                let mut half = || if small { self.below(70) } else { self.next() };
                u128::from(half()) << 64 | u128::from(half())
            }
        }
    }

    /// MXCSR: half the time the reset value or near it, else anything.
    pub(crate) fn mxcsr(&mut self) -> u32 {
        match self.below(4) {
            0 => 0x1f80,
            1 => 0x1fa0,
            2 => 0x1f80 | self.next() as u32 & 0xe07f,
            _ => self.next() as u32 & 0xffff,
        }
    }
}

/// Cases a template: VMLET_CASES, else 5,000.
pub(crate) fn cases() -> u64 {
    std::env::var("VMLET_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(5_000)
}
