//! KVM: its kernel modules, the right to use `/dev/kvm`, nested virtualization.

use std::{fs::OpenOptions, io, os::unix::fs::MetadataExt};

use crate::{Finding, HostRoot};

/// errno values of Linux' asm-generic/errno-base.h.
const EPERM: i32 = 1;
const ENXIO: i32 = 6;
const EACCES: i32 = 13;
const ENODEV: i32 = 19;

/// The loaded parts of KVM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvmModules {
    /// Whether `kvm` itself is there.
    pub core: bool,
    /// The hardware's part: `kvm_intel`, `kvm_amd` or another that registers as one.
    pub hardware: Vec<String>,
}

impl KvmModules {
    /// Reads `/sys/module`, which lists built-in modules that have parameters too.
    pub fn read(root: &HostRoot) -> KvmModules {
        let names = root.names("sys/module");
        KvmModules {
            core: names.iter().any(|name| name == "kvm"),
            hardware: names
                .into_iter()
                .filter(|name| name.starts_with("kvm_"))
                .collect(),
        }
    }
}

/// A boolean module parameter, which the kernel shows as `Y`/`N` or `1`/`0`; none for any other.
pub fn switched_on(root: &HostRoot, module: &str, parameter: &str) -> Option<bool> {
    let value = root.value(format!("sys/module/{module}/parameters/{parameter}"))?;
    match value.as_str() {
        "Y" | "1" => Some(true),
        "N" | "0" => Some(false),
        _ => None,
    }
}

pub(crate) fn findings(root: &HostRoot) -> Vec<Finding> {
    let modules = KvmModules::read(root);
    vec![
        modules_loaded(&modules),
        device(root),
        nested(root, &modules),
    ]
}

fn modules_loaded(modules: &KvmModules) -> Finding {
    let topic = "kvm modules";
    if let (true, [_, ..]) = (modules.core, modules.hardware.as_slice()) {
        let list = format!("kvm, {}", modules.hardware.join(", "));
        let known = |name: &String| name == "kvm_intel" || name == "kvm_amd";
        if modules.hardware.iter().any(known) {
            return Finding::ok(topic, list);
        }
        return Finding::warning(topic, list).because(
            "the module below KVM is neither kvm_intel nor kvm_amd",
            "Such a KVM may be unable to run a kernel: the probe of the engine tells.",
        );
    }
    let detail = if modules.core {
        "kvm without kvm_intel or kvm_amd"
    } else {
        "none in /sys/module"
    };
    Finding::no(topic, detail).because(
        "the modules are not loaded, or not offered by this kernel",
        "As root: modprobe kvm_intel, or modprobe kvm_amd.",
    )
}

fn device(root: &HostRoot) -> Finding {
    let path = root.path("dev/kvm");
    let opened = OpenOptions::new().read(true).write(true).open(&path);
    let group = path
        .metadata()
        .ok()
        .map(|meta| group_name(root, meta.gid(), meta.mode()));
    device_answer(opened.map(drop), group)
}

/// The group that may open the device, if its mode lets one.
fn group_name(root: &HostRoot, gid: u32, mode: u32) -> Option<String> {
    const GROUP_READ_WRITE: u32 = 0o060;
    if mode & GROUP_READ_WRITE != GROUP_READ_WRITE {
        return None;
    }
    let groups = root.read("etc/group").unwrap_or_default();
    let name = groups.lines().find_map(|line| {
        let mut parts = line.split(':');
        let name = parts.next()?;
        (parts.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    });
    Some(name.unwrap_or_else(|| gid.to_string()))
}

/// `group`: none where the device's owner cannot be read, else the group that may open it.
fn device_answer(opened: io::Result<()>, group: Option<Option<String>>) -> Finding {
    let topic = "/dev/kvm";
    let Err(error) = opened else {
        return Finding::ok(topic, "readable and writable");
    };
    if error.kind() == io::ErrorKind::NotFound {
        return Finding::no(topic, "missing").because(
            "no KVM module made it, or this container was not given it",
            "Load kvm_intel or kvm_amd; in a container, pass the device (--device /dev/kvm).",
        );
    }
    let no = Finding::no(topic, format!("cannot be opened: {error}"));
    match (error.raw_os_error(), group.flatten()) {
        (Some(EACCES), Some(group)) => no.because(
            format!("only root and the group {group} may use it"),
            format!("As root: usermod -aG {group} USER; then log in again."),
        ),
        (Some(EACCES), None) => no.because(
            "only root may use it",
            "As root: chgrp kvm /dev/kvm && chmod 660 /dev/kvm; then join the group kvm.",
        ),
        (Some(EPERM), _) => no.because(
            "a device rule of the container or of the control group forbids it",
            "Give the container the device (--device /dev/kvm).",
        ),
        (Some(ENODEV | ENXIO), _) => no.because(
            "the device node has no driver behind it",
            "Load kvm_intel or kvm_amd.",
        ),
        _ => no.because(
            "the kernel refused",
            "See the kernel's log for KVM's messages.",
        ),
    }
}

fn nested(root: &HostRoot, modules: &KvmModules) -> Finding {
    let topic = "nested";
    for module in ["kvm_intel", "kvm_amd"] {
        match switched_on(root, module, "nested") {
            Some(true) => return Finding::ok(topic, "guests can run guests"),
            Some(false) => {
                return Finding::warning(topic, "guests cannot run guests").because(
                    format!("{module}.nested is off"),
                    format!("As root, if guests need it: modprobe -r {module}, modprobe {module} nested=1."),
                );
            }
            None => {}
        }
    }
    let cause = if modules.hardware.is_empty() {
        "no module of KVM is loaded"
    } else {
        "the loaded module has no parameter that says so"
    };
    Finding::unknown(topic, cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{State, root::testing::FakeRoot};

    fn refused(errno: i32, group: Option<Option<String>>) -> Finding {
        device_answer(Err(io::Error::from_raw_os_error(errno)), group)
    }

    #[test]
    fn a_missing_device_is_no() {
        let finding = device(&FakeRoot::new(&[]).root());
        assert_eq!(
            (finding.state, finding.detail.as_str()),
            (State::No, "missing")
        );
    }

    #[test]
    fn a_device_that_opens_is_ok() {
        let fake = FakeRoot::new(&[("dev/kvm", "")]);
        assert_eq!(device(&fake.root()).state, State::Ok);
    }

    #[test]
    fn a_denied_user_is_told_which_group_to_join() {
        let finding = refused(EACCES, Some(Some("kvm".to_owned())));
        assert_eq!(finding.state, State::No);
        assert!(finding.remedy.unwrap().contains("usermod -aG kvm"));
    }

    #[test]
    fn a_device_of_root_alone_names_no_group() {
        let finding = refused(EACCES, Some(None));
        assert_eq!(finding.cause.unwrap(), "only root may use it");
    }

    #[test]
    fn a_container_rule_is_told_from_a_file_mode() {
        assert!(refused(EPERM, None).remedy.unwrap().contains("--device"));
    }

    #[test]
    fn the_group_is_named_by_the_hosts_group_file() {
        let fake = FakeRoot::new(&[("etc/group", "root:x:0:\nkvm:x:104:me\n")]);
        let root = fake.root();
        assert_eq!(group_name(&root, 104, 0o660).unwrap(), "kvm");
        assert_eq!(group_name(&root, 7, 0o660).unwrap(), "7");
        assert_eq!(group_name(&root, 104, 0o600), None);
    }

    #[test]
    fn an_unknown_module_below_kvm_is_a_warning() {
        let fake = FakeRoot::new(&[("sys/module/kvm/x", ""), ("sys/module/kvm_new/x", "")]);
        let finding = modules_loaded(&KvmModules::read(&fake.root()));
        assert_eq!(finding.state, State::Warning);
        assert!(finding.detail.contains("kvm_new"));
    }

    #[test]
    fn core_without_hardware_part_is_no() {
        let fake = FakeRoot::new(&[("sys/module/kvm/x", "")]);
        let finding = modules_loaded(&KvmModules::read(&fake.root()));
        assert_eq!(finding.state, State::No);
    }

    #[test]
    fn nested_follows_the_parameter_in_both_spellings() {
        for (text, state) in [
            ("Y\n", State::Ok),
            ("1\n", State::Ok),
            ("N\n", State::Warning),
        ] {
            let fake = FakeRoot::new(&[("sys/module/kvm_amd/parameters/nested", text)]);
            let root = fake.root();
            assert_eq!(nested(&root, &KvmModules::read(&root)).state, state);
        }
    }

    #[test]
    fn nested_without_a_parameter_is_unknown() {
        let fake = FakeRoot::new(&[("sys/module/kvm_new/x", "")]);
        let root = fake.root();
        assert_eq!(
            nested(&root, &KvmModules::read(&root)).state,
            State::Unknown
        );
    }
}
