//! Every entry of the table of MMX, SSE and SSE2, and the instructions beside it.

use super::{
    state::{Registers, XMM},
    template::{Immediate, Need, Operand, Sizes, Template, Unit},
};
use crate::{
    fp::sse::table::{self, Entry, Forms, Prefix},
    random::Random,
};

/// Only three bits of a comparison's predicate are defined in SSE2.
const COMPARE: u8 = 0xc2;

fn template(entry: &Entry) -> Template {
    let opcode = [0x0f, entry.opcode];
    let template = match entry.group {
        Some(reg) => Template::group(&opcode, reg),
        None => Template::modrm(&opcode),
    };
    Template {
        prefix: match entry.prefix {
            Prefix::None => None,
            Prefix::P66 => Some(0x66),
            Prefix::F3 => Some(0xf3),
            Prefix::F2 => Some(0xf2),
        },
        immediate: match entry.opcode {
            COMPARE => Immediate::Predicate,
            _ if entry.immediate => Immediate::Byte,
            _ => Immediate::None,
        },
        sizes: entry.wide.map_or(Sizes::Fixed(2), Sizes::Wide),
        unit: Unit::Vector,
        bytes: entry.bytes,
        aligned: if entry.aligned { 16 } else { 1 },
        ..template
    }
}

/// Register and memory forms of the whole table.
pub(crate) fn templates() -> Vec<Template> {
    let mut list = Vec::new();
    for entry in table::entries() {
        let template = template(entry);
        if entry.forms != Forms::Register {
            list.extend(template.in_memory(false));
        }
        if entry.forms != Forms::Memory {
            list.push(template);
        }
    }
    list.extend(others());
    list
}

fn others() -> Vec<Template> {
    let fixed = |template: Template| Template {
        unit: Unit::Vector,
        ..template
    };
    // emms and wait.
    let mut list: Vec<Template> = [&[0x0f, 0x77][..], &[0x9b]]
        .into_iter()
        .map(|opcode| Template {
            unit: Unit::X87,
            ..Template::plain(opcode).sizes(Sizes::Fixed(2))
        })
        .collect();
    // maskmovq and maskmovdqu.
    for prefix in [None, Some(0x66)] {
        list.push(Template {
            prefix,
            need: Need::Masked,
            ..fixed(Template::modrm(&[0x0f, 0xf7]).sizes(Sizes::Fixed(2)))
        });
    }
    for (extension, bytes, need) in [
        (0, 0, Need::Nothing),
        (1, 0, Need::Image),
        (2, 4, Need::Mxcsr),
        (3, 4, Need::Nothing),
    ] {
        for wide in [false, true] {
            let template = Template::group(&[0x0f, 0xae], extension)
                .sizes(Sizes::Wide(wide))
                .need(need);
            let template = Template {
                bytes,
                aligned: if extension < 2 { 16 } else { 1 },
                whole_image: extension < 2,
                ..fixed(template)
            };
            list.extend(template.in_memory(false));
        }
    }
    for extension in [5, 6, 7] {
        let template = Template::group(&[0x0f, 0xae], extension).sizes(Sizes::Fixed(2));
        list.push(template.operand(Operand::Register));
    }
    let flush = Template::group(&[0x0f, 0xae], 7).sizes(Sizes::Fixed(0));
    list.extend(flush.in_memory(false));
    list
}

/// Random MMX and XMM registers.
pub(crate) fn fill(registers: &mut Registers, random: &mut Random) {
    let image = &mut registers.fx;
    image.put(0, &0x37f_u16.to_le_bytes());
    let status = if random.one_in(4) {
        random.next() as u16 & 0x7f00
    } else {
        0
    };
    image.put(2, &status.to_le_bytes());
    image.put(4, &[0xff]);
    for index in 0..8 {
        image.put_st(index, (random.double(), 0xffff));
    }
    fill_vectors(registers, random);
}

/// Random XMM registers and MXCSR.
pub(crate) fn fill_vectors(registers: &mut Registers, random: &mut Random) {
    registers.fx.put(24, &random.mxcsr().to_le_bytes());
    for index in 0..16 {
        let value = random.vector();
        registers.fx.put(XMM + 16 * index, &value.to_le_bytes());
    }
}

/// Opcodes whose results processors do not agree on bit by bit: RSQRTPS, RCPPS and kin.
pub(crate) fn is_estimate(template: &Template) -> bool {
    template.unit == Unit::Vector && matches!(template.opcode[..], [0x0f, 0x52 | 0x53])
}

/// Compares with the architected bound of the relative error instead of bit by bit.
pub(crate) fn estimates_agree(here: &[u8], native: &[u8]) -> bool {
    let number = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
    here.chunks_exact(4)
        .zip(native.chunks_exact(4))
        .all(|(a, b)| {
            let (a, b) = (number(a), number(b));
            a.to_bits() == b.to_bits()
                || (a - b).abs() <= b.abs() * 3.0 / 4096.0
                || (a.abs() <= f32::MIN_POSITIVE && b.abs() <= 1.001 * f32::MIN_POSITIVE)
        })
}
