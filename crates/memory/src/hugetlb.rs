//! The host's pools of huge pages, as sysfs tells of them.
//!
//! Source: Linux, Documentation/admin-guide/mm/hugetlbpage.rst.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::MemoryError;

const POOLS: &str = "/sys/kernel/mm/hugepages";
const PREFIX: &str = "hugepages-";
const SUFFIX: &str = "kB";

/// A pool of huge pages of one size. Free pages that are reserved belong to a mapping already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugePool {
    /// Bytes a page.
    pub page_size: u64,
    /// Pages in the pool (`nr_hugepages`).
    pub total: u64,
    /// Pages nobody has touched (`free_hugepages`).
    pub free: u64,
    /// Free pages promised to mappings (`resv_hugepages`).
    pub reserved: u64,
}

impl HugePool {
    /// The host's pools, by page size.
    pub fn all() -> Vec<HugePool> {
        Self::all_in(Path::new(POOLS))
    }

    /// The host's pool of this page size; an error that names the sizes there are.
    pub fn of(page_size: u64) -> Result<HugePool, MemoryError> {
        let pools = Self::all();
        let found = pools.iter().find(|pool| pool.page_size == page_size);
        found.copied().ok_or_else(|| MemoryError::NoHugePages {
            page_size,
            offered: offered(&pools),
        })
    }

    /// Pages a new mapping can have.
    pub fn available(&self) -> u64 {
        self.free.saturating_sub(self.reserved)
    }

    /// The file that sets the size of the pool.
    pub fn control(&self) -> PathBuf {
        directory(Path::new(POOLS), self.page_size).join("nr_hugepages")
    }

    /// The error of a mapping of `needed` pages for which the pool is too small.
    pub(crate) fn too_small(&self, needed: u64) -> MemoryError {
        let missing = needed.saturating_sub(self.available());
        MemoryError::HugePool {
            needed,
            available: self.available(),
            total: self.total,
            page_size: self.page_size,
            wanted: self.total.saturating_add(missing),
            control: self.control(),
        }
    }

    fn all_in(root: &Path) -> Vec<HugePool> {
        let Ok(entries) = fs::read_dir(root) else {
            return Vec::new();
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let sizes = names.filter_map(|name| {
            let kilobytes = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
            kilobytes.parse::<u64>().ok()?.checked_mul(1024)
        });
        let mut pools: Vec<_> = sizes.filter_map(|size| Self::read(root, size)).collect();
        pools.sort_by_key(|pool| pool.page_size);
        pools
    }

    fn read(root: &Path, page_size: u64) -> Option<HugePool> {
        let directory = directory(root, page_size);
        let number = |name: &str| -> Option<u64> {
            fs::read_to_string(directory.join(name))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        Some(HugePool {
            page_size,
            total: number("nr_hugepages")?,
            free: number("free_hugepages")?,
            reserved: number("resv_hugepages")?,
        })
    }
}

fn directory(root: &Path, page_size: u64) -> PathBuf {
    root.join(format!("{PREFIX}{}{SUFFIX}", page_size / 1024))
}

fn offered(pools: &[HugePool]) -> String {
    if pools.is_empty() {
        return "none".to_owned();
    }
    let sizes = pools.iter().map(|pool| size_name(pool.page_size));
    sizes.collect::<Vec<_>>().join(" and ")
}

/// A page size as people write it: "2 MiB".
pub fn size_name(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 && b.is_multiple_of(1 << 30) => format!("{} GiB", b >> 30),
        b if b >= 1 << 20 && b.is_multiple_of(1 << 20) => format!("{} MiB", b >> 20),
        b => format!("{} KiB", b >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(total: u64, free: u64, reserved: u64) -> HugePool {
        HugePool {
            page_size: 2 << 20,
            total,
            free,
            reserved,
        }
    }

    #[test]
    fn pools_are_read_from_sysfs() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("hugepages-2048kB");
        fs::create_dir(&directory).unwrap();
        for (name, value) in [
            ("nr_hugepages", "10\n"),
            ("free_hugepages", "7\n"),
            ("resv_hugepages", "3\n"),
        ] {
            fs::write(directory.join(name), value).unwrap();
        }
        fs::create_dir(root.path().join("hugepages-1048576kB")).unwrap();
        assert_eq!(HugePool::all_in(root.path()), [pool(10, 7, 3)]);
        assert_eq!(pool(10, 7, 3).available(), 4);
    }

    #[test]
    fn a_pool_too_small_is_an_error_with_its_numbers_and_what_to_write() {
        let text = pool(10, 7, 3).too_small(64).to_string();
        assert_eq!(
            text,
            "64 huge pages of 2 MiB are needed and 4 of the pool's 10 are free. Write 70 to \
             /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages and read it back: the host \
             may find fewer"
        );
    }

    #[test]
    fn a_page_size_the_host_lacks_is_named() {
        let text = HugePool::of(3 << 20).unwrap_err().to_string();
        assert!(
            text.starts_with("the host has no huge pages of 3 MiB"),
            "{text}"
        );
    }

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!(size_name(4096), "4 KiB");
        assert_eq!(size_name(2 << 20), "2 MiB");
        assert_eq!(size_name(1 << 30), "1 GiB");
    }
}
