//! Frames to the driver (virtio 1.2, section 5.1.6.3).
//!
//! Buffers are taken from the ring ahead of frames and kept, so that a frame is read straight into as
//! many as it needs. What does not fit is read behind them and waits until the driver gives more.

use std::{collections::VecDeque, io, iter};

use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};
use vmlet_bus::DmaView;

use super::{HEADER, MacAddress, NUM_BUFFERS, SHORT, features, session::Shared};
use crate::{
    backend::net::{LONGEST, Piece, gather, scatter},
    virtio::{Chain, QueueFault, VirtQueue},
};

/// Frames handed on before others have their turn.
const BATCH: usize = 256;
/// Bytes after which the driver hears of them: it gets on with these while more are read.
const MUCH: usize = 64 << 10;
/// The Ethernet header, with a VLAN tag.
const ETHERNET: usize = 18;
/// Where a header says how its frame is to be cut (section 5.1.6).
const GSO_TYPE: usize = 1;

/// Why handing on frames stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Until the back end has more.
    Wait,
    /// Until the driver gives buffers.
    Starved,
    /// For a moment: there may be more.
    Again,
    /// For good.
    Ended,
}

/// The receiving side.
#[derive(Debug)]
pub(super) struct Rx {
    /// Chains taken from the ring, for frames to come.
    stock: VecDeque<Chain>,
    /// A frame that waits for buffers.
    held: Option<Vec<u8>>,
    /// Where frames go on that are longer than the buffers at hand.
    tail: Vec<u8>,
    /// Notifications are asked for.
    asks: bool,
    /// Several chains can carry one frame.
    merges: bool,
    /// Bytes that a frame may need.
    most: u64,
    /// Bytes that the next frame is given room for; what needs more goes on in the tail. Short frames
    /// tend to come after short ones, and room costs time.
    expected: u64,
    /// The longest frame with both headers that is not to be cut, where that was negotiated.
    longest: Option<usize>,
    /// Bytes at the beginning of a frame's first chain that the back end does not fill.
    skip: usize,
    /// Short frames come one by one: the driver hears of one before it is known that there are no more.
    single: bool,
}

/// The stock as memory, for one batch of frames.
struct Room<'v> {
    pieces: VecDeque<Piece<'v>>,
    /// Pieces and bytes of each chain.
    chains: VecDeque<(usize, u64)>,
    len: u64,
}

impl<'v> Room<'v> {
    fn new() -> Room<'v> {
        Room {
            pieces: VecDeque::new(),
            chains: VecDeque::new(),
            len: 0,
        }
    }

    /// Adds the writable buffers of `chain`, which all have to be in memory.
    fn add(&mut self, view: &'v DmaView, chain: &Chain) -> Result<(), QueueFault> {
        let before = self.pieces.len();
        for buffer in chain.writable() {
            let len = usize::try_from(buffer.len).unwrap_or(0);
            let at = GuestAddress(buffer.addr.0);
            let found = view.get_slices(at, len, Permissions::Write);
            for piece in found.map_err(|_| QueueFault::Memory)? {
                self.pieces
                    .push_back(piece.map_err(|_| QueueFault::Memory)?);
            }
        }
        self.chains
            .push_back((self.pieces.len() - before, chain.writable_len()));
        self.len += chain.writable_len();
        Ok(())
    }

    /// The first `chains` are used up.
    fn remove(&mut self, chains: usize) {
        for (pieces, len) in self.chains.drain(..chains.min(self.chains.len())) {
            self.pieces.drain(..pieces.min(self.pieces.len()));
            self.len -= len;
        }
    }

    /// The pieces for one frame, but for the first `skip` bytes.
    fn of_frame(&mut self, merges: bool, skip: usize) -> Vec<Piece<'v>> {
        let first = self.chains.front().map_or(0, |(pieces, _)| *pieces);
        let count = if merges { self.pieces.len() } else { first };
        let mut left = skip;
        let cut = self.pieces.iter().take(count).filter_map(|piece| {
            let here = left.min(piece.len());
            left -= here;
            let rest = piece.offset(here).ok()?;
            (!rest.is_empty()).then_some(rest)
        });
        cut.collect()
    }

    /// Bytes for one frame.
    fn len_of_frame(&self, merges: bool) -> u64 {
        let first = self.chains.front().map_or(0, |(_, len)| *len);
        if merges { self.len } else { first }
    }
}

impl Rx {
    pub(super) fn new(negotiated: u64, mtu: Option<u16>, skip: usize) -> Rx {
        let long = negotiated & features::GUEST_LONG != 0;
        let most = if long { LONGEST as u64 } else { SHORT };
        Rx {
            stock: VecDeque::new(),
            held: None,
            asks: true,
            tail: vec![0; LONGEST],
            merges: negotiated & features::MRG_RXBUF != 0,
            most,
            expected: most,
            longest: mtu
                .filter(|_| negotiated & features::MTU != 0)
                .map(|mtu| usize::from(mtu) + HEADER + ETHERNET),
            skip,
            single: false,
        }
    }

    /// Puts the stock back into the ring.
    pub(super) fn give_back(&mut self, queue: &VirtQueue) {
        self.stock.drain(..).for_each(|_| queue.undo_pop());
        self.held = None;
    }

    /// Hands on what the back end has.
    pub(super) fn run(&mut self, queue: &VirtQueue, view: &DmaView, shared: &Shared) -> Next {
        let mut room = Room::new();
        let next = self.hand_on(queue, view, shared, &mut room);
        queue.notify(view);
        next.unwrap_or_else(|fault| {
            queue.fail(&fault);
            Next::Starved
        })
    }

    fn hand_on<'v>(
        &mut self,
        queue: &VirtQueue,
        view: &'v DmaView,
        shared: &Shared,
        room: &mut Room<'v>,
    ) -> Result<Next, QueueFault> {
        self.ask(queue, view, false);
        let (mut untold, mut longest, mut frames) = (0, 0, 0);
        for _ in 0..BATCH {
            if untold >= MUCH || (untold > 0 && frames == 1 && self.single) {
                queue.notify(view);
                untold = 0;
            }
            self.fill_up(queue, view, room)?;
            if self.stock.is_empty() && self.is_starved(queue, view, room)? {
                return Ok(Next::Starved);
            }
            if let Some(frame) = self.held.take() {
                // One that no room will ever do for is lost.
                if !self.deliver(queue, view, room, &frame)? && self.can_have_more(queue) {
                    self.held = Some(frame);
                    if self.is_starved(queue, view, room)? {
                        return Ok(Next::Starved);
                    }
                }
                continue;
            }
            let pieces = room.of_frame(self.merges, self.skip);
            match shared.backend.receive(&pieces, &mut self.tail) {
                Ok(len) => {
                    self.received(queue, view, shared, room, (&pieces, len))?;
                    (untold, frames) = (untold + len, frames + 1);
                    longest = longest.max((self.skip + len) as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if frames > 0 {
                        self.single = frames == 1 && longest <= SHORT;
                        self.expected = if longest > SHORT { self.most } else { SHORT };
                    }
                    return Ok(Next::Wait);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Ok(Next::Ended),
            }
        }
        Ok(Next::Again)
    }

    /// Takes chains until the frame that is expected fits, or there are no more.
    fn fill_up<'v>(
        &mut self,
        queue: &VirtQueue,
        view: &'v DmaView,
        room: &mut Room<'v>,
    ) -> Result<(), QueueFault> {
        while room.len_of_frame(self.merges) < self.expected
            && (self.merges || room.chains.is_empty())
        {
            if let Some(chain) = self.stock.get(room.chains.len()) {
                room.add(view, chain)?;
                continue;
            }
            let Some(chain) = queue.pop(view) else {
                return Ok(());
            };
            if chain.readable_len() > 0 || chain.writable_len() < HEADER as u64 {
                let head = chain.head();
                let detail = "a buffer for frames is writable and has room for a header";
                return Err(QueueFault::Request { head, detail });
            }
            room.add(view, &chain)?;
            self.stock.push_back(chain);
        }
        Ok(())
    }

    /// Asks for notifications; false if chains came meanwhile.
    fn is_starved<'v>(
        &mut self,
        queue: &VirtQueue,
        view: &'v DmaView,
        room: &mut Room<'v>,
    ) -> Result<bool, QueueFault> {
        if !self.ask(queue, view, true) {
            return Ok(true);
        }
        self.ask(queue, view, false);
        let before = self.stock.len();
        self.fill_up(queue, view, room)?;
        Ok(self.stock.len() == before)
    }

    /// Asks for notifications, or for none; true if chains came meanwhile.
    fn ask(&mut self, queue: &VirtQueue, view: &DmaView, wanted: bool) -> bool {
        let was = std::mem::replace(&mut self.asks, wanted);
        if wanted {
            return queue.enable_notifications(view);
        }
        if was {
            queue.disable_notifications(view);
        }
        false
    }

    /// Whether the driver has more to give than it gave.
    fn can_have_more(&self, queue: &VirtQueue) -> bool {
        self.merges && self.stock.len() < usize::from(queue.size()) && self.len() < self.most
    }

    fn len(&self) -> u64 {
        self.stock.iter().map(Chain::writable_len).sum()
    }

    /// `len` bytes lie in `pieces` and the tail.
    fn received<'v>(
        &mut self,
        queue: &VirtQueue,
        view: &'v DmaView,
        shared: &Shared,
        room: &mut Room<'v>,
        (pieces, len): (&[Piece<'v>], usize),
    ) -> Result<(), QueueFault> {
        let there: usize = pieces.iter().map(|piece| piece.len()).sum();
        let at = if shared.backend.has_header() {
            HEADER
        } else {
            0
        };
        let to = if len <= there {
            address(pieces, at)
        } else {
            None
        };
        if let Some(to) = to {
            if wanted(shared, to) && self.is_allowed(self.skip + len, || byte(pieces, GSO_TYPE)) {
                self.finish(queue, view, room, self.skip + len)?;
            }
            return Ok(());
        }
        let mut frame = gather(pieces);
        frame.extend_from_slice(&self.tail);
        frame.truncate(len);
        let gso = || frame.get(GSO_TYPE).copied();
        if is_wanted(shared, &frame) && self.is_allowed(self.skip + len, gso) {
            self.held = Some(frame);
            self.expected = self.most;
        }
        Ok(())
    }

    /// Whether a driver that has negotiated the MTU may see a frame of `len` bytes with its header;
    /// `gso` is how that says it is to be cut, if it came with one (section 5.1.4.1).
    fn is_allowed(&self, len: usize, gso: impl Fn() -> Option<u8>) -> bool {
        let is_cut = || self.skip == 0 && gso().is_some_and(|kind| kind != 0);
        self.longest.is_none_or(|most| len <= most) || is_cut()
    }

    /// Copies `frame` into the stock; false if it does not fit.
    fn deliver<'v>(
        &mut self,
        queue: &VirtQueue,
        view: &'v DmaView,
        room: &mut Room<'v>,
        frame: &[u8],
    ) -> Result<bool, QueueFault> {
        let pieces = room.of_frame(self.merges, self.skip);
        let there: usize = pieces.iter().map(|piece| piece.len()).sum();
        if frame.len() > there {
            return Ok(false);
        }
        scatter(frame, &pieces, &mut []);
        self.finish(queue, view, room, self.skip + frame.len())?;
        Ok(true)
    }

    /// A frame from outside in a counted run: it is lost where there is no room.
    pub(super) fn input(
        &mut self,
        queue: &VirtQueue,
        view: &DmaView,
        shared: &Shared,
        frame: &[u8],
    ) {
        let gso = || frame.get(GSO_TYPE).copied();
        if !is_wanted(shared, frame) || !self.is_allowed(self.skip + frame.len(), gso) {
            return;
        }
        let mut room = Room::new();
        self.expected = self.most;
        let done = self
            .fill_up(queue, view, &mut room)
            .and_then(|()| self.deliver(queue, view, &mut room, frame));
        self.give_back(queue);
        match done {
            Ok(_) => queue.notify(view),
            Err(fault) => queue.fail(&fault),
        }
    }

    /// Gives the chains back that hold a frame of `len` bytes with its header. All but the last are
    /// full, and the driver sees them together (section 5.1.6.3.2).
    fn finish(
        &mut self,
        queue: &VirtQueue,
        view: &DmaView,
        room: &mut Room<'_>,
        len: usize,
    ) -> Result<(), QueueFault> {
        let mut left = u64::try_from(len).unwrap_or(u64::MAX);
        let mut used = Vec::with_capacity(1);
        let lens = iter::from_fn(|| {
            let chain = self.stock.get(used.len()).filter(|_| left > 0)?;
            let part = left.min(chain.writable_len());
            left -= part;
            used.push((chain.head(), u32::try_from(part).unwrap_or(0)));
            Some(())
        });
        let count = lens.count();
        if let Some(first) = self.stock.front() {
            let buffers = u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes();
            if self.skip > 0 {
                first.write(view, 0, &[0; HEADER])?;
            }
            first.write(view, NUM_BUFFERS, &buffers)?;
        }
        self.stock.drain(..count);
        room.remove(count);
        queue.push_together(view, &used);
        Ok(())
    }
}

/// Whether the driver gets a frame to `to`.
fn wanted(shared: &Shared, to: MacAddress) -> bool {
    let settings = shared.settings();
    settings.link_up && settings.filter.wants(settings.mac, to)
}

/// Whether the driver gets `frame`, which comes as the back end gives it.
fn is_wanted(shared: &Shared, frame: &[u8]) -> bool {
    let at = if shared.backend.has_header() {
        HEADER
    } else {
        0
    };
    let to = frame.get(at..).and_then(|frame| frame.first_chunk());
    to.is_some_and(|to| wanted(shared, MacAddress(*to)))
}

/// The address `at` bytes behind the beginning.
fn address(pieces: &[Piece<'_>], at: usize) -> Option<MacAddress> {
    let mut address = [0; 6];
    peek(pieces, at, &mut address)?;
    Some(MacAddress(address))
}

/// The byte `at` bytes behind the beginning.
fn byte(pieces: &[Piece<'_>], at: usize) -> Option<u8> {
    let mut byte = [0];
    peek(pieces, at, &mut byte)?;
    Some(u8::from_le_bytes(byte))
}

/// Copies what lies `at` bytes behind the beginning.
fn peek(pieces: &[Piece<'_>], mut at: usize, mut rest: &mut [u8]) -> Option<()> {
    for piece in pieces {
        let skipped = at.min(piece.len());
        at -= skipped;
        let count = (piece.len() - skipped).min(rest.len());
        let (part, more) = rest.split_at_mut(count);
        if !part.is_empty() {
            piece.read_slice(part, skipped).ok()?;
        }
        rest = more;
    }
    rest.is_empty().then_some(())
}
