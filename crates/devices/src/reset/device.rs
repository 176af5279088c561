//! The registers.

use vmlet_bus::{AccessContext, Device, Flow, SavedError, SavedState, StopRequest};

/// Kind and layout of the reset control's saved state.
const KIND: &str = "reset control";
const VERSION: u16 = 1;
/// The command byte that pulses the processor's reset line (IBM PC/AT Technical Reference,
/// keyboard controller commands F0-FF; bit 0 is the reset line).
const PULSE_RESET: u8 = 0xfe;

/// The keyboard controller at port 0x64: status and commands.
#[derive(Debug, Default)]
pub struct KeyboardController;

impl Device for KeyboardController {
    fn name(&self) -> &'static str {
        "keyboard controller"
    }

    fn read(&self, _: &dyn AccessContext, _: u64, data: &mut [u8]) -> Flow {
        data.fill(0);
        Flow::Continue
    }

    fn write(&self, _: &dyn AccessContext, _: u64, data: &[u8]) -> Flow {
        if data.first() == Some(&PULSE_RESET) {
            return Flow::Stop(StopRequest::Reset {
                source: "keyboard-controller",
            });
        }
        Flow::Continue
    }

    fn reset(&self) {}
}

/// The reset control register at port 0xcf9 (Intel ICH, "RST_CNT"): bit 2 resets when it goes
/// from 0 to 1. ACPI's reset register is this one.
#[derive(Debug, Default)]
pub struct ResetControl {
    value: std::sync::atomic::AtomicU8,
}

impl ResetControl {
    /// The value ACPI's FADT names for a reset.
    pub const RESET_VALUE: u8 = 6;

    const RESET_CPU: u8 = 1 << 2;
    const STORED: u8 = 0b1010;
}

impl Device for ResetControl {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&self, _: &dyn AccessContext, _: u64, data: &mut [u8]) -> Flow {
        data.fill(self.value.load(std::sync::atomic::Ordering::Relaxed));
        Flow::Continue
    }

    fn write(&self, _: &dyn AccessContext, _: u64, data: &[u8]) -> Flow {
        let Some(value) = data.first() else {
            return Flow::Continue;
        };
        self.value
            .store(value & Self::STORED, std::sync::atomic::Ordering::Relaxed);
        if value & Self::RESET_CPU != 0 {
            return Flow::Stop(StopRequest::Reset { source: "cf9" });
        }
        Flow::Continue
    }

    fn reset(&self) {
        self.value.store(0, std::sync::atomic::Ordering::Relaxed);
    }

    fn save(&self) -> Option<SavedState> {
        let value = self.value.load(std::sync::atomic::Ordering::Relaxed);
        Some(SavedState::new(KIND, VERSION, &value))
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        let value: u8 = saved.read(KIND, VERSION)?;
        self.value
            .store(value & Self::STORED, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Nobody;

    #[test]
    fn the_pulse_command_resets_and_others_do_not() {
        let reset = Flow::Stop(StopRequest::Reset {
            source: "keyboard-controller",
        });
        assert_eq!(KeyboardController.write(&Nobody, 0, &[0xfe]), reset);
        assert_eq!(
            KeyboardController.write(&Nobody, 0, &[0xaa]),
            Flow::Continue
        );
    }

    #[test]
    fn cf9_resets_by_bit_2_only() {
        let control = ResetControl::default();
        assert_eq!(control.write(&Nobody, 0, &[2]), Flow::Continue);
        let reset = Flow::Stop(StopRequest::Reset { source: "cf9" });
        assert_eq!(control.write(&Nobody, 0, &[6]), reset);
    }
}
