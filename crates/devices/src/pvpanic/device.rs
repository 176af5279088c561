//! The register: reading gives the events understood, writing reports them.

use vmlet_bus::{AccessContext, Device, Flow, StopRequest};

/// The crash-report port.
#[derive(Debug, Default)]
pub struct PvPanic;

impl PvPanic {
    /// Bytes of the port range.
    pub const LEN: u64 = 1;

    const PANICKED: u8 = 1;
    /// The guest crashed and runs a crash kernel: it goes on.
    const CRASH_LOADED: u8 = 2;
}

impl Device for PvPanic {
    fn name(&self) -> &'static str {
        "pvpanic"
    }

    fn read(&self, _: &dyn AccessContext, _: u64, data: &mut [u8]) -> Flow {
        data.fill(Self::PANICKED | Self::CRASH_LOADED);
        Flow::Continue
    }

    fn write(&self, _: &dyn AccessContext, _: u64, data: &[u8]) -> Flow {
        if data
            .first()
            .is_some_and(|events| events & Self::PANICKED != 0)
        {
            let detail = String::new();
            return Flow::Stop(StopRequest::Panic {
                source: "pvpanic",
                detail,
            });
        }
        Flow::Continue
    }

    fn reset(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Nobody;

    #[test]
    fn a_reported_panic_stops_and_a_crash_kernel_goes_on() {
        assert!(matches!(
            PvPanic.write(&Nobody, 0, &[1]),
            Flow::Stop(StopRequest::Panic {
                source: "pvpanic",
                ..
            })
        ));
        assert_eq!(PvPanic.write(&Nobody, 0, &[2]), Flow::Continue);
    }
}
