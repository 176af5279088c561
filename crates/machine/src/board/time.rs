//! The time of a board whose vCPUs are counted.

use std::{sync::Arc, time::Duration};

use vmlet_devices::time::{HostTime, TimeSource};
use vmlet_vcpu::Vm;

/// When every counted guest starts: 2026-01-01 00:00:00 UTC. A clock that showed the host's date
/// would make each run another one.
const START: Duration = Duration::from_secs(1_767_225_600);

/// Guest time, which follows instructions.
#[derive(Debug)]
struct CountedTime {
    vm: Arc<dyn Vm>,
}

impl TimeSource for CountedTime {
    fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.vm.clock().unwrap_or(0))
    }

    fn civil(&self) -> Duration {
        START + self.elapsed()
    }
}

/// What the devices of `vm`'s board have their time from.
pub(super) fn time_of(vm: &Arc<dyn Vm>) -> Arc<dyn TimeSource> {
    if vm.position().is_some() {
        return Arc::new(CountedTime { vm: Arc::clone(vm) });
    }
    Arc::new(HostTime::default())
}
