//! Interrupt lines: INTA of functions, and what they share (PCI 3.0, section 2.2.6).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vmlet_bus::{IrqLine, LineEnd};

/// An input of the interrupt controller that several functions drive: high while one does.
#[derive(Debug)]
pub(crate) struct SharedLine {
    line: Arc<dyn IrqLine>,
    high: Mutex<usize>,
}

impl SharedLine {
    pub(crate) fn new(line: Arc<dyn IrqLine>) -> SharedLine {
        SharedLine {
            line,
            high: Mutex::default(),
        }
    }

    /// One more function drives the line, or one less.
    fn drive(&self, high: bool) {
        let mut count = self.high.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *count;
        *count = if high {
            before.saturating_add(1)
        } else {
            before.saturating_sub(1)
        };
        if (before == 0) != (*count == 0) {
            self.line.set(*count > 0);
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Interrupt Status.
    asserted: bool,
    /// Interrupt Disable, or message-signalled interrupts are on.
    disabled: bool,
    driving: bool,
}

/// A function's INTA (PCI 3.0, section 6.2.2 and 6.2.3).
#[derive(Debug)]
pub(crate) struct Intx {
    state: Mutex<State>,
    out: Arc<SharedLine>,
}

impl Intx {
    pub(crate) fn new(out: Arc<SharedLine>) -> Intx {
        Intx {
            state: Mutex::default(),
            out,
        }
    }

    /// Interrupt Status: what the function asks for, disabled or not.
    pub(crate) fn asserted(&self) -> bool {
        self.lock().asserted
    }

    pub(crate) fn disable(&self, disabled: bool) {
        self.change(|state| state.disabled = disabled);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let driving = state.asserted && !state.disabled;
        // Under the lock: two changes reach the line in their order.
        if std::mem::replace(&mut state.driving, driving) != driving {
            self.out.drive(driving);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IrqLine for Intx {
    fn set(&self, high: bool) {
        self.change(|state| state.asserted = high);
    }

    fn on_end(&self, listener: Weak<dyn LineEnd>) {
        self.out.line.on_end(listener);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Line;

    fn two_on_one() -> ([Intx; 2], Arc<Line>) {
        let line = Arc::new(Line::default());
        let shared = Arc::new(SharedLine::new(Arc::clone(&line) as Arc<dyn IrqLine>));
        ([Intx::new(Arc::clone(&shared)), Intx::new(shared)], line)
    }

    #[test]
    fn a_shared_line_is_high_while_one_function_drives_it() {
        let ([a, b], line) = two_on_one();
        a.set(true);
        a.set(true);
        b.set(true);
        a.set(false);
        assert!(line.is_high());
        b.set(false);
        assert!(!line.is_high());
        assert_eq!(line.edges(), 1);
    }

    #[test]
    fn interrupt_disable_silences_the_line_and_keeps_the_status() {
        let ([a, _], line) = two_on_one();
        a.set(true);
        a.disable(true);
        assert!(a.asserted() && !line.is_high());
        a.disable(false);
        assert!(line.is_high());
    }
}
