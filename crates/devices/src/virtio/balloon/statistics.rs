//! What a guest says about its memory (section 5.5.6.4).

use std::fmt;

/// Bytes of an entry: a tag of two, a value of eight.
const ENTRY: usize = 10;
/// The most entries that are looked at.
pub(super) const MOST: usize = 64 * ENTRY;

/// A figure's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum Statistic {
    SwapIn,
    SwapOut,
    MajorFaults,
    MinorFaults,
    FreeMemory,
    TotalMemory,
    AvailableMemory,
    DiskCaches,
    HugePageAllocations,
    HugePageFailures,
}

impl Statistic {
    const ALL: [Statistic; 10] = [
        Statistic::SwapIn,
        Statistic::SwapOut,
        Statistic::MajorFaults,
        Statistic::MinorFaults,
        Statistic::FreeMemory,
        Statistic::TotalMemory,
        Statistic::AvailableMemory,
        Statistic::DiskCaches,
        Statistic::HugePageAllocations,
        Statistic::HugePageFailures,
    ];

    /// The name in dictionaries. Memory is in bytes, the rest counts events.
    pub fn name(self) -> &'static str {
        match self {
            Statistic::SwapIn => "swap_in",
            Statistic::SwapOut => "swap_out",
            Statistic::MajorFaults => "major_faults",
            Statistic::MinorFaults => "minor_faults",
            Statistic::FreeMemory => "free_memory",
            Statistic::TotalMemory => "total_memory",
            Statistic::AvailableMemory => "available_memory",
            Statistic::DiskCaches => "disk_caches",
            Statistic::HugePageAllocations => "huge_page_allocations",
            Statistic::HugePageFailures => "huge_page_failures",
        }
    }
}

impl fmt::Display for Statistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The guest's figures, as it last gave them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// How often figures have come; 0 before the first.
    pub number: u64,
    /// By meaning; those with tags that are not known are left out.
    pub figures: Vec<(Statistic, u64)>,
}

impl Statistics {
    /// Takes figures from a buffer.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.number += 1;
        self.figures = bytes
            .chunks_exact(ENTRY)
            .filter_map(|entry| {
                let (tag, value) = entry.split_first_chunk()?;
                let tag = usize::from(u16::from_le_bytes(*tag));
                let statistic = Statistic::ALL.get(tag)?;
                Some((*statistic, u64::from_le_bytes(*value.first_chunk()?)))
            })
            .collect();
    }
}
