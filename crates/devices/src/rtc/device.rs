//! Index and data register, and what stands behind them.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vmlet_bus::{AccessContext, Device, Flow, SavedError, SavedState};

use crate::time::{HostTime, TimeSource};

/// Kind and layout of the saved state.
const KIND: &str = "real-time clock";
const VERSION: u16 = 1;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// 32.768 kHz time base, 1,024 Hz rate; no update in progress.
const A_VALUE: u8 = 0x26;
const B_24_HOURS: u8 = 1 << 1;
const B_BINARY: u8 = 1 << 2;
const D_VALID: u8 = 1 << 7;

/// A point in time as the registers show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Civil {
    year: u64,
    month: u64,
    day: u64,
    weekday: u64,
    second_of_day: u64,
}

impl Civil {
    /// The civil date of a day count, by the Gregorian calendar's 400-year cycle of 146,097 days
    /// that starts on 1 March.
    fn at(unix_seconds: u64) -> Civil {
        let days = unix_seconds / 86_400;
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let month = if from_march < 10 {
            from_march + 3
        } else {
            from_march - 9
        };
        Civil {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * from_march + 2) / 5 + 1,
            weekday: (days + 4) % 7 + 1,
            second_of_day: unix_seconds % 86_400,
        }
    }
}

#[derive(Debug)]
struct State {
    index: u8,
    status_b: u8,
    memory: [u8; 128],
}

/// What is saved of it: the time is the host's.
#[derive(Serialize, Deserialize)]
struct Fields {
    index: u8,
    status_b: u8,
    memory: Vec<u8>,
}

/// The clock at two ports: index and data.
#[derive(Debug)]
pub struct Rtc {
    state: Mutex<State>,
    time: Arc<dyn TimeSource>,
}

impl Rtc {
    /// Bytes of the port range.
    pub const LEN: u64 = 2;

    /// A clock that shows the host's time and a machine with `low` bytes of memory below 4 GiB and
    /// `high` above.
    pub fn new(low: u64, high: u64) -> Rtc {
        Rtc::with_time(low, high, Arc::new(HostTime::default()))
    }

    /// As [`Rtc::new`], with the time of `time`.
    pub fn with_time(low: u64, high: u64, time: Arc<dyn TimeSource>) -> Rtc {
        let state = State {
            index: 0,
            status_b: B_24_HOURS,
            memory: memory_sizes(low, high),
        };
        Rtc {
            state: Mutex::new(state),
            time,
        }
    }
}

/// Memory sizes where firmware and old boot loaders look for them: KiB below 1 MiB (0x15), KiB
/// above 1 MiB (0x17, 0x30), units of 64 KiB above 16 MiB (0x34) and above 4 GiB (0x5b).
fn memory_sizes(low: u64, high: u64) -> [u8; 128] {
    let mut memory = [0; 128];
    let mut put = |at: usize, value: u64, limit: u64| {
        let bytes = value.min(limit).to_le_bytes();
        memory
            .iter_mut()
            .skip(at)
            .zip(bytes)
            .take(if limit > 0xffff { 3 } else { 2 })
            .for_each(|(to, from)| *to = from);
    };
    let above_1m = low.saturating_sub(1 << 20) >> 10;
    put(0x15, 640, 0xffff);
    put(0x17, above_1m, 0xffff);
    put(0x30, above_1m, 0xffff);
    put(0x34, low.saturating_sub(16 << 20) >> 16, 0xffff);
    put(0x5b, high >> 16, 0xff_ffff);
    memory
}

impl State {
    fn read(&self, seconds: u64) -> u8 {
        let time = Civil::at(seconds);
        let value = match self.index {
            0x00 => time.second_of_day % 60,
            0x02 => time.second_of_day / 60 % 60,
            0x04 => return self.hours(time.second_of_day / 3600),
            0x06 => time.weekday,
            0x07 => time.day,
            0x08 => time.month,
            0x09 => time.year % 100,
            CENTURY => time.year / 100,
            STATUS_A => return A_VALUE,
            STATUS_B => return self.status_b,
            STATUS_C => return 0,
            STATUS_D => return D_VALID,
            other => return self.memory.get(usize::from(other)).copied().unwrap_or(0xff),
        };
        self.encode(value)
    }

    fn hours(&self, hour: u64) -> u8 {
        if self.status_b & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let twelve = if hour.is_multiple_of(12) {
            12
        } else {
            hour % 12
        };
        self.encode(twelve) | if hour >= 12 { 0x80 } else { 0 }
    }

    fn encode(&self, value: u64) -> u8 {
        let value = (value % 100) as u8;
        if self.status_b & B_BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn write(&mut self, value: u8) {
        match self.index {
            0x00..=0x09 | STATUS_A | STATUS_C | STATUS_D | CENTURY => {}
            STATUS_B => self.status_b = value & (B_24_HOURS | B_BINARY),
            other => {
                if let Some(byte) = self.memory.get_mut(usize::from(other)) {
                    *byte = value;
                }
            }
        }
    }
}

impl Device for Rtc {
    fn name(&self) -> &'static str {
        KIND
    }

    fn read(&self, _: &dyn AccessContext, offset: u64, data: &mut [u8]) -> Flow {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        data.fill(0xff);
        if let (1, Some(first)) = (offset, data.first_mut()) {
            *first = state.read(self.time.civil().as_secs());
        }
        Flow::Continue
    }

    fn write(&self, _: &dyn AccessContext, offset: u64, data: &[u8]) -> Flow {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, value) in (offset..).zip(data) {
            match at {
                // Bit 7 masks NMIs on a PC; there are none to mask.
                0 => state.index = value & 0x7f,
                _ => state.write(*value),
            }
        }
        Flow::Continue
    }

    fn reset(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.index, state.status_b) = (0, B_24_HOURS);
    }

    fn save(&self) -> Option<SavedState> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fields = Fields {
            index: state.index,
            status_b: state.status_b,
            memory: state.memory.to_vec(),
        };
        Some(SavedState::new(KIND, VERSION, &fields))
    }

    fn restore(&self, saved: &SavedState) -> Result<(), SavedError> {
        let fields: Fields = saved.read(KIND, VERSION)?;
        let memory = fields.memory.as_slice().try_into();
        let memory: [u8; 128] = memory.map_err(|_| SavedError::Damaged {
            kind: KIND,
            detail: format!("{} bytes of memory", fields.memory.len()),
        })?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State {
            index: fields.index & 0x7f,
            status_b: fields.status_b & (B_24_HOURS | B_BINARY),
            memory,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::Nobody;

    /// 2000-02-29 23:59:58 UTC, a Tuesday.
    #[derive(Debug)]
    struct LeapDay;

    impl TimeSource for LeapDay {
        fn elapsed(&self) -> Duration {
            Duration::ZERO
        }

        fn civil(&self) -> Duration {
            Duration::from_secs(951_868_798)
        }
    }

    fn rtc() -> Rtc {
        Rtc::with_time(256 << 20, 1 << 30, Arc::new(LeapDay))
    }

    fn read(rtc: &Rtc, index: u8) -> u8 {
        let mut data = [0];
        rtc.write(&Nobody, 0, &[index]);
        rtc.read(&Nobody, 1, &mut data);
        data[0]
    }

    #[test]
    fn time_is_shown_in_bcd_with_24_hours() {
        let rtc = rtc();
        let shown = [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| read(&rtc, index));
        assert_eq!(shown, [0x20, 0x00, 0x02, 0x29, 0x03, 0x23, 0x59, 0x58]);
    }

    #[test]
    fn status_b_switches_to_binary_and_12_hours() {
        let rtc = rtc();
        rtc.write(&Nobody, 0, &[STATUS_B]);
        rtc.write(&Nobody, 1, &[B_BINARY]);
        assert_eq!((read(&rtc, 4), read(&rtc, 2)), (11 | 0x80, 59));
    }

    #[test]
    fn no_update_is_ever_in_progress() {
        assert_eq!(read(&rtc(), STATUS_A) & 0x80, 0);
    }

    #[test]
    fn memory_sizes_stand_where_firmware_looks() {
        let rtc = rtc();
        let word = |at| u16::from_le_bytes([read(&rtc, at), read(&rtc, at + 1)]);
        assert_eq!(
            (word(0x15), word(0x34), word(0x5b)),
            (640, 240 * 16, 1 << 14)
        );
        assert_eq!(word(0x17), 0xffff);
    }

    #[test]
    fn cmos_bytes_keep_what_is_written_and_time_registers_do_not() {
        let rtc = rtc();
        rtc.write(&Nobody, 0, &[0x40]);
        rtc.write(&Nobody, 1, &[7]);
        rtc.write(&Nobody, 0, &[0]);
        rtc.write(&Nobody, 1, &[7]);
        assert_eq!((read(&rtc, 0x40), read(&rtc, 0)), (7, 0x58));
    }

    #[test]
    fn every_index_and_width_is_defined() {
        let rtc = rtc();
        for index in 0..=255 {
            for offset in 0..2 {
                let mut data = [0; 4];
                rtc.write(&Nobody, 0, &[index, index]);
                rtc.read(&Nobody, offset, &mut data);
            }
        }
    }
}
