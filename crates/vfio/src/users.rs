//! Who has a group open.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use vmlet_host::{HostRoot, IommuGroup};

use crate::{group, iommufd::device_path, type1::group_path};

/// Who has the file of that group, or of a function of it, open: "process 812 (python3)", or an owner
/// in this process, which itself may have a file open to try. Those that this user may not look into
/// are left out.
pub(crate) fn of(root: &HostRoot, number: u32) -> Vec<String> {
    let members = IommuGroup::read(root, number).map_or_else(Vec::new, |group| group.members);
    let files = members
        .iter()
        .filter_map(|one| device_path(root, one.address));
    let files: Vec<PathBuf> = files.chain([group_path(root, number)]).collect();
    let mut found: Vec<u32> = entries(&root.path("proc"))
        .filter(|folder| entries(&folder.join("fd")).any(|link| leads_to(&link, &files)))
        .filter_map(|folder| folder.file_name()?.to_str()?.parse().ok())
        .collect();
    found.retain(|other| *other != process::id());
    found.sort_unstable();
    let others = found.into_iter().map(|other| name(root, other));
    others.chain(group::owner_of(root, number)).collect()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let all = fs::read_dir(folder).into_iter().flatten();
    all.filter_map(|entry| Some(entry.ok()?.path()))
}

fn leads_to(link: &Path, files: &[PathBuf]) -> bool {
    fs::read_link(link).is_ok_and(|target| files.contains(&target))
}

fn name(root: &HostRoot, number: u32) -> String {
    match fs::read_to_string(root.path(format!("proc/{number}/comm"))) {
        Ok(name) => format!("process {number} ({})", name.trim()),
        Err(_) => format!("process {number}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::testing::Tree;

    #[test]
    fn processes_that_have_the_group_or_a_function_of_it_open_are_named() {
        let tree = Tree::new();
        tree.function("0000:01:00.0", ["0x1234", "0x11e8", "0x00ff00"], 7);
        tree.file(
            "sys/bus/pci/devices/0000:01:00.0/vfio-dev/vfio3/dev",
            "511:3\n",
        );
        let opens = |number: u32, name: &str, file: &str| {
            tree.file(&format!("proc/{number}/comm"), &format!("{name}\n"));
            tree.file(&format!("proc/{number}/fd/x"), "");
            let link = tree.path(&format!("proc/{number}/fd/5"));
            symlink(tree.path(file), link).unwrap();
        };
        opens(812, "python3", "dev/vfio/7");
        opens(813, "other", "dev/vfio/8");
        opens(900, "qemu", "dev/vfio/devices/vfio3");
        opens(process::id(), "test", "dev/vfio/7");
        let found = of(&tree.root(), 7);
        assert_eq!(found, ["process 812 (python3)", "process 900 (qemu)"]);
    }
}
