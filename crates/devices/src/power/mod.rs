//! ACPI power-off by the reduced-hardware sleep registers, and the power-management timer
//! (ACPI 6.5, sections 4.8.3.7 and 4.8.3.3).
//!
//! Not supported: sleep states other than S5, fixed-hardware events.

mod device;

pub use device::{PmTimer, SleepControl};
