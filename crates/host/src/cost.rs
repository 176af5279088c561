//! Settings that let guests run, but slowly.

use crate::{Finding, HostRoot, kvm::switched_on};

/// A boolean parameter that should be on: (module, parameter, what its absence costs).
const WANTED: [(&str, &str, &str); 8] = [
    ("kvm_intel", "ept", "guests run on shadow page tables"),
    (
        "kvm_intel",
        "vpid",
        "every exit flushes the guest's translations",
    ),
    ("kvm_intel", "unrestricted_guest", "real mode is emulated"),
    (
        "kvm_intel",
        "enable_apicv",
        "interrupts reach a running guest by an exit",
    ),
    ("kvm_amd", "npt", "guests run on shadow page tables"),
    (
        "kvm_amd",
        "avic",
        "interrupts reach a running guest by an exit",
    ),
    (
        "kvm",
        "tdp_mmu",
        "page faults of several vCPUs wait for one lock",
    ),
    (
        "kvm",
        "mmio_caching",
        "every device access walks the page tables",
    ),
];

pub(crate) fn findings(root: &HostRoot) -> Vec<Finding> {
    vec![parameters(root), huge_page_splitting(root)]
}

fn parameters(root: &HostRoot) -> Finding {
    let topic = "kvm parameters";
    let known: Vec<_> = WANTED
        .iter()
        .filter_map(|(module, name, price)| {
            let on = switched_on(root, module, name)?;
            Some((on, format!("{module}.{name}"), *price))
        })
        .collect();
    if known.is_empty() {
        return Finding::unknown(topic, "no module of KVM shows parameters");
    }
    let off: Vec<_> = known.iter().filter(|(on, ..)| !on).collect();
    if off.is_empty() {
        return Finding::ok(topic, "nothing that helps is switched off");
    }
    let names: Vec<_> = off.iter().map(|(_, name, _)| name.as_str()).collect();
    let prices: Vec<_> = off
        .iter()
        .map(|(_, name, price)| format!("{name}: {price}"))
        .collect();
    Finding::warning(topic, format!("off: {}", names.join(", "))).because(
        prices.join("; "),
        "Where the hardware offers it, load the module with the parameter set to 1.",
    )
}

/// With `nx_huge_pages` on, each VM gets a recovery thread; moving it between control groups costs
/// tens of milliseconds a VM on Linux 6.1 and later unless cgroup2 is mounted with `favordynmods`.
fn huge_page_splitting(root: &HostRoot) -> Finding {
    let topic = "nx_huge_pages";
    let Some(value) = root.value("sys/module/kvm/parameters/nx_huge_pages") else {
        return Finding::unknown(topic, "kvm has no such parameter or is not loaded");
    };
    let mounts = root.read("proc/self/mounts").unwrap_or_default();
    let dynamic = mounts.contains("favordynmods");
    match value.as_str() {
        "N" | "0" | "never" => Finding::ok(topic, "off: guests' large pages stay whole"),
        "Y" | "1" => Finding::warning(topic, "on: executable large pages are split").because(
            if dynamic {
                "the processor has the \"iTLB multihit\" erratum"
            } else {
                "the \"iTLB multihit\" erratum; each VM also starts slowly, cgroups lack favordynmods"
            },
            "Where guests are trusted: kvm.nx_huge_pages=never. \
             Else: mount -o remount,favordynmods /sys/fs/cgroup.",
        ),
        _ => Finding::unknown(topic, format!("the parameter reads {value:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{State, root::testing::FakeRoot};

    #[test]
    fn shadow_paging_is_a_warning_that_names_the_parameter() {
        let fake = FakeRoot::new(&[
            ("sys/module/kvm_amd/parameters/npt", "0\n"),
            ("sys/module/kvm_amd/parameters/avic", "Y\n"),
        ]);
        let finding = parameters(&fake.root());
        assert_eq!(finding.state, State::Warning);
        assert_eq!(finding.detail, "off: kvm_amd.npt");
    }

    #[test]
    fn all_on_is_ok() {
        let fake = FakeRoot::new(&[("sys/module/kvm_intel/parameters/ept", "Y\n")]);
        assert_eq!(parameters(&fake.root()).state, State::Ok);
    }

    #[test]
    fn splitting_of_large_pages_is_a_warning() {
        let fake = FakeRoot::new(&[("sys/module/kvm/parameters/nx_huge_pages", "Y\n")]);
        let finding = huge_page_splitting(&fake.root());
        assert_eq!(finding.state, State::Warning);
        assert!(finding.cause.unwrap().contains("favordynmods"));
    }

    #[test]
    fn cgroups_that_favor_changes_are_not_blamed() {
        let fake = FakeRoot::new(&[
            ("sys/module/kvm/parameters/nx_huge_pages", "Y\n"),
            (
                "proc/self/mounts",
                "cgroup2 /sys/fs/cgroup cgroup2 rw,favordynmods 0 0\n",
            ),
        ]);
        let cause = huge_page_splitting(&fake.root()).cause.unwrap();
        assert!(!cause.contains("favordynmods"));
    }

    #[test]
    fn a_value_of_a_later_kernel_is_unknown() {
        let fake = FakeRoot::new(&[("sys/module/kvm/parameters/nx_huge_pages", "maybe\n")]);
        assert_eq!(huge_page_splitting(&fake.root()).state, State::Unknown);
    }
}
