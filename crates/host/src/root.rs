//! Where the host's pseudo file systems are.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

/// Longest part of a file that is read, in bytes: `/proc/cpuinfo` and `/proc/interrupts` of a
/// machine with hundreds of processors are larger, and their beginning says all that is asked.
const READ_LIMIT: u64 = 1 << 20;
const FIRST_READ: usize = 8192;

/// The directory that holds `proc`, `sys`, `dev` and `etc`: `/` or a copy of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoot {
    path: PathBuf,
}

impl HostRoot {
    /// The tree below `path`.
    pub fn new(path: impl Into<PathBuf>) -> HostRoot {
        HostRoot { path: path.into() }
    }

    /// The path of `name`, which is relative to the root (`proc/meminfo`).
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// The first megabyte of a file, as text; none where it is missing or unreadable.
    pub(crate) fn read(&self, name: impl AsRef<Path>) -> Option<String> {
        let file = File::open(self.path(name)).ok()?;
        // These files tell no length; most fit into one read of this many bytes.
        let mut bytes = Vec::with_capacity(FIRST_READ);
        file.take(READ_LIMIT).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A file's only line, without blanks around it.
    pub(crate) fn value(&self, name: impl AsRef<Path>) -> Option<String> {
        self.read(name).map(|text| text.trim().to_owned())
    }

    /// The beginning of a file as it is; none where it is missing or unreadable.
    pub(crate) fn bytes(&self, name: impl AsRef<Path>, limit: u64) -> Option<Vec<u8>> {
        let file = File::open(self.path(name)).ok()?;
        let mut bytes = Vec::new();
        // What came before an error is there: sysfs gives a part of config space to some users.
        match file.take(limit).read_to_end(&mut bytes) {
            Err(_) if bytes.is_empty() => None,
            _ => Some(bytes),
        }
    }

    /// The last part of what a symbolic link leads to; none where there is no link.
    pub fn link(&self, name: impl AsRef<Path>) -> Option<String> {
        let target = fs::read_link(self.path(name)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// All of what a symbolic link leads to, as it is written there; none where there is no link.
    pub(crate) fn target(&self, name: impl AsRef<Path>) -> Option<String> {
        let target = fs::read_link(self.path(name)).ok()?;
        Some(target.to_string_lossy().into_owned())
    }

    /// Whether there is such a file or directory.
    pub(crate) fn exists(&self, name: impl AsRef<Path>) -> bool {
        self.path(name).exists()
    }

    /// The sorted names in a directory; empty where it is missing.
    pub(crate) fn names(&self, name: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(name)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .filter_map(Result::ok)
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

impl Default for HostRoot {
    fn default() -> HostRoot {
        HostRoot::new("/")
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A root made of plain files.
    pub(crate) struct FakeRoot {
        dir: tempfile::TempDir,
    }

    impl FakeRoot {
        pub(crate) fn new(files: &[(&str, &str)]) -> FakeRoot {
            let fake = FakeRoot {
                dir: tempfile::tempdir().unwrap(),
            };
            for (name, text) in files {
                fake.write(name, text);
            }
            fake
        }

        pub(crate) fn write(&self, name: &str, text: &str) {
            let path = self.dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        pub(crate) fn write_bytes(&self, name: &str, bytes: &[u8]) {
            self.write(name, "");
            fs::write(self.dir.path().join(name), bytes).unwrap();
        }

        /// A symbolic link, whose target need not be there.
        pub(crate) fn link(&self, name: &str, target: &str) {
            let path = self.dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(target, path).unwrap();
        }

        pub(crate) fn root(&self) -> HostRoot {
            HostRoot::new(self.dir.path())
        }
    }

    #[test]
    fn a_file_longer_than_the_limit_is_read_in_part() {
        let fake = FakeRoot::new(&[("proc/interrupts", &"x".repeat(3 << 20))]);
        assert_eq!(fake.root().read("proc/interrupts").unwrap().len(), 1 << 20);
    }

    #[test]
    fn a_missing_directory_has_no_names() {
        assert!(
            FakeRoot::new(&[])
                .root()
                .names("sys/class/iommu")
                .is_empty()
        );
    }
}
