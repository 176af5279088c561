//! Runs one instruction on the host processor with chosen registers.
//!
//! Invariants: the pages of an instance are mapped for the process's life at addresses nothing else
//! uses; code there runs only inside [`Host::run`], which names the instance to the signal handler
//! by the alternate stack of its own thread. What an instruction accesses is chosen by the tests
//! to lie in the instance's pages or where nothing is mapped.
#![expect(
    unsafe_code,
    reason = "native execution needs executable pages and signal handlers"
)]

use std::{
    cell::Cell,
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    layout::{self, CODE, CODE_PAGES, DATA, PAGE, PAGES, Rights, STUB_PAGES, STUBS},
    state::{End, Registers},
    stub::{self, Exchange},
};

const MAGIC: u64 = 0x766d_6c65_745f_6469;
const ALTERNATE: usize = 1 << 16;
const ARCH_SET_GS: libc::c_long = 0x1001;
const ARCH_GET_FS: libc::c_long = 0x1003;
const BREAKPOINT: u8 = 3;
const PAGE_FAULT: i64 = 14;
/// Bit 0 of a page fault's error code: the kernel sets it for all addresses of its own half.
const PRESENT: u64 = 1;

static INSTANCES: AtomicU64 = AtomicU64::new(0);

/// What the signal handler of a thread needs, at the start of the thread's alternate stack.
#[repr(C)]
struct Context {
    magic: u64,
    /// Where to go on after a fault; 0 outside of a run.
    exit: u64,
    end: End,
}

/// One instance of pages and the thread that uses it.
#[derive(Debug)]
pub(crate) struct Host {
    start: u64,
    exchange: Box<Exchange>,
    context: *mut Context,
    /// The instruction's length and where a taken branch goes.
    fall: u64,
    target: u64,
    floats: bool,
}

extern "C" fn on_fault(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid ucontext to a handler with SA_SIGINFO.
    let machine = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let ours = machine.uc_stack.ss_sp.cast::<Context>();
    let disabled = machine.uc_stack.ss_flags & libc::SS_DISABLE != 0;
    // SAFETY: an alternate stack is memory that can be read; ours begins with its context.
    if disabled || unsafe { (*ours).magic } != MAGIC || unsafe { (*ours).exit } == 0 {
        // SAFETY: with the default action the fault ends the process as it should.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    let general = &mut machine.uc_mcontext.gregs;
    let vector = general[libc::REG_TRAPNO as usize];
    let cr2 = general[libc::REG_CR2 as usize] as u64;
    let mut code = general[libc::REG_ERR as usize] as u64;
    if vector == PAGE_FAULT && cr2 >> 63 != 0 {
        code &= !PRESENT;
    }
    let end = End {
        vector: vector as u8,
        code,
        rip: general[libc::REG_RIP as usize] as u64,
        cr2: if vector == PAGE_FAULT { cr2 } else { 0 },
    };
    // SAFETY: the context is this thread's, which waits in this handler.
    unsafe {
        (*ours).end = end;
        general[libc::REG_RIP as usize] = (*ours).exit as i64;
    }
}

fn map(address: u64, pages: u64, protection: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let wanted = ptr::with_exposed_provenance_mut(address as usize);
    // SAFETY: a fresh mapping that replaces nothing.
    let got = unsafe { libc::mmap(wanted, (pages * PAGE) as usize, protection, flags, -1, 0) };
    assert_eq!(got, wanted, "mmap at {address:#x}");
}

impl Host {
    /// An instance for the calling thread, which alone may use it.
    pub(crate) fn new(data: &[u8]) -> Host {
        let start = layout::linear(INSTANCES.fetch_add(1, Ordering::Relaxed));
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        map(start + CODE, CODE_PAGES, all);
        map(start + STUBS, STUB_PAGES, all);
        for (page, rights) in (0..).zip(PAGES) {
            if rights != Rights::None {
                let address = start + DATA + page * PAGE;
                map(address, 1, libc::PROT_READ | libc::PROT_WRITE);
                put(address, &data[(page * PAGE) as usize..][..PAGE as usize]);
                if rights == Rights::Read {
                    let at = ptr::with_exposed_provenance_mut(address as usize);
                    // SAFETY: the page was just mapped.
                    let done = unsafe { libc::mprotect(at, PAGE as usize, libc::PROT_READ) };
                    assert_eq!(done, 0);
                }
            }
        }
        let mut host = Host {
            start,
            exchange: Exchange::new(),
            context: install_handlers(),
            fall: 0,
            target: 0,
            floats: false,
        };
        host.write_stubs();
        host
    }

    /// The instance's linear start.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// The base of FS on this thread.
    pub(crate) fn fs_base() -> u64 {
        let mut base = 0u64;
        // SAFETY: writes the base to the variable.
        let done = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_FS, &raw mut base) };
        assert_eq!(done, 0);
        base
    }

    /// Sets the base of GS on this thread; nothing else in a 64-bit process uses it.
    pub(crate) fn set_gs_base(base: u64) {
        // SAFETY: changes GS only.
        let done = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
        assert_eq!(done, 0);
    }

    fn way(&self, number: u64, floats: bool) -> u64 {
        self.start + STUBS + 512 * (number + 4 * u64::from(floats))
    }

    fn write_stubs(&mut self) {
        let exchange = ptr::from_mut(&mut *self.exchange).expose_provenance() as u64;
        for floats in [false, true] {
            put(self.way(0, floats), &stub::way_in(floats));
            for number in 1..4 {
                let code = stub::way_out(number, floats, exchange);
                assert!(code.len() <= 512);
                put(self.way(number.into(), floats), &code);
            }
        }
    }

    /// Places an instruction at `at`, up to the end of the instance's code, and what a branch to
    /// `target` finds.
    pub(crate) fn place(&mut self, at: u64, instruction: &[u8], target: u64, floats: bool) {
        let end = self.start + CODE + CODE_PAGES * PAGE;
        self.floats = floats;
        (self.fall, self.target) = (at + instruction.len() as u64, target);
        let entry = self.way(0, floats);
        let length = stub::way_in(floats).len() as u64;
        put(entry + length - 4, &relative(entry + length, at));
        put(target, &jump(target, self.way(2, floats)));
        let whole = [instruction, &jump(self.fall, self.way(1, floats))].concat();
        put(at, &whole[..whole.len().min((end - at) as usize)]);
    }

    /// Runs what was placed; `after` takes what comes out.
    pub(crate) fn run(&mut self, before: &Registers, after: &mut Registers) -> End {
        let entry = ptr::with_exposed_provenance::<()>(self.way(0, self.floats) as usize);
        self.exchange.gpr_in = before.gpr;
        self.exchange.flags_in = before.flags;
        if self.floats {
            self.exchange.fx_in = before.fx.0;
        }
        let exit = self.way(3, self.floats);
        // SAFETY: the stub follows the C calling convention and uses the exchange only; the
        // context is this thread's.
        unsafe {
            (*self.context).exit = exit;
            let entry: extern "C" fn(*mut Exchange) = std::mem::transmute(entry);
            entry(ptr::from_mut(&mut *self.exchange));
            (*self.context).exit = 0;
        }
        let out = ptr::from_ref(&*self.exchange);
        // SAFETY: the stubs wrote these behind the compiler's back.
        let way = unsafe {
            after.gpr = (&raw const (*out).gpr_out).read_volatile();
            after.flags = (&raw const (*out).flags_out).read_volatile();
            if self.floats {
                after.fx.0 = (&raw const (*out).fx_out).read_volatile();
            }
            (&raw const (*out).way).read_volatile()
        };
        let done = |rip| End {
            vector: BREAKPOINT,
            rip: rip + 1,
            ..End::default()
        };
        match way {
            1 => done(self.fall),
            2 => done(self.target),
            // SAFETY: as above; the handler has returned.
            _ => unsafe { (*self.context).end },
        }
    }
}

fn relative(from: u64, to: u64) -> [u8; 4] {
    (to.wrapping_sub(from) as u32).to_le_bytes()
}

fn jump(from: u64, to: u64) -> [u8; 5] {
    let [a, b, c, d] = relative(from + 5, to);
    [0xe9, a, b, c, d]
}

thread_local! {
    static CONTEXT: Cell<*mut Context> = const { Cell::new(ptr::null_mut()) };
}

/// An alternate stack for this thread, its context at the start, and the handlers.
fn install_handlers() -> *mut Context {
    if !CONTEXT.get().is_null() {
        return CONTEXT.get();
    }
    let stack = Box::leak(vec![0_u64; ALTERNATE / 8].into_boxed_slice()).as_mut_ptr();
    let context = stack.cast::<Context>();
    // SAFETY: the stack is leaked and so outlives the handlers; the actions are fully set.
    unsafe {
        (*context).magic = MAGIC;
        let alternate = libc::stack_t {
            ss_sp: stack.cast(),
            ss_flags: 0,
            ss_size: ALTERNATE,
        };
        let done = libc::sigaltstack(&raw const alternate, ptr::null_mut());
        assert_eq!(done, 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        let signals = [
            libc::SIGFPE,
            libc::SIGSEGV,
            libc::SIGILL,
            libc::SIGBUS,
            libc::SIGTRAP,
        ];
        for signal in signals {
            assert_eq!(
                libc::sigaction(signal, &raw const action, ptr::null_mut()),
                0
            );
        }
    }
    CONTEXT.set(context);
    context
}

/// Writes at an address of an instance, or of the guest's memory.
pub(crate) fn put(address: u64, bytes: &[u8]) {
    let to = ptr::with_exposed_provenance_mut(address as usize);
    // SAFETY: callers name writable pages of an instance or of guest memory.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
}

/// Reads at an address of an instance, or of the guest's memory.
pub(crate) fn get(address: u64, bytes: &mut [u8]) {
    let from = ptr::with_exposed_provenance(address as usize);
    // SAFETY: callers name mapped pages.
    unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
}

/// Whether `bytes` bytes at both addresses are equal.
pub(crate) fn equal(a: u64, b: u64, bytes: u64) -> bool {
    let from = |at: u64| {
        let at = ptr::with_exposed_provenance::<u8>(at as usize);
        // SAFETY: callers name mapped pages; nothing runs meanwhile.
        unsafe { std::slice::from_raw_parts(at, bytes as usize) }
    };
    from(a) == from(b)
}
