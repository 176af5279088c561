//! Whether both sides agree, and what to say if they do not.

use super::{
    encode::Encoded,
    state::{ARITHMETIC, End, Image, RF, Registers, XMM},
    template::{Need, Template, Unit},
    vector, vendor, x87,
};

/// Summary of the x87 status word: an exception is pending.
pub(crate) const PENDING: u16 = 1 << 7;
/// C1, UE, PE and the summary depend on the last place.
const LAST_PLACE: u16 = 0x0230;

/// One side of a case.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    pub(crate) end: End,
    pub(crate) registers: &'a Registers,
}

/// Compares all registers and how the run ended.
pub(crate) fn registers(
    template: &Template,
    encoded: &Encoded,
    before: &Registers,
    native: Side<'_>,
    here: Side<'_>,
) -> Result<(), String> {
    let differ = |what: &str| Err(text(what, template, encoded, before, (native, here)));
    let end = |side: Side<'_>| {
        let End { vector, rip, .. } = side.end;
        if template.has_parts() {
            End {
                vector,
                rip,
                ..End::default()
            }
        } else {
            side.end
        }
    };
    if vendor::keeps_store(template, native, here) {
        return Ok(());
    }
    if end(native) != end(here) {
        return differ("end");
    }
    let pairs = native.registers.gpr.iter().zip(&here.registers.gpr);
    let differs = |(number, (a, b)): (usize, (&u64, &u64))| {
        (a ^ b) & vendor::bits(template, encoded, number) != 0
    };
    if pairs.enumerate().any(differs) {
        return differ("registers");
    }
    let ignored = template.undefined.0 & ARITHMETIC | RF | vendor::flags(template, native);
    if (native.registers.flags ^ here.registers.flags) & !ignored != 0 {
        return differ("flags");
    }
    if template.unit == Unit::Integer {
        return Ok(());
    }
    let enters_mmx = vendor::enters_mmx(template, native);
    let (native, here) = (&native.registers.fx, &here.registers.fx);
    if !vectors_agree(template, native, here) {
        return differ("vectors");
    }
    if !enters_mmx && !x87_agrees(template, &before.fx, native, here) {
        return differ("x87");
    }
    Ok(())
}

fn vectors_agree(template: &Template, native: &Image, here: &Image) -> bool {
    let (a, b) = (&here.0[XMM..XMM + 256], &native.0[XMM..XMM + 256]);
    here.mxcsr() == native.mxcsr()
        && (a == b || (vector::is_estimate(template) && vector::estimates_agree(a, b)))
}

/// The distance in units of the last place.
fn distance(a: (u64, u16), b: (u64, u16)) -> u64 {
    if a == b {
        return 0;
    }
    if (a.1 ^ b.1) >> 15 != 0 {
        return u64::MAX;
    }
    let key = |(significand, sign_exponent): (u64, u16)| {
        let exponent = u128::from(sign_exponent & 0x7fff);
        (exponent << 63) + u128::from(significand & (u64::MAX >> 1))
    };
    u64::try_from(key(a).abs_diff(key(b))).unwrap_or(u64::MAX)
}

fn x87_agrees(template: &Template, before: &Image, native: &Image, here: &Image) -> bool {
    let loose = x87::is_transcendental(template);
    let same = |at: usize, bytes: usize| native.0[at..at + bytes] == here.0[at..at + bytes];
    if !same(0, 2) || !same(4, 1) {
        return false;
    }
    let differ = native.status() ^ here.status();
    if loose {
        // Where an exception of the last place is unmasked the stack may differ too.
        if before.control() & 0x30 == 0x30 && differ & !LAST_PLACE != 0 {
            return false;
        }
    } else if differ != 0 {
        return false;
    }
    // Pointers are kept in an image only with an exception that waits.
    // Those that FXRSTOR loads are cut to the bits a processor has.
    let loaded = template.need == Need::Image;
    if !loose && !loaded && native.status() & PENDING != 0 && !same(6, 18) {
        return false;
    }
    (0..8).all(|index| distance(native.st(index), here.st(index)) <= u64::from(loose))
}

/// The parts of a state that have a name.
fn parts(registers: &Registers, floats: bool) -> Vec<(String, String)> {
    let mut parts: Vec<(String, String)> = registers
        .gpr
        .iter()
        .enumerate()
        .map(|(number, value)| (format!("r{number}"), format!("{value:x}")))
        .collect();
    let flags = registers.flags & !RF;
    parts.push(("flags".into(), format!("{flags:x}")));
    if !floats {
        return parts;
    }
    let image = &registers.fx;
    parts.push(("control".into(), format!("{:04x}", image.control())));
    parts.push(("status".into(), format!("{:04x}", image.status())));
    parts.push(("tags".into(), format!("{:02x}", image.0[4])));
    parts.push(("pointers".into(), format!("{:02x?}", &image.0[6..24])));
    parts.push(("mxcsr".into(), format!("{:04x}", image.mxcsr())));
    for index in 0..8 {
        let (significand, sign_exponent) = image.st(index);
        parts.push((
            format!("st{index}"),
            format!("{sign_exponent:04x}:{significand:016x}"),
        ));
    }
    for index in 0..16 {
        let value = u128::from_le_bytes(image.get(XMM + 16 * index));
        parts.push((format!("xmm{index}"), format!("{value:032x}")));
    }
    parts
}

/// The case in words: the whole input, and what differs.
pub(crate) fn text(
    what: &str,
    template: &Template,
    encoded: &Encoded,
    before: &Registers,
    (native, here): (Side<'_>, Side<'_>),
) -> String {
    let floats = template.unit != Unit::Integer;
    let mut text = format!("{what} differ: {:02x?} {template:x?}\n ", encoded.bytes);
    for (name, value) in parts(before, floats) {
        text.push_str(&format!(" {name}={value}"));
    }
    text.push_str(&format!(
        "\n  native {:x?}\n  here   {:x?}\n",
        native.end, here.end
    ));
    let sides = parts(native.registers, floats)
        .into_iter()
        .zip(parts(here.registers, floats));
    for ((name, native), (_, here)) in sides {
        if native != here {
            text.push_str(&format!("  {name}: native {native} here {here}\n"));
        }
    }
    text
}
