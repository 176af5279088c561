//! The integer instructions with register and memory operands.

use super::{
    template::{Immediate, Need, Reg, Sizes, Template},
    undefined::Undefined,
};

const CMP: u8 = 7;

fn sized(template: Template, byte: bool) -> Template {
    if byte { template.of_bytes() } else { template }
}

/// Opcodes 0x00 to 0x3f and their immediates.
fn arithmetic() -> Vec<Template> {
    let mut list = Vec::new();
    for op in 0..8_u8 {
        let lock = op != CMP;
        for form in 0..4 {
            let template = sized(Template::modrm(&[op << 3 | form]), form & 1 == 0);
            list.extend(template.everywhere(lock && form < 2));
        }
        for form in 4..6 {
            let template = sized(Template::plain(&[op << 3 | form]), form & 1 == 0);
            list.push(template.immediate(Immediate::Full));
        }
        for (opcode, immediate) in [
            (0x80, Immediate::Byte),
            (0x81, Immediate::Full),
            (0x83, Immediate::Byte),
        ] {
            let template = sized(Template::group(&[opcode], op), opcode == 0x80);
            let template = template.immediate(immediate);
            list.extend(template.everywhere(lock));
        }
    }
    list
}

/// Copies, conversions, exchanges.
fn moves() -> Vec<Template> {
    let mut list = Vec::new();
    let mut add = |template: Template, lock| list.extend(template.everywhere(lock));
    // With 66 Intel's processors read two bytes, AMD's four.
    for wide in [false, true] {
        let template = Template::modrm(&[0x63]).sizes(Sizes::Wide(wide));
        add(template.bytes(4), false);
    }
    for (opcode, lock) in [(0x86, true), (0x88, false), (0x8a, false)] {
        add(Template::modrm(&[opcode]).of_bytes(), lock);
        add(Template::modrm(&[opcode | 1]), lock);
    }
    add(
        Template::group(&[0xc6], 0)
            .of_bytes()
            .immediate(Immediate::Byte),
        false,
    );
    add(
        Template::group(&[0xc7], 0).immediate(Immediate::Full),
        false,
    );
    for code in 0..16 {
        add(Template::modrm(&[0x0f, 0x40 | code]), false);
        add(Template::modrm(&[0x0f, 0x90 | code]).of_bytes(), false);
    }
    for (opcode, bytes) in [(0xb6, 1), (0xb7, 2), (0xbe, 1), (0xbf, 2)] {
        let template = Template::modrm(&[0x0f, opcode]).bytes(bytes);
        add(
            Template {
                byte_registers: bytes == 1,
                ..template
            },
            false,
        );
    }
    add(Template::modrm(&[0x0f, 0xc0]).of_bytes(), true);
    add(Template::modrm(&[0x0f, 0xc1]), true);
    for (opcode, byte) in [(0xb0, true), (0xb1, false)] {
        let template = sized(Template::modrm(&[0x0f, opcode]), byte);
        add(template.need(Need::Equal), true);
    }
    list.extend(Template::modrm(&[0x8d]).in_memory(false));
    list.extend(Template::modrm(&[0x0f, 0xc3]).in_memory(false));
    for wide in [false, true] {
        let template = Template::group(&[0x0f, 0xc7], 1)
            .sizes(Sizes::Wide(wide))
            .need(Need::EqualPair)
            .bytes(if wide { 16 } else { 8 });
        let template = Template {
            aligned: if wide { 16 } else { 1 },
            ..template
        };
        list.extend(template.in_memory(true));
    }
    for opcode in 0xa0..0xa4 {
        let template = sized(Template::plain(&[opcode]), opcode & 1 == 0);
        list.push(template.immediate(Immediate::Address));
    }
    list
}

/// Without ModRM byte, and those that do nothing.
fn plain() -> Vec<Template> {
    let mut list = Vec::new();
    let in_opcode = |opcode: &[u8]| Template {
        reg: Reg::InOpcode,
        ..Template::plain(opcode)
    };
    list.push(in_opcode(&[0x90]));
    list.push(in_opcode(&[0xb0]).of_bytes().immediate(Immediate::Byte));
    list.push(in_opcode(&[0xb8]).immediate(Immediate::Whole));
    list.push(in_opcode(&[0x0f, 0xc8]));
    for opcode in [0x90, 0x98, 0x99, 0x9e, 0x9f, 0xf5, 0xf8, 0xf9, 0xfc, 0xfd] {
        list.push(Template::plain(&[opcode]));
    }
    for (opcode, byte) in [(0xa8, true), (0xa9, false)] {
        let template = sized(Template::plain(&[opcode]), byte);
        let template = template.immediate(Immediate::Full);
        list.push(template);
    }
    list.push(Template::plain(&[0xd7]).need(Need::Table));
    for opcode in [0x18, 0x1f] {
        list.extend(Template::modrm(&[0x0f, opcode]).everywhere(false));
    }
    // With a register #UD on AMD's processors only.
    list.extend(Template::modrm(&[0x0f, 0x0d]).in_memory(false));
    // REP before what it does not belong to.
    for repeat in [0xf2, 0xf3] {
        let with = |template: Template| Template {
            repeat: Some(repeat),
            ..template
        };
        list.extend(with(Template::modrm(&[0x01])).everywhere(false));
        list.extend(with(Template::modrm(&[0x8b])).everywhere(false));
        list.extend(with(Template::modrm(&[0x89])).everywhere(false));
        list.extend(
            with(Template::modrm(&[0x0f, 0xaf]).undefined(Undefined::MULTIPLY)).everywhere(false),
        );
        list.push(with(Template::plain(&[0x90])));
    }
    list
}

fn multiply() -> Vec<Template> {
    let mut list = Vec::new();
    let mut add = |template: Template, undefined| {
        list.extend(template.undefined(undefined).everywhere(false));
    };
    add(
        Template::modrm(&[0x69]).immediate(Immediate::Full),
        Undefined::MULTIPLY,
    );
    add(
        Template::modrm(&[0x6b]).immediate(Immediate::Byte),
        Undefined::MULTIPLY,
    );
    add(Template::modrm(&[0x0f, 0xaf]), Undefined::MULTIPLY);
    for (opcode, byte) in [(0xf6, true), (0xf7, false)] {
        for op in [4, 5] {
            add(
                sized(Template::group(&[opcode], op), byte),
                Undefined::MULTIPLY,
            );
        }
        for op in [6, 7] {
            let template = sized(Template::group(&[opcode], op), byte);
            add(template.need(Need::Dividend), Undefined::DIVIDE);
        }
    }
    list
}

/// One operand: test, not, neg, inc, dec.
fn unary() -> Vec<Template> {
    let mut list = Vec::new();
    for (opcode, byte) in [(0xf6, true), (0xf7, false)] {
        for op in [0, 1] {
            let template = sized(Template::group(&[opcode], op), byte);
            let template = template.immediate(Immediate::Full);
            list.extend(template.everywhere(false));
        }
        for op in [2, 3] {
            list.extend(sized(Template::group(&[opcode], op), byte).everywhere(true));
        }
        for op in [0, 1] {
            list.extend(sized(Template::group(&[opcode | 8], op), byte).everywhere(true));
        }
    }
    for (opcode, byte) in [(0x84, true), (0x85, false)] {
        let template = sized(Template::modrm(&[opcode]), byte);
        list.extend(template.everywhere(false));
    }
    list
}

fn shifts() -> Vec<Template> {
    let mut list = Vec::new();
    for op in 0..8 {
        let (undefined, by_one) = match op {
            0 | 1 => (Undefined::NONE, Undefined::NONE),
            2 | 3 => (Undefined::ROTATE_CARRY, Undefined::NONE),
            _ => (Undefined::SHIFT, Undefined::SHIFT),
        };
        for (opcode, immediate, undefined) in [
            (0xc0, Immediate::Byte, undefined),
            (0xd0, Immediate::None, by_one),
            (0xd2, Immediate::None, undefined),
        ] {
            for byte in [0, 1] {
                let template = sized(Template::group(&[opcode | byte], op), byte == 0);
                let template = template.immediate(immediate).undefined(undefined);
                list.extend(template.everywhere(false));
            }
        }
    }
    for opcode in [0xa4, 0xac] {
        for by_register in [0, 1] {
            let template = Template::modrm(&[0x0f, opcode | by_register]);
            let template = if by_register == 0 {
                template.immediate(Immediate::Count)
            } else {
                template.need(Need::Count)
            };
            list.extend(
                template
                    .undefined(Undefined::DOUBLE_SHIFT)
                    .everywhere(false),
            );
        }
    }
    list
}

fn bits() -> Vec<Template> {
    let mut list = Vec::new();
    for (opcode, extension) in [(0xa3, 4), (0xab, 5), (0xb3, 6), (0xbb, 7)] {
        let lock = extension != 4;
        let template = Template::modrm(&[0x0f, opcode]);
        list.push(template.clone());
        list.extend(template.need(Need::BitOffset).in_memory(lock));
        let template = Template::group(&[0x0f, 0xba], extension).immediate(Immediate::Byte);
        list.extend(template.everywhere(lock));
    }
    for opcode in [0xbc, 0xbd] {
        let template = Template::modrm(&[0x0f, opcode]);
        list.extend(template.undefined(Undefined::SEARCH).everywhere(false));
    }
    list
}

/// All of them.
pub(crate) fn templates() -> Vec<Template> {
    [
        arithmetic(),
        moves(),
        plain(),
        unary(),
        multiply(),
        shifts(),
        bits(),
    ]
    .concat()
}
