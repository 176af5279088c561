//! A stream of frames, each with its length in four bytes before it, the highest first: what passt
//! and QEMU's `-netdev stream` speak.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vmlet_reactor::Source;

use super::{Descriptor, LONGEST, NetBackend, Piece, calls, gather, scatter};

const HEAD: usize = 4;
/// Bytes taken from the stream at once: more than a frame.
const INBOX: usize = 4 * LONGEST;

#[derive(Debug)]
struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

/// A stream of frames.
#[derive(Debug)]
pub struct FrameStream {
    descriptor: Descriptor,
    inbox: Mutex<Inbox>,
    /// The rest of a frame whose beginning is sent.
    outbox: Mutex<Vec<u8>>,
}

impl Inbox {
    fn new() -> Inbox {
        Inbox {
            bytes: vec![0; INBOX],
            start: 0,
            end: 0,
        }
    }

    fn held(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// The next frame's length if it is whole; an error if no frame can be so long.
    fn next(&self) -> io::Result<Option<usize>> {
        let Some((head, rest)) = self.held().split_first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let len = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
        if len > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok((rest.len() >= len).then_some(len))
    }

    fn take(&mut self, len: usize, room: &[Piece<'_>], tail: &mut [u8]) {
        let from = self.start + HEAD;
        let frame = self.bytes.get(from..from + len).unwrap_or_default();
        scatter(frame, room, tail);
        self.start = from + len;
    }

    /// More of the stream; false if there is none now.
    fn fill(&mut self, descriptor: &Descriptor) -> io::Result<()> {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let free = self.bytes.get_mut(self.end..).unwrap_or_default();
        match calls::receive(descriptor.fd.as_fd(), &[], free)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.end += count;
                Ok(())
            }
        }
    }
}

impl FrameStream {
    /// Frames through the socket `fd`.
    pub fn new(fd: OwnedFd) -> FrameStream {
        FrameStream {
            descriptor: Descriptor::new(fd),
            inbox: Mutex::new(Inbox::new()),
            outbox: Mutex::default(),
        }
    }

    fn outbox(&self) -> MutexGuard<'_, Vec<u8>> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flush_into(&self, outbox: &mut Vec<u8>) -> io::Result<()> {
        while !outbox.is_empty() {
            let sent = calls::send(self.descriptor.fd.as_fd(), outbox, &[])?;
            outbox.drain(..sent.min(outbox.len()));
        }
        Ok(())
    }
}

impl NetBackend for FrameStream {
    fn has_header(&self) -> bool {
        false
    }

    fn source(&self) -> Option<Arc<dyn Source>> {
        Some(self.descriptor.source())
    }

    fn send(&self, frame: &[Piece<'_>]) -> io::Result<()> {
        let mut outbox = self.outbox();
        self.flush_into(&mut outbox)?;
        let len: usize = frame.iter().map(|piece| piece.len()).sum();
        let head = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
        let sent = calls::send(self.descriptor.fd.as_fd(), &head, frame)?;
        if sent < HEAD + len {
            let whole = head.iter().copied().chain(gather(frame));
            outbox.extend(whole.skip(sent));
        }
        Ok(())
    }

    fn unsent(&self) -> bool {
        !self.outbox().is_empty()
    }

    fn flush(&self) -> io::Result<()> {
        self.flush_into(&mut self.outbox())
    }

    fn receive(&self, room: &[Piece<'_>], tail: &mut [u8]) -> io::Result<usize> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(len) = inbox.next()? {
                inbox.take(len, room, tail);
                return Ok(len);
            }
            inbox.fill(&self.descriptor)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream};

    use super::*;

    fn pair() -> (UnixStream, FrameStream) {
        let (left, right) = UnixStream::pair().unwrap();
        (left, FrameStream::new(right.into()))
    }

    fn take(from: &FrameStream) -> io::Result<Vec<u8>> {
        let mut tail = vec![0; LONGEST];
        let len = from.receive(&[], &mut tail)?;
        Ok(tail[..len].to_vec())
    }

    #[test]
    fn frames_come_whole_wherever_the_stream_is_cut() {
        let (mut peer, stream) = pair();
        let bytes = [&[0, 0, 0, 3][..], b"abc", &[0, 0, 0, 1], b"d"].concat();
        for cut in 1..bytes.len() {
            peer.write_all(&bytes[..cut]).unwrap();
            let mut found = Vec::new();
            while let Ok(frame) = take(&stream) {
                found.push(frame);
            }
            peer.write_all(&bytes[cut..]).unwrap();
            while let Ok(frame) = take(&stream) {
                found.push(frame);
            }
            assert_eq!(found, [b"abc".to_vec(), b"d".to_vec()], "cut at {cut}");
        }
    }

    #[test]
    fn a_length_that_no_frame_has_ends_the_stream() {
        let (mut peer, stream) = pair();
        peer.write_all(&[0xff; 8]).unwrap();
        let error = take(&stream).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn an_ended_peer_is_an_end() {
        let (peer, stream) = pair();
        drop(peer);
        let error = take(&stream).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
