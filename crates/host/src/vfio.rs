//! VFIO: the driver that takes functions for user space, its interfaces, and what is ready for it.

use crate::{Finding, HostRoot, PciDevice, iommu, switched_on};

pub(crate) fn findings(root: &HostRoot) -> Vec<Finding> {
    vec![
        driver(root),
        type1(root),
        iommufd(root),
        unsafe_interrupts(root),
        functions(root),
    ]
}

fn driver(root: &HostRoot) -> Finding {
    let topic = "vfio driver";
    if root.exists("sys/bus/pci/drivers/vfio-pci") {
        return Finding::ok(topic, "vfio-pci is loaded");
    }
    if !root.exists("sys/bus/pci") {
        return Finding::unknown(topic, "sysfs shows no PCI bus");
    }
    Finding::no(topic, "vfio-pci is not loaded").because(
        "nobody loaded the module, or this kernel was built without it",
        "To hand devices on, as root: modprobe vfio-pci.",
    )
}

fn type1(root: &HostRoot) -> Finding {
    let topic = "vfio type1";
    if root.exists("dev/vfio/vfio") {
        return Finding::ok(topic, "/dev/vfio/vfio is there");
    }
    Finding::no(topic, "/dev/vfio/vfio is missing").because(
        "VFIO is not loaded, or this container was not given its files",
        "As root: modprobe vfio-pci; in a container, pass /dev/vfio (--device /dev/vfio/vfio).",
    )
}

fn iommufd(root: &HostRoot) -> Finding {
    let topic = "iommufd";
    if root.exists("dev/iommu") {
        return Finding::ok(topic, "/dev/iommu is there");
    }
    Finding::no(topic, "/dev/iommu is missing").because(
        "this kernel was built without iommufd, or the module is not loaded",
        "Nothing has to be done: type1 does the same.",
    )
}

/// Without interrupt remapping a device can raise any interrupt of the host, so these modules refuse
/// it unless this parameter of theirs is on.
fn unsafe_interrupts(root: &HostRoot) -> Finding {
    let topic = "unsafe interrupts";
    let modules = ["vfio_iommu_type1", "iommufd"].into_iter();
    let loaded = modules.filter_map(|module| {
        let allowed = switched_on(root, module, "allow_unsafe_interrupts")?;
        Some((module, allowed))
    });
    let loaded: Vec<_> = loaded.collect();
    if loaded.is_empty() {
        return Finding::unknown(topic, "neither vfio_iommu_type1 nor iommufd is loaded");
    }
    match loaded.iter().find(|(_, allowed)| *allowed) {
        None => Finding::ok(topic, "refused"),
        Some((module, _)) => Finding::warning(topic, "allowed").because(
            format!(
                "{module}.allow_unsafe_interrupts is on: where interrupts are not remapped, a device \
                 that is handed on can raise any of the host's"
            ),
            format!("As root: echo 0 > /sys/module/{module}/parameters/allow_unsafe_interrupts."),
        ),
    }
}

fn functions(root: &HostRoot) -> Finding {
    let topic = "pci functions";
    let all = PciDevice::all(root);
    if all.is_empty() {
        return Finding::unknown(topic, "sysfs shows none");
    }
    let count = |wanted: fn(&&PciDevice) -> bool| all.iter().filter(wanted).count();
    let grouped = count(|one| one.group.is_some());
    let ready = count(|one| one.obstacles.is_empty());
    let shared = count(|one| one.virtual_functions.is_some());
    let detail = format!(
        "{}, {grouped} behind an IOMMU, {ready} ready to be handed on, {shared} with SR-IOV",
        all.len()
    );
    if grouped > 0 || root.names("sys/class/iommu").is_empty() {
        return Finding::ok(topic, detail);
    }
    let units = root.names("sys/class/iommu");
    let kinds: Vec<_> = units.iter().map(|name| iommu::kind(root, name)).collect();
    Finding::warning(topic, detail).because(
        format!("{} is active and serves none of them", kinds.join(", ")),
        "The kernel's log says why: dmesg | grep -i -e DMAR -e AMD-Vi -e iommu.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{State, root::testing::FakeRoot};

    #[test]
    fn what_is_missing_is_no_with_a_remedy() {
        let fake = FakeRoot::new(&[("sys/bus/pci/drivers/igb/bind", "")]);
        for found in [
            driver(&fake.root()),
            type1(&fake.root()),
            iommufd(&fake.root()),
        ] {
            assert_eq!(found.state, State::No);
            assert!(found.remedy.is_some());
        }
    }

    #[test]
    fn what_is_there_is_ok() {
        let fake = FakeRoot::new(&[
            ("sys/bus/pci/drivers/vfio-pci/bind", ""),
            ("dev/vfio/vfio", ""),
            ("dev/iommu", ""),
        ]);
        for found in [
            driver(&fake.root()),
            type1(&fake.root()),
            iommufd(&fake.root()),
        ] {
            assert_eq!(found.state, State::Ok);
        }
    }

    #[test]
    fn allowed_unsafe_interrupts_are_a_warning() {
        for module in ["vfio_iommu_type1", "iommufd"] {
            let file = format!("sys/module/{module}/parameters/allow_unsafe_interrupts");
            for (text, state) in [("Y\n", State::Warning), ("N\n", State::Ok)] {
                let fake = FakeRoot::new(&[(&file, text)]);
                let found = unsafe_interrupts(&fake.root());
                assert_eq!(found.state, state);
                assert!(found.cause.is_none_or(|cause| cause.starts_with(module)));
            }
        }
    }

    #[test]
    fn a_unit_that_serves_no_function_is_a_warning() {
        let device = "sys/bus/pci/devices/0000:01:00.0";
        let fake = FakeRoot::new(&[
            (&format!("{device}/vendor"), "0x1234\n"),
            (&format!("{device}/device"), "0x11e8\n"),
            (&format!("{device}/class"), "0x00ff00\n"),
        ]);
        assert_eq!(functions(&fake.root()).state, State::Ok);
        fake.write("sys/class/iommu/ivhd0/x", "");
        let found = functions(&fake.root());
        assert_eq!(found.state, State::Warning);
        assert!(found.cause.unwrap().starts_with("AMD-Vi"));
    }
}
