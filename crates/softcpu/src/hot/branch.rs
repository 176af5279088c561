//! Branches, and how the code of one block leads to another's.

use std::mem::offset_of;

use super::{
    asm::{LESS_OR_EQUAL, Mem, NOT_EQUAL, Rm, alu, at},
    emit::{Emitter, Inline, Item, items, uses_flags},
    exit::Way,
    kind::{Kind, is_memory},
    stubs::{S0, S1, STACK, T, field},
};
use crate::{
    block::{Block, JUMP_FOLD, JUMP_MASK},
    cpu::Cpu,
    dispatch::LinkCell,
};

fn budget() -> Rm {
    Rm::Mem(field(offset_of!(Cpu, budget)))
}

impl Emitter<'_> {
    /// A branch: it ends the block.
    pub(super) fn branch(&mut self, item: &Item) -> bool {
        match item.kind {
            Kind::Branch(code) => self.conditional(item, code),
            Kind::Jump => self.edge(item, true, Inline::Always),
            Kind::Call => {
                self.push_return(item);
                self.edge(item, true, Inline::Always);
            }
            Kind::Return => {
                self.asm.copy(S0, STACK);
                let mem = self.look_up(item, 3, false);
                self.loaded(3, mem);
                self.find(item);
                self.move_stack(item, 8 + item.op.imm as i32);
                self.go_on(item);
            }
            Kind::JumpRm => {
                self.target_operand(item);
                self.find(item);
                self.go_on(item);
            }
            Kind::CallRm => {
                self.target_operand(item);
                self.find(item);
                let spare = field(offset_of!(Cpu, spare));
                self.asm.store(3, spare, S1);
                self.push_return(item);
                self.asm.load(3, S1, spare);
                self.go_on(item);
            }
            _ => {
                self.leave(item, Way::Step);
            }
        }
        false
    }

    fn conditional(&mut self, item: &Item, code: u8) {
        if !self.state.show(&mut self.asm, code) {
            self.leave(item, Way::Step);
            return;
        }
        let taken = self.asm.jump_if(code);
        let state = self.state;
        self.later(taken, state, item);
        self.edge(item, false, Inline::Always);
    }

    /// Pushes the address behind the block.
    fn push_return(&mut self, item: &Item) {
        self.asm.lea(3, S0, at(STACK, -8));
        let mem = self.look_up(item, 3, true);
        self.asm.constant(S1, item.at.next().op().imm);
        self.asm.store(3, mem, S1);
        self.move_stack(item, -8);
    }

    /// [`S0`] gets where an indirect branch leads to.
    fn target_operand(&mut self, item: &Item) {
        if is_memory(&item.op) {
            let mem = self.memory(item, 3, false);
            self.loaded(3, mem);
        } else {
            let from = self.get(item.op.rm, S1);
            self.asm.copy(S0, from);
        }
    }

    /// [`S1`] gets the known block at the address in [`S0`]; leaves where there is none.
    fn find(&mut self, item: &Item) {
        let asm = &mut self.asm;
        asm.copy(S1, S0);
        asm.shift(5, 3, S1, JUMP_FOLD);
        asm.alu(alu::XOR, 2, Rm::Reg(S1), S0);
        asm.alu_imm(alu::AND, 2, Rm::Reg(S1), JUMP_MASK as i32);
        asm.constant(T, self.shared.jumps);
        let place = Mem {
            index: Some(S1),
            scale: 3,
            ..at(T, 0)
        };
        asm.load(3, S1, place);
        let rip = at(S1, offset_of!(Block, rip) as i32);
        asm.alu(alu::CMP, 3, Rm::Mem(rip), S0);
        self.leave_if(NOT_EQUAL, item, Way::Plain);
        self.check(item, S1, Way::Plain);
        self.state.host = 0;
    }

    /// Leaves if the block in `register` is not current.
    fn check(&mut self, item: &Item, register: u8, way: Way) {
        let class = at(register, Block::CLASS as i32);
        self.asm.load(2, T, class);
        let tag = Mem {
            index: Some(T),
            scale: 3,
            ..field(offset_of!(Cpu, tags))
        };
        self.asm.load(3, T, tag);
        let own = at(register, Block::TAG as i32);
        self.asm.alu_from(alu::CMP, 3, T, Rm::Mem(own));
        self.leave_if(NOT_EQUAL, item, way);
    }

    /// Goes on with the current block in [`S1`].
    fn go_on(&mut self, item: &Item) {
        self.state.flush(&mut self.asm);
        self.asm.alu_imm(alu::CMP, 3, budget(), 0);
        self.leave_if(LESS_OR_EQUAL, item, Way::Into);
        self.asm.copy(S0, S1);
        self.pay_and_go();
    }

    /// Goes on with the current block in [`S0`].
    fn pay_and_go(&mut self) {
        self.asm.load(2, T, at(S0, offset_of!(Block, count) as i32));
        self.asm.alu(alu::SUB, 3, budget(), T);
        self.asm.jump_through(at(S0, offset_of!(Block, hot) as i32));
    }

    /// Goes on by the block's branch or behind it.
    pub(super) fn edge(&mut self, item: &Item, taken: bool, inline: Inline) {
        let (cell, way, rip) = if taken {
            (&self.block.taken, Way::Taken, item.op.imm)
        } else {
            let rip = item.at.next().op().imm;
            (&self.block.fallen, Way::Fallen, rip)
        };
        let next = cell.get().block();
        if next.rip != rip || next.count == 0 {
            return self.edge_to_come(item, cell, way);
        }
        let (items, sets) = items(next);
        let repeats = std::ptr::eq(next, self.root);
        let wanted = inline == Inline::Always || uses_flags(&items);
        let copied = !repeats && wanted && self.may_copy(next);
        if !sets && !copied {
            self.state.flush(&mut self.asm);
        }
        if !repeats {
            let address = std::ptr::from_ref(next).expose_provenance() as u64;
            self.asm.constant(S0, address);
            self.check(item, S0, way);
        }
        self.asm.alu_imm(alu::CMP, 3, budget(), 0);
        self.leave_if(LESS_OR_EQUAL, item, way);
        let count = next.count as i32;
        self.asm.alu_imm(alu::SUB, 3, budget(), count);
        self.state.host = 0;
        if repeats {
            self.asm.jump_to(self.start);
        } else if copied {
            self.next = Some(next);
        } else {
            self.asm.jump_through(at(S0, offset_of!(Block, hot) as i32));
        }
    }

    /// The successor is not known yet: whatever the link leads to then.
    fn edge_to_come(&mut self, item: &Item, cell: &LinkCell, way: Way) {
        self.state.flush(&mut self.asm);
        let address = std::ptr::from_ref(cell).expose_provenance() as u64;
        self.asm.constant(S0, address);
        self.asm.load(3, S0, at(S0, 0));
        self.check(item, S0, way);
        self.asm.alu_imm(alu::CMP, 3, budget(), 0);
        self.leave_if(LESS_OR_EQUAL, item, way);
        self.pay_and_go();
    }
}
