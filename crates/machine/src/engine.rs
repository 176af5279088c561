//! Which engine runs a machine.

use std::sync::{Arc, OnceLock};

use vmlet_kvm::{KernelMode, Kvm};
use vmlet_softcpu::{ClockMode, Soft};
use vmlet_vcpu::{
    EngineError, Hypervisor, MissingFeature,
    cpuid::{CpuModel, MODELS, missing_features},
};

use crate::{ClockChoice, EngineChoice, MachineError};

/// Errors of the host that say nothing of its KVM: it is short of something now.
const SHORTAGES: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN];

/// What a guest on `/dev/kvm` found out. A process asks once: the answer is the module's and the
/// processor's, and neither changes under an open VM.
static JUDGED: OnceLock<Judgement> = OnceLock::new();

/// Likewise for what it shows of the processor whatever the CPU model.
static UNMASKED: OnceLock<Vec<MissingFeature>> = OnceLock::new();

/// Any rate of a time-stamp counter.
const TSC_KHZ: u32 = 1_000_000;

/// Opens the engine asked for; [`choose`] says what `Auto` is, but only one engine counts
/// instructions.
pub(crate) fn open(
    choice: EngineChoice,
    clock: ClockChoice,
) -> Result<Arc<dyn Hypervisor>, MachineError> {
    let counts = clock == ClockChoice::Icount;
    match choice {
        EngineChoice::Auto if counts => open(EngineChoice::Soft, clock),
        EngineChoice::Auto => open(choose()?.engine, clock),
        EngineChoice::Kvm if counts => Err(MachineError::Unsupported {
            what: "clock=\"icount\" on KVM",
            remedy: "Ask for engine=\"soft\": a processor does not stop at an instruction.",
        }),
        EngineChoice::Kvm => Ok(Arc::new(Kvm::open()?)),
        EngineChoice::Soft => Ok(Arc::new(Soft {
            clock: if counts {
                ClockMode::Instructions
            } else {
                ClockMode::Realtime
            },
        })),
    }
}

/// What the default command line of a Linux guest carries on `engine`, beside what it carries on
/// every engine.
pub fn linux_cmdline(engine: EngineChoice) -> &'static str {
    match engine {
        EngineChoice::Soft => vmlet_softcpu::LINUX_CMDLINE,
        EngineChoice::Auto | EngineChoice::Kvm => "",
    }
}

/// The engine that [`EngineChoice::Auto`] stands for on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// `Kvm` or `Soft`.
    pub engine: EngineChoice,
    /// Why, for people.
    pub reason: String,
    /// What would give a faster engine.
    pub remedy: Option<String>,
}

/// Chooses the engine: KVM where a guest ran supervisor code on the processor, else the software
/// CPU.
///
/// A KVM that interprets supervisor code is not taken, though small guests may run on it: which
/// instructions a guest will need cannot be known beforehand. A host that is merely short of
/// descriptors or memory is an error, so that a shortage does not make guests slow unseen.
pub fn choose() -> Result<Choice, MachineError> {
    match judged() {
        Ok(judgement) => Ok(judgement.choice()),
        Err(error)
            if error
                .errno()
                .is_some_and(|errno| SHORTAGES.contains(&errno)) =>
        {
            Err(error.into())
        }
        Err(error) => Ok(Judgement::of_error(&error).choice()),
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
    /// Kilohertz of guests' time-stamp counters.
    pub tsc_khz: Option<u32>,
}

/// Probes `/dev/kvm` by running a small guest.
pub fn report() -> EngineReport {
    let (judgement, vendor) = match vmlet_kvm::probe() {
        Ok(found) => (Judgement::of_mode(&found.kernel_mode), found.vendor),
        Err(error) => (Judgement::of_error(&error), String::new()),
    };
    EngineReport {
        engine: EngineChoice::Kvm.name(),
        usable: judgement.usable,
        runs_kernels: judgement.runs_kernels,
        detail: judgement.detail,
        remedy: judgement.remedy.map(str::to_owned),
        vendor,
        tsc_khz: Kvm::open().and_then(|kvm| kvm.tsc_khz()).ok(),
    }
}

/// What guests of this KVM see though their CPU model has not got it, as a guest found out once.
pub(crate) fn unmasked() -> Result<Vec<MissingFeature>, EngineError> {
    if let Some(known) = UNMASKED.get() {
        return Ok(known.clone());
    }
    let found = vmlet_kvm::unmasked_features()?;
    Ok(UNMASKED.get_or_init(|| found).clone())
}

/// Refuses dirty rings of a KVM that interprets supervisor code: it was seen to carry out a batch of
/// instructions before it looks at the room in a ring, and to write past the ring's end.
pub(crate) fn check_rings(engine: &dyn Hypervisor) -> Result<(), MachineError> {
    if engine.name() == EngineChoice::Soft.name() || judged()?.runs_kernels {
        return Ok(());
    }
    Err(MachineError::Unsupported {
        what: "a dirty ring on this host's KVM, which interprets supervisor code,",
        remedy: "Leave dirty_ring out: dirty pages are then noted in a bitmap.",
    })
}

/// A CPU model, and what an engine lacks of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelReport {
    /// The model's name.
    pub model: &'static str,
    /// The engine's name.
    pub engine: &'static str,
    /// What of the model the engine lacks.
    pub missing: Vec<String>,
    /// What guests see of the processor though the model has not got it.
    pub unmasked: Vec<String>,
}

/// What each engine that works here lacks of each CPU model.
pub fn models() -> Vec<ModelReport> {
    let kvm = Kvm::open()
        .ok()
        .map(|kvm| Arc::new(kvm) as Arc<dyn Hypervisor>);
    let soft: Arc<dyn Hypervisor> = Arc::new(Soft::default());
    let engines = kvm.into_iter().chain([soft]);
    engines.flat_map(|engine| models_of(&*engine)).collect()
}

fn models_of(engine: &dyn Hypervisor) -> Vec<ModelReport> {
    let name = engine.name();
    let (Ok(offered), Ok(shown)) = (
        engine.supported_cpuid(),
        if name == EngineChoice::Kvm.name() {
            unmasked()
        } else {
            Ok(Vec::new())
        },
    ) else {
        return Vec::new();
    };
    let names = |features: &[MissingFeature]| features.iter().map(|f| f.name.clone()).collect();
    let report = |model: &'static CpuModel| {
        // No feature depends on the counter's rate.
        let missing = missing_features(&model.cpuid(TSC_KHZ), &offered);
        ModelReport {
            model: model.name,
            engine: name,
            missing: names(&missing),
            unmasked: names(&shown),
        }
    };
    MODELS.into_iter().map(report).collect()
}

fn judged() -> Result<Judgement, EngineError> {
    if let Some(known) = JUDGED.get() {
        return Ok(known.clone());
    }
    let found = vmlet_kvm::probe()?;
    let judgement = Judgement::of_mode(&found.kernel_mode);
    Ok(JUDGED.get_or_init(|| judgement).clone())
}

/// What is thought of a KVM.
#[derive(Clone, Debug)]
struct Judgement {
    usable: bool,
    runs_kernels: bool,
    detail: String,
    remedy: Option<&'static str>,
}

impl Judgement {
    fn of_mode(mode: &KernelMode) -> Judgement {
        let (runs_kernels, detail, remedy) = match mode {
            KernelMode::Native => (true, "the processor runs supervisor code".to_owned(), None),
            KernelMode::Interpreted { bytes } => (
                false,
                format!(
                    "this KVM interprets supervisor code and gave up at {}",
                    hex(bytes)
                ),
                Some("Ask the host's operator for hardware-backed nested virtualization."),
            ),
            KernelMode::Broken { detail } => (
                false,
                format!("the probe's guest ended by {detail}"),
                Some("See the kernel's log for what is wrong with KVM."),
            ),
        };
        Judgement {
            usable: true,
            runs_kernels,
            detail,
            remedy,
        }
    }

    fn of_error(error: &EngineError) -> Judgement {
        let (detail, remedy) = match error {
            EngineError::Open {
                path,
                remedy,
                source,
                ..
            } => (format!("{path} cannot be opened: {source}"), Some(*remedy)),
            EngineError::Lacking { feature, remedy } => {
                (format!("this KVM lacks {feature}"), Some(*remedy))
            }
            other => (
                format!("KVM makes no VM: {other}"),
                Some("See the kernel's log for what is wrong with KVM."),
            ),
        };
        Judgement {
            usable: false,
            runs_kernels: false,
            detail,
            remedy,
        }
    }

    fn choice(&self) -> Choice {
        Choice {
            engine: if self.runs_kernels {
                EngineChoice::Kvm
            } else {
                EngineChoice::Soft
            },
            reason: self.detail.clone(),
            remedy: self.remedy.map(str::to_owned),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_kvm_that_ran_supervisor_code_is_chosen_and_needs_no_remedy() {
        let choice = Judgement::of_mode(&KernelMode::Native).choice();
        assert_eq!((choice.engine, choice.remedy), (EngineChoice::Kvm, None));
    }

    #[test]
    fn a_kvm_that_interprets_or_fails_gives_way_to_the_software_cpu_with_a_remedy() {
        let bytes = vec![0x66, 0x0f];
        let detail = "Halt".to_owned();
        for mode in [
            KernelMode::Interpreted { bytes },
            KernelMode::Broken { detail },
        ] {
            let choice = Judgement::of_mode(&mode).choice();
            assert_eq!(choice.engine, EngineChoice::Soft);
            assert!(choice.remedy.is_some());
        }
    }

    #[test]
    fn a_missing_device_is_named_with_what_the_kernel_said() {
        let error = EngineError::Open {
            path: "/dev/kvm".to_owned(),
            errno: libc::ENOENT,
            remedy: "Load it.",
            source: io::Error::from_raw_os_error(libc::ENOENT),
        };
        let choice = Judgement::of_error(&error).choice();
        assert_eq!(choice.engine, EngineChoice::Soft);
        assert!(
            choice
                .reason
                .contains("/dev/kvm cannot be opened: No such file")
        );
        assert_eq!(choice.remedy.as_deref(), Some("Load it."));
    }

    #[test]
    fn only_the_software_cpu_adds_to_the_command_line() {
        assert_eq!(linux_cmdline(EngineChoice::Kvm), "");
        assert!(linux_cmdline(EngineChoice::Soft).contains("cryptomgr.notests"));
    }
}
