//! The inputs of one case: registers, and what lies in memory.

use super::{
    encode::{Encoded, Site},
    host,
    layout::{self, CODE, PAGE, Rights},
    state::{AC, ARITHMETIC, DF, ID, IF, NT, RF, RSP, Registers, TF, XMM},
    target::{self, solve},
    template::{Need, Operand, Template, Unit},
    vector, vendor, x87,
};
use crate::random::Random;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;
const VIRTUAL: u64 = 3 << 19 | 1 << 17;
/// MXCSR bits that only AMD's processors have: misaligned operands.
const MISALIGNED: u32 = 1 << 17;
/// Bits of MXCSR that may be set.
const MXCSR: u32 = 0xffff;

/// Pages on both sides, by offset in the instance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sides {
    pub(crate) native: u64,
    pub(crate) guest: u64,
}

impl Sides {
    /// Writes to both sides, if the page can be written.
    pub(crate) fn put(self, linear: u64, bytes: &[u8]) {
        let offset = linear.wrapping_sub(self.native);
        if offset < layout::SPAN && layout::allows(offset, bytes.len() as u64, Rights::Write) {
            host::put(linear, bytes);
            host::put(self.guest + offset, bytes);
        }
    }

    /// Reads 16 bytes, if they are there.
    fn peek(self, linear: u64) -> u128 {
        let offset = linear.wrapping_sub(self.native);
        let mut bytes = [0; 16];
        if offset < layout::SPAN && layout::allows(offset, 16, Rights::Read) {
            host::get(linear, &mut bytes);
        }
        u128::from_le_bytes(bytes)
    }
}

/// What a case is made with.
pub(crate) struct Case<'a> {
    pub(crate) template: &'a Template,
    pub(crate) encoded: &'a Encoded,
    pub(crate) site: &'a Site,
    pub(crate) sides: Sides,
    pub(crate) random: &'a mut Random,
    pub(crate) registers: &'a mut Registers,
    /// Linear places whose surroundings are compared after the run.
    pub(crate) places: Vec<u64>,
}

impl Case<'_> {
    /// Fills registers and memory; false if this encoding can have no case.
    pub(crate) fn prepare(&mut self) -> bool {
        const TRIES: usize = 100;
        (0..TRIES).any(|_| {
            self.prepare_any();
            !self.is_vendors()
                && !x87::is_out_of_range(self.template, &self.registers.fx)
                && !vendor::keeps_tiny(self.template, &self.registers.fx)
        })
    }

    /// An operand in a read-only page that vendors read differently.
    fn is_vendors(&self) -> bool {
        let place = match (self.template.need, self.places.last()) {
            (Need::Image, Some(place)) => place.wrapping_add(24),
            (Need::Mxcsr, Some(place)) => *place,
            _ => return false,
        };
        self.sides.peek(place) as u32 & MISALIGNED != 0
    }

    fn prepare_any(&mut self) {
        for value in &mut self.registers.gpr {
            *value = self.random.number();
        }
        let bits = self.random.next();
        self.registers.flags = 2 | IF | bits & (ARITHMETIC | ID);
        if self.template.need == Need::Text || bits >> 60 == 0 {
            self.registers.flags |= bits >> 1 & DF;
        }
        match self.template.unit {
            Unit::Integer => {}
            Unit::Vector => vector::fill(self.registers, self.random),
            Unit::X87 => x87::fill(self.registers, self.random),
        }
        self.places.clear();
        self.need();
        if self.encoded.address.is_some() {
            self.operand();
        }
    }

    fn pick(&mut self) -> u64 {
        target::pick(self.template, self.encoded, self.sides.native, self.random)
    }

    /// A place for `bytes` bytes that are not the ModRM operand.
    fn implicit(&mut self, bytes: u64) -> u64 {
        let start = self.sides.native;
        let at = if self.random.one_in(16) {
            target::edge(start, bytes, 1, self.encoded.short, self.random)
        } else {
            target::inside(start, bytes, 1, self.random)
        };
        self.places.push(at);
        at
    }

    fn gpr(&mut self, number: usize) -> &mut u64 {
        &mut self.registers.gpr[number]
    }

    fn stack(&mut self) -> u64 {
        let at = self.implicit(8);
        *self.gpr(RSP.into()) = at;
        at
    }

    fn word(&mut self, at: u64, value: u64) {
        self.sides.put(at, &value.to_le_bytes());
    }

    fn need(&mut self) {
        match self.template.need {
            Need::Stack => {
                let at = self.stack();
                let value = self.random.number();
                self.word(at, value);
            }
            Need::StackFlags => {
                // Never what happens to lie there: TF would trap the way out.
                let at = target::inside(self.sides.native, 8, 1, self.random);
                *self.gpr(RSP.into()) = at;
                let value = self.random.next() & !(TF | RF | VIRTUAL);
                // Rarely the flags of alignment checks and nested tasks.
                let rare = if self.random.one_in(4) { AC | NT } else { 0 };
                self.word(at, value & !(AC | NT) | value & rare);
            }
            Need::StackTarget => {
                let at = self.stack();
                let value = self.branch_target();
                self.word(at, value);
            }
            Need::Frame => {
                self.stack();
                let at = self.implicit(8);
                *self.gpr(RBP) = at;
                let value = self.random.number();
                self.word(at, value);
            }
            Need::Target => {
                self.stack();
                if self.template.operand == Operand::Register {
                    let value = self.branch_target();
                    *self.gpr(self.encoded.rm.into()) = value;
                }
            }
            Need::Text => self.text(),
            Need::Dividend => self.dividend(),
            Need::Table => {
                let at = self.implicit(1);
                let base = super::encode::segment_base(self.encoded.segment, self.site);
                let al = *self.gpr(RAX) & 0xff;
                *self.gpr(RBX) = at.wrapping_sub(al).wrapping_sub(base);
                self.shorten(RBX);
            }
            Need::Count => {
                let count = super::encode::defined_count(*self.gpr(RCX) as u8, self.encoded.size);
                let rest = *self.gpr(RCX) & !0xff;
                *self.gpr(RCX) = rest | u64::from(count);
            }
            Need::Counter => {
                let mut value = self.random.number();
                if self.random.one_in(2) {
                    value = self.random.below(3) | self.random.next() << 32;
                }
                if self.random.one_in(2) {
                    value &= 0xffff_ffff;
                }
                *self.gpr(RCX) = value;
            }
            Need::Masked => {
                let at = self.implicit(16);
                let base = super::encode::segment_base(self.encoded.segment, self.site);
                *self.gpr(RDI) = at.wrapping_sub(base);
                self.shorten(RDI);
                // Whether a page that no chosen byte lies in may refuse is up to the processor.
                if !layout::allows(at.wrapping_sub(self.sides.native), 16, Rights::Write) {
                    let number = usize::from(self.encoded.rm);
                    (0..8).for_each(|st| self.registers.fx.put_st(st, (u64::MAX, 0xffff)));
                    self.registers.fx.put(XMM + 16 * number, &[0xff; 16]);
                }
            }
            _ => {}
        }
    }

    /// With 32-bit addresses the upper half counts for nothing.
    fn shorten(&mut self, number: usize) {
        if self.encoded.short {
            let garbage = self.random.next() << 32;
            let value = self.gpr(number);
            *value = *value & 0xffff_ffff | garbage;
        }
    }

    /// Where a branch may go: to its way out mostly.
    fn branch_target(&mut self) -> u64 {
        let start = self.sides.native;
        match self.random.below(64) {
            0 => target::wild(false, self.random),
            1 => start + CODE + layout::CODE_PAGES * PAGE,
            2 => start + layout::DATA + PAGE + 8,
            _ => self.site.branch,
        }
    }

    fn text(&mut self) {
        let count = match self.random.below(16) {
            0 => 0,
            1 => self.random.below(300),
            _ => self.random.below(20),
        };
        *self.gpr(RCX) = count;
        let bytes = 1 << self.encoded.size;
        let (from, to) = (self.implicit(bytes), self.implicit(bytes));
        let base = super::encode::segment_base(self.encoded.segment, self.site);
        *self.gpr(RSI) = from.wrapping_sub(base);
        *self.gpr(RDI) = to;
        [RSI, RDI, RCX]
            .into_iter()
            .for_each(|number| self.shorten(number));
        let mut bytes = [self.random.next() as u8; 64];
        if self.random.one_in(4) {
            bytes[self.random.below(64) as usize] ^= 1;
        }
        let value = u64::from_le_bytes([bytes[0]; 8]);
        match self.random.below(4) {
            0 => {}
            1 => *self.gpr(RAX) = value,
            _ => {
                *self.gpr(RAX) = value;
                let back = if self.registers.flags & DF == 0 {
                    0
                } else {
                    56
                };
                self.sides.put(from.wrapping_sub(back), &bytes);
                bytes[self.random.below(64) as usize] ^= self.random.below(2) as u8;
                self.sides.put(to.wrapping_sub(back), &bytes);
            }
        }
    }

    /// A dividend whose quotient often fits.
    fn dividend(&mut self) {
        let signed = self.template.reg == super::template::Reg::Extension(7);
        let (size, low) = (self.encoded.size, *self.gpr(RAX));
        if self.random.one_in(8) {
            return;
        }
        let sign = if signed && low >> ((8 << size) - 1) & 1 != 0 {
            u64::MAX
        } else {
            0
        };
        let small = if self.random.one_in(2) {
            self.random.below(3)
        } else {
            0
        };
        if size == 0 {
            *self.gpr(RAX) = low & !0xff00 | ((sign ^ small) & 0xff) << 8;
        } else {
            *self.gpr(RDX) = sign ^ small;
        }
    }

    /// The ModRM operand in memory.
    fn operand(&mut self) {
        let Some(address) = self.encoded.address else {
            return;
        };
        let mut target = self.pick();
        let mut moved = 0;
        if self.template.need == Need::BitOffset {
            moved = self.bit_offset();
            target = target.wrapping_sub(moved);
        }
        let gpr = &mut self.registers.gpr;
        let reached = solve(&address, target, self.site, gpr, self.random);
        let at = reached.wrapping_add(moved);
        self.places.push(at);
        self.fill(at);
        let value = self.sides.peek(at);
        match self.template.need {
            Need::Equal if self.random.one_in(2) => *self.gpr(RAX) = value as u64,
            Need::EqualPair if self.random.one_in(2) => {
                let wide = self.encoded.size == 3;
                *self.gpr(RAX) = value as u64;
                *self.gpr(RDX) = (value >> if wide { 64 } else { 32 }) as u64;
            }
            _ => return,
        }
        // The accumulator may be a register of the address.
        solve(
            &address,
            target,
            self.site,
            &mut self.registers.gpr,
            self.random,
        );
    }

    /// Chooses a bit offset that stays near; how far it leads from the address.
    fn bit_offset(&mut self) -> u64 {
        let size = self.encoded.size;
        let bits = self.random.below(8 * 1000).wrapping_sub(4000);
        let shift = 3 + u32::from(size);
        let units = (bits.cast_signed() >> shift).cast_unsigned();
        let garbage = self.random.next();
        let mask = crate::int::mask(size);
        *self.gpr(self.encoded.reg.into()) = bits & mask | garbage & !mask;
        units << size
    }

    fn fill(&mut self, at: u64) {
        match (self.template.need, self.template.unit) {
            (Need::Target, _) => {
                let value = self.branch_target();
                self.word(at, value);
            }
            (Need::Mxcsr, _) => {
                let any = self.random.next() as u32 & !MISALIGNED;
                let value = if self.random.one_in(8) {
                    any
                } else {
                    any & MXCSR
                };
                self.sides.put(at, &value.to_le_bytes());
            }
            (Need::Image, _) => {
                x87::fill(self.registers, self.random);
                vector::fill_vectors(self.registers, self.random);
                let image = self.registers.fx.clone();
                self.sides.put(at, &image.0);
                x87::fill(self.registers, self.random);
            }
            (_, Unit::Integer) => {
                let value = self.random.number();
                self.word(at, value);
                if self.template.bytes > 8 {
                    let value = self.random.number();
                    self.word(at.wrapping_add(8), value);
                }
            }
            (_, Unit::Vector) => {
                let value = self.random.vector();
                self.sides.put(at, &value.to_le_bytes());
            }
            (_, Unit::X87) => x87::fill_memory(self.sides, at, self.random),
        }
    }
}
