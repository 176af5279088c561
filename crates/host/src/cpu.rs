//! The processor and its virtualization extensions, from `/proc/cpuinfo`.
//!
//! Linux lists VT-x' sub-features in a line of their own, "vmx flags" (since 5.10), and AMD's among
//! the ordinary flags (arch/x86/include/asm/cpufeatures.h and vmxfeatures.h).

use crate::{Finding, HostRoot};

/// Who made the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// "GenuineIntel": VT-x and EPT.
    Intel,
    /// "AuthenticAMD" or "HygonGenuine": SVM and NPT.
    Amd,
    /// Any other.
    Other,
}

/// The first processor of `/proc/cpuinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Whose extensions to look for.
    pub vendor: Vendor,
    /// The vendor's and the model's name.
    pub name: String,
    flags: Vec<String>,
    vmx_flags: Vec<String>,
}

impl Cpu {
    /// Reads it; none where `/proc/cpuinfo` is missing or not that of an x86 processor.
    pub fn read(root: &HostRoot) -> Option<Cpu> {
        let text = root.read("proc/cpuinfo")?;
        let vendor = field(&text, "vendor_id")?;
        let model = field(&text, "model name").unwrap_or("unknown model");
        let words = |key| -> Vec<String> {
            let line = field(&text, key).unwrap_or_default();
            line.split_whitespace().map(str::to_owned).collect()
        };
        Some(Cpu {
            vendor: match vendor {
                "GenuineIntel" => Vendor::Intel,
                "AuthenticAMD" | "HygonGenuine" => Vendor::Amd,
                _ => Vendor::Other,
            },
            name: format!("{vendor}, {model}"),
            flags: words("flags"),
            vmx_flags: words("vmx flags"),
        })
    }

    /// Whether the processor has a flag by Linux' name (`svm`, `npt`, `nx`).
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|one| one == flag)
    }

    /// Whether VT-x has a sub-feature by Linux' name; none where the kernel does not list them.
    pub fn has_vmx(&self, flag: &str) -> Option<bool> {
        (!self.vmx_flags.is_empty()).then(|| self.vmx_flags.iter().any(|one| one == flag))
    }

    /// Whether it can run guests in hardware at all.
    pub fn virtualizes(&self) -> bool {
        match self.vendor {
            Vendor::Intel => self.has("vmx"),
            Vendor::Amd => self.has("svm"),
            Vendor::Other => false,
        }
    }
}

fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim())
}

pub(crate) fn findings(root: &HostRoot) -> Vec<Finding> {
    let Some(cpu) = Cpu::read(root) else {
        let cause = "/proc/cpuinfo is missing or not that of an x86 processor";
        return ["cpu", "virtualization", "nested paging"]
            .map(|topic| Finding::unknown(topic, cause))
            .to_vec();
    };
    let mut all = vec![Finding::ok("cpu", cpu.name.clone()), extension(&cpu)];
    all.push(paging(&cpu));
    if cpu.vendor == Vendor::Intel {
        let slow = "Every exit flushes the guest's translations.";
        all.push(sub_feature(&cpu, "vpid", "vpid", slow));
        let real = "KVM emulates real mode, which is slow; start kernels in 64-bit mode.";
        let name = "unrestricted_guest";
        all.push(sub_feature(&cpu, "unrestricted guest", name, real));
    }
    all
}

fn extension(cpu: &Cpu) -> Finding {
    let topic = "virtualization";
    let name = match cpu.vendor {
        Vendor::Intel => "VT-x (vmx)",
        Vendor::Amd => "SVM (svm)",
        Vendor::Other => "VT-x or SVM",
    };
    if cpu.virtualizes() {
        return Finding::ok(topic, name);
    }
    let no = Finding::no(topic, format!("no {name}"));
    if cpu.has("hypervisor") {
        no.because(
            "this is a virtual machine and its hypervisor does not offer the extension",
            "Switch nested virtualization on for this machine, or take an instance that offers it.",
        )
    } else {
        no.because(
            "the processor lacks the extension or the firmware switched it off",
            "Switch virtualization on in the firmware's set-up.",
        )
    }
}

fn paging(cpu: &Cpu) -> Finding {
    let (name, has) = match cpu.vendor {
        Vendor::Intel => ("EPT", cpu.has_vmx("ept").or(cpu.has("ept").then_some(true))),
        Vendor::Amd => ("NPT", Some(cpu.has("npt"))),
        Vendor::Other => ("EPT or NPT", Some(false)),
    };
    let topic = "nested paging";
    match has {
        Some(true) => Finding::ok(topic, name),
        None if cpu.virtualizes() => {
            Finding::unknown(topic, "the kernel does not list VT-x' sub-features")
        }
        _ if cpu.virtualizes() => Finding::no(topic, format!("no {name}")).because(
            "the processor or the hypervisor above does not offer it",
            "KVM uses shadow page tables, which cost much; take a machine that offers it.",
        ),
        _ => Finding::no(topic, format!("no {name}")).because(
            "it comes with the virtualization extension, which is not offered",
            "See \"virtualization\".",
        ),
    }
}

fn sub_feature(cpu: &Cpu, topic: &'static str, flag: &str, price: &str) -> Finding {
    match cpu.has_vmx(flag) {
        Some(true) => Finding::ok(topic, "present"),
        Some(false) => Finding::warning(topic, "absent").because(
            "the processor or the hypervisor above does not offer it",
            price,
        ),
        None => Finding::unknown(topic, "the kernel does not list VT-x' sub-features"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{State, root::testing::FakeRoot};

    const INTEL: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Example\n\
        flags\t\t: fpu vmx ept\nvmx flags\t: vnmi ept vpid\n\nprocessor\t: 1\nflags\t\t: none\n";
    const AMD_GUEST: &str =
        "vendor_id\t: AuthenticAMD\nmodel name\t: Example\nflags\t\t: fpu hypervisor\n";

    fn state(all: &[Finding], topic: &str) -> State {
        all.iter().find(|one| one.topic == topic).unwrap().state
    }

    #[test]
    fn intel_with_ept_and_no_unrestricted_guest_warns() {
        let all = findings(&FakeRoot::new(&[("proc/cpuinfo", INTEL)]).root());
        assert_eq!(state(&all, "virtualization"), State::Ok);
        assert_eq!(state(&all, "nested paging"), State::Ok);
        assert_eq!(state(&all, "vpid"), State::Ok);
        assert_eq!(state(&all, "unrestricted guest"), State::Warning);
    }

    #[test]
    fn an_old_kernel_that_lists_no_sub_features_leaves_them_unknown() {
        let text = "vendor_id : GenuineIntel\nflags : vmx\n";
        let all = findings(&FakeRoot::new(&[("proc/cpuinfo", text)]).root());
        assert_eq!(state(&all, "vpid"), State::Unknown);
        assert_eq!(state(&all, "nested paging"), State::Unknown);
    }

    #[test]
    fn a_guest_without_svm_is_told_to_ask_its_hypervisor() {
        let all = findings(&FakeRoot::new(&[("proc/cpuinfo", AMD_GUEST)]).root());
        let no = &all[1];
        assert_eq!((no.topic, no.state), ("virtualization", State::No));
        assert!(no.remedy.as_ref().unwrap().contains("nested"));
    }

    #[test]
    fn a_machine_without_svm_is_told_to_look_into_its_firmware() {
        let text = AMD_GUEST.replace("hypervisor", "svm_is_off");
        let all = findings(&FakeRoot::new(&[("proc/cpuinfo", &text)]).root());
        assert!(all[1].remedy.as_ref().unwrap().contains("firmware"));
    }

    #[test]
    fn a_processor_of_another_architecture_is_unknown() {
        let text = "processor : 0\nBogoMIPS : 50\nFeatures : fp asimd\n";
        let all = findings(&FakeRoot::new(&[("proc/cpuinfo", text)]).root());
        assert!(all.iter().all(|one| one.state == State::Unknown));
    }
}
