//! The packet header of virtio-vsock (virtio 1.3, 5.10.6): 44 bytes, little endian.

/// The host's context id.
pub const HOST_CID: u64 = 2;

/// Bytes of a header.
pub const HEADER_LEN: usize = 44;

/// Longest payload of one packet that is taken; Linux sends at most as much.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// The only socket type that is served: byte streams.
pub const TYPE_STREAM: u16 = 1;

/// What a packet asks for or tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Opens a connection.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// Refuses or ends one, at once.
    Reset = 3,
    /// Ends one or both directions; see [`Halves`].
    Shutdown = 4,
    /// Carries payload.
    Data = 5,
    /// Tells the sender's buffer state.
    CreditUpdate = 6,
    /// Asks for the receiver's buffer state.
    CreditRequest = 7,
}

impl Op {
    /// The operation with this number, if there is one.
    pub fn parse(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// The directions that the sender of a shutdown gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Halves {
    /// The sender reads no more.
    pub receive: bool,
    /// The sender writes no more.
    pub send: bool,
}

impl Halves {
    const RECEIVE: u32 = 1;
    const SEND: u32 = 2;

    /// From the flags of a shutdown; bits without a meaning are ignored.
    pub fn from_flags(flags: u32) -> Self {
        Self { receive: flags & Self::RECEIVE != 0, send: flags & Self::SEND != 0 }
    }

    /// To the flags of a shutdown.
    pub fn flags(self) -> u32 {
        u32::from(self.receive) * Self::RECEIVE + u32::from(self.send) * Self::SEND
    }

    /// What either gives up.
    pub fn or(self, other: Self) -> Self {
        Self { receive: self.receive || other.receive, send: self.send || other.send }
    }

    /// True when nothing more passes in either direction.
    pub fn both(self) -> bool {
        self.receive && self.send
    }
}

/// A header, parsed but not judged: any value of any field can come from a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Sender's context id.
    pub src_cid: u64,
    /// Addressee's context id.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Addressee's port.
    pub dst_port: u32,
    /// Bytes of payload behind the header.
    pub len: u32,
    /// Socket type.
    pub kind: u16,
    /// Number of the operation, see [`Op`].
    pub op: u16,
    /// Flags of the operation.
    pub flags: u32,
    /// Bytes that the sender of this packet can hold in all.
    pub buf_alloc: u32,
    /// Bytes that the sender of this packet has passed on so far, modulo 2³².
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut fields = Fields(bytes);
        Self {
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

    /// Writes a header.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The reset that answers this packet.
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Reset as u16,
            ..Self::default()
        }
    }
}

/// Takes one fixed-size field after the other off the front; the array's length covers all fields of a header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("fields add up to HEADER_LEN");
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{HEADER_LEN, Halves, Header, Op};

    #[test]
    fn fields_lie_where_the_specification_says() {
        let bytes: [u8; HEADER_LEN] = std::array::from_fn(|i| i as u8);
        let header = Header::parse(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.dst_port, 0x1716_1514);
        assert_eq!(header.op, 0x1f1e);
        assert_eq!(header.fwd_cnt, 0x2b2a_2928);
    }

    #[test]
    fn shutdown_flags_without_meaning_are_ignored() {
        assert_eq!(Halves::from_flags(0xffff_fffc), Halves::default());
        assert!(Halves::from_flags(3).both());
    }

    proptest! {
        #[test]
        fn encode_is_the_inverse_of_parse(bytes in any::<[u8; 32]>(), tail in any::<[u8; 12]>()) {
            let mut whole = [0; HEADER_LEN];
            whole[..32].copy_from_slice(&bytes);
            whole[32..].copy_from_slice(&tail);
            assert_eq!(Header::parse(&whole).encode(), whole);
        }

        #[test]
        fn an_operation_keeps_its_number(number in any::<u16>()) {
            if let Some(op) = Op::parse(number) {
                assert_eq!(op as u16, number);
            }
        }
    }
}
