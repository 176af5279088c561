//! The entropy device (virtio 1.2, section 5.4).
//!
//! It has one queue and no configuration. A buffer gets at most 64 KiB at once; drivers ask again.

mod device;
mod entropy;

#[cfg(test)]
mod tests;

pub use device::Rng;
pub use entropy::{Entropy, HostEntropy, SeededEntropy};
