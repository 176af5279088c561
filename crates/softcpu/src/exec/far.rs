//! Transfers between segments: far jumps, calls and returns, `iret`, software interrupts.
//!
//! Source: Intel SDM volume 3, section 6.8; volume 2, CALL, JMP, RET, IRET. Task gates, task
//! switches and virtual-8086 mode are not supported.

use super::segment::{
    BIG, CODE, CODE_OR_DATA, CONFORMING, Descriptor, LONG, PRESENT, code, null_stack,
};
use crate::{
    cpu::{BP, CS, Cpu, DS, ES, Exec, FS, GP, GS, NP, OVERFLOW, RSP, SS, Stop},
    event::canonical,
    flags,
    int::mask,
    op::Op,
};

impl Cpu {
    fn check_target(&mut self, descriptor: &Descriptor, offset: u64) -> Exec {
        let long = self.long_mode() && descriptor.is(LONG);
        let fits = if long {
            canonical(offset)
        } else {
            offset <= descriptor.segment.limit.into()
        };
        if fits { Ok(()) } else { self.gp(0) }
    }

    /// A code segment that a direct far jump or call may go to.
    fn direct_target(&mut self, selector: u16) -> Result<Descriptor, Stop> {
        if selector & !3 == 0 {
            return self.gp(0);
        }
        let found = self.descriptor(selector, GP)?;
        if !found.is(CODE_OR_DATA) {
            return Ok(found);
        }
        let rpl = (selector & 3) as u8;
        let fits = if found.is(CONFORMING) {
            found.dpl() <= self.cpl
        } else {
            rpl <= self.cpl && found.dpl() == self.cpl
        };
        let both = self.long_mode() && found.is(LONG | BIG);
        if !found.is(CODE) || !fits || both {
            return self.gp(code(selector));
        }
        if !found.is(PRESENT) {
            return self.raise_code(NP, code(selector));
        }
        Ok(found)
    }

    fn far_real(&mut self, selector: u16, offset: u64) -> Exec {
        let limit = self.seg(CS).limit;
        if offset > limit.into() {
            return self.gp(0);
        }
        let old = *self.seg(CS);
        *self.seg_mut(CS) = vmlet_vcpu::x86_64::Segment {
            base: u64::from(selector) << 4,
            selector,
            ..old
        };
        self.rip = offset;
        self.mode_changed();
        Ok(())
    }

    fn far_jump(&mut self, selector: u16, offset: u64) -> Exec {
        if !self.protected() {
            return self.far_real(selector, offset);
        }
        let mut target = self.direct_target(selector)?;
        if !target.is(CODE_OR_DATA) {
            return match target.kind() {
                4 | 0xc => {
                    let (selector, offset) = self.call_gate(&target)?;
                    let mut inner = self.direct_target_of_gate(selector, true)?;
                    self.check_target(&inner, offset)?;
                    self.mark_accessed(&mut inner)?;
                    self.set_code_segment(inner.segment, self.cpl);
                    self.rip = offset;
                    Ok(())
                }
                1 | 5 | 9 if !self.long_mode() => self.lacks("jmp far, a task switch"),
                _ => self.gp(code(selector)),
            };
        }
        self.check_target(&target, offset)?;
        self.mark_accessed(&mut target)?;
        self.set_code_segment(target.segment, self.cpl);
        self.rip = offset;
        Ok(())
    }

    /// The target of a call gate: selector and offset.
    fn call_gate(&mut self, gate: &Descriptor) -> Result<(u16, u64), Stop> {
        let selector = gate.segment.selector;
        if gate.dpl() < self.cpl || gate.dpl() < (selector & 3) as u8 {
            return self.gp(code(selector));
        }
        if !gate.is(PRESENT) {
            return self.raise_code(NP, code(selector));
        }
        let raw = gate.raw;
        let mut offset = raw & 0xffff | (raw >> 32) & 0xffff_0000;
        if self.long_mode() {
            if gate.kind() != 0xc {
                return self.gp(code(selector));
            }
            let high = self.load_system::<u64>(gate.at.wrapping_add(8))?;
            offset |= high << 32;
        } else if gate.kind() == 4 {
            offset &= 0xffff;
        }
        Ok(((raw >> 16) as u16, offset))
    }

    fn direct_target_of_gate(&mut self, selector: u16, jump: bool) -> Result<Descriptor, Stop> {
        if selector & !3 == 0 {
            return self.gp(0);
        }
        let found = self.descriptor(selector, GP)?;
        let level =
            found.dpl() > self.cpl || (jump && !found.is(CONFORMING) && found.dpl() != self.cpl);
        let width = self.long_mode() && (!found.is(LONG) || found.is(BIG));
        if !found.is(CODE_OR_DATA | CODE) || level || width {
            return self.gp(code(selector));
        }
        if !found.is(PRESENT) {
            return self.raise_code(NP, code(selector));
        }
        Ok(found)
    }

    fn push_return(&mut self, size: u8) -> Exec {
        let (cs, next) = (self.seg(CS).selector.into(), self.next_rip());
        self.push_sized(size, cs)?;
        self.push_sized(size, next)
    }

    fn far_call(&mut self, size: u8, selector: u16, offset: u64) -> Exec {
        if !self.protected() {
            self.push_return(size)?;
            return self.far_real(selector, offset);
        }
        let mut target = self.direct_target(selector)?;
        if target.is(CODE_OR_DATA) {
            self.check_target(&target, offset)?;
            self.push_return(size)?;
            self.mark_accessed(&mut target)?;
            self.set_code_segment(target.segment, self.cpl);
            self.rip = offset;
            return Ok(());
        }
        match target.kind() {
            4 | 0xc => self.call_through(&target),
            1 | 5 | 9 if !self.long_mode() => self.lacks("call far, a task switch"),
            _ => self.gp(code(selector)),
        }
    }

    fn call_through(&mut self, gate: &Descriptor) -> Exec {
        let size = match (self.long_mode(), gate.kind()) {
            (true, _) => 3,
            (_, 4) => 1,
            _ => 2,
        };
        let (selector, offset) = self.call_gate(gate)?;
        let mut target = self.direct_target_of_gate(selector, false)?;
        self.check_target(&target, offset)?;
        let cpl = if target.is(CONFORMING) {
            self.cpl
        } else {
            target.dpl()
        };
        if cpl == self.cpl {
            self.push_return(size)?;
        } else {
            self.call_inward(size, cpl, (gate.raw >> 32) & 31)?;
        }
        self.mark_accessed(&mut target)?;
        self.set_code_segment(target.segment, cpl);
        self.rip = offset;
        Ok(())
    }

    /// Switches to the stack of `cpl` and pushes the old one, parameters and the return address.
    fn call_inward(&mut self, size: u8, cpl: u8, words: u64) -> Exec {
        let count = if self.long_mode() { 0 } else { words };
        let mut parameters = Vec::new();
        for at in 0..count {
            parameters.push(self.peek_sized(size, at << size)?);
        }
        let (old_ss, old_rsp) = (*self.seg(SS), self.reg(RSP));
        let (segment, top) = self.switch_to_level(cpl)?;
        let old_cpl = self.cpl;
        *self.seg_mut(SS) = segment;
        self.set_reg(RSP, top);
        self.set_cpl(cpl);
        let pushed = (|| {
            self.push_sized(size, old_ss.selector.into())?;
            self.push_sized(size, old_rsp)?;
            for value in parameters.iter().rev() {
                self.push_sized(size, *value)?;
            }
            self.push_return(size)
        })();
        if pushed.is_err() {
            *self.seg_mut(SS) = old_ss;
            self.set_reg(RSP, old_rsp);
            self.set_cpl(old_cpl);
        }
        pushed
    }

    /// The code segment a return goes to.
    fn return_target(&mut self, selector: u16) -> Result<Descriptor, Stop> {
        if selector & !3 == 0 {
            return self.gp(0);
        }
        let found = self.descriptor(selector, GP)?;
        let rpl = (selector & 3) as u8;
        let fits = if found.is(CONFORMING) {
            found.dpl() <= rpl
        } else {
            found.dpl() == rpl
        };
        if !found.is(CODE_OR_DATA | CODE) || rpl < self.cpl || !fits {
            return self.gp(code(selector));
        }
        if !found.is(PRESENT) {
            return self.raise_code(NP, code(selector));
        }
        Ok(found)
    }

    /// Drops data segments that the outer level may not use.
    fn clean_segments(&mut self) {
        for number in [ES, DS, FS, GS] {
            let seg = *self.seg(number);
            let dpl = (seg.attributes >> 5) as u8 & 3;
            let conforming = seg.attributes & (CODE | CONFORMING) == CODE | CONFORMING;
            if seg.attributes & PRESENT != 0 && !conforming && dpl < self.cpl {
                let gone = self.seg_mut(number);
                gone.selector = 0;
                gone.attributes &= !PRESENT;
                gone.base = 0;
            }
        }
    }

    /// Goes to an outer level or stays: `stack` holds SS and RSP where the frame has them.
    fn return_to(&mut self, selector: u16, rip: u64, stack: Option<(u16, u64)>) -> Exec {
        let mut target = self.return_target(selector)?;
        self.check_target(&target, rip)?;
        let rpl = (selector & 3) as u8;
        let outward = rpl > self.cpl;
        let to64 = self.long_mode() && target.is(LONG);
        if let Some((ss, rsp)) = stack {
            let segment = if ss & !3 == 0 {
                if !to64 || rpl == 3 || (ss & 3) as u8 != rpl {
                    return self.gp(0);
                }
                null_stack(ss, rpl)
            } else {
                self.stack_descriptor(ss, rpl, GP)?
            };
            self.mark_accessed(&mut target)?;
            *self.seg_mut(SS) = segment;
            let size = if to64 {
                3
            } else if segment.attributes & BIG != 0 {
                2
            } else {
                1
            };
            let kept = if size == 1 {
                self.reg(RSP) & !0xffff
            } else {
                0
            };
            self.set_reg(RSP, kept | rsp & mask(size));
        } else {
            self.mark_accessed(&mut target)?;
        }
        self.set_code_segment(target.segment, rpl);
        self.rip = rip;
        if outward {
            self.clean_segments();
        }
        Ok(())
    }
}

/// `jmp` ptr16:32; the selector is in `op.disp`.
pub(crate) fn jmp(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.far_jump(op.disp as u16, op.imm)
}

/// `call` ptr16:32.
pub(crate) fn call(cpu: &mut Cpu, op: &Op) -> Exec {
    keeping_stack(cpu, |cpu| cpu.far_call(op.size(), op.disp as u16, op.imm))
}

fn keeping_stack(cpu: &mut Cpu, body: impl FnOnce(&mut Cpu) -> Exec) -> Exec {
    let old = cpu.reg(RSP);
    let done = body(cpu);
    if done.is_err() {
        cpu.set_reg(RSP, old);
    }
    done
}

fn pointer(cpu: &mut Cpu, op: &Op) -> Result<(u16, u64), Stop> {
    let bytes = 1u64 << op.size();
    let at = cpu.ea(op, bytes + 2, false)?;
    let offset = cpu.load_sized(at, op.size())?;
    Ok((cpu.load::<u16>(at.wrapping_add(bytes))?, offset))
}

/// `jmp` m16:32.
pub(crate) fn jmp_mem(cpu: &mut Cpu, op: &Op) -> Exec {
    let (selector, offset) = pointer(cpu, op)?;
    cpu.far_jump(selector, offset)
}

/// `call` m16:32.
pub(crate) fn call_mem(cpu: &mut Cpu, op: &Op) -> Exec {
    let (selector, offset) = pointer(cpu, op)?;
    keeping_stack(cpu, |cpu| cpu.far_call(op.size(), selector, offset))
}

/// `retf`; `op.imm` bytes of arguments go.
pub(crate) fn ret(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let bytes = 1u64 << size;
    let rip = cpu.peek_sized(size, 0)?;
    let selector = cpu.peek_sized(size, bytes)? as u16;
    if !cpu.protected() {
        cpu.far_real(selector, rip)?;
        cpu.drop_stack(2 * bytes + op.imm);
        return Ok(());
    }
    if (selector & 3) as u8 <= cpu.cpl {
        cpu.return_to(selector, rip, None)?;
        cpu.drop_stack(2 * bytes + op.imm);
        return Ok(());
    }
    let rsp = cpu.peek_sized(size, 2 * bytes + op.imm)?;
    let ss = cpu.peek_sized(size, 3 * bytes + op.imm)? as u16;
    cpu.return_to(selector, rip, Some((ss, rsp)))?;
    cpu.drop_stack(op.imm);
    Ok(())
}

/// `iret`, `iretd`, `iretq`.
pub(crate) fn iret(cpu: &mut Cpu, op: &Op) -> Exec {
    let size = op.size();
    let bytes = 1u64 << size;
    let rip = cpu.peek_sized(size, 0)?;
    let selector = cpu.peek_sized(size, bytes)? as u16;
    let value = cpu.peek_sized(size, 2 * bytes)?;
    if !cpu.protected() {
        cpu.far_real(selector, rip)?;
        cpu.drop_stack(3 * bytes);
        let kept = if size == 1 { cpu.flags() & !0xffff } else { 0 };
        cpu.set_flags(kept | value);
        cpu.nmi_masked = false;
        return Ok(());
    }
    if cpu.rflags & flags::NT != 0 {
        return if cpu.long_mode() {
            cpu.gp(0)
        } else {
            cpu.lacks("iret, a switch back to the linked task")
        };
    }
    if size > 1 && value & flags::VM != 0 && cpu.cpl == 0 && !cpu.long_mode() {
        return cpu.lacks("iret, to virtual-8086 mode");
    }
    let mut mask = super::stack::changeable(cpu, size) | flags::RF;
    if size == 1 {
        mask &= 0xffff;
    }
    let with_stack = cpu.is64() || (selector & 3) as u8 > cpu.cpl;
    if with_stack {
        let rsp = cpu.peek_sized(size, 3 * bytes)?;
        let ss = cpu.peek_sized(size, 4 * bytes)? as u16;
        cpu.return_to(selector, rip, Some((ss, rsp)))?;
    } else {
        cpu.return_to(selector, rip, None)?;
        cpu.drop_stack(3 * bytes);
    }
    let rest = cpu.flags() & !mask;
    cpu.set_flags(rest | value & mask);
    cpu.nmi_masked = false;
    Ok(())
}

/// `int n`.
pub(crate) fn int(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.software_interrupt(op.imm as u8)
}

/// `int3`.
pub(crate) fn int3(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.software_interrupt(BP)
}

/// `int1`.
pub(crate) fn int1(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.rip = cpu.next_rip();
    cpu.deliver(crate::event::Event::External(crate::cpu::DB))
}

/// `into`.
pub(crate) fn into(cpu: &mut Cpu, _: &Op) -> Exec {
    if cpu.lazy.of() {
        cpu.software_interrupt(OVERFLOW)
    } else {
        Ok(())
    }
}
