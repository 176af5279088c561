//! The port.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use vmlet_bus::{AccessContext, Device, Flow};

use crate::serial::SerialOut;

/// A debug port that sends what it is written to its output.
pub struct DebugPort {
    out: Mutex<Box<dyn SerialOut>>,
}

impl DebugPort {
    /// Bytes of the port range.
    pub const LEN: u64 = 1;

    const PRESENT: u8 = 0xe9;

    /// A port that sends to `out`.
    pub fn new(out: Box<dyn SerialOut>) -> DebugPort {
        DebugPort {
            out: Mutex::new(out),
        }
    }

    fn out(&self) -> MutexGuard<'_, Box<dyn SerialOut>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for DebugPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DebugPort").finish_non_exhaustive()
    }
}

impl Device for DebugPort {
    fn name(&self) -> &'static str {
        "debug port"
    }

    fn read(&self, _: &dyn AccessContext, _: u64, data: &mut [u8]) -> Flow {
        data.fill(Self::PRESENT);
        Flow::Continue
    }

    fn write(&self, _: &dyn AccessContext, _: u64, data: &[u8]) -> Flow {
        self.out().send(data)
    }

    fn write_string(&self, _: &dyn AccessContext, _: u64, _: usize, data: &[u8]) -> Flow {
        self.out().send(data)
    }

    fn reset(&self) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::Nobody;

    #[derive(Debug)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl SerialOut for Sink {
        fn send(&mut self, bytes: &[u8]) -> Flow {
            self.0.lock().unwrap().extend(bytes);
            Flow::Continue
        }
    }

    #[test]
    fn bytes_and_strings_are_printed_in_order() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let port = DebugPort::new(Box::new(Sink(Arc::clone(&seen))));
        port.write(&Nobody, 0, b"a");
        port.write_string(&Nobody, 0, 1, b"bc");
        assert_eq!(*seen.lock().unwrap(), b"abc");
    }

    #[test]
    fn a_read_tells_that_the_port_is_there() {
        let port = DebugPort::new(Box::new(Sink(Arc::default())));
        let mut byte = [0];
        port.read(&Nobody, 0, &mut byte);
        assert_eq!(byte, [0xe9]);
    }
}
