//! Packets (virtio 1.2, section 5.10.6).

/// Bytes of a header.
pub(super) const HEADER: u32 = 44;
const LEN: usize = 44;

/// The host's context id.
pub(super) const HOST: u64 = 2;
/// A stream (section 5.10.6.4); the only kind of socket here.
pub(super) const STREAM: u16 = 1;

pub(super) const REQUEST: u16 = 1;
pub(super) const RESPONSE: u16 = 2;
pub(super) const RST: u16 = 3;
pub(super) const SHUTDOWN: u16 = 4;
pub(super) const RW: u16 = 5;
pub(super) const CREDIT_UPDATE: u16 = 6;
pub(super) const CREDIT_REQUEST: u16 = 7;

/// The sender of a shutdown will receive no more.
pub(super) const NO_RECEIVE: u32 = 1;
/// The sender of a shutdown will send no more.
pub(super) const NO_SEND: u32 = 2;

/// What leads a packet. Untrusted, copied out of guest memory once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

/// Fields in their order.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk() else {
            return [0; N];
        };
        self.0 = rest;
        *field
    }
}

impl Header {
    pub(super) fn parse(bytes: &[u8; LEN]) -> Header {
        let mut fields = Fields(bytes);
        Header {
            src_cid: u64::from_le_bytes(fields.take()),
            dst_cid: u64::from_le_bytes(fields.take()),
            src_port: u32::from_le_bytes(fields.take()),
            dst_port: u32::from_le_bytes(fields.take()),
            len: u32::from_le_bytes(fields.take()),
            kind: u16::from_le_bytes(fields.take()),
            op: u16::from_le_bytes(fields.take()),
            flags: u32::from_le_bytes(fields.take()),
            buf_alloc: u32::from_le_bytes(fields.take()),
            fwd_cnt: u32::from_le_bytes(fields.take()),
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LEN);
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        bytes.extend(self.src_port.to_le_bytes());
        bytes.extend(self.dst_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The answer to a packet that belongs to no connection. It has the kind of what it answers.
    pub(super) fn refusal(&self) -> Header {
        Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: RST,
            ..Header::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtio_5_10_6_a_header_has_44_bytes_in_the_order_of_the_specification() {
        let header = Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 0x1111,
            dst_port: 0x2222,
            len: 0x3333,
            kind: 1,
            op: RW,
            flags: 6,
            buf_alloc: 7,
            fwd_cnt: 8,
        };
        let bytes = header.bytes();
        assert_eq!(
            (bytes.len(), bytes[24], bytes[28], bytes[30]),
            (44, 0x33, 1, 5)
        );
        assert_eq!(Header::parse(&bytes.try_into().unwrap()), header);
    }
}
