//! Where operands lie, and the register values that lead there.

use super::{
    encode::{Address, Encoded, Site, segment_base},
    layout::{DATA, PAGE},
    template::{Operand, Template},
};
use crate::random::Random;

const LOW_HALF: u64 = 0xffff_ffff;
/// Room on both sides of an ordinary operand.
const MARGIN: u64 = 640;

/// An ordinary place in the writable pages.
pub(crate) fn inside(start: u64, bytes: u64, aligned: u64, random: &mut Random) -> u64 {
    let room = 2 * PAGE - 2 * MARGIN - bytes;
    let mut offset = random.below(room);
    let natural = bytes.next_power_of_two().clamp(1, 16);
    if random.one_in(2) {
        offset &= !(natural - 1);
    }
    if aligned > 1 && !random.one_in(64) {
        offset &= !(aligned - 1);
    }
    start + DATA + PAGE + MARGIN + offset
}

/// A place at the end of a page, or where nothing is.
pub(crate) fn edge(start: u64, bytes: u64, aligned: u64, short: bool, random: &mut Random) -> u64 {
    let page = match random.below(16) {
        0..=7 => 2,
        8..=14 => 1 + random.below(7),
        _ => return wild(short, random),
    };
    let boundary = start + DATA + page * PAGE;
    let before = random.below(bytes + 3);
    let at = boundary + 1 - before;
    if aligned > 1 && !random.one_in(16) {
        at & !(aligned - 1)
    } else {
        at
    }
}

/// An address where nothing is mapped: low, not canonical, or the system's.
pub(crate) fn wild(short: bool, random: &mut Random) -> u64 {
    match random.below(3) {
        _ if short => random.below(0x8000),
        0 => random.below(0x8000),
        1 => 0x8000_0000_0000 | random.next() >> 18 | (random.next() & 0x7f) << 56,
        _ => 0xffff_ffff_8000_0000 | random.next() >> 34,
    }
}

/// A place for the operand of a template.
pub(crate) fn pick(template: &Template, encoded: &Encoded, start: u64, random: &mut Random) -> u64 {
    let (bytes, aligned) = (encoded.bytes_accessed(template), template.aligned);
    if template.operand == Operand::Edge {
        edge(start, bytes, aligned, encoded.short, random)
    } else {
        inside(start, bytes, aligned, random)
    }
}

/// Sets the address's registers so that it leads to `target` or, where the scale forbids that, a
/// little further; gives where it leads.
pub(crate) fn solve(
    address: &Address,
    target: u64,
    site: &Site,
    gpr: &mut [u64; 16],
    random: &mut Random,
) -> u64 {
    if address.absolute {
        return site.operand;
    }
    let displacement = i64::from(address.displacement) as u64;
    let fixed = segment_base(address.segment, site).wrapping_add(displacement);
    let want = target.wrapping_sub(fixed);
    let scale = 1_u64 << address.scale;
    let (number, value, reached) = match (address.base, address.index) {
        (Some(base), Some(index)) if base == index => {
            let (value, reached) = divide(want, scale + 1);
            (base, value, reached)
        }
        (Some(base), index) => {
            let part = index.map_or(0, |index| gpr[usize::from(index)].wrapping_mul(scale));
            (base, want.wrapping_sub(part), want)
        }
        (None, Some(index)) => {
            let (value, reached) = divide(want, scale);
            (index, value, reached)
        }
        (None, None) => return target,
    };
    // The upper halves count for nothing in a 32-bit address.
    let garbage = random.next() & !LOW_HALF;
    gpr[usize::from(number)] = if address.short {
        value & LOW_HALF | garbage
    } else {
        value
    };
    reached.wrapping_add(fixed)
}

/// What times `factor` is `want` or, for an even factor, a little more than that.
fn divide(want: u64, factor: u64) -> (u64, u64) {
    let shift = factor.trailing_zeros();
    let odd = factor >> shift;
    let up = want.wrapping_add((1 << shift) - 1) & !((1 << shift) - 1);
    // Newton's iteration for the inverse modulo 2^64.
    let inverse = (0..6).fold(odd, |x, _| {
        x.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(x)))
    });
    let high = ((up.cast_signed() >> shift).cast_unsigned()).wrapping_mul(inverse);
    (high, up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quotient_times_its_factor_is_what_was_wanted_or_a_little_more() {
        let mut random = Random::seeded(1);
        for factor in [1, 2, 3, 4, 5, 8, 9] {
            for _ in 0..100 {
                let want = random.next();
                let (value, reached) = divide(want, factor);
                assert_eq!(value.wrapping_mul(factor), reached);
                assert!(reached.wrapping_sub(want) < 8);
            }
        }
    }
}
