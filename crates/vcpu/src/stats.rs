//! Numbers that an engine keeps about a VM or a vCPU.

/// One number, or the buckets of a histogram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The engine's name for it.
    pub name: String,
    /// How it changes.
    pub kind: StatKind,
    /// What it counts.
    pub unit: StatUnit,
    /// Its scale: the value times this base ...
    pub base: u32,
    /// ... to this power is in `unit`.
    pub exponent: i16,
    /// Width of a linear histogram's buckets; 0 for what is no linear histogram.
    pub bucket_size: u32,
    /// The number; several for a histogram.
    pub values: Vec<u64>,
}

/// How a number changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatKind {
    /// It only grows.
    Cumulative,
    /// What is true now.
    Instant,
    /// The largest there was.
    Peak,
    /// Buckets of equal width.
    LinearHistogram,
    /// Buckets whose width doubles.
    LogHistogram,
    /// Something this version does not know.
    Unknown,
}

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatUnit {
    /// Events, pages or other things.
    None,
    /// Bytes.
    Bytes,
    /// Seconds, scaled.
    Seconds,
    /// Clock cycles.
    Cycles,
    /// 0 or 1.
    Boolean,
    /// Something this version does not know.
    Unknown,
}
