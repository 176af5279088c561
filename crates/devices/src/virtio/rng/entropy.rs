//! Where random bytes come from.

use std::{
    fmt::Debug,
    fs::File,
    io::{self, Read},
    sync::{Mutex, PoisonError},
};

/// A source of bytes.
pub trait Entropy: Send + Sync + Debug {
    /// Fills `data`.
    fn fill(&self, data: &mut [u8]) -> io::Result<()>;

    /// Back to the first byte, where that means anything.
    fn rewind(&self) {}

    /// How far it is.
    fn position(&self) -> u64 {
        0
    }

    /// Goes on at `position`.
    fn seek(&self, position: u64) {
        let _ = position;
    }
}

/// The host's random bytes.
#[derive(Debug)]
pub struct HostEntropy(File);

impl HostEntropy {
    /// Opens the host's source.
    pub fn open() -> io::Result<HostEntropy> {
        File::open("/dev/urandom").map(HostEntropy)
    }
}

impl Entropy for HostEntropy {
    fn fill(&self, data: &mut [u8]) -> io::Result<()> {
        (&self.0).read_exact(data)
    }
}

/// The same bytes every time, for runs that must be the same: they are not random.
#[derive(Debug, Default)]
pub struct SeededEntropy {
    count: Mutex<u64>,
}

impl SeededEntropy {
    fn set(&self, value: u64) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, data: &mut [u8]) -> io::Result<()> {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        for piece in data.chunks_mut(8) {
            *count = count.wrapping_add(1);
            let bytes = split_mix(*count).to_le_bytes();
            piece
                .iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = from);
        }
        Ok(())
    }

    fn rewind(&self) {
        self.set(0);
    }

    fn position(&self) -> u64 {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seek(&self, position: u64) {
        self.set(position);
    }
}

/// Number `count` of the sequence SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom
/// Number Generators, 2014).
fn split_mix(count: u64) -> u64 {
    let mut z = count.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
