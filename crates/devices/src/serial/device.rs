//! The port: the chip, what it sends to, and input that waits for room in its FIFO.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt,
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use vm_superio::{Serial, Trigger, serial::NoEvents};
use vmlet_bus::{AccessContext, Device, Flow, IrqLine, SavedError, SavedState};

/// Input that may wait for the guest.
pub const INPUT_LIMIT: usize = 1 << 20;

/// Bytes of the chip's own FIFO.
const FIFO: usize = 64;
/// The divisor latch's bit of the line control register.
const LATCH: u8 = 1 << 7;
/// Kind and layout of the saved state.
const KIND: &str = "serial port";
const VERSION: u16 = 1;

#[derive(Serialize, Deserialize)]
struct Fields {
    divisor: [u8; 2],
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    input: Vec<u8>,
}

/// Takes what the guest sends.
pub trait SerialOut: Send + fmt::Debug {
    /// Bytes in order. Never blocks. What it returns is asked of the board: who watches the output
    /// may want the run to end.
    fn send(&mut self, bytes: &[u8]) -> Flow;
}

#[derive(Debug)]
struct Line(Arc<dyn IrqLine>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.pulse();
        Ok(())
    }
}

/// Collects the bytes of one access, so that a string goes out in one piece.
#[derive(Debug)]
struct Out {
    to: Box<dyn SerialOut>,
    bytes: Vec<u8>,
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct State {
    chip: Serial<Line, NoEvents, Out>,
    input: VecDeque<u8>,
}

/// A 16550A at eight consecutive ports.
pub struct SerialPort {
    state: Mutex<State>,
}

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialPort").finish_non_exhaustive()
    }
}

impl SerialPort {
    /// Bytes of the port range.
    pub const LEN: u64 = 8;

    /// A port that interrupts by `line` and sends to `out`.
    pub fn new(line: Arc<dyn IrqLine>, out: Box<dyn SerialOut>) -> SerialPort {
        let chip = Serial::new(
            Line(line),
            Out {
                to: out,
                bytes: Vec::new(),
            },
        );
        SerialPort {
            state: Mutex::new(State {
                chip,
                input: VecDeque::new(),
            }),
        }
    }

    /// Gives the guest input. Returns how many bytes were taken: all, unless the guest has left
    /// more than 1 MiB unread.
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        let room = INPUT_LIMIT.saturating_sub(state.input.len());
        let taken = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        state.input.extend(taken);
        state.feed();
        taken.len()
    }

    /// Bytes of input that wait for the guest.
    pub fn unread(&self) -> usize {
        self.lock().input.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Moves waiting input into the chip as far as it has room. In loop-back mode the chip takes
    /// none from outside.
    fn feed(&mut self) {
        let count = self.chip.fifo_capacity().min(self.input.len());
        if count == 0 {
            return;
        }
        let bytes: Vec<u8> = self.input.iter().take(count).copied().collect();
        if let Ok(taken) = self.chip.enqueue_raw_bytes(&bytes) {
            self.input.drain(..taken.min(count));
        }
    }

    fn put(&mut self, offset: u64, byte: u8) {
        // The chip's only errors are those of its line and its output, which have none.
        let _ = self.chip.write((offset & 7) as u8, byte);
    }

    fn flush(&mut self) -> Flow {
        let out = self.chip.writer_mut();
        if out.bytes.is_empty() {
            return Flow::Continue;
        }
        let flow = out.to.send(&out.bytes);
        out.bytes.clear();
        flow
    }
}

impl Device for SerialPort {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&self, _: &dyn AccessContext, offset: u64, data: &mut [u8]) -> Flow {
        let mut state = self.lock();
        for (at, byte) in (offset..).zip(data) {
            *byte = state.chip.read((at & 7) as u8);
        }
        state.feed();
        Flow::Continue
    }

    fn write(&self, _: &dyn AccessContext, offset: u64, data: &[u8]) -> Flow {
        let mut state = self.lock();
        for (at, byte) in (offset..).zip(data) {
            state.put(at, *byte);
        }
        let flow = state.flush();
        state.feed();
        flow
    }

    fn write_string(&self, cx: &dyn AccessContext, offset: u64, size: usize, data: &[u8]) -> Flow {
        if size != 1 {
            return data
                .chunks(size.max(1))
                .fold(Flow::Continue, |_, e| self.write(cx, offset, e));
        }
        let mut state = self.lock();
        data.iter().for_each(|byte| state.put(offset, *byte));
        state.flush()
    }

    fn reset(&self) {
        // Interrupts off, loop-back off, input gone: what a driver may count on after power-on.
        let mut state = self.lock();
        state.input.clear();
        [(3, 0), (1, 0), (4, 0)]
            .into_iter()
            .for_each(|(offset, value)| state.put(offset, value));
        // With the divisor latch off, offset 0 is the FIFO.
        for _ in 0..64 {
            state.chip.read(0);
        }
    }

    fn save(&self) -> Option<SavedState> {
        let state = self.lock();
        let chip = state.chip.state();
        let fields = Fields {
            divisor: [chip.baud_divisor_low, chip.baud_divisor_high],
            interrupt_enable: chip.interrupt_enable,
            line_control: chip.line_control,
            modem_control: chip.modem_control,
            scratch: chip.scratch,
            input: chip.in_buffer.iter().chain(&state.input).copied().collect(),
        };
        Some(SavedState::new(KIND, VERSION, &fields))
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        let fields: Fields = saved.read(KIND, VERSION)?;
        if fields.input.len() > INPUT_LIMIT + FIFO {
            return Err(SavedError::Damaged {
                kind: KIND,
                detail: format!("{} bytes of input", fields.input.len()),
            });
        }
        self.reset();
        let mut state = self.lock();
        // The writes that a driver makes. The one that enables interrupts comes last: it raises
        // those that wait, as the saved chip would go on raising them.
        state.put(3, LATCH);
        state.put(0, fields.divisor[0]);
        state.put(1, fields.divisor[1]);
        state.put(3, fields.line_control & !LATCH);
        state.put(7, fields.scratch);
        state.input.extend(&fields.input);
        state.feed();
        state.put(4, fields.modem_control);
        state.put(1, fields.interrupt_enable);
        state.put(3, fields.line_control);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Counter, Nobody};

    #[derive(Debug, Default, Clone)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl SerialOut for Sink {
        fn send(&mut self, bytes: &[u8]) -> Flow {
            self.0.lock().unwrap().extend(bytes);
            Flow::Continue
        }
    }

    fn port() -> (SerialPort, Sink, Arc<Counter>) {
        let (sink, line) = (Sink::default(), Arc::new(Counter::default()));
        (
            SerialPort::new(
                Arc::clone(&line) as Arc<dyn IrqLine>,
                Box::new(sink.clone()),
            ),
            sink,
            line,
        )
    }

    fn read(port: &SerialPort, offset: u64) -> u8 {
        let mut data = [0];
        port.read(&Nobody, offset, &mut data);
        data[0]
    }

    #[test]
    fn bytes_written_to_the_data_register_go_out_in_order() {
        let (port, sink, _) = port();
        port.write(&Nobody, 0, b"a");
        port.write_string(&Nobody, 0, 1, b"bcd");
        assert_eq!(*sink.0.lock().unwrap(), b"abcd");
    }

    #[test]
    fn input_raises_an_interrupt_when_enabled_and_is_read_back() {
        let (port, _, line) = port();
        port.write(&Nobody, 1, &[1]);
        let before = line.edges();
        assert_eq!(port.push_input(b"xy"), 2);
        assert!(line.edges() > before);
        assert_eq!(read(&port, 5) & 1, 1);
        assert_eq!([read(&port, 0), read(&port, 0)], *b"xy");
        assert_eq!(read(&port, 5) & 1, 0);
    }

    #[test]
    fn input_longer_than_the_fifo_waits_and_arrives_whole() {
        let (port, _, _) = port();
        let sent: Vec<u8> = (0..=255).cycle().take(5000).collect();
        assert_eq!(port.push_input(&sent), 5000);
        let got: Vec<u8> = sent.iter().map(|_| read(&port, 0)).collect();
        assert_eq!(got, sent);
    }

    #[test]
    fn input_is_bounded() {
        let (port, _, _) = port();
        assert!(port.push_input(&vec![0; 4 << 20]) <= INPUT_LIMIT);
        assert!(port.push_input(&[0; 100]) < 100);
    }

    #[test]
    fn reset_drops_input_that_the_divisor_latch_hides() {
        let (port, _, _) = port();
        port.push_input(&[1; 5]);
        port.write(&Nobody, 3, &[0x80]);
        port.reset();
        assert_eq!(read(&port, 5) & 1, 0);
    }

    #[test]
    fn reset_drops_waiting_input() {
        let (port, _, _) = port();
        port.push_input(&[1; 500]);
        port.reset();
        assert_eq!(read(&port, 5) & 1, 0);
    }

    #[test]
    fn a_saved_port_goes_on_elsewhere_with_its_input() {
        let (one, _, _) = port();
        one.write(&Nobody, 3, &[0x13]);
        one.write(&Nobody, 1, &[5]);
        one.write(&Nobody, 7, &[0x5a]);
        let sent: Vec<u8> = (0..=255).collect();
        one.push_input(&sent);
        let (two, sink, line) = port();
        two.restore(&one.save().unwrap()).unwrap();
        assert!(line.edges() > 0);
        assert_eq!(
            [read(&two, 1), read(&two, 3), read(&two, 7)],
            [5, 0x13, 0x5a]
        );
        let got: Vec<u8> = sent.iter().map(|_| read(&two, 0)).collect();
        assert_eq!(got, sent);
        assert!(sink.0.lock().unwrap().is_empty());
    }

    #[test]
    fn a_state_with_more_input_than_a_port_keeps_is_refused() {
        let (one, _, _) = port();
        let mut saved = one.save().unwrap();
        let zeros = vec!["0"; INPUT_LIMIT + FIFO + 1].join(",");
        saved.data = saved
            .data
            .replace("\"input\":[]", &format!("\"input\":[{zeros}]"));
        assert!(matches!(
            one.restore(&saved),
            Err(SavedError::Damaged { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_sequence_of_accesses_panics_or_grows(ops in proptest::collection::vec((any::<bool>(), 0u64..8, proptest::collection::vec(any::<u8>(), 1..9)), 0..400)) {
            let (port, _, _) = port();
            for (write, offset, mut data) in ops {
                if write { port.write(&Nobody, offset, &data) } else { port.read(&Nobody, offset, &mut data) };
                port.push_input(&data);
            }
            prop_assert!(port.lock().input.len() <= INPUT_LIMIT);
        }
    }
}
