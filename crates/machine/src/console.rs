//! The guest's console: output kept for the user, and panics seen in it.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use vmlet_bus::{Flow, StopRequest};
use vmlet_devices::serial::SerialOut;

use crate::bell::BellRope;

/// A reader that keeps up with the guest gets its output in pieces: at most one in this time.
const LINGER: Duration = Duration::from_millis(2);
/// Bytes that are worth a piece at once.
const PIECE: usize = 4096;
/// The longest line looked at.
const LINE: usize = 1024;
/// What Linux prints when it gives up (kernel/panic.c), and when it stays put afterwards.
const PANIC: &[u8] = b"Kernel panic - not syncing";
const PANIC_END: &[u8] = b"end Kernel panic";
/// What is asked when a kernel gave up and stays put; its words are the console's to know.
const GAVE_UP: StopRequest = StopRequest::Panic {
    source: "console",
    detail: String::new(),
};

#[derive(Debug, Default)]
struct Output {
    bytes: VecDeque<u8>,
    limit: usize,
    dropped: u64,
    ended: bool,
    /// When a reader was last given something.
    taken: Option<Instant>,
    line: Vec<u8>,
    panic: Option<String>,
    panic_ended: bool,
}

/// The output side of a console. Keeps the newest bytes up to a limit; what nobody read in time is
/// counted.
#[derive(Debug)]
pub struct Console {
    output: Mutex<Output>,
    changed: Condvar,
    pub(crate) rope: BellRope,
}

impl Console {
    /// A console that keeps `limit` bytes.
    pub fn new(limit: usize) -> Arc<Console> {
        Console::with_rope(limit, BellRope::default())
    }

    /// A console whose output pulls `rope`.
    pub(crate) fn with_rope(limit: usize, rope: BellRope) -> Arc<Console> {
        let output = Output {
            limit,
            ..Output::default()
        };
        Arc::new(Console {
            output: Mutex::new(output),
            changed: Condvar::new(),
            rope,
        })
    }

    /// Takes up to `limit` bytes of output, waiting for the first until `timeout` has passed or
    /// the guest's run has ended.
    ///
    /// Output after a silence is given at once; what follows closely is gathered for a moment, so
    /// that a guest that prints byte by byte does not wake its reader for each.
    pub fn read(&self, limit: usize, timeout: Duration) -> Vec<u8> {
        let deadline = Instant::now() + timeout;
        let mut output = self.lock();
        while !output.is_worth_taking(limit) {
            let now = Instant::now();
            let until = match output.taken.map(|taken| taken + LINGER) {
                Some(next) if !output.bytes.is_empty() => next.min(deadline),
                None if !output.bytes.is_empty() => now,
                _ => deadline,
            };
            let left = until.saturating_duration_since(now);
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(output, left);
            output = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let count = limit.min(output.bytes.len());
        if count > 0 {
            output.taken = Some(Instant::now());
        }
        output.bytes.drain(..count).collect()
    }

    /// Bytes lost because nobody read them in time.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Whether no more output will come and all has been read.
    pub fn is_drained(&self) -> bool {
        let output = self.lock();
        output.ended && output.bytes.is_empty()
    }

    /// What the guest's kernel said when it gave up.
    pub(crate) fn panic(&self) -> Option<String> {
        self.lock().panic.clone()
    }

    /// Wakes who waits: no more output for now.
    pub(crate) fn set_ended(&self, ended: bool) {
        self.lock().ended = ended;
        self.changed.notify_all();
        self.rope.pull();
    }

    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Output {
    fn is_worth_taking(&self, limit: usize) -> bool {
        self.ended || self.bytes.len() >= limit.min(PIECE)
    }

    /// Takes what the guest printed; whether a reader that waits has to know now.
    fn push(&mut self, bytes: &[u8]) -> bool {
        let before = self.bytes.len();
        let kept = bytes.len().min(self.limit);
        let excess = (self.bytes.len() + kept).saturating_sub(self.limit);
        self.bytes.drain(..excess);
        self.dropped += (excess + bytes.len() - kept) as u64;
        self.bytes.extend(bytes.iter().skip(bytes.len() - kept));
        bytes.iter().for_each(|byte| self.scan(*byte));
        before == 0 || (before < PIECE && self.bytes.len() >= PIECE)
    }

    fn scan(&mut self, byte: u8) {
        if byte != b'\n' {
            if self.line.len() < LINE {
                self.line.push(byte);
            }
            return;
        }
        if find(&self.line, PANIC_END).is_some() {
            self.panic_ended = true;
        } else if let Some(at) = find(&self.line, PANIC) {
            let text = String::from_utf8_lossy(self.line.get(at..).unwrap_or_default());
            self.panic.get_or_insert_with(|| text.trim_end().to_owned());
        }
        self.line.clear();
    }
}

fn find(line: &[u8], text: &[u8]) -> Option<usize> {
    line.windows(text.len()).position(|window| window == text)
}

/// The serial port's end of a console.
#[derive(Debug)]
pub struct ConsoleFeed {
    console: Arc<Console>,
}

impl ConsoleFeed {
    /// The end that fills `console`.
    pub fn new(console: &Arc<Console>) -> ConsoleFeed {
        ConsoleFeed {
            console: Arc::clone(console),
        }
    }
}

impl SerialOut for ConsoleFeed {
    fn send(&mut self, bytes: &[u8]) -> Flow {
        let mut output = self.console.lock();
        let news = output.push(bytes);
        let over = output.panic_ended;
        drop(output);
        if news {
            self.console.changed.notify_all();
        }
        self.console.rope.pull();
        if over {
            Flow::Stop(GAVE_UP)
        } else {
            Flow::Continue
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(console: &Arc<Console>, bytes: &[u8]) -> Flow {
        ConsoleFeed::new(console).send(bytes)
    }

    #[test]
    fn output_is_read_once_and_in_order() {
        let console = Console::new(100);
        feed(&console, b"abc");
        assert_eq!(console.read(2, Duration::ZERO), b"ab");
        assert_eq!(console.read(9, Duration::ZERO), b"c");
        assert_eq!(console.read(9, Duration::ZERO), b"");
    }

    #[test]
    fn the_newest_output_is_kept_and_the_rest_counted() {
        let console = Console::new(4);
        feed(&console, b"ab");
        feed(&console, b"cdefgh");
        assert_eq!(console.read(9, Duration::ZERO), b"efgh");
        assert_eq!(console.dropped(), 4);
    }

    #[test]
    fn a_flood_of_64_mib_takes_no_more_memory_than_the_limit() {
        let (console, piece) = (Console::new(4096), [b'x'; 1000]);
        let total = 64 << 20;
        for _ in 0..total / piece.len() {
            feed(&console, &piece);
        }
        let sent = (total / piece.len() * piece.len()) as u64;
        assert_eq!(console.dropped(), sent - 4096);
        assert!(console.lock().bytes.capacity() <= 2 * 4096);
    }

    #[test]
    fn a_panic_is_seen_across_pieces_of_output() {
        let console = Console::new(4);
        feed(&console, b"[ 1.0] Kernel pa");
        feed(&console, b"nic - not syncing: VFS: no root\r\n");
        assert_eq!(
            console.panic().unwrap(),
            "Kernel panic - not syncing: VFS: no root"
        );
        let end = b"---[ end Kernel panic - not syncing: VFS: no root ]---\n";
        assert_eq!(feed(&console, end), Flow::Stop(GAVE_UP));
    }

    #[test]
    fn a_line_without_end_does_not_grow() {
        let console = Console::new(4);
        feed(&console, &vec![b'x'; 1 << 20]);
        assert!(console.lock().line.len() <= LINE);
    }

    #[test]
    fn output_after_a_silence_is_given_at_once_and_close_output_in_pieces() {
        let console = Console::new(100);
        feed(&console, b"a");
        assert_eq!(console.read(9, Duration::from_secs(100)), b"a");
        feed(&console, b"b");
        let writer = std::thread::spawn({
            let console = Arc::clone(&console);
            move || feed(&console, b"c")
        });
        let began = Instant::now();
        let mut got = Vec::new();
        while got.len() < 2 {
            got.extend(console.read(9, Duration::from_secs(100)));
        }
        assert_eq!(got, b"bc");
        assert!(began.elapsed() < Duration::from_secs(50));
        assert_eq!(writer.join().unwrap(), Flow::Continue);
    }

    #[test]
    fn a_limit_that_is_met_is_not_waited_over() {
        let console = Console::new(100);
        feed(&console, b"ab");
        assert_eq!(console.read(1, Duration::from_secs(100)), b"a");
        assert_eq!(console.read(1, Duration::from_secs(100)), b"b");
    }

    #[test]
    fn waiting_for_output_ends_with_the_run() {
        let console = Console::new(4);
        console.set_ended(true);
        assert!(console.read(1, Duration::from_secs(100)).is_empty());
    }
}
