//! As much of nf_tables' netlink as one table needs: a transaction of its messages, and how the kernel answers it.
//!
//! The layouts are those of `linux/netfilter/nfnetlink.h` and `nf_tables.h`: numbers of attributes are in the host's byte order,
//! their values in the network's.

use std::{io, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::{self, SocketAddrNetlink},
    recv, sendto, socket_with,
};

const HEADER: usize = 16;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;

/// Type of an answer that carries an error, or 0.
const ERROR: u16 = 2;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// Subsystem of nf_tables.
const SUBSYSTEM: u16 = 10;

/// Families.
const UNSPECIFIED: u8 = 0;
const INET: u8 = 1;
pub(super) const IPV4: u8 = 2;
pub(super) const IPV6: u8 = 10;

/// Registers: that of verdicts, and two of 16 bytes.
const VERDICT: u32 = 0;
const FIRST: u32 = 1;
const SECOND: u32 = 2;

/// What a packet has to be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Meta {
    /// Arrived over the link of this index.
    Incoming(u32),
    /// Of this family.
    Family(u8),
    /// Of this protocol above IP.
    Protocol(u8),
}

/// One step of a rule.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step<'a> {
    /// Goes on if the packet is so.
    Meta(Meta),
    /// Goes on if these bytes stand there in the network header.
    Header { offset: u32, bytes: &'a [u8] },
    /// Goes on if the packet has a socket, and that is an ordinary one.
    OrdinarySocket,
    /// Lets the packet pass.
    Accept,
    /// Gives the packet to the listener at this address, if there is one.
    Steer { family: u8, address: &'a [u8], port: u16 },
}

/// Messages that take effect together, or not at all.
#[derive(Debug)]
pub(super) struct Transaction {
    bytes: Vec<u8>,
    messages: u32,
}

impl Transaction {
    /// An empty one.
    pub(super) fn new() -> Self {
        let mut transaction = Self { bytes: Vec::new(), messages: 0 };
        transaction.message(BATCH_BEGIN, REQUEST, (UNSPECIFIED, SUBSYSTEM), |_| ());
        transaction
    }

    /// Makes a table, which may be there already.
    pub(super) fn add_table(&mut self, table: &str) {
        self.change(0, CREATE, |body| body.text(1, table));
    }

    /// Removes a table with all that is in it.
    pub(super) fn delete_table(&mut self, table: &str) {
        self.change(2, 0, |body| body.text(1, table));
    }

    /// Makes a chain for what arrives, before it is routed.
    pub(super) fn add_prerouting(&mut self, table: &str, chain: &str, priority: i32) {
        const PREROUTING: u32 = 0;
        self.change(3, CREATE, |body| {
            body.text(1, table);
            body.text(3, chain);
            body.nest(4, |hook| {
                hook.number(1, PREROUTING);
                hook.number(2, priority.cast_unsigned());
            });
            body.text(7, "filter");
        });
    }

    /// Makes a rule behind the others of the chain.
    pub(super) fn add_rule(&mut self, table: &str, chain: &str, steps: &[Step<'_>]) {
        self.change(6, CREATE | APPEND, |body| {
            body.text(1, table);
            body.text(2, chain);
            body.nest(4, |list| steps.iter().for_each(|step| step.write(list)));
        });
    }

    /// Has it take effect in the network namespace of the calling thread.
    ///
    /// # Errors
    /// What the kernel refuses it with: `ENOENT`, or a kind of "not supported", when it lacks something.
    pub(super) fn commit(mut self) -> io::Result<()> {
        self.message(BATCH_END, REQUEST, (UNSPECIFIED, SUBSYSTEM), |_| ());
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(netlink::NETFILTER),
        )?;
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&socket, &self.bytes, SendFlags::empty(), &kernel)?;
        answers(&socket)
    }

    fn change(&mut self, kind: u16, flags: u16, write: impl FnOnce(&mut Body<'_>)) {
        self.message((SUBSYSTEM << 8) | kind, REQUEST | ACK | flags, (INET, 0), write);
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        (family, resource): (u8, u16),
        write: impl FnOnce(&mut Body<'_>),
    ) {
        let start = self.bytes.len();
        self.messages += 1;
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.messages.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        write(&mut Body { bytes: &mut self.bytes });
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

/// Reads all answers, which are there when the sending returns; the first error is the one that counts.
fn answers(socket: &OwnedFd) -> io::Result<()> {
    let mut buffer = vec![0; 32 * 1024];
    let mut outcome = Ok(());
    loop {
        let length = match recv(socket, &mut *buffer, RecvFlags::empty()) {
            Ok((length, _)) => length,
            Err(rustix::io::Errno::AGAIN) => return outcome,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut rest = &buffer[..length.min(buffer.len())];
        while let Some((error, after)) = answer(rest) {
            if error != 0 {
                outcome = outcome.and(Err(io::Error::from_raw_os_error(error)));
            }
            rest = after;
        }
    }
}

/// The error number of the first message (0 for none), and what follows it.
fn answer(bytes: &[u8]) -> Option<(i32, &[u8])> {
    let header = bytes.first_chunk::<HEADER>()?;
    let word = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
    let length = u32::from_ne_bytes(word(0)) as usize;
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    let error = match (kind, bytes.get(HEADER..HEADER + 4)) {
        (ERROR, Some(&[a, b, c, d])) => i32::from_ne_bytes([a, b, c, d]).saturating_neg(),
        _ => 0,
    };
    let after = bytes.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
    Some((error, after))
}

/// Attributes of a message, or of one of its attributes.
struct Body<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Body<'_> {
    fn raw(&mut self, kind: u16, write: impl FnOnce(&mut Body<'_>)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        write(&mut Body { bytes: self.bytes });
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Body<'_>)) {
        self.raw(kind | NESTED, write);
    }

    fn value(&mut self, kind: u16, value: &[u8]) {
        self.raw(kind, |body| body.bytes.extend(value));
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.value(kind, &value.to_be_bytes());
    }

    fn text(&mut self, kind: u16, text: &str) {
        self.raw(kind, |body| {
            body.bytes.extend(text.as_bytes());
            body.bytes.push(0);
        });
    }

    fn expression(&mut self, name: &str, write: impl FnOnce(&mut Body<'_>)) {
        self.nest(1, |element| {
            element.text(1, name);
            element.nest(2, write);
        });
    }

    /// Goes on if the first register holds `value`.
    fn compare(&mut self, value: &[u8]) {
        const EQUAL: u32 = 0;
        self.expression("cmp", |cmp| {
            cmp.number(1, FIRST);
            cmp.number(2, EQUAL);
            cmp.nest(3, |data| data.value(1, value));
        });
    }

    fn load(&mut self, register: u32, value: &[u8]) {
        self.expression("immediate", |immediate| {
            immediate.number(1, register);
            immediate.nest(2, |data| data.value(1, value));
        });
    }
}

impl Step<'_> {
    fn write(self, list: &mut Body<'_>) {
        match self {
            Self::Meta(meta) => {
                let (key, value) = match &meta {
                    Meta::Incoming(index) => (4, index.to_ne_bytes().to_vec()),
                    Meta::Family(family) => (15, vec![*family]),
                    Meta::Protocol(protocol) => (16, vec![*protocol]),
                };
                list.expression("meta", |meta| {
                    meta.number(2, key);
                    meta.number(1, FIRST);
                });
                list.compare(&value);
            }
            Self::Header { offset, bytes } => {
                const NETWORK_HEADER: u32 = 1;
                list.expression("payload", |payload| {
                    payload.number(1, FIRST);
                    payload.number(2, NETWORK_HEADER);
                    payload.number(3, offset);
                    payload.number(4, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
                });
                list.compare(bytes);
            }
            Self::OrdinarySocket => {
                const TRANSPARENT: u32 = 0;
                list.expression("socket", |socket| {
                    socket.number(1, TRANSPARENT);
                    socket.number(2, FIRST);
                });
                list.compare(&[0]);
            }
            Self::Accept => {
                const ACCEPT: u32 = 1;
                list.expression("immediate", |immediate| {
                    immediate.number(1, VERDICT);
                    immediate.nest(2, |data| data.nest(2, |verdict| verdict.number(1, ACCEPT)));
                });
            }
            Self::Steer { family, address, port } => {
                list.load(FIRST, address);
                list.load(SECOND, &port.to_be_bytes());
                list.expression("tproxy", |tproxy| {
                    tproxy.number(1, family.into());
                    tproxy.number(2, FIRST);
                    tproxy.number(3, SECOND);
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BATCH_BEGIN, HEADER, Step, Transaction, answer};

    #[test]
    fn messages_and_attributes_are_as_long_as_they_say() {
        let mut transaction = Transaction::new();
        transaction.add_table("t");
        transaction.add_rule("t", "chain", &[Step::OrdinarySocket, Step::Accept]);
        let mut rest = transaction.bytes.as_slice();
        let mut kinds = Vec::new();
        while let Some(header) = rest.first_chunk::<HEADER>() {
            kinds.push(u16::from_ne_bytes([header[4], header[5]]));
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let mut attributes = &rest[HEADER + 4..length];
            while let [a, b, ..] = attributes {
                let length = usize::from(u16::from_ne_bytes([*a, *b]));
                assert!(length >= 4 && length <= attributes.len());
                attributes = &attributes[length.next_multiple_of(4)..];
            }
            assert!(attributes.is_empty());
            rest = &rest[length..];
        }
        assert_eq!(kinds, [BATCH_BEGIN, 0xa00, 0xa06]);
    }

    #[test]
    fn an_answer_tells_its_error_and_a_cut_one_none() {
        let mut refusal = vec![36, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        refusal.extend((-95_i32).to_ne_bytes());
        refusal.resize(36, 0);
        assert_eq!(answer(&refusal), Some((95, [].as_slice())));
        assert_eq!(answer(&refusal[..17]), Some((0, [].as_slice())));
        assert_eq!(answer(&refusal[..9]), None);
        // A length that would make no headway.
        refusal[0] = 0;
        assert_eq!(answer(&refusal).map(|(_, rest)| rest.len()), Some(20));
    }
}
