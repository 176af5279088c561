//! Every entry of the SSE table, register and memory forms.

use super::host::{Host, State, address_of, scratch_stack};
use super::random::{Random, cases};
use crate::fp::mxcsr::Mxcsr;
use crate::fp::sse::table::{self, Entry, File, Forms, Place, Prefix};

const REG: usize = 1;
const RM: usize = 2;
const RSI: usize = 6;
const XMM: usize = 160;
const ST: usize = 32;
const ARITHMETIC_FLAGS: u64 = 0x8d5;
const PER_PLACEMENT: u64 = 50;

fn encode(entry: &Entry, memory: bool, immediate: u8) -> Vec<u8> {
    let mut code = Vec::new();
    match entry.prefix {
        Prefix::None => {}
        Prefix::P66 => code.push(0x66),
        Prefix::F3 => code.push(0xf3),
        Prefix::F2 => code.push(0xf2),
    }
    if entry.wide == Some(true) {
        code.push(0x48);
    }
    let reg = entry.group.unwrap_or(REG as u8);
    let rm = if memory { RSI as u8 } else { 0xc0 | RM as u8 };
    code.extend([0x0f, entry.opcode, reg << 3 | rm]);
    if entry.immediate {
        code.push(immediate);
    }
    code
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().unwrap()
}

fn read(state: &State, file: File, index: usize) -> u128 {
    match file {
        File::Xmm => u128::from_le_bytes(get(&state.fx_in, XMM + 16 * index)),
        File::Mmx => u64::from_le_bytes(get(&state.fx_in, ST + 16 * index)).into(),
        File::Gpr32 => (state.gpr_in[index] as u32).into(),
        File::Gpr64 => state.gpr_in[index].into(),
    }
}

fn read_memory(state: &State, bytes: u8) -> u128 {
    let whole = u128::from_le_bytes(get(&state.memory.0, 64));
    if bytes == 16 {
        whole
    } else {
        whole & ((1 << (bytes * 8)) - 1)
    }
}

fn operand(state: &State, place: Place, entry: &Entry, memory: bool) -> u128 {
    match place {
        Place::Reg(file) => read(state, file, REG),
        Place::Rm(_) if memory => read_memory(state, entry.bytes),
        Place::Rm(file) => read(state, file, RM),
        Place::Flags => read(state, File::Xmm, REG),
    }
}

/// Writes the expected result into the input side, which then is the expected output.
fn expect(state: &mut State, entry: &Entry, memory: bool, result: u128) {
    let (file, index) = match entry.dst {
        Place::Rm(_) if memory => {
            let bytes = usize::from(entry.bytes);
            state.memory.0[64..64 + bytes].copy_from_slice(&result.to_le_bytes()[..bytes]);
            return;
        }
        Place::Reg(file) => (file, REG),
        Place::Rm(file) => (file, RM),
        Place::Flags => {
            state.flags_in = state.flags_in & !ARITHMETIC_FLAGS | result as u64;
            return;
        }
    };
    match file {
        File::Xmm => state.fx_in[XMM + 16 * index..][..16].copy_from_slice(&result.to_le_bytes()),
        File::Mmx => {
            state.fx_in[ST + 16 * index..][..8].copy_from_slice(&result.to_le_bytes()[..8]);
        }
        File::Gpr32 => state.gpr_in[index] = (result as u32).into(),
        File::Gpr64 => state.gpr_in[index] = result as u64,
    }
}

fn fill(state: &mut State, random: &mut Random, stack: u64) {
    state.fx_in[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    state.fx_in[4] = 0xff;
    state.fx_in[24..28].copy_from_slice(&random.mxcsr().to_le_bytes());
    for index in 0..8 {
        let value = random.vector() as u64;
        state.fx_in[ST + 16 * index..][..8].copy_from_slice(&value.to_le_bytes());
        state.fx_in[ST + 16 * index + 8..][..2].copy_from_slice(&[0xff; 2]);
    }
    for index in 0..16 {
        let value = random.vector();
        state.fx_in[XMM + 16 * index..][..16].copy_from_slice(&value.to_le_bytes());
        state.gpr_in[index] = random.vector() as u64;
    }
    for chunk in state.memory.0.chunks_exact_mut(16) {
        chunk.copy_from_slice(&random.vector().to_le_bytes());
    }
    state.gpr_in[4] = stack;
    state.gpr_in[RSI] = address_of(&state.memory) + 64;
    state.flags_in = 2 | random.next() & ARITHMETIC_FLAGS;
}

fn is_estimate(entry: &Entry) -> bool {
    matches!(entry.opcode, 0x52 | 0x53)
}

/// Compares with the architected bound of the relative error instead of bit by bit.
fn estimates_agree(ours: &[u8], host: &[u8]) -> bool {
    ours.chunks_exact(4)
        .zip(host.chunks_exact(4))
        .all(|(a, b)| {
            let (a, b) = (f32::from_le_bytes(get(a, 0)), f32::from_le_bytes(get(b, 0)));
            a.to_bits() == b.to_bits()
                || (a - b).abs() <= b.abs() * 3.0 / 4096.0
                || (a.abs() <= f32::MIN_POSITIVE && b.abs() <= 1.001 * f32::MIN_POSITIVE)
        })
}

fn check(entry: &Entry, immediate: u8, memory: bool, state: &mut State, host: &mut Host) {
    let mut expected = state.clone();
    let before = u32::from_le_bytes(get(&state.fx_in, 24));
    let mut mxcsr = Mxcsr::new(before).unwrap();
    let dst = operand(state, entry.dst, entry, memory);
    let src = operand(state, entry.src, entry, memory);
    let outcome = (entry.operation)(dst, src, immediate, &mut mxcsr);
    if let Ok(result) = outcome {
        expect(&mut expected, entry, memory, result);
    }
    expected.fx_in[24..28].copy_from_slice(&mxcsr.bits().to_le_bytes());
    let signal = host.run(state);
    let state = &*state;
    let about = || {
        format!(
            "{:?} {:#x} memory {memory} imm {immediate:#x} dst {dst:#034x} src {src:#034x} \
         mxcsr {before:#x}: {outcome:x?}, mxcsr {:#x}; host mxcsr {:#x} signal {signal} \
         xmm1 {:#034x} rcx {:#x} mm1 {:#x}",
            entry.prefix,
            entry.opcode,
            mxcsr.bits(),
            u32::from_le_bytes(get(&state.fx_out, 24)),
            u128::from_le_bytes(get(&state.fx_out, XMM + 16)),
            state.gpr_out[REG],
            u64::from_le_bytes(get(&state.fx_out, ST + 16)),
        )
    };
    assert_eq!(signal == libc::SIGFPE, outcome.is_err(), "{}", about());
    assert_eq!(
        expected.fx_in[24..28],
        state.fx_out[24..28],
        "mxcsr: {}",
        about()
    );
    for index in 0..8 {
        let at = ST + 16 * index;
        assert_eq!(
            expected.fx_in[at..at + 8],
            state.fx_out[at..at + 8],
            "mm{index}: {}",
            about()
        );
    }
    for index in 0..16 {
        let at = XMM + 16 * index;
        let (ours, theirs) = (&expected.fx_in[at..at + 16], &state.fx_out[at..at + 16]);
        if is_estimate(entry) {
            assert!(estimates_agree(ours, theirs), "xmm{index}: {}", about());
        } else {
            assert_eq!(ours, theirs, "xmm{index}: {}", about());
        }
    }
    assert_eq!(expected.gpr_in, state.gpr_out, "{}", about());
    assert_eq!(expected.memory.0, state.memory.0, "{}", about());
    let mask = ARITHMETIC_FLAGS;
    assert_eq!(
        expected.flags_in & mask,
        state.flags_out & mask,
        "{}",
        about()
    );
}

#[test]
fn every_table_entry_equals_the_host() {
    let mut random = Random::from_environment("sse");
    let stack = scratch_stack();
    let mut host = Host::new();
    let mut state = State::new();
    let (mut forms, mut total) = (0, 0);
    for entry in table::entries() {
        for memory in [false, true] {
            let excluded = if memory {
                Forms::Register
            } else {
                Forms::Memory
            };
            if entry.forms == excluded {
                continue;
            }
            forms += 1;
            for _ in 0..cases().div_ceil(PER_PLACEMENT) {
                let immediate = random.next() as u8;
                let immediate = if random.one_in(2) {
                    immediate & 0x1f
                } else {
                    immediate
                };
                // Only three bits of a comparison's predicate are defined in SSE2.
                let immediate = if entry.opcode == 0xc2 {
                    immediate & 7
                } else {
                    immediate
                };
                host.place(&encode(entry, memory, immediate), &state);
                for _ in 0..PER_PLACEMENT {
                    fill(&mut state, &mut random, stack);
                    check(entry, immediate, memory, &mut state, &mut host);
                    total += 1;
                }
            }
        }
    }
    println!("sse: {forms} forms, {total} cases");
    assert!(forms > 250);
}
