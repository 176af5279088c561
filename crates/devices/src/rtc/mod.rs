//! The MC146818-compatible clock and CMOS memory of a PC (Motorola MC146818A data sheet), UTC.
//!
//! Not supported: the alarm, periodic and update-ended interrupts; setting the time (writes to the
//! time registers are ignored).

mod device;

pub use device::Rtc;
