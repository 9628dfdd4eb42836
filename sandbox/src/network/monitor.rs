//! rtnetlink's events of a namespace.

use std::{io, os::fd::OwnedFd};

use kata_sys::watch::watch;
use rtnetlink::packet_core::{NLM_F_REPLACE, NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, recv,
        socket_with,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

/// RTMGRP_ of linux/rtnetlink.h: links, neighbours, IPv4 and IPv6 addresses, routes and rules.
const GROUPS: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x4_0000;

/// More than the kernel puts into one datagram.
const DATAGRAM: usize = 64 * 1024;

/// Some of what has happened.
#[derive(Debug)]
pub(super) enum Burst {
    /// All of it so far, in order, each with its NLM_F_REPLACE.
    Messages(Vec<(RouteNetlinkMessage, bool)>),
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
            let mut messages = Vec::new();
            loop {
                let received =
                    recv(self.socket.get_ref(), &mut self.buffer[..], RecvFlags::empty());
                match received {
                    Ok((length, _)) => messages.extend(parse(&self.buffer[..length])),
                    Err(Errno::NOBUFS) => return Ok(Burst::Lost),
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            ready.clear_ready();
            if !messages.is_empty() {
                return Ok(Burst::Messages(messages));
            }
        }
    }
}

/// A message that is not understood says nothing that a guest has to know.
fn parse(mut datagram: &[u8]) -> Vec<(RouteNetlinkMessage, bool)> {
    let mut messages = Vec::new();
    while let Ok(header) = NetlinkBuffer::new_checked(datagram) {
        let length = header.length() as usize;
        if let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram)
            && let NetlinkPayload::InnerMessage(inner) = message.payload
        {
            messages.push((inner, message.header.flags & NLM_F_REPLACE != 0));
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}
