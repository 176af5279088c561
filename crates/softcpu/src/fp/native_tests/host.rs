//! Runs one instruction on the host processor with chosen registers.
//!
//! A page holds: load of the state, the instruction, store of the state. A fault's signal
//! handler records the signal and goes on at the store.
#![expect(
    unsafe_code,
    reason = "native execution needs a writable code page and signal handlers"
)]

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of an FXSAVE image.
pub(crate) const IMAGE: usize = 512;

/// What goes in and comes out; the offsets are those the page's code uses.
#[repr(C, align(64))]
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) fx_in: [u8; IMAGE],
    pub(crate) fx_out: [u8; IMAGE],
    host: [u8; IMAGE],
    pub(crate) gpr_in: [u64; 16],
    pub(crate) gpr_out: [u64; 16],
    pub(crate) flags_in: u64,
    pub(crate) flags_out: u64,
    stack: u64,
    pub(crate) memory: Memory,
}

/// The memory operand, in the middle of a buffer.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Memory(pub(crate) [u8; 192]);

impl State {
    pub(crate) fn new() -> Box<Self> {
        Box::new(Self {
            fx_in: [0; IMAGE],
            fx_out: [0; IMAGE],
            host: [0; IMAGE],
            gpr_in: [0; 16],
            gpr_out: [0; 16],
            flags_in: 2,
            flags_out: 0,
            stack: 0,
            memory: Memory([0; 192]),
        })
    }
}

const FX_IN: u32 = 0;
const FX_OUT: u32 = 512;
const HOST: u32 = 1024;
const GPR_IN: u32 = 1536;
const GPR_OUT: u32 = 1664;
const FLAGS_IN: u32 = 1792;
const FLAGS_OUT: u32 = 1800;
const STACK: u32 = 1808;
const PAGE: usize = 4096;
const RSP: usize = 4;

static EXIT: AtomicU64 = AtomicU64::new(0);
static START: AtomicU64 = AtomicU64::new(0);
static SIGNAL: AtomicI32 = AtomicI32::new(0);
static TURN: Mutex<()> = Mutex::new(());

/// The page and the turn to use the handlers.
pub(crate) struct Host {
    page: *mut u8,
    _turn: MutexGuard<'static, ()>,
}

extern "C" fn on_fault(
    signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid ucontext to a handler with SA_SIGINFO.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let rip = &mut context.uc_mcontext.gregs[libc::REG_RIP as usize];
    let start = START.load(Ordering::Relaxed) as i64;
    if *rip < start || *rip >= start + PAGE as i64 {
        // SAFETY: restoring the default action lets the fault end the process as it should.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    SIGNAL.store(signal, Ordering::Relaxed);
    *rip = EXIT.load(Ordering::Relaxed) as i64;
}

impl Host {
    pub(crate) fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: a fresh anonymous mapping; it lives as long as the process.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED, "mmap of a code page");
        install_handlers();
        START.store(page as u64, Ordering::Relaxed);
        Self {
            page: page.cast(),
            _turn: turn,
        }
    }

    /// Places an instruction between load and store of `state`.
    pub(crate) fn place(&mut self, instruction: &[u8], state: &State) {
        let mut code = load_code();
        code.extend_from_slice(instruction);
        let exit = code.len();
        code.extend(store_code(state));
        assert!(code.len() <= PAGE);
        // SAFETY: the page is writable and the length was checked.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.page, code.len()) };
        EXIT.store(self.page as u64 + exit as u64, Ordering::Relaxed);
    }

    /// Runs what was placed with this state; returns the signal it caused, 0 for none.
    pub(crate) fn run(&mut self, state: &mut State) -> i32 {
        SIGNAL.store(0, Ordering::Relaxed);
        // SAFETY: the page holds a function that follows the C calling convention.
        let entry: extern "C" fn(*mut State) = unsafe { std::mem::transmute(self.page) };
        entry(state);
        SIGNAL.load(Ordering::Relaxed)
    }
}

fn install_handlers() {
    const STACK_SIZE: usize = 1 << 16;
    let stack = Box::leak(vec![0_u8; STACK_SIZE].into_boxed_slice());
    // SAFETY: the stack is leaked and so outlives the handlers; the actions are fully set.
    unsafe {
        let alternate = libc::stack_t {
            ss_sp: stack.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: STACK_SIZE,
        };
        assert_eq!(
            libc::sigaltstack(&raw const alternate, std::ptr::null_mut()),
            0
        );
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in [
            libc::SIGFPE,
            libc::SIGSEGV,
            libc::SIGILL,
            libc::SIGBUS,
            libc::SIGTRAP,
        ] {
            assert_eq!(
                libc::sigaction(signal, &raw const action, std::ptr::null_mut()),
                0
            );
        }
    }
}

/// `opcode reg, [base + displacement]` or its store, in 64 bits.
fn access(code: &mut Vec<u8>, opcode: u8, reg: u8, base: u8, displacement: u32) {
    code.extend([0x48 | (reg >> 3) << 2, opcode, 0x80 | (reg & 7) << 3 | base]);
    code.extend(displacement.to_le_bytes());
}

const SAVED: [u8; 6] = [3, 5, 12, 13, 14, 15];

fn load_code() -> Vec<u8> {
    const RDI: u8 = 7;
    let mut code = vec![0x9c]; // pushfq
    for reg in SAVED {
        code.extend([0x40 | reg >> 3, 0x50 | reg & 7]);
    }
    access(&mut code, 0x89, 4, RDI, STACK);
    code.extend([0x48, 0x0f, 0xae, 0x80 | RDI]); // fxsave64
    code.extend(HOST.to_le_bytes());
    code.extend([0x48, 0x0f, 0xae, 0x88 | RDI]); // fxrstor64
    code.extend(FX_IN.to_le_bytes());
    code.extend([0xff, 0xb7]); // push [rdi + flags]
    code.extend(FLAGS_IN.to_le_bytes());
    code.push(0x9d); // popfq
    for reg in (0..16).filter(|reg| ![RDI, 4].contains(reg)) {
        access(&mut code, 0x8b, reg, RDI, GPR_IN + u32::from(reg) * 8);
    }
    // The stack pointer: gpr_in holds the one to use.
    access(&mut code, 0x8b, 4, RDI, GPR_IN + 4 * 8);
    access(&mut code, 0x8b, RDI, RDI, GPR_IN + 7 * 8);
    code
}

fn store_code(state: &State) -> Vec<u8> {
    const RAX: u8 = 0;
    let base = std::ptr::from_ref(state) as u64;
    let mut code = vec![0x48, 0xa3]; // mov [absolute], rax
    code.extend((base + u64::from(GPR_OUT)).to_le_bytes());
    code.extend([0x48, 0xb8]); // mov rax, state
    code.extend(base.to_le_bytes());
    for reg in 1..16 {
        access(&mut code, 0x89, reg, RAX, GPR_OUT + u32::from(reg) * 8);
    }
    access(&mut code, 0x8b, 4, RAX, STACK);
    code.extend([0x9c, 0x8f, 0x80]); // pushfq; pop [rax + flags]
    code.extend(FLAGS_OUT.to_le_bytes());
    code.extend([0x48, 0x0f, 0xae, 0x80 | RAX]); // fxsave64
    code.extend(FX_OUT.to_le_bytes());
    code.extend([0x48, 0x0f, 0xae, 0x88 | RAX]); // fxrstor64
    code.extend(HOST.to_le_bytes());
    for reg in SAVED.into_iter().rev() {
        code.extend([0x40 | reg >> 3, 0x58 | reg & 7]);
    }
    code.extend([0x9d, 0xc3]);
    code
}

/// A pointer inside the process, for a register that shall address `memory`.
pub(crate) fn address_of(memory: &Memory) -> u64 {
    memory.0.as_ptr() as u64
}

/// The stack pointer a state starts with: the top of a buffer of its own.
pub(crate) fn scratch_stack() -> u64 {
    let stack = Box::leak(Box::new([0_u64; 512]));
    stack.as_ptr() as u64 + 2048
}

const _: () = assert!(std::mem::offset_of!(State, gpr_in) == GPR_IN as usize);
const _: () = assert!(std::mem::offset_of!(State, stack) == STACK as usize && RSP == 4);
