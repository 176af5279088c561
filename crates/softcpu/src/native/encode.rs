//! Encodings of a template: prefixes, registers, every form of address.

use super::{
    state::{IMAGE, RSP},
    template::{Immediate, Need, Operand, Reg, Sizes, Template},
};
use crate::random::Random;

/// How a memory operand's address is made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Address {
    pub(crate) base: Option<u8>,
    pub(crate) index: Option<u8>,
    pub(crate) scale: u32,
    pub(crate) displacement: i32,
    /// The address has 32 bits.
    pub(crate) short: bool,
    pub(crate) segment: Option<u8>,
    /// The whole address is in the encoding: the operand lies at the target it was made for.
    pub(crate) absolute: bool,
    pub(crate) relative: bool,
}

/// An instruction ready to be placed.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    pub(crate) bytes: Vec<u8>,
    pub(crate) address: Option<Address>,
    /// Registers of ModRM, or of the opcode, by number in their file.
    pub(crate) reg: u8,
    pub(crate) rm: u8,
    /// log2 of the operand's bytes.
    pub(crate) size: u8,
    /// The size of addresses, for implicit ones.
    pub(crate) short: bool,
    pub(crate) segment: Option<u8>,
}

impl Encoded {
    /// Bytes of a memory operand.
    pub(crate) fn bytes_accessed(&self, template: &Template) -> u64 {
        match template.bytes {
            _ if template.whole_image => IMAGE as u64,
            0 => 1 << self.size,
            bytes => bytes.into(),
        }
    }
}

/// Where an instruction and what it refers to lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    pub(crate) at: u64,
    /// A branch goes here.
    pub(crate) branch: u64,
    /// An operand with an absolute address lies here.
    pub(crate) operand: u64,
    pub(crate) bases: [u64; 2],
}

pub(crate) const FS: u8 = 0x64;
pub(crate) const GS: u8 = 0x65;
const LOCK: u8 = 0xf0;
const NO_BASE: u8 = 5;
const RCX: u8 = 1;
/// No register.
const NONE: u8 = 16;

#[derive(Default)]
struct Parts {
    prefixes: Vec<u8>,
    rex: u8,
    has_rex: bool,
    modrm: Vec<u8>,
}

/// Encodes `template` for its place.
pub(crate) fn encode(template: &Template, site: &Site, random: &mut Random) -> Encoded {
    let mut parts = Parts::default();
    let size = sizes(template, &mut parts, random);
    let mut encoded = Encoded {
        bytes: Vec::new(),
        address: None,
        reg: 0,
        rm: 0,
        size,
        short: false,
        segment: None,
    };
    address_prefixes(template, &mut encoded, &mut parts, random);
    let mut opcode = template.opcode.clone();
    match template.reg {
        Reg::None => {}
        Reg::InOpcode => {
            encoded.rm = register(template, random, &[]);
            parts.rex |= encoded.rm >> 3;
            *opcode.last_mut().unwrap() |= encoded.rm & 7;
        }
        Reg::Any | Reg::Extension(_) => operands(template, site, &mut encoded, &mut parts, random),
    }
    if template.byte_registers && random.one_in(2) {
        parts.has_rex = true;
    }
    finish(template, site, &opcode, &parts, &mut encoded, random);
    encoded
}

fn sizes(template: &Template, parts: &mut Parts, random: &mut Random) -> u8 {
    let (short, wide) = (random.one_in(3), random.one_in(2));
    let (short, wide, size) = match template.sizes {
        Sizes::Fixed(size) => (false, false, size),
        Sizes::Byte => (short, wide, 0),
        Sizes::Branch => (false, wide, 3),
        Sizes::Any => (short, wide, if wide { 3 } else { 2 - u8::from(short) }),
        Sizes::Stack => (short, wide, if short && !wide { 1 } else { 3 }),
        Sizes::Wide(wide) => (false, wide, 2 + u8::from(wide)),
    };
    if short {
        parts.prefixes.push(0x66);
    }
    if wide {
        (parts.rex, parts.has_rex) = (8, true);
    }
    size
}

fn address_prefixes(
    template: &Template,
    encoded: &mut Encoded,
    parts: &mut Parts,
    random: &mut Random,
) {
    let segment = match random.below(32) {
        0 => Some(FS),
        1 | 2 => Some(GS),
        _ => None,
    };
    // Prefixes without meaning in 64-bit mode.
    if random.one_in(16) {
        let ignored = [0x26, 0x2e, 0x36, 0x3e][random.below(4) as usize];
        parts.prefixes.push(ignored);
    }
    encoded.segment = segment;
    parts.prefixes.extend(segment);
    // With the base of FS a 32-bit offset would not reach the data.
    if random.one_in(8) && segment != Some(FS) && template.immediate != Immediate::Address {
        parts.prefixes.push(0x67);
        encoded.short = true;
    }
}

/// Any register that the template can stand, in any of its encodings.
fn register(template: &Template, random: &mut Random, not: &[u8]) -> u8 {
    loop {
        let number = random.below(16) as u8;
        let stack = matches!(template.need, Need::Target) && number == RSP;
        if !stack && !not.contains(&number) {
            return number;
        }
    }
}

fn operands(
    template: &Template,
    site: &Site,
    encoded: &mut Encoded,
    parts: &mut Parts,
    random: &mut Random,
) {
    if template.operand == Operand::Register {
        encoded.rm = register(template, random, &[]);
        parts.rex |= encoded.rm >> 3;
        parts.modrm = vec![0xc0 | encoded.rm & 7];
    } else {
        memory(template, site, encoded, parts, random);
    }
    encoded.reg = match (template.reg, encoded.address) {
        (Reg::Extension(number), _) => number,
        (_, Some(address)) if template.need == Need::BitOffset => {
            let used = [address.base, address.index].map(|used| used.unwrap_or(NONE));
            register(template, random, &used)
        }
        _ => register(template, random, &[]),
    };
    parts.rex |= (encoded.reg & 8) >> 1;
    parts.modrm[0] |= (encoded.reg & 7) << 3;
}

/// ModRM, SIB and displacement of a memory operand.
fn memory(
    template: &Template,
    site: &Site,
    encoded: &mut Encoded,
    parts: &mut Parts,
    random: &mut Random,
) {
    let mut address = Address {
        short: encoded.short,
        segment: encoded.segment,
        ..Address::default()
    };
    let kind = random.below(16);
    // A register that the case needs for itself.
    let taken = match template.need {
        Need::Stack | Need::Target => RSP,
        Need::Count => RCX,
        _ => NONE,
    };
    let displacement = random.next() as i32;
    match kind {
        0 => {
            address.absolute = true;
            address.relative = true;
            parts.modrm = vec![0x05];
        }
        1 => {
            address.absolute = true;
            parts.modrm = vec![0x04, 0x25];
        }
        2..=9 => {
            let base = register(template, random, &[taken]);
            address.base = Some(base);
            parts.rex |= base >> 3;
            parts.modrm = if base & 7 == RSP {
                vec![0x04, 0x24]
            } else {
                vec![base & 7]
            };
            displace(
                &mut address,
                parts,
                base & 7 == NO_BASE,
                displacement,
                random,
            );
        }
        _ => {
            let index = register(template, random, &[RSP, taken]);
            address.index = Some(index);
            address.scale = random.below(4) as u32;
            parts.rex |= (index & 8) >> 2;
            let head = (address.scale as u8) << 6 | (index & 7) << 3;
            if kind == 15 {
                address.displacement = displacement;
                parts.modrm = vec![0x04, head | NO_BASE];
                parts.modrm.extend(displacement.to_le_bytes());
            } else {
                let base = register(template, random, &[taken]);
                address.base = Some(base);
                parts.rex |= base >> 3;
                parts.modrm = vec![0x04, head | base & 7];
                displace(
                    &mut address,
                    parts,
                    base & 7 == NO_BASE,
                    displacement,
                    random,
                );
            }
        }
    }
    if address.absolute {
        let base = segment_base(address.segment, site);
        // Relative displacements are put in when the length is known.
        address.displacement = site.operand.wrapping_sub(base) as i32;
        let reachable = address.displacement as i64 as u64 == site.operand.wrapping_sub(base);
        if !reachable || (address.relative && address.segment.is_some()) {
            parts.modrm.clear();
            parts.rex &= 8;
            return memory(template, site, encoded, parts, random);
        }
        parts.modrm.extend(address.displacement.to_le_bytes());
    }
    encoded.address = Some(address);
}

fn displace(
    address: &mut Address,
    parts: &mut Parts,
    needs: bool,
    displacement: i32,
    random: &mut Random,
) {
    match random.below(3) {
        0 if !needs => {}
        0 | 1 => {
            address.displacement = i32::from(displacement as i8);
            parts.modrm[0] |= 0x40;
            parts.modrm.push(displacement as u8);
        }
        _ => {
            address.displacement = displacement;
            parts.modrm[0] |= 0x80;
            parts.modrm.extend(displacement.to_le_bytes());
        }
    }
}

pub(crate) fn segment_base(segment: Option<u8>, site: &Site) -> u64 {
    match segment {
        Some(FS) => site.bases[0],
        Some(GS) => site.bases[1],
        _ => 0,
    }
}

fn finish(
    template: &Template,
    site: &Site,
    opcode: &[u8],
    parts: &Parts,
    encoded: &mut Encoded,
    random: &mut Random,
) {
    let mut code = parts.prefixes.clone();
    // Prefixes come in any order.
    if code.len() > 1 && random.one_in(2) {
        code.reverse();
    }
    if template.lock {
        code.push(LOCK);
    }
    code.extend(template.repeat);
    code.extend(template.prefix);
    if parts.rex != 0 || parts.has_rex {
        code.push(0x40 | parts.rex);
    }
    code.extend(opcode);
    let modrm = code.len();
    code.extend(&parts.modrm);
    immediate(template, site, encoded, &mut code, random);
    if encoded.address.is_some_and(|address| address.relative) {
        let end = site.at + code.len() as u64;
        let displacement = site.operand.wrapping_sub(end) as u32;
        code[modrm + 1..modrm + 5].copy_from_slice(&displacement.to_le_bytes());
    }
    encoded.bytes = code;
}

fn immediate(
    template: &Template,
    site: &Site,
    encoded: &Encoded,
    code: &mut Vec<u8>,
    random: &mut Random,
) {
    let value = random.number().to_le_bytes();
    let target = |code: &Vec<u8>, bytes: u64| {
        let end = site.at + code.len() as u64 + bytes;
        site.branch.wrapping_sub(end).to_le_bytes()
    };
    let (bytes, count) = match template.immediate {
        Immediate::None => (value, 0),
        Immediate::Byte => (value, 1),
        Immediate::Count => ([defined_count(value[0], encoded.size); 8], 1),
        Immediate::Predicate => (value.map(|byte| byte & 7), 1),
        Immediate::Half => (value, 2),
        Immediate::HalfByte => {
            // A small frame and few levels.
            let frame = (random.below(512) as u16).to_le_bytes();
            code.extend(frame);
            ([random.below(40) as u8; 8], 1)
        }
        Immediate::Full => (value, 1 << encoded.size.min(2)),
        Immediate::Whole => (value, 1 << encoded.size),
        Immediate::Address => {
            let base = segment_base(encoded.segment, site);
            (site.operand.wrapping_sub(base).to_le_bytes(), 8)
        }
        Immediate::Near => (target(code, 1), 1),
        Immediate::Far => (target(code, 4), 4),
    };
    code.extend(&bytes[..count]);
}

/// A count of a double shift with a defined result.
pub(crate) fn defined_count(count: u8, size: u8) -> u8 {
    if size == 1 && count & 31 > 16 {
        count & !16
    } else {
        count
    }
}
