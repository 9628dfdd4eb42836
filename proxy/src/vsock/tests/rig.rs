//! A guest made of memory and two rings, and the sockets that it was given.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex},
};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::vsock::{
    connection::Key,
    device,
    header::{HEADER_LEN, HOST_CID, Header, Op, TYPE_STREAM},
    muxer::{Announcer, Identity, Muxer},
};

pub const GUEST_CID: u64 = 3;
pub const PORT: u32 = 1025;
pub const QUEUE_SIZE: u16 = 64;
pub const MEMORY: usize = 8 << 20;

/// Flags of a descriptor.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Where a ring and its buffers lie.
#[derive(Clone, Copy)]
pub struct Layout {
    pub table: u64,
    pub available: u64,
    pub used: u64,
    pub buffers: u64,
}

pub const TRANSMIT: Layout =
    Layout { table: 0x1000, available: 0x3000, used: 0x5000, buffers: 0x10_0000 };
pub const RECEIVE: Layout =
    Layout { table: 0x7000, available: 0x9000, used: 0xb000, buffers: 0x40_0000 };

/// Keeps the sockets that it is given.
#[derive(Clone)]
pub struct Host {
    pub sockets: Arc<Mutex<Vec<UnixStream>>>,
    pub behind: Arc<Mutex<bool>>,
    wake: Arc<OwnedFd>,
}

impl Announcer for Host {
    fn announce(&mut self, _key: Key, socket: BorrowedFd<'_>) -> io::Result<()> {
        if *self.behind.lock().unwrap() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let socket = UnixStream::from(socket.try_clone_to_owned()?);
        self.sockets.lock().unwrap().push(socket);
        Ok(())
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// The whole rig.
pub struct Rig {
    pub memory: GuestMemoryMmap,
    pub muxer: Muxer<Host>,
    pub host: Host,
    pub transmit: Queue,
    pub receive: Queue,
    sent: u16,
    offered: u16,
    seen: u16,
    buffer_len: u32,
}

fn queue(layout: Layout) -> Queue {
    let mut queue = Queue::new(QUEUE_SIZE).unwrap();
    queue.set_desc_table_address(Some(layout.table as u32), None);
    queue.set_avail_ring_address(Some(layout.available as u32), None);
    queue.set_used_ring_address(Some(layout.used as u32), None);
    queue.set_ready(true);
    queue
}

impl Rig {
    pub fn new() -> Self {
        let (wake, _) = kata_sys::scm::stream_pair().unwrap();
        let host = Host { sockets: Arc::default(), behind: Arc::default(), wake: Arc::new(wake) };
        let identity = Identity { guest_cid: GUEST_CID, ports: vec![PORT] };
        Self {
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap(),
            muxer: Muxer::new(identity, host.clone()).unwrap(),
            host,
            transmit: queue(TRANSMIT),
            receive: queue(RECEIVE),
            sent: 0,
            offered: 0,
            seen: 0,
            buffer_len: 4096,
        }
    }

    pub fn descriptor(&self, table: u64, index: u16, (address, len): (u64, u32), link: (u16, u16)) {
        let at = GuestAddress(table + 16 * u64::from(index));
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&link.0.to_le_bytes());
        bytes[14..].copy_from_slice(&link.1.to_le_bytes());
        self.memory.write_slice(&bytes, at).unwrap();
    }

    fn offer(&self, layout: Layout, count: &mut u16, head: u16) {
        let slot = layout.available + 4 + 2 * u64::from(*count % QUEUE_SIZE);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        *count = count.wrapping_add(1);
        self.memory.write_obj(*count, GuestAddress(layout.available + 2)).unwrap();
    }

    /// Sends bytes as one chain, cut into descriptors of the given lengths; the last takes the rest.
    pub fn send_cut(&mut self, bytes: &[u8], cuts: &[usize]) {
        self.lay_cut(bytes, cuts);
        device::transmit(&mut self.muxer, &mut self.transmit, &self.memory).unwrap();
    }

    /// Lays such a chain into the queue, where nobody looks at it yet.
    pub fn lay_cut(&mut self, bytes: &[u8], cuts: &[usize]) {
        self.memory.write_slice(bytes, GuestAddress(TRANSMIT.buffers)).unwrap();
        let (mut at, mut index) = (0, 0);
        for cut in cuts.iter().take(usize::from(QUEUE_SIZE) - 1) {
            let len = (*cut).min(bytes.len() - at);
            let place = (TRANSMIT.buffers + at as u64, len as u32);
            self.descriptor(TRANSMIT.table, index, place, (NEXT, index + 1));
            at += len;
            index += 1;
        }
        let place = (TRANSMIT.buffers + at as u64, (bytes.len() - at) as u32);
        self.descriptor(TRANSMIT.table, index, place, (0, 0));
        let mut sent = self.sent;
        self.offer(TRANSMIT, &mut sent, 0);
        self.sent = sent;
    }

    /// Sends a packet of one connection.
    pub fn send(&mut self, guest_port: u32, op: Op, payload: &[u8]) {
        self.send_header(&header(guest_port, op), payload);
    }

    pub fn send_header(&mut self, header: &Header, payload: &[u8]) {
        self.send_cut(&packet(header, payload), &[HEADER_LEN]);
    }

    /// Lays a packet of one connection into the queue, where nobody looks at it yet.
    pub fn lay(&mut self, guest_port: u32, op: Op, payload: &[u8]) {
        self.lay_cut(&packet(&header(guest_port, op), payload), &[HEADER_LEN]);
    }

    /// Opens a connection and returns the host's end of it.
    pub fn connect(&mut self, guest_port: u32) -> UnixStream {
        self.send(guest_port, Op::Request, &[]);
        let packets = self.packets();
        assert_eq!(packets.len(), 1);
        assert_eq!(packets[0].0.op, Op::Response as u16);
        self.host.sockets.lock().unwrap().pop().unwrap()
    }

    /// Buffers of another size from now on.
    pub fn buffers_of(&mut self, len: u32) {
        self.buffer_len = len;
    }

    /// Lets the device say everything that it has to say, and returns it.
    pub fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        loop {
            while self.offered.wrapping_sub(self.seen) < QUEUE_SIZE {
                let index = self.offered % QUEUE_SIZE;
                let place = (RECEIVE.buffers + 0x1_0000 * u64::from(index), self.buffer_len);
                self.descriptor(RECEIVE.table, index, place, (WRITE, 0));
                let mut offered = self.offered;
                self.offer(RECEIVE, &mut offered, index);
                self.offered = offered;
            }
            self.muxer.on_host_events().unwrap();
            device::receive(&mut self.muxer, &mut self.receive, &self.memory).unwrap();
            let used: u16 = self.memory.read_obj(GuestAddress(RECEIVE.used + 2)).unwrap();
            if used == self.seen {
                return packets;
            }
            while self.seen != used {
                packets.push(self.packet());
                self.seen = self.seen.wrapping_add(1);
            }
        }
    }

    fn packet(&self) -> (Header, Vec<u8>) {
        let element = RECEIVE.used + 4 + 8 * u64::from(self.seen % QUEUE_SIZE);
        let head: u32 = self.memory.read_obj(GuestAddress(element)).unwrap();
        let written: u32 = self.memory.read_obj(GuestAddress(element + 4)).unwrap();
        let at = RECEIVE.buffers + 0x1_0000 * u64::from(head);
        let mut bytes = vec![0; written as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        let payload = bytes.split_off(HEADER_LEN);
        let header = Header::parse(bytes.as_slice().try_into().unwrap());
        assert_eq!(header.len as usize, payload.len());
        (header, payload)
    }
}

fn packet(header: &Header, payload: &[u8]) -> Vec<u8> {
    let header = Header { len: payload.len() as u32, ..*header };
    [&header.encode()[..], payload].concat()
}

/// A header as Linux would send it, with plenty of room on the guest's side.
pub fn header(guest_port: u32, op: Op) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: PORT,
        kind: TYPE_STREAM,
        op: op as u16,
        buf_alloc: 256 * 1024,
        ..Header::default()
    }
}

/// The operations of packets, in order.
pub fn operations(packets: &[(Header, Vec<u8>)]) -> Vec<Op> {
    packets.iter().map(|(header, _)| Op::parse(header.op).unwrap()).collect()
}
