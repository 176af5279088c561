//! Which engine runs a machine.

use std::sync::Arc;

use vmlet_kvm::{KernelMode, Kvm};
use vmlet_softcpu::Soft;
use vmlet_vcpu::{EngineError, Hypervisor};

use crate::{EngineChoice, MachineError};

/// Opens the engine asked for. `Auto` is KVM: the software engine runs where it is asked for.
pub(crate) fn open(choice: EngineChoice) -> Result<Arc<dyn Hypervisor>, MachineError> {
    match choice {
        EngineChoice::Auto | EngineChoice::Kvm => Ok(Arc::new(Kvm::open()?)),
        EngineChoice::Soft => Ok(Arc::new(Soft::default())),
    }
}

/// What a probe of the engines found, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineReport {
    /// The engine.
    pub engine: &'static str,
    /// VMs can be made.
    pub usable: bool,
    /// An operating system's kernel can run.
    pub runs_kernels: bool,
    /// What was found, for people.
    pub detail: String,
    /// What would help.
    pub remedy: Option<String>,
    /// The vendor string guests see.
    pub vendor: String,
}

/// Probes `/dev/kvm` by running a small guest.
pub fn report() -> EngineReport {
    match vmlet_kvm::probe() {
        Ok(found) => {
            let (runs_kernels, detail, remedy) = judge(&found.kernel_mode);
            let (vendor, remedy) = (found.vendor, remedy.map(str::to_owned));
            EngineReport {
                engine: "kvm",
                usable: true,
                runs_kernels,
                detail,
                remedy,
                vendor,
            }
        }
        Err(error) => {
            let remedy = match &error {
                EngineError::Open { remedy, .. } | EngineError::Lacking { remedy, .. } => {
                    Some((*remedy).to_owned())
                }
                _ => None,
            };
            EngineReport {
                engine: "kvm",
                usable: false,
                runs_kernels: false,
                detail: error.to_string(),
                remedy,
                vendor: String::new(),
            }
        }
    }
}

fn judge(mode: &KernelMode) -> (bool, String, Option<&'static str>) {
    match mode {
        KernelMode::Native => (true, "the processor runs supervisor code".to_owned(), None),
        KernelMode::Interpreted { bytes } => (
            false,
            format!("this KVM interprets supervisor code and gave up at {bytes:02x?}"),
            Some("Ask the host's operator for hardware-backed nested virtualization."),
        ),
        KernelMode::Broken { detail } => {
            (false, format!("the probe's guest ended by {detail}"), None)
        }
    }
}
