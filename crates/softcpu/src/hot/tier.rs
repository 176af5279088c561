//! What a vCPU has of the second tier, and when a block gets there.

use std::{env, sync::OnceLock};

use super::{
    asm::Assembler,
    emit::{Emitter, Made},
    exit::{Exit, set_entry},
    pages::Code,
    stubs::Stubs,
};
use crate::{
    block::Block,
    cpu::Cpu,
    dispatch::{At, Leave, Step},
};

/// Entries of a block before it is translated.
const AFTER: u32 = 300;
/// See [`Shared::least`].
const LEAST: usize = 4;

/// The same as told by the environment.
fn after() -> u32 {
    static TOLD: OnceLock<u32> = OnceLock::new();
    *TOLD.get_or_init(|| {
        let told = env::var("VMLET_TRANSLATE_AFTER").ok();
        told.and_then(|told| told.parse().ok()).unwrap_or(AFTER)
    })
}

/// What code refers to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shared {
    pub(super) stubs: Stubs,
    /// The table of blocks by address.
    pub(super) jumps: u64,
    /// Instructions at a block's start that make it worthwhile to translate a part of it.
    pub(super) least: usize,
}

/// Translations of one vCPU.
#[derive(Debug)]
pub(crate) struct Hot {
    /// Entries before a block is translated; 0 for never.
    after: u32,
    code: Option<Code>,
    shared: Shared,
    /// Of all translations.
    exits: Vec<Box<[Exit]>>,
}

impl Hot {
    pub(crate) fn new() -> Hot {
        Hot {
            after: after(),
            code: None,
            shared: Shared::default(),
            exits: Vec::new(),
        }
    }

    /// Sets after how many entries blocks made from now on are translated.
    #[cfg(test)]
    pub(crate) fn set_after(&mut self, after: u32) {
        self.after = after;
    }

    /// How a new block begins.
    pub(crate) fn head(&self, first: Step) -> Step {
        if self.after == 0 { first } else { warm }
    }

    /// Where translated code goes on with a block that is not translated.
    pub(crate) fn entry(&self) -> u64 {
        self.shared.stubs.begin
    }

    /// Drops all translations with the blocks they were made of.
    pub(crate) fn clear(&mut self) {
        if let Some(code) = &mut self.code {
            code.cut(self.shared.stubs.end);
        }
        self.exits.clear();
    }
}

/// The first step of a block that is not translated yet.
extern "C-unwind" fn warm(cpu: &mut Cpu, at: At) -> Leave {
    let block = cpu.block.block();
    if block.heat.one_more() >= cpu.hot.after {
        return heated(cpu, at);
    }
    (at.op().step)(cpu, at)
}

#[cold]
#[inline(never)]
extern "C-unwind" fn heated(cpu: &mut Cpu, at: At) -> Leave {
    let block = cpu.block.block();
    block.lead.set(at.op().step);
    if cpu.is64() && cpu.hot_ready() {
        cpu.heat_up(block);
    }
    (block.lead.get())(cpu, at)
}

impl Cpu {
    /// Whether there is room for code at all.
    fn hot_ready(&mut self) -> bool {
        if self.hot.code.is_some() {
            return true;
        }
        let Some(mut code) = Code::new() else {
            self.hot.after = 0;
            return false;
        };
        let mut asm = Assembler::new(code.next());
        let stubs = Stubs::make(&mut asm);
        if !code.push(asm.bytes()) {
            return false;
        }
        self.hot.code = Some(code);
        self.hot.shared = Shared {
            stubs,
            jumps: self.cache.jumps_address(),
            // Tests have all translated.
            least: if self.hot.after == 1 { 1 } else { LEAST },
        };
        for block in self.cache.blocks() {
            set_entry(block, stubs.begin);
        }
        true
    }

    fn heat_up(&mut self, block: &Block) {
        let shared = self.hot.shared;
        for _ in 0..2 {
            let Some(code) = &mut self.hot.code else {
                return;
            };
            let start = code.next();
            let Some(Made { code: bytes, exits }) = Emitter::new(&shared, block, start).run()
            else {
                return;
            };
            if code.push(&bytes) {
                self.hot.exits.push(exits);
                set_entry(block, start);
                block.lead.set(code.step(shared.stubs.enter));
                return;
            }
            self.drop_translations();
        }
    }

    /// Makes room: every block is interpreted again.
    fn drop_translations(&mut self) {
        self.hot.clear();
        let begin = self.hot.shared.stubs.begin;
        for block in self.cache.blocks() {
            set_entry(block, begin);
            block.heat.cool();
            block.lead.set(warm);
        }
    }
}
