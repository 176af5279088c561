//! Copies, addresses, the stack, and the way from kinds to code.

use super::{
    asm::{Rm, at},
    emit::{Emitter, Item},
    exit::Way,
    kind::{Kind, is_memory},
    stubs::{S0, S1, STACK, T, pinned, slot},
};
use crate::cpu::{RAX, RBP, RDX, RSP};

impl Emitter<'_> {
    /// The code of one instruction; whether the next one follows.
    pub(super) fn instruction(&mut self, item: &Item) -> bool {
        let op = item.op;
        if !item.kind.fits(&op) {
            return self.leave(item, Way::Step);
        }
        match item.kind {
            Kind::Binary(setter) => return self.binary(item, setter),
            Kind::Unary(which, size) => self.unary(item, which, size),
            Kind::Multiply(which, size) => self.multiply(item, which, size),
            Kind::Shift(which, size) => self.shift(item, which, size),
            Kind::Store(size) => self.store(item, size),
            Kind::Load(size) => self.load(item, size),
            Kind::Immediate(size) => self.immediate(item, size),
            Kind::Extend { signed, from, to } => self.extend(item, signed, from, to),
            Kind::Lea(size) => self.lea(item, size),
            Kind::MoveIf(code, size) => return self.move_if(item, code, size),
            Kind::SetIf(code) => return self.set_if(item, code),
            Kind::Widen { to_rdx, size } => self.widen(item, to_rdx, size),
            Kind::Push | Kind::PushImmediate => self.push(item),
            Kind::Pop => self.pop(item),
            Kind::Leave => self.leave_frame(item),
            Kind::Nop => {}
            _ => return self.branch(item),
        }
        true
    }

    /// Copies part of a host register to a guest register.
    fn put(&mut self, item: &Item, size: u8, guest: u8, from: u8) {
        self.changes(item, guest);
        match (size, pinned(guest)) {
            (0 | 1, None) => self.asm.store(size, slot(guest), from),
            (3, None) => self.asm.store(3, slot(guest), from),
            (_, host) => {
                let to = host.unwrap_or(T);
                let opcode = [if size == 0 { 0x88 } else { 0x89 }];
                self.asm.op(size, &opcode, from, Rm::Reg(to));
                self.done(guest);
            }
        }
    }

    fn store(&mut self, item: &Item, size: u8) {
        if is_memory(&item.op) {
            let mem = self.memory(item, size, true);
            let from = self.get(item.op.reg, S1);
            self.asm.store(size, mem, from);
        } else {
            let from = self.get(item.op.reg, S1);
            self.put(item, size, item.op.rm, from);
        }
    }

    fn load(&mut self, item: &Item, size: u8) {
        let guest = item.op.reg;
        if !is_memory(&item.op) {
            let from = self.get(item.op.rm, S1);
            return self.put(item, size, guest, from);
        }
        let mem = self.memory(item, size, false);
        if size < 2 {
            let from = self.loaded(size, mem);
            return self.put(item, size, guest, from);
        }
        self.changes(item, guest);
        self.asm.load(size, Self::target(guest), mem);
        self.done(guest);
    }

    fn immediate(&mut self, item: &Item, size: u8) {
        let op = item.op;
        if is_memory(&op) {
            let mem = self.memory(item, size, true);
            return self.asm.store_imm(size, mem, op.imm as i32);
        }
        self.changes(item, op.rm);
        match size {
            0 | 1 => match pinned(op.rm) {
                None => self.asm.store_imm(size, slot(op.rm), op.imm as i32),
                Some(host) => {
                    self.asm.constant(S1, op.imm & 0xffff);
                    let opcode = [0x88 | u8::from(size != 0)];
                    self.asm.op(size, &opcode, S1, Rm::Reg(host));
                }
            },
            _ => {
                let value = if size == 2 {
                    op.imm & 0xffff_ffff
                } else {
                    op.imm
                };
                self.asm.constant(Self::target(op.rm), value);
                self.done(op.rm);
            }
        }
    }

    fn extend(&mut self, item: &Item, signed: bool, from: u8, to: u8) {
        let guest = item.op.reg;
        let source = if is_memory(&item.op) {
            Rm::Mem(self.memory(item, from, false))
        } else {
            Rm::Reg(self.get(item.op.rm, S1))
        };
        self.changes(item, guest);
        let target = Self::target(guest);
        let size = if signed { to } else { 2 };
        match (signed, from) {
            (false, 0) => self.asm.op(size, &[0x0f, 0xb6], target, source),
            (false, 1) => self.asm.op(size, &[0x0f, 0xb7], target, source),
            (false, _) => self.asm.op(2, &[0x8b], target, source),
            (true, 0) => self.asm.op(size, &[0x0f, 0xbe], target, source),
            (true, 1) => self.asm.op(size, &[0x0f, 0xbf], target, source),
            (true, _) => self.asm.op(size, &[0x63], target, source),
        }
        self.done(guest);
    }

    fn lea(&mut self, item: &Item, size: u8) {
        let guest = item.op.reg;
        self.changes(item, guest);
        let target = Self::target(guest);
        match Self::simple_offset(&item.op) {
            Some(mem) => self.asm.lea(size, target, mem),
            None => {
                self.offset(&item.op);
                self.asm.op(size, &[0x89], S0, Rm::Reg(target));
            }
        }
        self.done(guest);
    }

    fn move_if(&mut self, item: &Item, code: u8, size: u8) -> bool {
        let guest = item.op.reg;
        let memory = is_memory(&item.op);
        if memory {
            let mem = self.memory(item, size, false);
            self.loaded(size, mem);
        }
        if !self.state.show(&mut self.asm, code) {
            return self.leave(item, Way::Step);
        }
        self.changes(item, guest);
        let source = if memory { S0 } else { self.get(item.op.rm, S1) };
        let target = self.get(guest, T);
        self.asm
            .op(size, &[0x0f, 0x40 | code], target, Rm::Reg(source));
        self.done(guest);
        true
    }

    fn set_if(&mut self, item: &Item, code: u8) -> bool {
        let guest = item.op.rm;
        if !self.state.show(&mut self.asm, code) {
            return self.leave(item, Way::Step);
        }
        self.changes(item, guest);
        let place = pinned(guest).map_or_else(|| Rm::Mem(slot(guest)), Rm::Reg);
        self.asm.op(0, &[0x0f, 0x90 | code], 0, place);
        true
    }

    fn widen(&mut self, item: &Item, to_rdx: bool, size: u8) {
        self.changes(item, if to_rdx { RDX } else { RAX });
        match (to_rdx, size) {
            (false, 2) => self.asm.op(2, &[0x0f, 0xbf], RAX, Rm::Reg(RAX)),
            (false, _) => self.asm.op(3, &[0x63], RAX, Rm::Reg(RAX)),
            (true, 2) => self.asm.raw(&[0x99]),
            (true, _) => self.asm.raw(&[0x48, 0x99]),
        }
    }

    /// The stack pointer changes by `by`.
    pub(super) fn move_stack(&mut self, item: &Item, by: i32) {
        self.changes(item, RSP);
        self.asm.lea(3, STACK, at(STACK, by));
    }

    fn push(&mut self, item: &Item) {
        self.asm.lea(3, S0, at(STACK, -8));
        let mem = self.look_up(item, 3, true);
        if matches!(item.kind, Kind::PushImmediate) {
            self.asm.store_imm(3, mem, item.op.imm as i32);
        } else {
            let from = self.get(item.op.rm, S1);
            self.asm.store(3, mem, from);
        }
        self.move_stack(item, -8);
    }

    fn pop(&mut self, item: &Item) {
        let guest = item.op.rm;
        self.asm.copy(S0, STACK);
        let mem = self.look_up(item, 3, false);
        self.move_stack(item, 8);
        self.changes(item, guest);
        self.asm.load(3, Self::target(guest), mem);
        self.done(guest);
    }

    fn leave_frame(&mut self, item: &Item) {
        self.asm.copy(S0, RBP);
        let mem = self.look_up(item, 3, false);
        self.changes(item, RSP);
        self.changes(item, RBP);
        self.asm.lea(3, STACK, at(RBP, 8));
        self.asm.load(3, RBP, mem);
    }
}
