//! The file of a record.
//!
//! ```text
//! file    "VMLETREC"  version:u32  fields:u32  field*  crc:u32  record*
//! field   name-length:u16  value-length:u32  name  value          what the VM was made of
//! record  length:u32  crc:u32  payload                            crc of the payload
//! payload kind:u8  instructions:u64  nanoseconds:u64  rest
//!         kind 1: typed bytes; kind 2: address:u64 data:u32 of an interrupt; kind 3: the end;
//!         kind 4: port:u32 and the bytes that came for the device in that root port
//! ```
//!
//! Numbers are little-endian, sums are CRC-32 (IEEE 802.3). The first sum covers everything before
//! it. Positions never decrease, and the end is the last record: a file without it is truncated.

use vmlet_vcpu::{MsiMessage, Position};

use super::RecordError;

const MAGIC: &[u8; 8] = b"VMLETREC";
const VERSION: u32 = 2;
const MAX_FIELDS: u32 = 64;
const MAX_NAME: usize = 64;
const MAX_VALUE: usize = 1 << 20;
const MAX_PAYLOAD: usize = (1 << 20) + 32;
const HEAD: usize = 17;

const TYPED: u8 = 1;
const MESSAGE: u8 = 2;
const END: u8 = 3;
const DEVICE: u8 = 4;
/// Bytes of a device's number.
const NUMBER: usize = 4;

/// What the VM was made of: names and values.
pub type Identity = Vec<(String, String)>;

/// Something that enters a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Console input.
    Typed(Vec<u8>),
    /// An interrupt.
    Message(MsiMessage),
    /// Something that came for a device: a frame, bytes of a socket.
    Device {
        /// The root port the device is in.
        port: u32,
        /// What came.
        bytes: Vec<u8>,
    },
    /// The end of what was recorded.
    End,
}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What the VM was made of.
    pub identity: Identity,
    /// The inputs in their order; the last is [`Input::End`].
    pub inputs: Vec<(Position, Input)>,
}

/// The file's beginning.
pub fn header(identity: &Identity) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(length(identity.len()));
    for (name, value) in identity {
        let name = name.get(..name.len().min(MAX_NAME)).unwrap_or_default();
        bytes.extend(u16::try_from(name.len()).unwrap_or(0).to_le_bytes());
        bytes.extend(length(value.len()));
        bytes.extend(name.as_bytes());
        bytes.extend(value.as_bytes());
    }
    let sum = crc32fast::hash(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

/// One record.
pub fn record(at: Position, input: &Input) -> Vec<u8> {
    let (kind, rest) = match input {
        Input::Typed(bytes) => (TYPED, bytes.clone()),
        Input::Message(message) => {
            let mut rest = message.address.to_le_bytes().to_vec();
            rest.extend(message.data.to_le_bytes());
            (MESSAGE, rest)
        }
        Input::Device { port, bytes } => (DEVICE, [&port.to_le_bytes()[..], bytes].concat()),
        Input::End => (END, Vec::new()),
    };
    let mut payload = vec![kind];
    payload.extend(at.instructions.to_le_bytes());
    payload.extend(at.nanoseconds.to_le_bytes());
    payload.extend(rest);
    let mut bytes = length(payload.len()).to_vec();
    bytes.extend(crc32fast::hash(&payload).to_le_bytes());
    bytes.extend(payload);
    bytes
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()
}

/// Reads a whole file.
pub fn parse(bytes: &[u8]) -> Result<Record, RecordError> {
    let mut reader = Reader { bytes, at: 0 };
    let identity = reader.header()?;
    let mut inputs = Vec::new();
    let mut last = Position::default();
    loop {
        let offset = reader.at;
        let (at, input) = reader.record()?;
        if at.instructions < last.instructions || at.nanoseconds < last.nanoseconds {
            return Err(damaged(offset, "it goes back in time"));
        }
        last = at;
        let ends = input == Input::End;
        inputs.push((at, input));
        if ends {
            break;
        }
    }
    if reader.at != bytes.len() {
        return Err(damaged(reader.at, "something follows the end"));
    }
    Ok(Record { identity, inputs })
}

fn damaged(offset: usize, reason: &'static str) -> RecordError {
    RecordError::Damaged { offset, reason }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], RecordError> {
        let end = self.at.saturating_add(count);
        let found = self.bytes.get(self.at..end);
        let found = found.ok_or_else(|| damaged(self.bytes.len(), "the file ends too early"))?;
        self.at = end;
        Ok(found)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, RecordError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn size(&mut self, most: usize, reason: &'static str) -> Result<usize, RecordError> {
        let offset = self.at;
        let size = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if size > most {
            return Err(damaged(offset, reason));
        }
        Ok(size)
    }

    fn text(&mut self, count: usize) -> Result<String, RecordError> {
        let offset = self.at;
        let bytes = self.take(count)?.to_vec();
        String::from_utf8(bytes).map_err(|_| damaged(offset, "a text is not UTF-8"))
    }

    fn header(&mut self) -> Result<Identity, RecordError> {
        if self.take(MAGIC.len())? != MAGIC {
            return Err(damaged(0, "it does not begin as a record does"));
        }
        if self.u32()? != VERSION {
            return Err(damaged(MAGIC.len(), "its version is not 2"));
        }
        let offset = self.at;
        let fields = self.u32()?;
        if fields > MAX_FIELDS {
            return Err(damaged(offset, "it has too many fields"));
        }
        let mut identity = Vec::new();
        for _ in 0..fields {
            let offset = self.at;
            let name = usize::from(u16::from_le_bytes(self.array()?));
            let value = self.size(MAX_VALUE, "a value is too long")?;
            if name > MAX_NAME {
                return Err(damaged(offset, "a name is too long"));
            }
            identity.push((self.text(name)?, self.text(value)?));
        }
        let offset = self.at;
        let sum = crc32fast::hash(self.bytes.get(..offset).unwrap_or_default());
        if self.u32()? != sum {
            return Err(damaged(offset, "the sum of its beginning is wrong"));
        }
        Ok(identity)
    }

    fn record(&mut self) -> Result<(Position, Input), RecordError> {
        let offset = self.at;
        let size = self.size(MAX_PAYLOAD, "an entry is too long")?;
        let sum = self.u32()?;
        let payload = self.take(size)?;
        if crc32fast::hash(payload) != sum {
            return Err(damaged(offset, "the sum of an entry is wrong"));
        }
        if payload.len() < HEAD {
            return Err(damaged(offset, "an entry is too short"));
        }
        let mut inner = Reader {
            bytes: payload,
            at: 0,
        };
        let [kind] = inner.array()?;
        let at = Position {
            instructions: inner.u64()?,
            nanoseconds: inner.u64()?,
        };
        let input = match (kind, payload.len() - HEAD) {
            (TYPED, count) if count > 0 => Input::Typed(inner.take(count)?.to_vec()),
            (MESSAGE, 12) => Input::Message(MsiMessage {
                address: inner.u64()?,
                data: inner.u32()?,
            }),
            (DEVICE, count) if count >= NUMBER => Input::Device {
                port: inner.u32()?,
                bytes: inner.take(count - NUMBER)?.to_vec(),
            },
            (END, 0) => Input::End,
            _ => return Err(damaged(offset, "an entry is of no known kind")),
        };
        Ok((at, input))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(instructions: u64) -> Position {
        Position {
            instructions,
            nanoseconds: instructions + 5,
        }
    }

    fn sample() -> Record {
        let message = MsiMessage {
            address: 0xfee0_0000,
            data: 0x31,
        };
        Record {
            identity: vec![
                ("kernel".to_owned(), "abc".to_owned()),
                ("memory".to_owned(), "5".to_owned()),
            ],
            inputs: vec![
                (at(1), Input::Typed(b"hello".to_vec())),
                (at(1), Input::Message(message)),
                (
                    at(3),
                    Input::Device {
                        port: 7,
                        bytes: b"frame".to_vec(),
                    },
                ),
                (at(9), Input::End),
            ],
        }
    }

    fn written(sample: &Record) -> Vec<u8> {
        let mut bytes = header(&sample.identity);
        for (at, input) in &sample.inputs {
            bytes.extend(record(*at, input));
        }
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(parse(&written(&sample())).unwrap(), sample());
    }

    #[test]
    fn every_truncation_is_refused_with_the_offset_of_the_end() {
        let bytes = written(&sample());
        for end in 0..bytes.len() {
            match parse(&bytes[..end]) {
                Err(RecordError::Damaged { offset, .. }) => assert_eq!(offset, end),
                other => panic!("{end}: {other:?}"),
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = written(&sample());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_file_that_goes_on_after_its_end_or_back_in_time_is_refused() {
        let mut bytes = written(&sample());
        bytes.push(0);
        assert!(parse(&bytes).is_err());
        let mut sample = sample();
        sample.inputs.swap(0, 3);
        sample.inputs.push((at(20), Input::End));
        assert!(parse(&written(&sample)).is_err());
    }
}
