//! The inputs of a counted run: they enter one by one, can be recorded, and replayed.
//!
//! A record holds what comes from outside the guest, each at the [`Position`] at which it entered:
//! typed text, interrupts, and what comes for devices. The guest's time needs no entry, it follows the instructions; the
//! board's clocks start at one fixed date; there is no entropy device. Memory and registers that
//! the VM's owner changes are no inputs of this kind, so that they are refused under a record.

mod devices;
mod error;
pub mod format;

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufWriter, Read, Write},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError, Weak},
};

use vmlet_devices::serial::{INPUT_LIMIT, SerialPort};
use vmlet_vcpu::{Entered, Inputs, MsiMessage, Position, Vm};

pub(crate) use devices::{DeviceInputs, TakesInput};
pub use error::RecordError;
use format::{Identity, Input};

/// The longest file that is read.
const LONGEST: u64 = 256 << 20;
/// The longest entry of typed text.
const PIECE: usize = 1 << 16;

/// The inputs of one machine.
#[derive(Debug)]
pub(crate) struct Journal {
    vm: Weak<dyn Vm>,
    serial: Weak<SerialPort>,
    devices: devices::Table,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    typed: VecDeque<u8>,
    /// What waits for devices.
    arrived: devices::Arrived,
    mode: Mode,
}

#[derive(Debug)]
enum Mode {
    /// Inputs enter as they come.
    Live,
    /// And are written down.
    Recording(Writer),
    /// Inputs come from a record.
    Replaying(VecDeque<(Position, Input)>),
    /// The record has ended.
    Over,
}

#[derive(Debug)]
struct Writer {
    path: String,
    file: BufWriter<File>,
}

impl Writer {
    fn put(&mut self, at: Position, input: &Input) -> Result<(), String> {
        let done = self.file.write_all(&format::record(at, input));
        done.map_err(|error| format!("the record {} cannot be written: {error}", self.path))
    }
}

impl Journal {
    pub(crate) fn new(vm: Weak<dyn Vm>, serial: Weak<SerialPort>) -> Journal {
        Journal {
            vm,
            serial,
            devices: devices::Table::default(),
            state: Mutex::new(State {
                typed: VecDeque::new(),
                arrived: devices::Arrived::default(),
                mode: Mode::Live,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes typed text; how many bytes: all that the guest has room for.
    pub(crate) fn push(&self, bytes: &[u8]) -> Result<usize, RecordError> {
        let mut state = self.lock();
        if matches!(state.mode, Mode::Replaying(_)) {
            return Err(RecordError::Replaying);
        }
        let unread = self.serial.upgrade().map_or(0, |serial| serial.unread());
        let room = INPUT_LIMIT.saturating_sub(unread + state.typed.len());
        let taken = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        state.typed.extend(taken);
        drop(state);
        if let Some(vm) = self.vm.upgrade() {
            vm.input_waits();
        }
        Ok(taken.len())
    }

    /// Writes down every input from now on.
    pub(crate) fn record(&self, path: &Path, identity: &Identity) -> Result<(), RecordError> {
        let failed = |source| RecordError::File {
            path: path.display().to_string(),
            action: "written",
            source,
        };
        let mut state = self.fresh("recording")?;
        let mut file = BufWriter::new(File::create(path).map_err(failed)?);
        file.write_all(&format::header(identity)).map_err(failed)?;
        file.flush().map_err(failed)?;
        let path = path.display().to_string();
        state.mode = Mode::Recording(Writer { path, file });
        Ok(())
    }

    /// Takes inputs from a record of a VM that was made of the same.
    pub(crate) fn replay(&self, path: &Path, identity: &Identity) -> Result<(), RecordError> {
        let failed = |source| RecordError::File {
            path: path.display().to_string(),
            action: "read",
            source,
        };
        let mut state = self.fresh("replaying")?;
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(failed)?;
        file.take(LONGEST + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 > LONGEST {
            return Err(RecordError::Damaged {
                offset: bytes.len(),
                reason: "it is longer than 256 MiB",
            });
        }
        let record = format::parse(&bytes)?;
        compare(&record.identity, identity)?;
        state.mode = Mode::Replaying(record.inputs.into());
        Ok(())
    }

    fn fresh(&self, action: &'static str) -> Result<MutexGuard<'_, State>, RecordError> {
        let state = self.lock();
        if !matches!(state.mode, Mode::Live) || !state.typed.is_empty() {
            return Err(RecordError::Late { action });
        }
        Ok(state)
    }

    /// Refuses what a record would not hold.
    pub(crate) fn allows(&self, action: &'static str) -> Result<(), RecordError> {
        match self.lock().mode {
            Mode::Recording(_) | Mode::Replaying(_) => Err(RecordError::Unrecorded { action }),
            Mode::Live | Mode::Over => Ok(()),
        }
    }

    pub(crate) fn is_recording(&self) -> bool {
        matches!(self.lock().mode, Mode::Recording(_))
    }

    /// Whether a replay has come to its end.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.lock().mode, Mode::Over)
    }

    /// Ends the record where the run is; an error is one of the file. No vCPU may run.
    pub(crate) fn finish(&self) -> Result<(), String> {
        let mut state = self.lock();
        let Mode::Recording(writer) = &mut state.mode else {
            return Ok(());
        };
        let at = self.vm.upgrade().and_then(|vm| vm.position());
        let done = writer.put(at.unwrap_or_default(), &Input::End);
        let flushed = writer.file.flush().map_err(|error| error.to_string());
        state.mode = Mode::Over;
        done.and(flushed)
    }

    fn apply(&self, input: &Input) {
        match input {
            Input::Typed(bytes) => {
                if let Some(serial) = self.serial.upgrade() {
                    serial.push_input(bytes);
                }
            }
            Input::Message(message) => {
                if let Some(vm) = self.vm.upgrade() {
                    // One that no local APIC takes is lost, as on hardware.
                    let _ = vm.signal_msi(*message);
                }
            }
            Input::Device { port, bytes } => self.devices.give(*port, bytes),
            Input::End => {}
        }
    }

    fn play(&self, state: &mut State, at: Position, idle: bool) -> Result<Entered, String> {
        let Mode::Replaying(inputs) = &mut state.mode else {
            return Ok(Entered::GoOn);
        };
        while let Some((due, input)) = inputs.front() {
            let is_ahead = due.instructions > at.instructions || due.nanoseconds > at.nanoseconds;
            if *due == at {
                if *input == Input::End {
                    state.mode = Mode::Over;
                    return Ok(Entered::Stop);
                }
                self.apply(input);
                inputs.pop_front();
            } else if is_ahead && due.instructions >= at.instructions && !idle {
                break;
            } else {
                return Err(format!(
                    "the replay is not the recorded run: it is at instruction {} of {} ns, and the \
                     record's next input is at {} of {} ns",
                    at.instructions, at.nanoseconds, due.instructions, due.nanoseconds
                ));
            }
        }
        Ok(Entered::GoOn)
    }
}

impl Inputs for Journal {
    fn next(&self) -> Option<u64> {
        match &self.lock().mode {
            Mode::Replaying(inputs) => inputs.front().map(|(at, _)| at.instructions),
            _ => None,
        }
    }

    fn enter(&self, at: Position, messages: &[MsiMessage], idle: bool) -> Result<Entered, String> {
        let mut state = self.lock();
        if matches!(state.mode, Mode::Replaying(_)) {
            return self.play(&mut state, at, idle);
        }
        let typed = std::mem::take(&mut state.typed);
        let typed = Vec::from(typed);
        let pieces = typed
            .chunks(PIECE)
            .map(|piece| Input::Typed(piece.to_vec()));
        let messages = messages.iter().map(|message| Input::Message(*message));
        let arrived = state.arrived.take();
        for input in pieces.chain(arrived).chain(messages) {
            if let Mode::Recording(writer) = &mut state.mode {
                writer.put(at, &input)?;
            }
            self.apply(&input);
        }
        Ok(Entered::GoOn)
    }
}

/// Refuses a record of a VM that was made of something else, by name.
fn compare(recorded: &Identity, here: &Identity) -> Result<(), RecordError> {
    let value = |identity: &Identity, name: &str| {
        let found = identity.iter().find(|(known, _)| known == name);
        found.map_or_else(|| "nothing".to_owned(), |(_, value)| value.clone())
    };
    for (name, _) in recorded.iter().chain(here) {
        let (recorded, here) = (value(recorded, name), value(here, name));
        if recorded != here {
            let what = name.clone();
            return Err(RecordError::Foreign {
                what,
                recorded,
                here,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(kernel: &str) -> Identity {
        vec![("kernel".to_owned(), kernel.to_owned())]
    }

    #[test]
    fn a_record_of_another_kernel_is_refused_by_name() {
        assert!(compare(&identity("a"), &identity("a")).is_ok());
        let error = compare(&identity("a"), &identity("b")).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("the record is of another kernel: a, and this VM has b"));
        assert!(compare(&identity("a"), &Vec::new()).is_err());
    }
}
