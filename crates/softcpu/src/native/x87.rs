//! Every x87 instruction, register and memory forms, on random states of the whole unit.

use super::{
    case::Sides,
    state::{Image, Registers},
    template::{Operand, Sizes, Template, Unit},
    vendor,
};
use crate::{
    fp::x87::{EnvironmentFormat, Form, X87, form},
    random::Random,
};

const FORMAT: EnvironmentFormat = EnvironmentFormat::Protected32;

/// Instructions whose last place processors do not agree on.
pub(crate) fn is_transcendental(template: &Template) -> bool {
    template.unit == Unit::X87
        && matches!(
            template.opcode[..],
            [0xd9, 0xf0..=0xf3 | 0xf9 | 0xfb | 0xfe | 0xff]
        )
}

/// Operands outside the range an instruction is defined for.
pub(crate) fn is_out_of_range(template: &Template, image: &Image) -> bool {
    if !is_transcendental(template) {
        return false;
    }
    let (significand, sign_exponent) = image.st(0);
    let exponent = sign_exponent & 0x7fff;
    match template.opcode[1] {
        0xf0 => exponent >= 0x3fff,
        // Intel's processors reduce by a pi of 66 bits, and give the smallest numbers back as they are.
        0xf2 | 0xfb | 0xfe | 0xff => vendor::is_intel() && !(2..0x3ffe).contains(&exponent),
        0xf9 => exponent > 0x3ffd || (exponent == 0x3ffd && significand >> 56 > 0x95),
        _ => false,
    }
}

/// All defined opcodes; the environment's in both sizes.
pub(crate) fn templates() -> Vec<Template> {
    let mut list = Vec::new();
    for opcode in 0xd8..=0xdf_u8 {
        for reg in 0..8 {
            let modrm = reg << 3;
            let Some(form) = form(opcode, modrm, FORMAT) else {
                continue;
            };
            let bytes = match form {
                Form::Load(bytes) | Form::Store(bytes) => bytes as u8,
                Form::Register => 0,
            };
            let template = Template {
                unit: Unit::X87,
                bytes,
                ..Template::group(&[opcode], reg).sizes(Sizes::Fixed(2))
            };
            list.extend(template.in_memory(false));
        }
        for modrm in 0xc0..=0xff {
            if X87::default().begin(opcode, modrm, FORMAT).is_ok() {
                list.push(Template {
                    unit: Unit::X87,
                    operand: Operand::None,
                    ..Template::plain(&[opcode, modrm]).sizes(Sizes::Fixed(2))
                });
            }
        }
    }
    list
}

fn control(random: &mut Random) -> u16 {
    let word = random.next() as u16 & 0x1f3f | 0x40;
    match random.below(8) {
        0..=2 => 0x37f,
        3 => word,
        _ => word | 0x3f,
    }
}

/// A random state of the unit; of SSE the reset value.
pub(crate) fn fill(registers: &mut Registers, random: &mut Random) {
    let image = &mut registers.fx;
    let control = control(random);
    image.put(0, &control.to_le_bytes());
    let mut status = random.next() as u16 & 0x7f7f;
    if random.one_in(2) {
        status &= !0x7f;
    }
    // An exception that waits is a case of its own, not the usual one.
    if !random.one_in(32) {
        status &= !(0x3f & !control);
    }
    image.put(2, &status.to_le_bytes());
    let tags = match random.below(8) {
        0 => random.next() as u8,
        1 => 0x7f,
        _ => 0x7f_u8.rotate_left(u32::from((status >> 11) & 7)),
    };
    image.put(4, &[tags]);
    for index in 0..8 {
        image.put_st(index, random.extended());
    }
    if random.one_in(3) {
        near(image, random);
    }
    image.put(24, &0x1f80_u32.to_le_bytes());
}

/// Operands close to one another: cancellation, equal numbers, small quotients.
fn near(image: &mut Image, random: &mut Random) {
    let (significand, sign_exponent) = random.extended();
    for index in 0..8 {
        let shift = random.below(3) as u16;
        let flip = random.next() as u16 & 0x8000;
        let changed = significand ^ (random.below(4) * random.below(2));
        let exponent = (sign_exponent ^ flip).wrapping_add(shift);
        image.put_st(index, (changed, exponent));
    }
}

/// A memory operand: a number of some format.
pub(crate) fn fill_memory(sides: Sides, at: u64, random: &mut Random) {
    let bytes = if random.one_in(2) {
        let (significand, sign_exponent) = random.extended();
        u128::from(significand) | u128::from(sign_exponent) << 64
    } else {
        random.vector()
    };
    sides.put(at, &bytes.to_le_bytes()[..10]);
    if random.one_in(16) {
        (0..7).for_each(|part| sides.put(at + 16 * part, &random.vector().to_le_bytes()));
    }
}
