//! Decoded code: blocks of straight-line instructions, and how they are found again.
//!
//! A block belongs to one linear address, one guest-physical address and one code width, so that
//! addresses relative to RIP are part of it. It never leaves its page, but for a single instruction
//! that crosses into the next. Whoever writes the page changes the page's mark (`memory.rs`); a
//! block whose mark has changed compares its bytes with memory before it is used again.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::atomic::Ordering,
};

use crate::{
    cpu::{Cpu, Ending, Stop, Width},
    decode::{self, LONGEST, Short},
    memory::{HAS_CODE, Marks},
    op::Op,
    tlb,
};

const JUMPS: usize = 8192;
const OPS_A_BLOCK: usize = 48;
/// Past this many instructions in the cache all blocks are dropped: 64 MiB.
const OPS_MAX: usize = 2 << 20;
const PAGE: u64 = 4096;

/// The mark of a page as the block knows it.
#[derive(Debug)]
struct Known {
    marks: Marks,
    page: usize,
    value: u32,
    gpa: u64,
}

impl Known {
    fn fresh(&self) -> bool {
        self.marks
            .get(self.page)
            .is_some_and(|mark| mark.load(Ordering::Relaxed) == self.value)
    }
}

/// Straight-line code.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) rip: u64,
    pub(crate) len: u16,
    pub(crate) ops: Box<[Op]>,
    bytes: Box<[u8]>,
    /// Bytes in the first page.
    head: usize,
    first: Known,
    second: Option<Known>,
    /// The host's writes seen when the bytes were last compared.
    foreign: u64,
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

#[derive(Clone, Copy, Debug, Default)]
struct Jump {
    rip: u64,
    tag: u64,
    index: u32,
}

/// The blocks of one vCPU.
#[derive(Debug)]
pub(crate) struct Cache {
    blocks: Vec<Block>,
    by_key: HashMap<Key, u32, BuildHasherDefault<AddressHasher>>,
    jumps: Vec<Jump>,
    ops: usize,
    map_version: u64,
}

impl Cache {
    pub(crate) fn new() -> Cache {
        Cache {
            blocks: Vec::new(),
            by_key: HashMap::default(),
            jumps: vec![Jump::default(); JUMPS],
            ops: 0,
            map_version: 0,
        }
    }

    fn clear(&mut self) {
        self.blocks.clear();
        self.by_key.clear();
        self.jumps.fill(Jump::default());
        self.ops = 0;
    }

    /// The block at RIP.
    #[inline(always)]
    pub(crate) fn find(&mut self, cpu: &mut Cpu) -> Result<&Block, Stop> {
        let tag = tag(cpu);
        let slot = jump_slot(cpu.rip);
        let jump = self.jumps.get(slot).copied().unwrap_or_default();
        let index = if jump.rip == cpu.rip
            && jump.tag == tag
            && self
                .blocks
                .get(jump.index as usize)
                .is_some_and(|b| b.first.fresh() && b.second.is_none() && b.foreign == cpu.foreign)
        {
            jump.index
        } else {
            self.find_slow(cpu)?
        };
        // A block is there; the alternative cannot be reached.
        self.blocks.get(index as usize).ok_or(Stop::Lacking)
    }

    #[cold]
    fn find_slow(&mut self, cpu: &mut Cpu) -> Result<u32, Stop> {
        if self.map_version != cpu.map_version || self.ops > OPS_MAX {
            self.map_version = cpu.map_version;
            self.clear();
        }
        let linear = cpu.code_address(cpu.rip)?;
        let gpa = cpu.fetch_address(linear)?;
        let width = cpu.width as u8;
        let key = Key {
            gpa,
            rip: cpu.rip,
            width,
        };
        let known = self.by_key.get(&key).copied();
        let index = match known {
            Some(index) if self.usable(cpu, index, linear)? => index,
            _ => {
                let block = translate(cpu, linear, gpa, OPS_A_BLOCK)?;
                self.ops += block.ops.len() + 8;
                let place = known.and_then(|index| self.blocks.get_mut(index as usize));
                if let (Some(place), Some(index)) = (place, known) {
                    *place = block;
                    index
                } else {
                    let index = self.blocks.len() as u32;
                    self.blocks.push(block);
                    self.by_key.insert(key, index);
                    index
                }
            }
        };
        if let Some(jump) = self.jumps.get_mut(jump_slot(cpu.rip)) {
            *jump = Jump {
                rip: cpu.rip,
                tag: tag(cpu),
                index,
            };
        }
        Ok(index)
    }

    /// Whether the block still stands for what is in memory.
    fn usable(&mut self, cpu: &mut Cpu, index: u32, linear: u64) -> Result<bool, Stop> {
        let foreign = cpu.foreign;
        let Some(block) = self.blocks.get_mut(index as usize) else {
            return Ok(false);
        };
        if let Some(second) = &block.second {
            let next = (linear & !(PAGE - 1)).wrapping_add(PAGE);
            if cpu.fetch_address(next)? != second.gpa {
                return Ok(false);
            }
        }
        let fresh = block.first.fresh() && block.second.as_ref().is_none_or(Known::fresh);
        if fresh && block.foreign == foreign {
            return Ok(true);
        }
        let (head, tail) = block.bytes.split_at(block.head.min(block.bytes.len()));
        let same = holds(cpu, block.first.gpa, head)
            && block
                .second
                .as_ref()
                .is_none_or(|second| holds(cpu, second.gpa, tail));
        if !same {
            return Ok(false);
        }
        let Some(first) = guard(cpu, block.first.gpa) else {
            return Ok(false);
        };
        block.first = first;
        if let Some(second) = &block.second {
            block.second = guard(cpu, second.gpa);
        }
        block.foreign = foreign;
        Ok(true)
    }
}

fn tag(cpu: &Cpu) -> u64 {
    // The lowest bit tells an entry from an empty one.
    (cpu.fetch_epoch << 4 | (cpu.tlb_mode as u64 & 4) << 1 | (cpu.width as u64) << 1) | 1
}

fn jump_slot(rip: u64) -> usize {
    (rip ^ rip >> 13) as usize & (JUMPS - 1)
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
        value,
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
    let bytes = fetch(cpu, gpa, limit * LONGEST).unwrap_or_default();
    let (rip, width, foreign) = (cpu.rip, cpu.width, cpu.foreign);
    let mut ops = Vec::new();
    let mut at = 0;
    while ops.len() < limit {
        let rest = bytes.get(at..).unwrap_or_default();
        let window = rest.get(..LONGEST).unwrap_or(rest);
        match decode::decode(window, rip.wrapping_add(at as u64), width) {
            Ok(decoded) => {
                let mut op = decoded.op;
                at += usize::from(op.len());
                op.end = at as u16;
                ops.push(op);
                if decoded.ends || at >= bytes.len() {
                    break;
                }
            }
            Err(_) if !ops.is_empty() => break,
            Err(Short::TooLong) => return cpu.gp(0),
            Err(Short::More) => return translate_crossing(cpu, linear, first, bytes, width),
        }
    }
    Ok(Block {
        rip,
        len: at as u16,
        ops: ops.into(),
        bytes: bytes.get(..at).unwrap_or_default().into(),
        head: at,
        first,
        second: None,
        foreign,
    })
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
    Ok(Block {
        rip: cpu.rip,
        len: decoded.op.end,
        ops: vec![decoded.op].into(),
        bytes: bytes.into(),
        head,
        first,
        second: Some(second),
        foreign: cpu.foreign,
    })
}
