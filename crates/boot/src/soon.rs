//! What Linux writes to before its first process runs.

use std::ops::Range;

use crate::{Load, MemoryKind, MemoryRange};

/// Of memory, one part in so many describes pages: 64 bytes (`struct page`) for 4096.
const PAGES_SHARE: u64 = 64;
/// Other tables of the early kernel: page tables and the areas of the processors.
const EARLY: u64 = 4 << 20;
/// What distributions' kernels take from the page allocator until init, and the largest part of
/// memory that this may be.
const MOST_BEHIND: u64 = 28 << 20;
const BEHIND_SHARE: u64 = 8;

/// Ranges of `memory` in the order in which Linux comes to them: the kernel itself, whose zeros nobody
/// has loaded; the end of memory, from which its early tables go down; and what lies behind the kernel,
/// which the page allocator gives first.
pub(crate) fn ranges(
    memory: &[MemoryRange],
    kernel_end: u64,
    kernel: &[Load<'_>],
) -> Vec<Range<u64>> {
    let end_of = |load: &Load<'_>| load.gpa + load.bytes.len() as u64 + load.zeros;
    let kernel = kernel.iter().map(|load| load.gpa..end_of(load));
    let ram: Vec<_> = memory
        .iter()
        .filter(|range| range.kind == MemoryKind::Ram)
        .map(|range| range.gpa..range.gpa + range.len)
        .collect();
    let total: u64 = ram.iter().map(|range| range.end - range.start).sum();
    let tables = ram.last().map(|range| {
        let len = (total / PAGES_SHARE + EARLY).min(range.end - range.start);
        range.end - len..range.end
    });
    let around = ram.iter().find(|range| range.contains(&kernel_end));
    let behind = around.map(|range| {
        let len = MOST_BEHIND.min(total / BEHIND_SHARE);
        kernel_end..(kernel_end + len).min(range.end)
    });
    kernel.chain(tables).chain(behind).collect()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn range(gpa: u64, len: u64, kind: MemoryKind) -> MemoryRange {
        MemoryRange { gpa, len, kind }
    }

    fn kernel() -> [Load<'static>; 1] {
        [Load {
            gpa: 16 * MIB,
            bytes: Cow::Borrowed(&[1; 4096]),
            zeros: 8 * MIB - 4096,
        }]
    }

    #[test]
    fn the_kernel_comes_first_then_the_end_of_memory_then_what_is_behind_the_kernel() {
        let memory = [
            range(0, 1 << 16, MemoryKind::Ram),
            range(MIB, 255 * MIB, MemoryKind::Ram),
            range(256 * MIB, MIB, MemoryKind::Reserved),
        ];
        let found = ranges(&memory, 24 * MIB, &kernel());
        assert_eq!(found[0], 16 * MIB..24 * MIB);
        assert_eq!(found[1].end, 256 * MIB);
        assert!(found[1].end - found[1].start >= 4 * MIB + EARLY - MIB);
        assert_eq!(found[2], 24 * MIB..52 * MIB);
    }

    #[test]
    fn of_a_small_memory_only_a_part_is_taken_and_nothing_outside_it() {
        let memory = [range(0, 26 * MIB, MemoryKind::Ram)];
        let found = ranges(&memory, 24 * MIB, &kernel());
        assert_eq!(found[2], 24 * MIB..26 * MIB);
        let tiny = [range(0, MIB, MemoryKind::Ram)];
        assert_eq!(ranges(&tiny, 24 * MIB, &[]).first(), Some(&(0..MIB)));
        assert_eq!(ranges(&[], 24 * MIB, &[]), [] as [Range<u64>; 0]);
    }
}
