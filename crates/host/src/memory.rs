//! RAM, its limits and its large pages.

use crate::{Finding, HostRoot};

const MIB: u64 = 1 << 20;
/// Below this a default guest of 256 MiB and its user have no room, in bytes.
const LITTLE: u64 = 512 * MIB;

/// What of the host's memory this process can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostMemory {
    /// RAM of the host, in bytes.
    pub total: u64,
    /// What the kernel can give without swapping, in bytes.
    pub available: u64,
    /// The tightest `memory.max` of this process' control groups (version 2), in bytes.
    pub limit: Option<u64>,
}

impl HostMemory {
    /// Reads it; none where `/proc/meminfo` does not say.
    pub fn read(root: &HostRoot) -> Option<HostMemory> {
        let text = root.read("proc/meminfo")?;
        Some(HostMemory {
            total: meminfo(&text, "MemTotal")?,
            available: meminfo(&text, "MemAvailable")?,
            limit: cgroup_limit(root),
        })
    }

    /// The most a guest can ever have here, in bytes: the host's RAM or this process' limit.
    pub fn ceiling(&self) -> u64 {
        self.limit.map_or(self.total, |limit| limit.min(self.total))
    }
}

/// A field of `/proc/meminfo` in bytes; the file counts in units of 1024 bytes or plainly.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(name, _)| *name == key)?;
    let mut words = value.split_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    match words.next() {
        Some("kB") => number.checked_mul(1024),
        _ => Some(number),
    }
}

/// The tightest limit between this process' group and the root of the hierarchy.
fn cgroup_limit(root: &HostRoot) -> Option<u64> {
    let groups = root.read("proc/self/cgroup")?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut path = std::path::Path::new(group);
    let mut tightest: Option<u64> = None;
    loop {
        let file = std::path::Path::new("sys/fs/cgroup").join(path);
        let value = root.value(file.join("memory.max"));
        let limit = value.and_then(|text| text.parse().ok());
        tightest = [tightest, limit].into_iter().flatten().min();
        match path.parent() {
            Some(parent) => path = parent,
            None => return tightest,
        }
    }
}

pub(crate) fn findings(root: &HostRoot) -> Vec<Finding> {
    let large = ["transparent large pages", "large-page pool"];
    vec![
        ram(root),
        transparent(root, large[0]),
        pool(root, large[1]),
        locked(root),
    ]
}

fn ram(root: &HostRoot) -> Finding {
    let topic = "memory";
    let Some(memory) = HostMemory::read(root) else {
        return Finding::unknown(topic, "/proc/meminfo does not say");
    };
    let (available, total) = (memory.available / MIB, memory.total / MIB);
    let limit = memory
        .limit
        .map(|limit| format!(", control group's limit {} MiB", limit / MIB))
        .unwrap_or_default();
    let detail = format!("{available} MiB available of {total} MiB{limit}");
    if memory.available.min(memory.ceiling()) >= LITTLE {
        return Finding::ok(topic, detail);
    }
    Finding::warning(topic, detail).because(
        "little memory is left for guests",
        "Close other programs, raise the limit, or give the guest less than 256M.",
    )
}

/// The kernel marks the choice: `always [madvise] never`.
fn transparent(root: &HostRoot, topic: &'static str) -> Finding {
    let value = root.value("sys/kernel/mm/transparent_hugepage/enabled");
    let choice = value.as_deref().and_then(|text| {
        let (_, rest) = text.split_once('[')?;
        Some(rest.split_once(']')?.0)
    });
    match choice {
        Some(choice @ ("always" | "madvise")) => Finding::ok(topic, choice),
        Some(choice) => Finding::warning(topic, choice).because(
            "guests' memory is mapped in pages of 4 KiB, which costs translations",
            "As root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        None => Finding::unknown(
            topic,
            "the kernel was built without them or hides the setting",
        ),
    }
}

fn pool(root: &HostRoot, topic: &'static str) -> Finding {
    let text = root.read("proc/meminfo").unwrap_or_default();
    let count = |key| meminfo(&text, key);
    let pages = (count("HugePages_Total"), count("HugePages_Free"));
    match (pages, count("Hugepagesize")) {
        ((Some(0), _), Some(_)) => Finding::ok(topic, "empty (guests need none)"),
        ((Some(total), Some(free)), Some(size)) => {
            let kib = size / 1024;
            Finding::ok(topic, format!("{free} of {total} pages of {kib} KiB free"))
        }
        _ => Finding::unknown(topic, "/proc/meminfo does not say"),
    }
}

/// Locked memory bounds what can be mapped for devices' DMA, which pins it.
fn locked(root: &HostRoot) -> Finding {
    let topic = "locked memory";
    let limits = root.read("proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"));
    match line.and_then(|rest| rest.split_whitespace().next()) {
        Some("unlimited") => Finding::ok(topic, "unlimited"),
        Some(soft) => match soft.parse::<u64>() {
            Ok(bytes) => Finding::ok(topic, format!("up to {} KiB", bytes / 1024)),
            Err(_) => Finding::unknown(topic, format!("/proc/self/limits reads {soft:?}")),
        },
        None => Finding::unknown(topic, "/proc/self/limits does not say"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{State, root::testing::FakeRoot};

    const MEMINFO: &str = "MemTotal:  4194304 kB\nMemFree: 1 kB\nMemAvailable: 2097152 kB\n\
        HugePages_Total: 8\nHugePages_Free: 3\nHugepagesize: 2048 kB\n";

    #[test]
    fn memory_is_in_bytes() {
        let memory = HostMemory::read(&FakeRoot::new(&[("proc/meminfo", MEMINFO)]).root()).unwrap();
        assert_eq!((memory.total, memory.available), (4 << 30, 2 << 30));
        assert_eq!(memory.ceiling(), 4 << 30);
    }

    #[test]
    fn the_tightest_group_on_the_way_up_limits() {
        let fake = FakeRoot::new(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "1:name=x:/y\n0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.max", "1073741824\n"),
        ]);
        let memory = HostMemory::read(&fake.root()).unwrap();
        assert_eq!(memory.ceiling(), 1 << 30);
    }

    #[test]
    fn a_count_too_large_for_bytes_is_unknown() {
        let text = format!("MemTotal: {} kB\nMemAvailable: 1 kB\n", u64::MAX);
        let fake = FakeRoot::new(&[("proc/meminfo", &text)]);
        assert_eq!(HostMemory::read(&fake.root()), None);
    }

    #[test]
    fn little_memory_is_a_warning() {
        let fake = FakeRoot::new(&[(
            "proc/meminfo",
            "MemTotal: 900000 kB\nMemAvailable: 100 kB\n",
        )]);
        assert_eq!(ram(&fake.root()).state, State::Warning);
    }

    #[test]
    fn the_chosen_page_policy_is_the_marked_one() {
        let file = "sys/kernel/mm/transparent_hugepage/enabled";
        for (text, state) in [
            ("always [madvise] never\n", State::Ok),
            ("always madvise [never]\n", State::Warning),
            ("broken [", State::Unknown),
        ] {
            let fake = FakeRoot::new(&[(file, text)]);
            assert_eq!(transparent(&fake.root(), "t").state, state);
        }
    }

    #[test]
    fn the_pool_counts_free_pages() {
        let fake = FakeRoot::new(&[("proc/meminfo", MEMINFO)]);
        assert_eq!(
            pool(&fake.root(), "p").detail,
            "3 of 8 pages of 2048 KiB free"
        );
    }

    #[test]
    fn the_soft_limit_of_locked_memory_counts() {
        let fake = FakeRoot::new(&[(
            "proc/self/limits",
            "Max locked memory         8388608              unlimited            bytes\n",
        )]);
        assert_eq!(locked(&fake.root()).detail, "up to 8192 KiB");
    }
}
