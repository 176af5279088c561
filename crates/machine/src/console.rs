//! The guest's console: output kept for the user, and panics seen in it.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use vmlet_bus::{Flow, StopRequest};
use vmlet_devices::serial::SerialOut;

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
}

impl Console {
    /// A console that keeps `limit` bytes.
    pub(crate) fn new(limit: usize) -> Arc<Console> {
        let output = Output {
            limit,
            ..Output::default()
        };
        Arc::new(Console {
            output: Mutex::new(output),
            changed: Condvar::new(),
        })
    }

    /// Takes up to `limit` bytes of output, waiting for the first until `timeout` has passed or
    /// the guest's run has ended.
    pub fn read(&self, limit: usize, timeout: Duration) -> Vec<u8> {
        let deadline = Instant::now() + timeout;
        let mut output = self.lock();
        while output.bytes.is_empty() && !output.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(output, left);
            output = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let count = limit.min(output.bytes.len());
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
    }

    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Output {
    fn push(&mut self, bytes: &[u8]) {
        let kept = bytes.len().min(self.limit);
        let excess = (self.bytes.len() + kept).saturating_sub(self.limit);
        self.bytes.drain(..excess);
        self.dropped += (excess + bytes.len() - kept) as u64;
        self.bytes.extend(bytes.iter().skip(bytes.len() - kept));
        bytes.iter().for_each(|byte| self.scan(*byte));
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
pub(crate) struct Feed(pub(crate) Arc<Console>);

impl SerialOut for Feed {
    fn send(&mut self, bytes: &[u8]) -> Flow {
        let mut output = self.0.lock();
        output.push(bytes);
        let over = output.panic_ended;
        drop(output);
        self.0.changed.notify_all();
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
        Feed(Arc::clone(console)).send(bytes)
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
    fn waiting_for_output_ends_with_the_run() {
        let console = Console::new(4);
        console.set_ended(true);
        assert!(console.read(1, Duration::from_secs(100)).is_empty());
    }
}
