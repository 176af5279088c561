//! Decoded code: blocks of straight-line instructions, and how they are found again.
//!
//! A block belongs to one linear address, one guest-physical address and one code width, so that
//! addresses relative to RIP are part of it. It never leaves its page, but for a single instruction
//! that crosses into the next.
//!
//! A block's tag says for which state of the vCPU it was found good: where its address leads, at
//! which privilege, and that its bytes are still those in memory. Changes of CR3 and their kin give
//! the vCPU another tag (`Cpu::forget_fetched`). Whoever writes the page changes the page's mark
//! (`memory.rs`); a vCPU takes the tags of the page's blocks away at its own writes, and all tags
//! when it learns of writes by others. A block without the right tag whose mark has changed compares
//! its bytes with memory before it is used again.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    mem::offset_of,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use crate::{
    cpu::{Cpu, Ending, Stop, Width},
    decode::{self, LONGEST, Short},
    dispatch::{At, Head, Heat, Link, LinkCell, Step, end, plain},
    event::rip_mask,
    memory::{HAS_CODE, Marks},
    op::Op,
    quick::{self, Setter},
    tlb,
};

const JUMPS: usize = 16_384;
/// How an address leads to its place in the table.
pub(crate) const JUMP_MASK: usize = JUMPS - 1;
pub(crate) const JUMP_FOLD: u8 = 14;
const OPS_A_BLOCK: usize = 48;
/// Past this many operations in the cache all blocks are dropped: 80 MiB.
const OPS_MAX: usize = 2 << 20;
/// What a block takes beside its operations, in operations.
const OVERHEAD: usize = 8;
const PAGE: u64 = 4096;
/// The tag of a block that is to be looked at before use.
const NO_TAG: u64 = 0;

/// The mark of a page as the block knows it.
#[derive(Debug)]
struct Known {
    marks: Marks,
    page: usize,
    value: AtomicU32,
    gpa: u64,
}

impl Known {
    fn fresh(&self) -> bool {
        let value = self.value.load(Ordering::Relaxed);
        self.marks
            .get(self.page)
            .is_some_and(|mark| mark.load(Ordering::Relaxed) == value)
    }

    fn renew(&self, mark: &Known) {
        let value = mark.value.load(Ordering::Relaxed);
        self.value.store(value, Ordering::Relaxed);
    }
}

/// Straight-line code.
#[derive(Debug)]
pub(crate) struct Block {
    tag: AtomicU64,
    pub(crate) rip: u64,
    /// The instructions' and one of [`end`].
    pub(crate) ops: Box<[Op]>,
    /// Where the last branch leads to when it is taken.
    pub(crate) taken: LinkCell,
    /// What comes after the block.
    pub(crate) fallen: LinkCell,
    /// Its first step.
    pub(crate) lead: Head,
    /// Where translated code comes to it (`hot/`).
    pub(crate) hot: AtomicU64,
    pub(crate) heat: Heat,
    /// Instructions.
    pub(crate) count: u32,
    /// Which of [`Cpu::tags`] counts.
    class: AtomicU32,
    bytes: Box<[u8]>,
    /// Bytes in the first page.
    head: usize,
    first: Known,
    second: Option<Known>,
    /// The host's writes seen when the bytes were last compared.
    foreign: AtomicU64,
}

impl Block {
    /// For translated code, which asks as [`Block::is_current`] does.
    pub(crate) const TAG: usize = offset_of!(Block, tag);
    pub(crate) const CLASS: usize = offset_of!(Block, class);

    /// What it was decoded from.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its instructions.
    pub(crate) fn places(&self) -> impl Iterator<Item = (At, &Op)> {
        let after = |at: &At| Some(at.next());
        let places = std::iter::successors(Some(At::start(self)), after);
        places.zip(&self.ops).take(self.count as usize)
    }

    /// Whether it may be used as it is.
    #[inline(always)]
    pub(crate) fn is_current(&self, cpu: &Cpu) -> bool {
        let class = self.class.load(Ordering::Relaxed) & 1;
        let [local, global] = cpu.tags;
        let tag = if class == 0 { local } else { global };
        self.tag.load(Ordering::Relaxed) == tag
    }

    fn forget(&self) {
        self.tag.store(NO_TAG, Ordering::Relaxed);
    }

    fn empty() -> Arc<Block> {
        let known = || Known {
            marks: Arc::default(),
            page: 0,
            value: AtomicU32::new(0),
            gpa: 0,
        };
        Arc::new_cyclic(|this| {
            let itself = Link::within(this);
            Block {
                tag: AtomicU64::new(NO_TAG),
                rip: 0,
                ops: Box::new([]),
                taken: LinkCell::new(itself),
                fallen: LinkCell::new(itself),
                lead: Head::new(plain),
                hot: AtomicU64::new(0),
                heat: Heat::default(),
                count: 0,
                class: AtomicU32::new(0),
                bytes: Box::default(),
                head: 0,
                first: known(),
                second: None,
                foreign: AtomicU64::new(0),
            }
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    gpa: u64,
    rip: u64,
    width: u8,
}

/// Multiplies: the keys are addresses, and no guest gains by collisions more than slowness.
#[derive(Debug, Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type ByAddress<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

/// The blocks of one vCPU.
#[derive(Debug)]
pub(crate) struct Cache {
    /// A block that is never good: where links lead to at first.
    nothing: Arc<Block>,
    /// All that links may lead to, those given up included.
    blocks: Vec<Arc<Block>>,
    by_key: ByAddress<Key, Link>,
    by_page: ByAddress<u64, Vec<Link>>,
    jumps: Box<[LinkCell; JUMPS]>,
    ops: usize,
    map_version: u64,
    generation: u64,
}

impl Cache {
    pub(crate) fn new() -> Cache {
        let nothing = Block::empty();
        let link = Link::to(&nothing);
        let jumps = Box::new(std::array::from_fn(|_| LinkCell::new(link)));
        Cache {
            nothing,
            blocks: Vec::new(),
            by_key: HashMap::default(),
            by_page: HashMap::default(),
            jumps,
            ops: 0,
            map_version: 0,
            generation: 0,
        }
    }

    /// The block that is never good.
    pub(crate) fn nothing(&self) -> Link {
        Link::to(&self.nothing)
    }

    /// Changes when blocks were dropped.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The block that was last at an address like `rip`.
    #[inline(always)]
    pub(crate) fn jump(&self, rip: u64) -> Link {
        self.jumps
            .get(jump_slot(rip))
            .map_or(self.nothing(), LinkCell::get)
    }

    /// All blocks.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.blocks.iter().map(|block| &**block)
    }

    /// Where the table of [`Cache::jump`] lies.
    pub(crate) fn jumps_address(&self) -> u64 {
        self.jumps.as_ptr().expose_provenance() as u64
    }

    fn clear(&mut self) {
        self.by_key.clear();
        self.by_page.clear();
        for jump in self.jumps.iter() {
            jump.set(Link::to(&self.nothing));
        }
        self.blocks.clear();
        self.ops = 0;
        self.generation += 1;
    }

    fn add(&mut self, key: Key, block: Block) -> Link {
        self.ops += block.ops.len() + OVERHEAD;
        let block = Arc::new(block);
        let link = Link::to(&block);
        let pages = [Some(&block.first), block.second.as_ref()];
        for known in pages.into_iter().flatten() {
            self.by_page.entry(known.gpa / PAGE).or_default().push(link);
        }
        if let Some(old) = self.by_key.insert(key, link) {
            old.block().forget();
        }
        self.blocks.push(block);
        link
    }

    /// The page at `gpa` was written: its blocks are to be looked at.
    pub(crate) fn written(&mut self, gpa: u64) {
        for link in self.by_page.get(&(gpa / PAGE)).into_iter().flatten() {
            link.block().forget();
        }
    }
}

impl Cpu {
    /// The block at RIP, which [`Cache::jump`] does not have.
    #[cold]
    #[inline(never)]
    pub(crate) fn find_block(&mut self) -> Result<Link, Stop> {
        if self.cache.map_version != self.map_version || self.cache.ops > OPS_MAX {
            self.cache.map_version = self.map_version;
            self.cache.clear();
            self.hot.clear();
            self.block = self.cache.nothing();
        }
        let linear = self.code_address(self.rip)?;
        let (gpa, mut global) = self.fetch_page(linear)?;
        let key = Key {
            gpa,
            rip: self.rip,
            width: self.width as u8,
        };
        let known = self.cache.by_key.get(&key).copied();
        let link = match known {
            Some(link) if self.usable(link.block(), linear, &mut global)? => link,
            _ => {
                let block = translate(self, linear, gpa, OPS_A_BLOCK)?;
                global &= block.second.is_none();
                self.cache.add(key, block)
            }
        };
        let block = link.block();
        let class = u32::from(global);
        block.class.store(class, Ordering::Relaxed);
        let [local, of_global] = self.tags;
        let tag = if global { of_global } else { local };
        block.tag.store(tag, Ordering::Relaxed);
        if let Some(jump) = self.cache.jumps.get(jump_slot(self.rip)) {
            jump.set(link);
        }
        Ok(link)
    }

    /// Whether the block still stands for what is in memory.
    fn usable(&mut self, block: &Block, linear: u64, global: &mut bool) -> Result<bool, Stop> {
        if let Some(second) = &block.second {
            *global = false;
            let next = (linear & !(PAGE - 1)).wrapping_add(PAGE);
            if self.fetch_address(next)? != second.gpa {
                return Ok(false);
            }
        }
        let fresh = block.first.fresh() && block.second.as_ref().is_none_or(Known::fresh);
        if fresh && block.foreign.load(Ordering::Relaxed) == self.foreign {
            return Ok(true);
        }
        let (head, tail) = block.bytes.split_at(block.head.min(block.bytes.len()));
        let same = holds(self, block.first.gpa, head)
            && block
                .second
                .as_ref()
                .is_none_or(|second| holds(self, second.gpa, tail));
        if !same {
            return Ok(false);
        }
        for known in [Some(&block.first), block.second.as_ref()]
            .into_iter()
            .flatten()
        {
            let Some(mark) = guard(self, known.gpa) else {
                return Ok(false);
            };
            known.renew(&mark);
        }
        block.foreign.store(self.foreign, Ordering::Relaxed);
        Ok(true)
    }
}

#[inline(always)]
fn jump_slot(rip: u64) -> usize {
    (rip ^ rip >> JUMP_FOLD) as usize & JUMP_MASK
}

/// Whether guest memory at `gpa` holds `bytes`.
fn holds(cpu: &Cpu, gpa: u64, bytes: &[u8]) -> bool {
    let Some(host) = cpu.host(gpa) else {
        return false;
    };
    bytes
        .iter()
        .zip(0..)
        .all(|(byte, at)| tlb::load::<u8>(host + at) == *byte)
}

/// Marks the page at `gpa` as holding code: writes to it are seen from now on.
fn guard(cpu: &mut Cpu, gpa: u64) -> Option<Known> {
    let slot = cpu.map.find(gpa)?;
    let (marks, page) = (slot.marks.clone(), slot.page(gpa));
    let host = (slot.slot.hva.0 + (gpa - slot.slot.gpa.0)) & !(PAGE - 1);
    let mark = marks.get(page)?;
    let old = mark.fetch_or(HAS_CODE, Ordering::Relaxed);
    let value = old | HAS_CODE;
    if old & HAS_CODE == 0 {
        cpu.tlb.protect(host);
        cpu.code_epoch = cpu.memory.code_appeared();
    }
    Some(Known {
        marks,
        page,
        value: AtomicU32::new(value),
        gpa,
    })
}

/// Copies up to `want` bytes of code at `gpa`, not past its page.
fn fetch(cpu: &Cpu, gpa: u64, want: usize) -> Option<Vec<u8>> {
    let host = cpu.host(gpa)?;
    let there = (PAGE - gpa % PAGE).min(want as u64);
    Some((0..there).map(|at| tlb::load::<u8>(host + at)).collect())
}

fn no_memory(cpu: &mut Cpu, gpa: u64) -> Stop {
    cpu.ending = Some(Ending::Fatal(vmlet_vcpu::FatalExit::Memory { gpa }));
    Stop::Lacking
}

/// Decodes at most `limit` instructions at `linear`.
pub(crate) fn translate(cpu: &mut Cpu, linear: u64, gpa: u64, limit: usize) -> Result<Block, Stop> {
    let Some(first) = guard(cpu, gpa) else {
        return Err(no_memory(cpu, gpa));
    };
    let mut bytes = fetch(cpu, gpa, limit * LONGEST).unwrap_or_default();
    let (rip, width) = (cpu.rip, cpu.width);
    let (mut ops, mut flows) = (Vec::new(), Vec::new());
    let (mut at, mut branches, mut setter) = (0, false, None);
    while ops.len() < limit {
        let rest = bytes.get(at..).unwrap_or_default();
        let window = rest.get(..LONGEST).unwrap_or(rest);
        match decode::decode(window, rip.wrapping_add(at as u64), width) {
            Ok(decoded) => {
                let mut op = decoded.op;
                at += usize::from(op.len());
                op.end = at as u16;
                ops.push(op);
                branches = decoded.ends;
                fuse(&mut ops, setter, decoded.condition);
                setter = decoded.setter;
                flows.push(decoded.flow);
                if decoded.ends || at >= bytes.len() {
                    break;
                }
            }
            Err(_) if !ops.is_empty() => break,
            Err(Short::TooLong) => return cpu.gp(0),
            Err(Short::More) => return translate_crossing(cpu, linear, first, bytes, width),
        }
    }
    quick::silence(&mut ops, &flows);
    bytes.truncate(at);
    let parts = Parts {
        ops,
        bytes,
        branches,
        first,
        second: None,
    };
    Ok(assemble(cpu, parts))
}

/// Gives the instruction before the last, if it is of `setter`, the step of both.
fn fuse(ops: &mut [Op], setter: Option<Setter>, condition: Option<u8>) {
    if let (Some(setter), Some(code), [.., before, _]) = (setter, condition, ops)
        && let Some(step) = quick::fused(setter, before, code)
    {
        before.step = step;
    }
}

/// Instructions and what they were decoded from.
struct Parts {
    ops: Vec<Op>,
    bytes: Vec<u8>,
    /// The last instruction may lead elsewhere than behind the block.
    branches: bool,
    first: Known,
    /// The second page and the bytes before it.
    second: Option<(Known, usize)>,
}

fn assemble(cpu: &Cpu, parts: Parts) -> Block {
    let Parts {
        mut ops,
        bytes,
        branches,
        first,
        second,
    } = parts;
    let count = ops.len() as u32;
    let first_step = ops.first().map_or(plain as Step, |op| op.step);
    let stop = if branches { end::at_rip } else { end::falls };
    let link = cpu.cache.nothing();
    let length = bytes.len();
    ops.push(Op {
        step: stop,
        imm: cpu.rip.wrapping_add(length as u64) & rip_mask(cpu.width),
        ..decode::empty()
    });
    let (second, head) = second.map_or((None, length), |(known, head)| (Some(known), head));
    Block {
        tag: AtomicU64::new(NO_TAG),
        rip: cpu.rip,
        ops: ops.into(),
        taken: LinkCell::new(link),
        fallen: LinkCell::new(link),
        lead: Head::new(cpu.hot.head(first_step)),
        hot: AtomicU64::new(cpu.hot.entry()),
        heat: Heat::default(),
        count,
        class: AtomicU32::new(0),
        bytes: bytes.into(),
        head,
        first,
        second,
        foreign: AtomicU64::new(cpu.foreign),
    }
}

/// One instruction that begins in this page and ends in the next.
fn translate_crossing(
    cpu: &mut Cpu,
    linear: u64,
    first: Known,
    mut bytes: Vec<u8>,
    width: Width,
) -> Result<Block, Stop> {
    let head = bytes.len();
    let next = linear.wrapping_add(head as u64);
    let gpa = cpu.fetch_address(next)?;
    let Some(second) = guard(cpu, gpa) else {
        return Err(no_memory(cpu, gpa));
    };
    bytes.extend(fetch(cpu, gpa, LONGEST).unwrap_or_default());
    bytes.truncate(LONGEST);
    let Ok(decoded) = decode::decode(&bytes, cpu.rip, width) else {
        return cpu.gp(0);
    };
    bytes.truncate(decoded.op.len().into());
    let parts = Parts {
        ops: vec![decoded.op],
        bytes,
        branches: decoded.ends,
        first,
        second: Some((second, head)),
    };
    Ok(assemble(cpu, parts))
}
