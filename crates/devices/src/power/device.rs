//! The registers.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use vmlet_bus::{AccessContext, Device, Flow, SavedError, SavedState, StopRequest};

use crate::time::{HostTime, TimeSource};

/// Sleep control and sleep status, one byte each.
#[derive(Debug, Default)]
pub struct SleepControl;

impl SleepControl {
    /// Bytes of the port range.
    pub const LEN: u64 = 2;
    /// The sleep type of S5, as the DSDT's `_S5` names it.
    pub const S5: u8 = 5;

    const SLEEP_ENABLE: u8 = 1 << 5;
    const SLEEP_TYPE_SHIFT: u8 = 2;
}

impl Device for SleepControl {
    fn name(&self) -> &'static str {
        "ACPI sleep control"
    }

    fn read(&self, _: &dyn AccessContext, _: u64, data: &mut [u8]) -> Flow {
        data.fill(0);
        Flow::Continue
    }

    fn write(&self, _: &dyn AccessContext, offset: u64, data: &[u8]) -> Flow {
        let wanted = Self::SLEEP_ENABLE | Self::S5 << Self::SLEEP_TYPE_SHIFT;
        if offset == 0 && data.first() == Some(&wanted) {
            return Flow::Stop(StopRequest::PowerOff { source: "acpi" });
        }
        Flow::Continue
    }

    fn reset(&self) {}
}

/// The power-management timer: a 32-bit counter at 3.579545 MHz.
#[derive(Debug)]
pub struct PmTimer {
    time: Arc<dyn TimeSource>,
    /// Ticks that a saved timer had more than this one.
    ahead: AtomicU32,
}

/// Kind and layout of the timer's saved state.
const KIND: &str = "PM timer";
const VERSION: u16 = 1;

impl PmTimer {
    /// Bytes of the port range.
    pub const LEN: u64 = 4;

    const FREQUENCY: u128 = 3_579_545;

    /// A timer that counts the time of `time`.
    pub fn new(time: Arc<dyn TimeSource>) -> PmTimer {
        PmTimer {
            time,
            ahead: AtomicU32::new(0),
        }
    }

    fn count(&self) -> u32 {
        let ticks = self.time.elapsed().as_nanos() * Self::FREQUENCY / 1_000_000_000;
        let ahead = self.ahead.load(Ordering::Relaxed);
        ((ticks & 0xffff_ffff) as u32).wrapping_add(ahead)
    }
}

impl Default for PmTimer {
    fn default() -> Self {
        PmTimer::new(Arc::new(HostTime::default()))
    }
}

impl Device for PmTimer {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&self, _: &dyn AccessContext, offset: u64, data: &mut [u8]) -> Flow {
        let bytes = self.count().to_le_bytes();
        let from = bytes
            .iter()
            .skip(usize::try_from(offset).unwrap_or(usize::MAX));
        data.iter_mut().zip(from).for_each(|(to, byte)| *to = *byte);
        Flow::Continue
    }

    fn write(&self, _: &dyn AccessContext, _: u64, _: &[u8]) -> Flow {
        Flow::Continue
    }

    fn reset(&self) {}

    fn save(&self) -> Option<SavedState> {
        Some(SavedState::new(KIND, VERSION, &self.count()))
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        let count: u32 = saved.read(KIND, VERSION)?;
        self.ahead
            .fetch_add(count.wrapping_sub(self.count()), Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Nobody;

    #[test]
    fn s5_with_sleep_enable_powers_off_and_other_values_do_not() {
        let off = Flow::Stop(StopRequest::PowerOff { source: "acpi" });
        assert_eq!(SleepControl.write(&Nobody, 0, &[0x34]), off);
        for value in [0x14, 0x20, 0x30, 0xff] {
            assert_eq!(
                SleepControl.write(&Nobody, 0, &[value]),
                Flow::Continue,
                "{value:#x}"
            );
        }
    }

    #[test]
    fn the_timer_counts_up() {
        let timer = PmTimer::default();
        let mut data = [0; 4];
        std::thread::sleep(std::time::Duration::from_millis(2));
        timer.read(&Nobody, 0, &mut data);
        assert!(u32::from_le_bytes(data) >= 7_000);
    }

    #[test]
    fn a_saved_timer_goes_on_from_its_count() {
        let saved = SavedState::new(KIND, VERSION, &0xffff_0000u32);
        let timer = PmTimer::default();
        timer.restore(&saved).unwrap();
        assert!(timer.count().wrapping_sub(0xffff_0000) < 3_579_545);
    }
}
