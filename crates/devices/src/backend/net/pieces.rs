//! Where frames lie in guest memory.

use vm_memory::{Bytes, VolatileSlice};
use vmlet_memory::Written;

/// A piece of guest memory; what is written to it counts as written.
pub type Piece<'a> = VolatileSlice<'a, Written<'a>>;

/// Copies all of `pieces` together.
pub fn gather(pieces: &[Piece<'_>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(pieces.iter().map(|piece| piece.len()).sum());
    for piece in pieces {
        let start = bytes.len();
        bytes.resize(start + piece.len(), 0);
        if let Some(part) = bytes.get_mut(start..) {
            // A slice is as long as its piece, so that all of it is copied.
            let _ = piece.read(part, 0);
        }
    }
    bytes
}

/// Copies `bytes` to `pieces`, and what is too long for them to `tail`; gives the length of all.
pub fn scatter(mut bytes: &[u8], pieces: &[Piece<'_>], tail: &mut [u8]) -> usize {
    let all = bytes.len();
    for piece in pieces {
        let (part, rest) = bytes.split_at(bytes.len().min(piece.len()));
        let _ = piece.write(part, 0);
        bytes = rest;
    }
    tail.iter_mut()
        .zip(bytes)
        .for_each(|(to, from)| *to = *from);
    all
}
