//! The second tier: code that runs often becomes code of the host.
//!
//! A block that was entered often enough is translated whole (`emit.rs`, by instruction in `alu.rs`,
//! `moves.rs`, `branch.rs`; `asm.rs` writes the bytes, `pages.rs` keeps them). The code does what the
//! quick steps do, with most guest registers in host registers (`stubs.rs`) and the flags left to
//! the host's, noted only where something may see them (`state.rs`, `late.rs`). Where a page is not in
//! the TLB, an instruction is not for translation or the budget is used up, it writes all back and
//! the interpreter goes on at that very instruction (`exit.rs`): a block is paid for when it begins,
//! in either tier, so that counts, stops and state are the same. Where a block's successor is
//! translated too, its code follows at once, by the same checks as between blocks in `dispatch.rs`.
//!
//! Room is bounded: when it is used up, all translations are dropped and made anew as needed. They
//! go with the blocks they were made of, and are entered only while their block is current. On hosts
//! that are not x86-64 Linux, or refuse executable memory, everything is interpreted.
//!
//! `VMLET_TRANSLATE_AFTER` says after how many entries a block is translated; 0, for never, leaves the
//! interpreter alone (SECURITY.md). Tests use it too.

mod kind;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod alu;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod asm;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod branch;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod emit;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod exit;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod late;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod moves;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod pages;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod state;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod stubs;
#[cfg(test)]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tests;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tier;

pub(crate) use kind::Kind;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use {late::Late, tier::Hot};
