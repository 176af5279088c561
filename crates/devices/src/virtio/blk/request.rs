//! A chain as a request (virtio 1.2, section 5.2.6). The header is copied out of guest memory once.

use vmlet_bus::DmaView;

use super::{
    config::{MOST_SECTORS, MOST_SEGMENTS},
    spec::{HEADER, ID, SECTOR, SEGMENT, Status, UNMAP, kind},
};
use crate::{
    backend::block::{GuestIo, Operation},
    virtio::{Chain, QueueFault},
};

/// What of a device a request is checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) bytes: u64,
    pub(super) readonly: bool,
    /// Writes are on the medium when they are done.
    pub(super) through: bool,
    pub(super) can_flush: bool,
    pub(super) can_discard: bool,
    pub(super) can_zero: bool,
}

/// A step of a request.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) operation: Operation,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) memory: GuestIo,
}

/// What a request comes to.
#[derive(Debug)]
pub(super) enum Request {
    /// The image has to do something; `written` bytes of the chain are then written.
    Run {
        /// All of it, in any order.
        steps: Vec<Step>,
        /// Bytes before the status.
        written: u32,
    },
    /// It is answered: bytes before the status, and the status.
    Answered(u32, Status),
}

/// Reads a request. A chain without a header or without room for the status cannot be answered.
pub(super) fn parse(
    chain: &Chain,
    view: &DmaView,
    limits: &Limits,
    id: &[u8; ID],
) -> Result<Request, QueueFault> {
    let mut header = [0; HEADER];
    let head = chain.head();
    if chain.read(view, 0, &mut header)? < HEADER {
        let detail = "its header has 16 bytes";
        return Err(QueueFault::Request { head, detail });
    }
    if chain.writable_len() == 0 {
        let detail = "it has no room for a status";
        return Err(QueueFault::Request { head, detail });
    }
    let [a, b, c, d, _, _, _, _, sector @ ..] = header;
    let (wanted, sector) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(sector));
    let refused = |status| Ok(Request::Answered(0, status));
    let steps = match wanted {
        kind::IN | kind::OUT => transfer(chain, view, limits, wanted == kind::OUT, sector),
        kind::FLUSH if limits.can_flush => Ok(vec![step(Operation::Flush, 0, 0)]),
        kind::DISCARD if limits.can_discard => segments(chain, view, limits, false),
        kind::WRITE_ZEROES if limits.can_zero => segments(chain, view, limits, true),
        kind::GET_ID => return answer_id(chain, view, id),
        _ => Err(Status::Unsupp),
    };
    match steps {
        Ok(steps) => Ok(Request::Run {
            written: if wanted == kind::IN { room(chain) } else { 0 },
            steps,
        }),
        Err(status) => refused(status),
    }
}

/// Writable bytes before the status.
pub(super) fn room(chain: &Chain) -> u32 {
    u32::try_from(chain.writable_len().saturating_sub(1)).unwrap_or(u32::MAX)
}

fn step(operation: Operation, offset: u64, len: u64) -> Step {
    Step {
        operation,
        offset,
        len,
        memory: GuestIo::none(),
    }
}

/// Where in the image a request is, if all of it is there.
fn place(sector: u64, len: u64, limits: &Limits) -> Result<u64, Status> {
    let offset = sector.checked_mul(SECTOR).ok_or(Status::IoErr)?;
    let end = offset.checked_add(len).ok_or(Status::IoErr)?;
    let inside = end <= limits.bytes && len.is_multiple_of(SECTOR);
    inside.then_some(offset).ok_or(Status::IoErr)
}

fn transfer(
    chain: &Chain,
    view: &DmaView,
    limits: &Limits,
    write: bool,
    sector: u64,
) -> Result<Vec<Step>, Status> {
    if write && limits.readonly {
        return Err(Status::IoErr);
    }
    let len = if write {
        chain.readable_len() - HEADER as u64
    } else {
        chain.writable_len() - 1
    };
    let offset = place(sector, len, limits)?;
    if len == 0 {
        return Ok(Vec::new());
    }
    let memory = if write {
        GuestIo::hold(view, chain.readable_range(HEADER as u64, len), false)
    } else {
        GuestIo::hold(view, chain.writable_range(0, len), true)
    };
    let through = limits.through;
    Ok(vec![Step {
        operation: if write {
            Operation::Write { through }
        } else {
            Operation::Read
        },
        offset,
        len,
        memory: memory.ok_or(Status::IoErr)?,
    }])
}

/// Discard and write-zeroes (5.2.6.2): all segments are checked before the first is done.
fn segments(
    chain: &Chain,
    view: &DmaView,
    limits: &Limits,
    zeroes: bool,
) -> Result<Vec<Step>, Status> {
    if limits.readonly {
        return Err(Status::IoErr);
    }
    let len = chain.readable_len() - HEADER as u64;
    let count = len / SEGMENT as u64;
    if !len.is_multiple_of(SEGMENT as u64) || count > u64::from(MOST_SEGMENTS) {
        return Err(Status::IoErr);
    }
    let read = |number| {
        let (mut bytes, at) = ([0; SEGMENT], HEADER as u64 + number * SEGMENT as u64);
        chain
            .read(view, at, &mut bytes)
            .map_err(|_| Status::IoErr)?;
        segment(bytes, limits, zeroes)
    };
    (0..count).map(read).collect()
}

fn segment(bytes: [u8; SEGMENT], limits: &Limits, zeroes: bool) -> Result<Step, Status> {
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes(flags);
    let known = if zeroes { UNMAP } else { 0 };
    if flags & !known != 0 {
        return Err(Status::Unsupp);
    }
    if sectors > MOST_SECTORS {
        return Err(Status::IoErr);
    }
    let len = u64::from(sectors) * SECTOR;
    let offset = place(sector, len, limits)?;
    let operation = if zeroes {
        let unmap = flags & UNMAP != 0;
        let through = limits.through;
        Operation::WriteZeroes { unmap, through }
    } else {
        Operation::Discard
    };
    Ok(step(operation, offset, len))
}

fn answer_id(chain: &Chain, view: &DmaView, id: &[u8; ID]) -> Result<Request, QueueFault> {
    if room(chain) < 20 {
        return Ok(Request::Answered(0, Status::IoErr));
    }
    chain.write(view, 0, id)?;
    Ok(Request::Answered(20, Status::Ok))
}
