//! The engine against the processor it runs on, one instruction at a time.
//!
//! * `template.rs`, and by subject `integer.rs`, `control.rs`, `vector.rs`, `x87.rs`: what is tried.
//! * `encode.rs`, `target.rs`, `case.rs`: a random encoding, where its operands lie, its inputs.
//! * `host.rs`, `stub.rs`: the native side. `guest.rs`: the engine's. `layout.rs`: what both share.
//! * `bench.rs`, `compare.rs`: runs cases and compares. `undefined.rs`: what is not compared, and
//!   `vendor.rs` what of that depends on the host's processor.

#![allow(
    clippy::cast_possible_truncation,
    reason = "test values are cut on purpose"
)]

mod bench;
mod case;
mod compare;
mod control;
mod encode;
mod guest;
mod host;
mod integer;
mod layout;

mod state;
mod stub;
mod target;
mod template;
mod undefined;
mod vector;
mod vendor;
mod x87;

use bench::Bench;
use template::Operand;

use crate::random;

/// Whether a template is the half of its list that has a register operand or none.
fn is_register(template: &template::Template) -> bool {
    matches!(template.operand, Operand::Register | Operand::None)
}

fn half(list: Vec<template::Template>, registers: bool) -> Vec<template::Template> {
    list.into_iter()
        .filter(|template| is_register(template) == registers)
        .collect()
}

#[test]
fn integer_instructions_on_registers_equal_the_host() {
    Bench::new("integer").run_all("integer registers", &half(integer::templates(), true));
}

#[test]
fn integer_instructions_on_memory_equal_the_host() {
    Bench::new("memory").run_all("integer memory", &half(integer::templates(), false));
}

#[test]
fn branches_stack_and_strings_equal_the_host() {
    Bench::new("control").run_all("control", &control::templates());
}

#[test]
fn sequences_equal_the_host() {
    let chained = |template: &template::Template| {
        template.undefined == undefined::Undefined::NONE
            && !vendor::shifts_by_many(template)
            && template.need == template::Need::Nothing
            && template.immediate != template::Immediate::Address
    };
    let list: Vec<_> = integer::templates().into_iter().filter(chained).collect();
    let ends: Vec<_> = control::branches()
        .into_iter()
        .filter(|template| template.immediate == template::Immediate::Far && chained(template))
        .collect();
    assert!(list.len() > 300 && ends.len() > 15);
    Bench::new("sequences").run_sequences(&list, &ends, random::cases() * 40);
}

#[test]
fn refused_instructions_fault_as_on_the_host() {
    Bench::new("refused").run_all("refused", &control::refused());
}

#[test]
fn lock_is_refused_as_on_the_host() {
    // One form of operand in hundreds of encodings.
    let list = control::locked();
    let count = random::cases().div_ceil(100);
    assert!(list.len() > 100);
    Bench::new("locked").run_each("locked", &list, count);
}

#[test]
fn vectors_equal_the_host() {
    Bench::new("vectors").run_all("vectors", &vector::templates());
}

#[test]
fn x87_equals_the_host() {
    Bench::new("x87").run_all("x87", &x87::templates());
}
