//! rtnetlink's events of a namespace.

use std::{io, os::fd::OwnedFd};

use kata_sys::watch::watch;
use rtnetlink::packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, recv,
        socket_with,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use super::routes::Place;

/// RTMGRP_ of linux/rtnetlink.h: links, neighbours, IPv4 and IPv6 addresses, routes and rules.
const GROUPS: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x4_0000;

/// More than the kernel puts into one datagram.
const DATAGRAM: usize = 64 * 1024;

/// Some of what has happened.
#[derive(Debug)]
pub(super) enum Burst {
    /// All of it so far, in order, each with where a route's place is.
    Messages(Vec<(RouteNetlinkMessage, Place)>),
    /// The socket's buffer overflowed: some is lost, and only a dump tells how things are.
    Lost,
}

/// A subscription to a namespace.
#[derive(Debug)]
pub(super) struct Monitor {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

/// Subscribes to the namespace of the calling thread.
pub(super) fn subscribe() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Protocol 0 of netlink is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    Ok(socket)
}

impl Monitor {
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: watch(socket, Interest::READABLE)?, buffer: vec![0; DATAGRAM] })
    }

    /// Waits until something happens, and takes all of it. Cancelling it loses nothing.
    pub async fn next(&mut self) -> io::Result<Burst> {
        loop {
            let mut ready = self.socket.readable().await?;
            let (mut messages, mut lost) = (Vec::new(), false);
            loop {
                let received =
                    recv(self.socket.get_ref(), &mut self.buffer[..], RecvFlags::empty());
                match received {
                    Ok(_) if lost => {}
                    Ok((length, _)) => messages.extend(parse(&self.buffer[..length])),
                    // The kernel tells nothing more until the queue is empty, and what is in it is older than any dump.
                    Err(Errno::NOBUFS) => lost = true,
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            ready.clear_ready();
            if lost {
                return Ok(Burst::Lost);
            }
            if !messages.is_empty() {
                return Ok(Burst::Messages(messages));
            }
        }
    }
}

/// A message that is not understood says nothing that a guest has to know.
fn parse(mut datagram: &[u8]) -> Vec<(RouteNetlinkMessage, Place)> {
    let mut messages = Vec::new();
    while let Ok(header) = NetlinkBuffer::new_checked(datagram) {
        let length = header.length() as usize;
        if let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram)
            && let NetlinkPayload::InnerMessage(inner) = message.payload
        {
            messages.push((inner, Place::of(message.header.flags)));
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

#[cfg(test)]
mod tests {
    use rtnetlink::{
        packet_core::{NLM_F_REQUEST, NetlinkMessage},
        packet_route::{RouteNetlinkMessage, link::LinkMessage},
    };
    use rustix::net::{
        AddressFamily, SendFlags, SocketFlags, SocketType, send, socket_with, sockopt,
    };

    use super::{Burst, Monitor};

    /// Lets the kernel tell of the loopback link.
    fn ask(monitor: &Monitor) {
        let mut link = LinkMessage::default();
        link.header.index = 1;
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(link));
        request.header.flags = NLM_F_REQUEST;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        send(monitor.socket.get_ref(), &bytes, SendFlags::empty()).unwrap();
    }

    #[tokio::test]
    async fn what_comes_after_an_overrun_is_heard_and_what_was_queued_before_is_not() {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No subscription: nothing comes but answers.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None).unwrap();
        sockopt::set_socket_recv_buffer_size(&socket, 1 << 14).unwrap();
        let mut monitor = Monitor::new(socket).unwrap();
        for _ in 0..100 {
            ask(&monitor);
        }
        assert!(matches!(monitor.next().await.unwrap(), Burst::Lost));
        ask(&monitor);
        let Burst::Messages(heard) = monitor.next().await.unwrap() else { panic!("lost") };
        assert_eq!(heard.len(), 1);
    }
}
