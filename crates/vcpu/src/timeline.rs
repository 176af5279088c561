//! Runs that are counted: where in a run things happen, and what enters it from outside.
//!
//! An engine whose clock follows instructions makes a run a function of its beginning and of its
//! inputs. Everything from outside the guest enters by [`Inputs`], between two instructions, at a
//! [`Position`] that can be written down; the same inputs at the same positions make the same run.

use std::fmt::Debug;

use crate::MsiMessage;

/// A point of a counted run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Instructions that all vCPUs have retired, and faults they have taken.
    pub instructions: u64,
    /// Nanoseconds of guest time: those of the instructions, and what was skipped while every vCPU
    /// halted.
    pub nanoseconds: u64,
}

/// What an engine does after inputs have entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// The run goes on.
    GoOn,
    /// It stops here, with [`crate::RunEnd::Budget`].
    Stop,
}

/// Where the inputs of a counted run come from: the outside world, or a record of it.
pub trait Inputs: Send + Sync + Debug {
    /// Instructions at which the engine has to ask next, where they are known beforehand.
    fn next(&self) -> Option<u64>;

    /// Lets enter what is due `at` this position. Called on the thread that runs guest code, between
    /// two instructions. `messages` are the interrupts that came from outside since the last call;
    /// `idle` says that nothing will happen any more but by an input. An error ends the run.
    fn enter(&self, at: Position, messages: &[MsiMessage], idle: bool) -> Result<Entered, String>;
}
