//! The machine code that loads a state, goes to the instruction, and stores the state behind it.

use super::state::{IMAGE, RSP};

/// What the stubs read and write; they use the offsets below.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) fx_in: [u8; IMAGE],
    pub(crate) fx_out: [u8; IMAGE],
    pub(crate) gpr_in: [u64; 16],
    pub(crate) gpr_out: [u64; 16],
    pub(crate) flags_in: u64,
    pub(crate) flags_out: u64,
    stack: u64,
    /// Which way out was taken.
    pub(crate) way: u64,
    mxcsr: u64,
}

const FX_IN: u32 = 0;
const FX_OUT: u32 = 512;
const GPR_IN: u32 = 1024;
const GPR_OUT: u32 = 1152;
const FLAGS_IN: u32 = 1280;
const FLAGS_OUT: u32 = 1288;
const STACK: u32 = 1296;
const WAY: u32 = 1304;
const MXCSR: u32 = 1312;
const RAX: u8 = 0;
const RDI: u8 = 7;
const SAVED: [u8; 6] = [3, 5, 12, 13, 14, 15];
const DEFAULT_MXCSR: u64 = 0x1f80;

const _: () = assert!(std::mem::offset_of!(Exchange, gpr_in) == GPR_IN as usize);
const _: () = assert!(std::mem::offset_of!(Exchange, mxcsr) == MXCSR as usize && RSP == 4);

impl Exchange {
    pub(crate) fn new() -> Box<Exchange> {
        Box::new(Exchange {
            fx_in: [0; IMAGE],
            fx_out: [0; IMAGE],
            gpr_in: [0; 16],
            gpr_out: [0; 16],
            flags_in: 2,
            flags_out: 0,
            stack: 0,
            way: 0,
            mxcsr: DEFAULT_MXCSR,
        })
    }
}

/// `opcode reg, [base + displacement]` or its store, in 64 bits.
fn access(code: &mut Vec<u8>, opcode: u8, reg: u8, base: u8, displacement: u32) {
    code.extend([0x48 | (reg >> 3) << 2, opcode, 0x80 | (reg & 7) << 3 | base]);
    code.extend(displacement.to_le_bytes());
}

fn wide(code: &mut Vec<u8>, opcode: &[u8], displacement: u32) {
    code.extend(opcode);
    code.extend(displacement.to_le_bytes());
}

/// A function of the C calling convention up to its jump to the instruction, whose displacement
/// is the last four bytes.
pub(crate) fn way_in(floats: bool) -> Vec<u8> {
    let mut code = vec![0x9c]; // pushfq
    for reg in SAVED {
        code.extend([0x40 | reg >> 3, 0x50 | reg & 7]);
    }
    access(&mut code, 0x89, RSP, RDI, STACK);
    if floats {
        wide(&mut code, &[0x48, 0x0f, 0xae, 0x88 | RDI], FX_IN); // fxrstor64
    }
    wide(&mut code, &[0xff, 0xb7], FLAGS_IN); // push [rdi + flags]
    code.push(0x9d); // popfq
    for reg in (0..16).filter(|reg| *reg != RDI) {
        access(&mut code, 0x8b, reg, RDI, GPR_IN + u32::from(reg) * 8);
    }
    access(&mut code, 0x8b, RDI, RDI, GPR_IN + 7 * 8);
    code.extend([0xe9, 0, 0, 0, 0]);
    code
}

/// A way out: keeps its number and stores what is there.
pub(crate) fn way_out(number: u32, floats: bool, exchange: u64) -> Vec<u8> {
    let mut code = vec![0x48, 0xa3]; // mov [absolute], rax
    code.extend((exchange + u64::from(GPR_OUT)).to_le_bytes());
    code.push(0xb8); // mov eax, number
    code.extend(number.to_le_bytes());
    code.extend([0x48, 0xa3]);
    code.extend((exchange + u64::from(WAY)).to_le_bytes());
    code.extend([0x48, 0xb8]); // mov rax, exchange
    code.extend(exchange.to_le_bytes());
    for reg in 1..16 {
        access(&mut code, 0x89, reg, RAX, GPR_OUT + u32::from(reg) * 8);
    }
    access(&mut code, 0x8b, RSP, RAX, STACK);
    wide(&mut code, &[0x9c, 0x8f, 0x80], FLAGS_OUT); // pushfq; pop [rax + flags]
    if floats {
        wide(&mut code, &[0x48, 0x0f, 0xae, 0x80 | RAX], FX_OUT); // fxsave64
        code.extend([0xdb, 0xe3]); // fninit
        wide(&mut code, &[0x0f, 0xae, 0x90 | RAX], MXCSR); // ldmxcsr
    }
    for reg in SAVED.into_iter().rev() {
        code.extend([0x40 | reg >> 3, 0x58 | reg & 7]);
    }
    code.extend([0x9d, 0xc3]);
    code
}
