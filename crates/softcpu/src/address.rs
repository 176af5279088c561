//! Operands' addresses: offsets, segment bases, and the checks of segments (Intel SDM volume 3,
//! sections 6.3 and 6.4).

use crate::{
    cpu::{CS, Cpu, GP, STACK, Stop, Width},
    op::{Op, kind},
};

impl Cpu {
    /// The offset of an operand, without segment base.
    #[inline(always)]
    pub(crate) fn offset(&self, op: &Op) -> u64 {
        self.reg(op.base)
            .wrapping_add(self.reg(op.index) << (op.ea & 3))
            .wrapping_add(op.disp)
    }

    /// The same, cut to the size of addresses.
    pub(crate) fn short_offset(&self, op: &Op) -> u64 {
        let offset = self.offset(op);
        match op.kind() {
            kind::FLAT | kind::BASED => offset,
            kind::LEGACY16 => offset & 0xffff,
            _ => offset & 0xffff_ffff,
        }
    }

    /// The linear address of an operand of `bytes` bytes.
    #[inline(always)]
    pub(crate) fn ea(&mut self, op: &Op, bytes: u64, write: bool) -> Result<u64, Stop> {
        let offset = self.offset(op);
        if op.kind() == kind::FLAT {
            Ok(offset)
        } else {
            self.ea_slow(op, offset, bytes, write)
        }
    }

    #[inline(never)]
    fn ea_slow(&mut self, op: &Op, offset: u64, bytes: u64, write: bool) -> Result<u64, Stop> {
        let segment = usize::from(op.segment());
        let offset = match op.kind() {
            kind::BASED => offset,
            kind::LEGACY16 => offset & 0xffff,
            _ => offset & 0xffff_ffff,
        };
        self.linear(segment, offset, bytes, write)
    }

    /// The linear address of `offset` in a segment, with the checks of the mode (Intel SDM volume
    /// 3, section 6.3 and 6.4).
    pub(crate) fn linear(
        &mut self,
        segment: usize,
        offset: u64,
        bytes: u64,
        write: bool,
    ) -> Result<u64, Stop> {
        if self.width == Width::Bits64 {
            let base = if matches!(segment, crate::cpu::FS | crate::cpu::GS) {
                self.seg(segment).base
            } else {
                0
            };
            return Ok(base.wrapping_add(offset));
        }
        let seg = *self.seg(segment);
        if !seg_allows(&seg, offset, bytes, write, self.protected()) {
            return self.raise_code(if segment == crate::cpu::SS { STACK } else { GP }, 0);
        }
        Ok(seg.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// The linear address of code at `rip`; the limit of CS is checked.
    pub(crate) fn code_address(&mut self, rip: u64) -> Result<u64, Stop> {
        if self.width == Width::Bits64 {
            return Ok(rip);
        }
        let cs = *self.seg(CS);
        if rip > u64::from(cs.limit) {
            return self.gp(0);
        }
        Ok(cs.base.wrapping_add(rip) & 0xffff_ffff)
    }
}

/// Attribute bits of a segment.
const TYPE_WRITE_READ: u16 = 1 << 1;
const TYPE_DOWN: u16 = 1 << 2;
const TYPE_CODE: u16 = 1 << 3;
const ATTR_PRESENT: u16 = 1 << 7;
const ATTR_BIG: u16 = 1 << 14;

fn seg_allows(
    seg: &vmlet_vcpu::x86_64::Segment,
    offset: u64,
    bytes: u64,
    write: bool,
    protected: bool,
) -> bool {
    let attributes = seg.attributes;
    if attributes & ATTR_PRESENT == 0 {
        return false;
    }
    if protected {
        let code = attributes & TYPE_CODE != 0;
        let bit = attributes & TYPE_WRITE_READ != 0;
        let allowed = if write { bit && !code } else { bit || !code };
        if !allowed {
            return false;
        }
    }
    let last = offset + (bytes - 1);
    let limit = u64::from(seg.limit);
    if attributes & (TYPE_CODE | TYPE_DOWN) == TYPE_DOWN {
        let top = if attributes & ATTR_BIG != 0 {
            0xffff_ffff
        } else {
            0xffff
        };
        offset > limit && last <= top
    } else {
        last <= limit
    }
}
