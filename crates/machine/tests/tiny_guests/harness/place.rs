//! Where a test runs: an engine and what a probe found of it.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use vmlet_kvm::{KernelMode, Kvm};
use vmlet_softcpu::Soft;
use vmlet_vcpu::Hypervisor;

use super::skip::skip;

/// An engine to test.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) engine: Arc<dyn Hypervisor>,
    /// Supervisor code runs in an interpreter that lacks instructions.
    pub(crate) interpreted: bool,
}

impl Place {
    /// Supervisor code runs on the processor.
    pub(crate) fn native(&self) -> bool {
        !self.interpreted
    }
}

/// Runs `test` on every engine that this host offers.
pub(crate) fn each<F: Fn(&Place)>(test: F) {
    match places() {
        Ok(places) => places.iter().for_each(test),
        Err(reason) => {
            let name = std::any::type_name::<F>()
                .trim_end_matches("::{{closure}}")
                .trim_start_matches("tiny_guests::");
            skip(name, "kvm", reason);
        }
    }
}

/// As [`each`], and on the software engine, which every host offers.
pub(crate) fn everywhere<F: Fn(&Place)>(test: F) {
    test(&Place {
        engine: Arc::new(Soft::default()),
        interpreted: false,
    });
    each(test);
}

fn places() -> &'static Result<Vec<Place>, String> {
    static PLACES: OnceLock<Result<Vec<Place>, String>> = OnceLock::new();
    PLACES.get_or_init(|| {
        let kvm = Kvm::open().map_err(|error| error.to_string())?;
        let probe = vmlet_kvm::probe().map_err(|error| error.to_string())?;
        let interpreted = match probe.kernel_mode {
            KernelMode::Native => false,
            KernelMode::Interpreted { .. } => true,
            KernelMode::Broken { detail } => panic!("this KVM runs nothing: {detail}"),
        };
        let engine = Arc::new(kvm);
        Ok(vec![Place {
            engine,
            interpreted,
        }])
    })
}

/// `base` times `VMLET_TIME_FACTOR`.
pub(crate) fn limit(base: Duration) -> Duration {
    let factor = std::env::var("VMLET_TIME_FACTOR")
        .ok()
        .and_then(|factor| factor.parse::<f64>().ok());
    base.mul_f64(factor.unwrap_or(1.0).max(0.1))
}
