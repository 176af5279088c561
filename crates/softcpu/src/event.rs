//! Delivery of exceptions and interrupts.
//!
//! Source: Intel SDM volume 3, chapter 7 "Interrupt and exception handling", in 64-bit mode section
//! 7.14. Task gates are not supported.

use vmlet_vcpu::x86_64::Segment;

use crate::{
    cpu::{CS, Cpu, DB, DF, Exec, Fault, GP, NP, PF, RSP, SS, Stop, TS, Width},
    exec::segment::{CODE, CODE_OR_DATA, CONFORMING, LONG, PRESENT, code, null_stack},
    flags,
    int::mask,
};

/// What is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Exception(Fault),
    /// `int n`, `int3`, `into`.
    Software(u8),
    /// From a device or another processor, or an NMI.
    External(u8),
}

impl Event {
    fn vector(self) -> u8 {
        match self {
            Event::Exception(fault) => fault.vector,
            Event::Software(vector) | Event::External(vector) => vector,
        }
    }

    fn code(self) -> Option<u32> {
        match self {
            Event::Exception(fault) => fault.code,
            _ => None,
        }
    }

    /// The bit of error codes that says "external".
    fn ext(self) -> u32 {
        u32::from(!matches!(self, Event::Software(_)))
    }
}

/// A gate's target.
struct Gate {
    selector: u16,
    offset: u64,
    /// Size of what is pushed, 1 to 3.
    size: u8,
    trap: bool,
    stack: u8,
}

/// The stack of a handler: SS and the stack pointer.
struct Stack {
    segment: Segment,
    top: u64,
    size: u8,
}

fn contributory(vector: u8) -> bool {
    matches!(vector, 0 | 10..=13)
}

/// What an exception during the delivery of another makes of both (SDM 7.15, "Interrupt 8").
fn joined(first: Fault, second: Fault) -> Option<Fault> {
    if first.vector == DF {
        return None;
    }
    let doubles = if first.vector == PF {
        second.vector == PF || contributory(second.vector)
    } else {
        contributory(first.vector) && contributory(second.vector)
    };
    Some(if doubles {
        Fault {
            vector: DF,
            code: Some(0),
        }
    } else {
        second
    })
}

impl Cpu {
    /// Delivers an exception, and those that its delivery raises; false: a triple fault.
    pub(crate) fn deliver_fault(&mut self, fault: Fault) -> Result<bool, Stop> {
        let mut current = fault;
        loop {
            match self.deliver(Event::Exception(current)) {
                Ok(()) => return Ok(true),
                Err(Stop::Lacking) => return Err(Stop::Lacking),
                Err(Stop::Fault) => match joined(current, self.fault) {
                    Some(next) => current = next,
                    None => return Ok(false),
                },
            }
        }
    }

    /// Delivers an event with RIP as the return address.
    pub(crate) fn deliver(&mut self, event: Event) -> Exec {
        self.halted = false;
        if event.vector() == DB && !matches!(event, Event::Software(_)) {
            self.open_debug_registers();
        }
        let done = if self.cr0 & crate::cpu::CR0_PE == 0 {
            self.deliver_real(event)
        } else {
            self.deliver_protected(event)
        };
        self.bad_address = false;
        done
    }

    fn deliver_real(&mut self, event: Event) -> Exec {
        let entry = u64::from(event.vector()) * 4;
        if entry + 3 > u64::from(self.idt.limit) {
            return self.gp(0);
        }
        let target = self.load_system::<u32>(self.idt.base.wrapping_add(entry))?;
        let (old, flags, cs) = (self.reg(RSP), self.flags(), self.seg(CS).selector);
        let rip = self.rip;
        let pushed = self
            .push(flags as u16)
            .and_then(|()| self.push(cs))
            .and_then(|()| self.push(rip as u16));
        if let Err(stop) = pushed {
            self.set_reg(RSP, old);
            return Err(stop);
        }
        self.rflags &= !(flags::IF | flags::TF | flags::AC | flags::RF);
        self.load_segment(CS, (target >> 16) as u16)?;
        self.rip = u64::from(target & 0xffff);
        self.mode_changed();
        Ok(())
    }

    fn gate(&mut self, event: Event) -> Result<Gate, Stop> {
        let vector = u64::from(event.vector());
        let long = self.long_mode();
        let bytes = if long { 16 } else { 8 };
        let number = (event.vector() as u32) * 8 + 2;
        let error = number | event.ext();
        if vector * bytes + bytes - 1 > u64::from(self.idt.limit) {
            return self.raise_code(GP, error);
        }
        let at = self.idt.base.wrapping_add(vector * bytes);
        let low = self.load_system::<u64>(at)?;
        let high = if long {
            self.load_system::<u64>(at.wrapping_add(8))?
        } else {
            0
        };
        let kind = (low >> 40) & 0x1f;
        let size = match (long, kind) {
            (true, 0xe | 0xf) => 3,
            (false, 0xe | 0xf) => 2,
            (false, 6 | 7) => 1,
            (false, 5) => return self.lacks("an interrupt through a task gate"),
            _ => return self.raise_code(GP, error),
        };
        let dpl = (low >> 45) as u8 & 3;
        if matches!(event, Event::Software(_)) && dpl < self.cpl {
            return self.raise_code(GP, number);
        }
        if low >> 47 & 1 == 0 {
            return self.raise_code(NP, error);
        }
        let mut offset = low & 0xffff | (low >> 32) & 0xffff_0000 | (high & 0xffff_ffff) << 32;
        if size == 1 {
            offset &= 0xffff;
        }
        Ok(Gate {
            selector: (low >> 16) as u16,
            offset,
            size,
            trap: kind & 1 != 0,
            stack: if long { (low >> 32) as u8 & 7 } else { 0 },
        })
    }

    fn deliver_protected(&mut self, event: Event) -> Exec {
        if self.rflags & flags::VM != 0 {
            return self.lacks("an interrupt in virtual-8086 mode");
        }
        let gate = self.gate(event)?;
        let ext = event.ext();
        if gate.selector & !3 == 0 {
            return self.raise_code(GP, ext);
        }
        let mut target = self.descriptor(gate.selector, GP)?;
        let error = code(gate.selector) | ext;
        let long = self.long_mode();
        let wrong_width = long && (!target.is(LONG) || target.is(crate::exec::segment::BIG));
        if !target.is(CODE_OR_DATA | CODE) || target.dpl() > self.cpl || wrong_width {
            return self.raise_code(GP, error);
        }
        if !target.is(PRESENT) {
            return self.raise_code(NP, error);
        }
        if long && !canonical(gate.offset) {
            return self.raise_code(GP, ext);
        }
        let cpl = if target.is(CONFORMING) {
            self.cpl
        } else {
            target.dpl()
        };
        let stack = self.handler_stack(&gate, cpl)?;
        self.mark_accessed(&mut target)?;
        let switched = cpl != self.cpl || stack.is_some();
        let (ss, rsp) = (self.seg(SS).selector, self.reg(RSP));
        let mut frame = Vec::with_capacity(6);
        if long || (switched && cpl != self.cpl) {
            frame.extend([u64::from(ss), rsp]);
        }
        frame.extend([
            self.pushed_flags(event),
            self.seg(CS).selector.into(),
            self.rip,
        ]);
        frame.extend(event.code().map(u64::from));
        let stack = stack.unwrap_or_else(|| self.current_stack());
        let top = self.push_frame(&stack, gate.size, &frame)?;
        *self.seg_mut(SS) = stack.segment;
        self.set_reg(
            RSP,
            if stack.size == 3 {
                top
            } else {
                self.reg(RSP) & !mask(stack.size) | top
            },
        );
        self.set_code_segment(target.segment, cpl);
        self.rip = gate.offset;
        let mut gone = flags::TF | flags::NT | flags::RF | flags::VM;
        if !gate.trap {
            gone |= flags::IF;
        }
        self.rflags &= !gone;
        Ok(())
    }

    /// Faults push RF set, so that an instruction breakpoint does not hit twice (SDM 18.3.1.1).
    fn pushed_flags(&self, event: Event) -> u64 {
        let flags = self.flags();
        match event {
            Event::Exception(fault) if !matches!(fault.vector, 1 | 3 | 4 | 8) => flags | flags::RF,
            _ => flags,
        }
    }

    fn current_stack(&self) -> Stack {
        let size = if self.long_mode() {
            3
        } else {
            self.stack_size()
        };
        let top = self.reg(RSP) & mask(size);
        Stack {
            segment: *self.seg(SS),
            top: if size == 3 { top & !15 } else { top },
            size,
        }
    }

    /// The stack the handler gets, if not the current one.
    fn handler_stack(&mut self, gate: &Gate, cpl: u8) -> Result<Option<Stack>, Stop> {
        if self.long_mode() {
            if cpl == self.cpl && gate.stack == 0 {
                return Ok(None);
            }
            let offset = if gate.stack != 0 {
                28 + 8 * u64::from(gate.stack)
            } else {
                4 + 8 * u64::from(cpl)
            };
            let top = self.tss_word(offset, 3)?;
            let segment = if cpl == self.cpl {
                *self.seg(SS)
            } else {
                null_stack(cpl.into(), cpl)
            };
            if !canonical(top) {
                return self.raise_code(crate::cpu::STACK, 0);
            }
            return Ok(Some(Stack {
                segment,
                top: top & !15,
                size: 3,
            }));
        }
        if cpl == self.cpl {
            return Ok(None);
        }
        self.level_stack(cpl).map(Some)
    }

    /// The stack of a more privileged level from the legacy TSS.
    fn level_stack(&mut self, cpl: u8) -> Result<Stack, Stop> {
        let wide = self.tr.attributes & 8 != 0;
        let (top, selector) = if wide {
            let at = 4 + 8 * u64::from(cpl);
            (self.tss_word(at, 2)?, self.tss_word(at + 4, 1)?)
        } else {
            let at = 2 + 4 * u64::from(cpl);
            (self.tss_word(at, 1)?, self.tss_word(at + 2, 1)?)
        };
        let segment = self.stack_descriptor(selector as u16, cpl, TS)?;
        let size = if segment.attributes & crate::exec::segment::BIG != 0 {
            2
        } else {
            1
        };
        Ok(Stack {
            segment,
            top: top & mask(size),
            size,
        })
    }

    /// The stack pointer and segment for a call to a more privileged level.
    pub(crate) fn switch_to_level(&mut self, cpl: u8) -> Result<(Segment, u64), Stop> {
        if self.long_mode() {
            let top = self.tss_word(4 + 8 * u64::from(cpl), 3)?;
            return Ok((null_stack(cpl.into(), cpl), top));
        }
        let stack = self.level_stack(cpl)?;
        Ok((stack.segment, stack.top))
    }

    fn tss_word(&mut self, offset: u64, size: u8) -> Result<u64, Stop> {
        let tr = self.tr;
        if offset + (1 << size) - 1 > u64::from(tr.limit) {
            return self.raise_code(TS, code(tr.selector));
        }
        let at = tr.base.wrapping_add(offset);
        match size {
            1 => self.load_system::<u16>(at).map(u64::from),
            2 => self.load_system::<u32>(at).map(u64::from),
            _ => self.load_system::<u64>(at),
        }
    }

    /// Writes a frame below the stack's top; gives the new top.
    fn push_frame(&mut self, stack: &Stack, size: u8, frame: &[u64]) -> Result<u64, Stop> {
        let mut top = stack.top;
        for value in frame {
            top = top.wrapping_sub(1 << size) & mask(stack.size);
            let at = if stack.size == 3 {
                top
            } else {
                stack.segment.base.wrapping_add(top) & 0xffff_ffff
            };
            match size {
                1 => self.store_system(at, *value as u16)?,
                2 => self.store_system(at, *value as u32)?,
                _ => self.store_system(at, *value)?,
            }
        }
        Ok(top)
    }

    /// `int n` and its kin: RIP is behind the instruction.
    pub(crate) fn software_interrupt(&mut self, vector: u8) -> Exec {
        let old = self.rip;
        self.rip = self.next_rip();
        let done = self.deliver(Event::Software(vector));
        if done.is_err() {
            self.rip = old;
        }
        done
    }
}

pub(crate) fn canonical(addr: u64) -> bool {
    let sign = (addr.cast_signed() >> 47).cast_unsigned();
    sign == 0 || sign == u64::MAX
}

/// The mask of an instruction pointer of the current code.
pub(crate) fn rip_mask(width: Width) -> u64 {
    match width {
        Width::Bits16 => 0xffff,
        Width::Bits32 => 0xffff_ffff,
        Width::Bits64 => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(vector: u8) -> Fault {
        Fault { vector, code: None }
    }

    #[test]
    fn two_contributory_faults_double() {
        assert_eq!(joined(fault(GP), fault(NP)).unwrap().vector, DF);
        assert_eq!(joined(fault(PF), fault(PF)).unwrap().vector, DF);
        assert_eq!(joined(fault(GP), fault(PF)).unwrap().vector, PF);
        assert_eq!(joined(fault(6), fault(GP)).unwrap().vector, GP);
    }

    #[test]
    fn a_fault_in_a_double_fault_shuts_down() {
        assert_eq!(joined(fault(DF), fault(PF)), None);
    }
}
