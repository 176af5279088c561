//! Frames from the driver (virtio 1.2, section 5.1.6.2).

use std::io;

use vm_memory::{GuestAddress, GuestMemory, Permissions};
use vmlet_bus::DmaView;

use super::{HEADER, SHORT, session::Shared};
use crate::{
    backend::net::{LONGEST, Piece},
    virtio::{Chain, QueueFault, VirtQueue},
};

/// Frames that were sent at once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    frames: usize,
    /// Bytes of all of them with their headers.
    bytes: u64,
    /// The back end takes nothing more for now.
    pub(super) blocked: bool,
}

impl Sent {
    /// A short frame alone.
    pub(super) fn is_short_alone(&self) -> bool {
        self.frames == 1 && self.bytes <= SHORT
    }
}

/// Sends everything that waits in `queue`, without telling the driver. What the back end does not take
/// waits if it `can_wait`; without that, such frames are lost, as on a full cable.
pub(super) fn run(queue: &VirtQueue, view: &DmaView, shared: &Shared, can_wait: bool) -> Sent {
    let link_up = shared.settings().link_up;
    let mut sent = Sent::default();
    queue.drain(view, |chain| {
        match send(&chain, view, shared, link_up) {
            Ok(Err(error)) if can_wait && error.kind() == io::ErrorKind::WouldBlock => {
                queue.undo_pop();
                sent.blocked = true;
                return false;
            }
            // A frame that the host does not take is lost, as on any network.
            Ok(_) => {
                queue.push(view, chain.head(), 0);
                sent.frames += 1;
                sent.bytes += chain.readable_len();
            }
            Err(fault) => queue.fail(&fault),
        }
        true
    });
    sent
}

fn send(
    chain: &Chain,
    view: &DmaView,
    shared: &Shared,
    link_up: bool,
) -> Result<io::Result<()>, QueueFault> {
    let head = chain.head();
    let wrong = |detail| QueueFault::Request { head, detail };
    if chain.readable_len() < HEADER as u64 {
        return Err(wrong("a frame begins with a header"));
    }
    if chain.writable_len() > 0 {
        return Err(wrong("a frame to be sent has no writable buffers"));
    }
    if !link_up || chain.readable_len() > LONGEST as u64 {
        return Ok(Ok(()));
    }
    let skip = if shared.backend.has_header() {
        0
    } else {
        HEADER as u64
    };
    let pieces = pieces(chain, view, skip)?;
    Ok(shared.backend.send(&pieces))
}

fn pieces<'v>(chain: &Chain, view: &'v DmaView, skip: u64) -> Result<Vec<Piece<'v>>, QueueFault> {
    let mut pieces = Vec::with_capacity(chain.readable().len());
    for buffer in chain.readable_range(skip, chain.readable_len()) {
        let len = usize::try_from(buffer.len).unwrap_or(0);
        let at = GuestAddress(buffer.addr.0);
        let found = view.get_slices(at, len, Permissions::Read);
        for piece in found.map_err(|_| QueueFault::Memory)? {
            pieces.push(piece.map_err(|_| QueueFault::Memory)?);
        }
    }
    Ok(pieces)
}
