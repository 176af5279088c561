//! Makes the code of one block, the root, and of some that follow it: its frame, memory accesses,
//! ways out and on. The instructions themselves are in `alu.rs`, `moves.rs` and `branch.rs`.
//!
//! A block that follows stands in the root's code as a copy, entered by nobody else, so that flags
//! stay where they are across it. It is checked and paid for as everywhere.
//!
//! The code of a block begins with the block paid for (`Cpu::budget`) and its flags in `Late`; a
//! block whose first instructions set them anew may find any flags there.

use std::mem::offset_of;

use super::{
    asm::{Assembler, Constant, Jump, Mem, NOT_EQUAL, Rm, alu, at},
    exit::{Exit, Way},
    kind::{Effect, Kind},
    state::State,
    stubs::{S0, S1, T, field, pinned, segment_base, slot},
    tier::Shared,
};
use crate::{
    block::Block,
    cpu::{Cpu, Width},
    decode::{self, LONGEST},
    dispatch::{At, Link},
    op::{NO_REG, Op, kind},
    tlb,
};

/// Blocks in one translation, and bytes from which on no more are added.
const COPIES: usize = 8;
const LONG: usize = 4096;

/// When the code of the next block follows at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inline {
    Always,
    /// Where it reads flags.
    Flags,
}

/// An instruction of the block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) op: Op,
    pub(super) kind: Kind,
    pub(super) at: At,
    /// The flags behind it may be seen before others are set.
    pub(super) seen: bool,
}

/// A way out that waits for its code.
#[derive(Clone, Copy, Debug)]
struct Stub {
    jump: Jump,
    state: State,
    exit: Exit,
    /// [`S1`] goes to [`Cpu::spare`].
    spare: bool,
}

/// A branch to be made: its edge is the taken one.
#[derive(Debug)]
struct Branch<'a> {
    jump: Jump,
    state: State,
    item: Item,
    block: &'a Block,
}

/// What was made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) code: Vec<u8>,
    pub(super) exits: Box<[Exit]>,
}

/// The block in the making.
#[derive(Debug)]
pub(super) struct Emitter<'a> {
    pub(super) asm: Assembler,
    pub(super) shared: &'a Shared,
    /// The block of the code being made.
    pub(super) block: &'a Block,
    pub(super) root: &'a Block,
    pub(super) state: State,
    /// Where the root's code begins.
    pub(super) start: u64,
    /// What comes next in the code.
    pub(super) next: Option<&'a Block>,
    /// Blocks in the code.
    inside: Vec<*const Block>,
    /// Branches whose code comes later.
    branches: Vec<Branch<'a>>,
    stubs: Vec<Stub>,
    exits: Vec<(Constant, Exit)>,
}

/// The instructions of a block, and whether it sets the flags before they can be seen.
pub(super) fn items(block: &Block) -> (Vec<Item>, bool) {
    let bytes = block.bytes();
    let (mut items, mut offset) = (Vec::new(), 0);
    for (at, op) in block.places() {
        let rest = bytes.get(offset..).unwrap_or_default();
        let window = rest.get(..LONGEST).unwrap_or(rest);
        let rip = block.rip.wrapping_add(offset as u64);
        let decoded = decode::decode(window, rip, Width::Bits64);
        offset += usize::from(op.len());
        items.push(Item {
            op: *op,
            kind: decoded.map_or(Kind::Other, |decoded| decoded.kind),
            at,
            seen: true,
        });
    }
    let mut seen = true;
    for item in items.iter_mut().rev() {
        item.seen = seen;
        let Effect { exits, reads, sets } = item.kind.effect(&item.op);
        seen = exits || reads || (seen && !sets);
    }
    (items, !seen)
}

/// The first instruction of a block that uses flags from before it.
fn first_use(items: &[Item]) -> Option<usize> {
    for (number, item) in items.iter().enumerate() {
        let Effect { reads, sets, .. } = item.kind.effect(&item.op);
        if reads || matches!(item.kind, Kind::Branch(_)) {
            return Some(number);
        }
        if sets {
            return None;
        }
    }
    None
}

/// Whether a block uses flags from before it.
pub(super) fn uses_flags(items: &[Item]) -> bool {
    first_use(items).is_some()
}

impl<'a> Emitter<'a> {
    pub(super) fn new(shared: &'a Shared, block: &'a Block, start: u64) -> Emitter<'a> {
        Emitter {
            asm: Assembler::new(start),
            shared,
            block,
            root: block,
            state: State::default(),
            start,
            next: None,
            inside: Vec::new(),
            branches: Vec::new(),
            stubs: Vec::new(),
            exits: Vec::new(),
        }
    }

    /// The code of the root and what follows; nothing where it is not worthwhile.
    pub(super) fn run(mut self) -> Option<Made> {
        let (items, _) = items(self.block);
        let fitting = items.iter().take_while(|item| item.kind.fits(&item.op));
        let known = fitting.count().min(first_use(&items).unwrap_or(usize::MAX));
        if known < self.shared.least.min(items.len()) {
            return None;
        }
        self.path(items);
        while let Some(branch) = self.branches.pop() {
            self.asm.land(branch.jump);
            (self.block, self.state) = (branch.block, branch.state);
            self.edge(&branch.item, true, Inline::Flags);
            if let Some(next) = self.next.take() {
                self.block = next;
                self.path(self::items(next).0);
            }
        }
        self.make_stubs();
        let exits: Box<[Exit]> = self.exits.iter().map(|(_, exit)| *exit).collect();
        for ((place, _), exit) in self.exits.iter().zip(exits.iter()) {
            let address = std::ptr::from_ref(exit).expose_provenance();
            self.asm.set(*place, address as u64);
        }
        Some(Made {
            code: self.asm.bytes().to_vec(),
            exits,
        })
    }

    /// One block after the other, as far as each leads to the next.
    fn path(&mut self, mut items: Vec<Item>) {
        loop {
            self.inside.push(std::ptr::from_ref(self.block));
            let mut known = items.iter();
            if known.all(|item| self.instruction(item))
                && let Some(item) = items.last()
            {
                self.edge(item, false, Inline::Always);
            }
            let Some(next) = self.next.take() else {
                return;
            };
            self.block = next;
            items = self::items(next).0;
        }
    }

    /// Whether a copy of `next` may follow.
    pub(super) fn may_copy(&self, next: &Block) -> bool {
        let inside = self.inside.iter().any(|block| std::ptr::eq(*block, next));
        !inside && self.inside.len() < COPIES && self.asm.bytes().len() < LONG
    }

    /// Has the branch of `item`, by a jump that was made, be made later.
    pub(super) fn later(&mut self, jump: Jump, state: State, item: &Item) {
        self.branches.push(Branch {
            jump,
            state,
            item: *item,
            block: self.block,
        });
    }

    fn make_stubs(&mut self) {
        for stub in std::mem::take(&mut self.stubs) {
            self.asm.land(stub.jump);
            if stub.spare {
                self.asm.store(3, field(offset_of!(Cpu, spare)), S1);
            }
            let mut state = stub.state;
            state.flush(&mut self.asm);
            self.jump_out(stub.exit);
        }
    }

    fn exit(&self, item: &Item, way: Way) -> Exit {
        Exit {
            block: Link::to(self.block),
            at: item.at,
            way,
        }
    }

    fn jump_out(&mut self, exit: Exit) {
        let place = self.asm.later(S0, 0);
        self.exits.push((place, exit));
        self.asm.jump_to(self.shared.stubs.leave);
    }

    /// Leaves the code at this instruction; nothing follows.
    pub(super) fn leave(&mut self, item: &Item, way: Way) -> bool {
        self.state.flush(&mut self.asm);
        let exit = self.exit(item, way);
        self.jump_out(exit);
        false
    }

    /// Leaves if condition `code` of the host holds.
    pub(super) fn leave_if(&mut self, code: u8, item: &Item, way: Way) {
        let jump = self.asm.jump_if(code);
        self.stubs.push(Stub {
            jump,
            state: self.state,
            exit: self.exit(item, way),
            spare: matches!(way, Way::Into),
        });
    }

    /// A guest register's value: its host register, or `scratch` with the value in it.
    pub(super) fn get(&mut self, guest: u8, scratch: u8) -> u8 {
        pinned(guest).unwrap_or_else(|| {
            self.asm.load(3, scratch, slot(guest));
            scratch
        })
    }

    /// Where a whole guest register is to be made: its host register or [`T`]; then
    /// [`Emitter::done`].
    pub(super) fn target(guest: u8) -> u8 {
        pinned(guest).unwrap_or(T)
    }

    /// The register made in [`Emitter::target`] is complete.
    pub(super) fn done(&mut self, guest: u8) {
        if pinned(guest).is_none() {
            self.asm.store(3, slot(guest), T);
        }
    }

    /// `guest` is about to change and `item` does not set all flags.
    pub(super) fn changes(&mut self, item: &Item, guest: u8) {
        if item.seen {
            self.state.free(&mut self.asm, guest);
        }
    }

    /// The operand's offset as a host operand, where it is simple.
    pub(super) fn simple_offset(op: &Op) -> Option<Mem> {
        let host = |guest: u8| match guest {
            NO_REG => Some(None),
            _ => pinned(guest).map(Some),
        };
        Some(Mem {
            base: host(op.base)?,
            index: host(op.index)?,
            scale: op.ea & 3,
            disp: i32::try_from(op.disp.cast_signed()).ok()?,
        })
    }

    /// [`S0`] gets the operand's offset. Changes [`S1`], no flags.
    pub(super) fn offset(&mut self, op: &Op) {
        if let Some(mem) = Self::simple_offset(op) {
            return self.lea_or_copy(S0, mem);
        }
        let disp = i32::try_from(op.disp.cast_signed());
        let mut mem = Mem {
            base: None,
            index: None,
            scale: op.ea & 3,
            disp: disp.unwrap_or(0),
        };
        if op.base != NO_REG {
            mem.base = Some(self.get(op.base, S0));
        }
        if op.index != NO_REG {
            mem.index = Some(self.get(op.index, S1));
        }
        if disp.is_err() && mem.base.is_none() && mem.index.is_none() {
            return self.asm.constant(S0, op.disp);
        }
        self.lea_or_copy(S0, mem);
        if disp.is_err() {
            self.asm.constant(S1, op.disp);
            self.add_to_address(S1);
        }
    }

    fn lea_or_copy(&mut self, to: u8, mem: Mem) {
        match mem {
            Mem {
                base: Some(base),
                index: None,
                disp: 0,
                ..
            } => self.asm.copy(to, base),
            _ => self.asm.lea(3, to, mem),
        }
    }

    fn add_to_address(&mut self, register: u8) {
        let sum = Mem {
            index: Some(register),
            ..at(S0, 0)
        };
        self.asm.lea(3, S0, sum);
    }

    /// [`S0`] gets the operand's linear address.
    fn linear(&mut self, op: &Op) {
        self.offset(op);
        if op.kind() == kind::BASED {
            self.asm.load(3, S1, segment_base(op.segment()));
            self.add_to_address(S1);
        }
    }

    /// The operand of ModRM.rm in memory of the host.
    pub(super) fn memory(&mut self, item: &Item, size: u8, write: bool) -> Mem {
        self.linear(&item.op);
        self.look_up(item, size, write)
    }

    /// The host's memory for the linear address in [`S0`]; leaves where the TLB lacks it. Changes
    /// all scratch registers and the flags.
    pub(super) fn look_up(&mut self, item: &Item, size: u8, write: bool) -> Mem {
        let set = if write { tlb::WRITE } else { tlb::READ };
        let (tag, addend) = tlb::entry_fields(set);
        let asm = &mut self.asm;
        asm.op(2, &[0x89], S0, Rm::Reg(S1));
        asm.shift(5, 2, S1, tlb::INDEX_SHIFT);
        asm.alu_imm(alu::AND, 2, Rm::Reg(S1), tlb::INDEX_MASK);
        asm.alu_from(alu::ADD, 3, S1, Rm::Mem(field(offset_of!(Cpu, tlb_at))));
        let last = (1 << size) - 1;
        asm.lea(3, T, at(S0, last));
        asm.alu_imm(alu::AND, 3, Rm::Reg(T), -4096);
        asm.alu_from(alu::CMP, 3, T, Rm::Mem(at(S1, tag)));
        self.leave_if(NOT_EQUAL, item, Way::Plain);
        self.asm.alu_from(alu::ADD, 3, S0, Rm::Mem(at(S1, addend)));
        self.state.host = 0;
        at(S0, 0)
    }
}
