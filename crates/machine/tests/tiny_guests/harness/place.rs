//! Where a test runs: an engine and what a probe found of it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
    time::Duration,
};

use vmlet_kvm::{KernelMode, Kvm};
use vmlet_softcpu::{ClockMode, Soft};
use vmlet_vcpu::Hypervisor;

use super::{
    differences::{Difference, difference},
    skip::skip,
};

/// An engine, and the test that runs there.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) engine: Arc<dyn Hypervisor>,
    test: &'static str,
    /// Supervisor code runs in an interpreter that lacks instructions.
    pub(crate) interpreted: bool,
}

impl Place {
    /// Supervisor code runs on the processor.
    pub(crate) fn native(&self) -> bool {
        !self.interpreted
    }

    /// KVM walks tables of its own, which shadow the guest's, for want of EPT or NPT: of what this
    /// process writes to the guest's tables it does not learn.
    pub(crate) fn shadows(&self) -> bool {
        let off = |parameter: &str| {
            let path = format!("/sys/module/{parameter}");
            std::fs::read_to_string(path).is_ok_and(|text| text.starts_with(['N', '0']))
        };
        let without = ["kvm_intel/parameters/ept", "kvm_amd/parameters/npt"];
        self.engine.name() == "kvm" && (self.interpreted || without.into_iter().any(off))
    }

    /// The engine without hardware, whose every answer is known.
    pub(crate) fn is_soft(&self) -> bool {
        self.engine.name() == "soft"
    }

    /// The software engine with a clock that counts instructions.
    pub(crate) fn counting(&self) -> Place {
        let clock = ClockMode::Instructions;
        Place {
            engine: Arc::new(Soft { clock }),
            ..self.clone()
        }
    }

    /// What the table of differences says of this test here.
    pub(crate) fn differs(&self) -> bool {
        self.difference().is_some()
    }

    fn difference(&self) -> Option<&'static Difference> {
        difference(self.engine.name(), self.test)
    }

    /// Runs `test` and says how it went; whether it passed.
    fn run(&self, test: impl Fn(&Place)) -> bool {
        let name = format!("{} on {}", self.test, self.engine.name());
        let difference = self.difference();
        if let Some(Difference {
            runs: false,
            reason,
            ..
        }) = difference
        {
            println!("{name} does not run: {reason}");
            return true;
        }
        let passed = catch_unwind(AssertUnwindSafe(|| test(self))).is_ok();
        let outcome = if passed { "passed" } else { "FAILED" };
        match difference {
            Some(Difference { reason, .. }) => {
                println!("{name} {outcome}, as it differs: {reason}")
            }
            None => println!("{name} {outcome}"),
        }
        passed
    }
}

/// Runs `test` on every engine that this host offers, and names those it fails on. The software
/// engine is everywhere; in the lab, a machine made for KVM, it would be an interpreter in an
/// interpreter and is left out.
pub(crate) fn each<F: Fn(&Place)>(test: F) {
    let name = std::any::type_name::<F>()
        .trim_end_matches("::{{closure}}")
        .trim_start_matches("tiny_guests::");
    let mut failed = Vec::new();
    if std::env::var_os("VMLET_LAB").is_none() {
        let soft = Place {
            engine: Arc::new(Soft::default()),
            test: name,
            interpreted: false,
        };
        if !soft.run(&test) {
            failed.push("soft");
        }
    }
    match kvm() {
        Ok((engine, interpreted)) => {
            let kvm = Place {
                engine: Arc::<Kvm>::clone(engine),
                test: name,
                interpreted: *interpreted,
            };
            if !kvm.run(&test) {
                failed.push("kvm");
            }
        }
        Err(reason) => skip(name, "kvm", reason),
    }
    assert!(failed.is_empty(), "{name} failed on {failed:?}");
}

/// This host's KVM, and whether it interprets supervisor code.
fn kvm() -> &'static Result<(Arc<Kvm>, bool), String> {
    static FOUND: OnceLock<Result<(Arc<Kvm>, bool), String>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let kvm = Kvm::open().map_err(|error| error.to_string())?;
        let probe = vmlet_kvm::probe().map_err(|error| error.to_string())?;
        let interpreted = match probe.kernel_mode {
            KernelMode::Native => false,
            KernelMode::Interpreted { .. } => true,
            KernelMode::Broken { detail } => panic!("this KVM runs nothing: {detail}"),
        };
        Ok((Arc::new(kvm), interpreted))
    })
}

/// `base` times `VMLET_TIME_FACTOR`.
pub(crate) fn limit(base: Duration) -> Duration {
    let factor = std::env::var("VMLET_TIME_FACTOR")
        .ok()
        .and_then(|factor| factor.parse::<f64>().ok());
    base.mul_f64(factor.unwrap_or(1.0).max(0.1))
}
