//! The limit of locked memory, which the pages that devices can reach count for.

use std::fs;

const KIB: u64 = 1024;

/// Bytes that this process has locked, and that it may lock; none where it is not told, or where
/// there is no limit.
pub(crate) fn locked_memory() -> Option<(u64, u64)> {
    with_limit("VmLck:")
}

/// The same of what iommufd has pinned, which it counts for the user and not for the process.
pub(crate) fn pinned_memory() -> Option<(u64, u64)> {
    with_limit("VmPin:")
}

fn with_limit(what: &str) -> Option<(u64, u64)> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    Some((held(&status, what)?, limit(&limits)?))
}

/// `VmLck:      4096 kB`.
fn held(status: &str, what: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(what))?;
    let number: u64 = line.split_whitespace().next()?.parse().ok()?;
    number.checked_mul(KIB)
}

/// `Max locked memory         8388608              8388608              bytes`.
fn limit(limits: &str) -> Option<u64> {
    let mut lines = limits.lines();
    let line = lines.find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_numbers_are_in_bytes() {
        let status = "VmLck:\t    4096 kB\nVmPin:\t       8 kB\n";
        assert_eq!(held(status, "VmLck:"), Some(4 << 20));
        assert_eq!(held(status, "VmPin:"), Some(8 << 10));
        let line = "Max locked memory         8388608              unlimited   bytes\n";
        assert_eq!(limit(line), Some(8 << 20));
    }

    #[test]
    fn no_limit_is_none() {
        assert_eq!(
            limit("Max locked memory  unlimited  unlimited  bytes\n"),
            None
        );
    }
}
