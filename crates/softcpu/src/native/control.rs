//! Branches, the stack, strings, and what programs may not do.

use super::template::{Immediate, Need, Operand, Reg, Sizes, Template};

/// Jumps, calls and returns.
pub(crate) fn branches() -> Vec<Template> {
    let mut list = Vec::new();
    let near = |opcode: &[u8], immediate| {
        Template::plain(opcode)
            .sizes(Sizes::Branch)
            .immediate(immediate)
    };
    for code in 0..16 {
        list.push(near(&[0x70 | code], Immediate::Near));
        list.push(near(&[0x0f, 0x80 | code], Immediate::Far));
    }
    for opcode in 0xe0..0xe4 {
        list.push(near(&[opcode], Immediate::Near).need(Need::Counter));
    }
    list.push(near(&[0xeb], Immediate::Near));
    list.push(near(&[0xe9], Immediate::Far));
    list.push(near(&[0xe8], Immediate::Far).need(Need::Stack));
    for op in [2, 4] {
        let template = Template::group(&[0xff], op)
            .sizes(Sizes::Branch)
            .need(Need::Target);
        list.extend(template.everywhere(false));
    }
    list.push(near(&[0xc3], Immediate::None).need(Need::StackTarget));
    list.push(near(&[0xc2], Immediate::Half).need(Need::StackTarget));
    list
}

fn stack() -> Vec<Template> {
    let mut list = Vec::new();
    let plain = |opcode: &[u8]| {
        Template::plain(opcode)
            .sizes(Sizes::Stack)
            .need(Need::Stack)
    };
    for opcode in [0x50, 0x58] {
        list.push(Template {
            reg: Reg::InOpcode,
            ..plain(&[opcode])
        });
    }
    list.push(plain(&[0x68]).immediate(Immediate::Full));
    list.push(plain(&[0x6a]).immediate(Immediate::Byte));
    for (opcode, op) in [(0x8f, 0), (0xff, 6)] {
        let template = Template::group(&[opcode], op)
            .sizes(Sizes::Stack)
            .need(Need::Stack);
        list.extend(template.everywhere(false));
    }
    list.push(plain(&[0x9c]));
    list.push(plain(&[0x9d]).need(Need::StackFlags));
    list.push(
        plain(&[0xc8])
            .need(Need::Frame)
            .immediate(Immediate::HalfByte),
    );
    list.push(plain(&[0xc9]).need(Need::Frame));
    // Segment registers: selectors only.
    list.push(plain(&[0x0f, 0xa0]));
    list.push(plain(&[0x0f, 0xa8]));
    for number in 0..6 {
        let template = Template::group(&[0x8c], number);
        list.extend(template.bytes(2).everywhere(false));
    }
    list
}

fn strings() -> Vec<Template> {
    let mut list = Vec::new();
    for opcode in [0xa4, 0xa6, 0xaa, 0xac, 0xae] {
        for repeat in [None, Some(0xf2), Some(0xf3)] {
            for byte in [0, 1] {
                let template = Template::plain(&[opcode | byte]).need(Need::Text);
                let sizes = if byte == 0 { Sizes::Byte } else { Sizes::Any };
                list.push(Template {
                    repeat,
                    ..template.sizes(sizes)
                });
            }
        }
    }
    list
}

/// What code at CPL 3 may not do, and opcodes that are not there.
pub(crate) fn refused() -> Vec<Template> {
    let mut list = Vec::new();
    for opcode in [0xe4, 0xe5, 0xe6, 0xe7] {
        list.push(Template::plain(&[opcode]).immediate(Immediate::Byte));
    }
    for opcode in [0x6c, 0x6d, 0x6e, 0x6f] {
        list.push(Template::plain(&[opcode]).need(Need::Text));
    }
    for opcode in [0xec, 0xed, 0xee, 0xef, 0xf4, 0xfa, 0xfb] {
        list.push(Template::plain(&[opcode]));
    }
    for opcode in [
        0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61,
    ] {
        list.push(Template::plain(&[opcode]));
    }
    for opcode in [0x9a, 0xce, 0xd4, 0xd5, 0xd6, 0xea, 0x82] {
        list.push(Template::plain(&[opcode]).immediate(Immediate::Full));
    }
    for opcode in [
        0x04, 0x0a, 0x0b, 0x24, 0x25, 0x26, 0x27, 0x36, 0x39, 0x3b, 0x7a, 0x7b, 0xa6,
    ] {
        list.push(Template::plain(&[0x0f, opcode]));
    }
    // clts, invd, wbinvd, wrmsr, rdmsr.
    for opcode in [0x06, 0x08, 0x09, 0x30, 0x32] {
        list.push(Template::plain(&[0x0f, opcode]));
    }
    for opcode in 0x20..0x24 {
        list.push(Template::modrm(&[0x0f, opcode]));
    }
    list.push(Template::modrm(&[0x0f, 0xff]));
    list.push(Template::modrm(&[0x0f, 0xb9]));
    list.push(Template::modrm(&[0x8d]));
    list.push(Template::group(&[0xfe], 2));
    list.push(Template::group(&[0xff], 7));
    list.push(Template::group(&[0xc6], 1));
    list.push(Template::group(&[0x8f], 1));
    list.push(Template::group(&[0x0f, 0xba], 3));
    list.push(Template::group(&[0x0f, 0x01], 2).operand(Operand::Memory));
    list.push(Template::group(&[0x0f, 0x01], 3).operand(Operand::Memory));
    list.push(Template::group(&[0x0f, 0x01], 6));
    list.push(Template::group(&[0x0f, 0x01], 7).operand(Operand::Memory));
    list.push(Template::group(&[0x0f, 0x00], 2));
    list.push(Template::group(&[0x0f, 0x00], 3));
    for extension in [0, 2, 3] {
        list.push(Template {
            prefix: Some(0x66),
            operand: Operand::Memory,
            ..Template::group(&[0x0f, 0xae], extension).sizes(Sizes::Fixed(2))
        });
    }
    list.push(Template::group(&[0x8e], 1));
    list.push(Template::group(&[0x8e], 6));
    list
}

/// LOCK where it is not allowed: register operands and instructions without it.
pub(crate) fn locked() -> Vec<Template> {
    let all = [super::integer::templates(), stack()].concat();
    all.into_iter()
        .filter(|template| !template.lock && template.immediate != Immediate::Address)
        .map(|template| Template {
            lock: true,
            ..template
        })
        .collect()
}

/// Branches, stack and strings.
pub(crate) fn templates() -> Vec<Template> {
    [branches(), stack(), strings()].concat()
}
