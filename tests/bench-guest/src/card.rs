//! A bare guest's network card, which nobody sets up for it.

use std::{io, net::IpAddr, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice::name_to_index, recv,
    send, socket_with,
};

/// Message types and attributes of linux/rtnetlink.h, linux/if_link.h and linux/if_addr.h.
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const ATTRIBUTE_LOCAL: u16 = 2;
const ATTRIBUTE_ADDRESS: u16 = 1;
const UP: u32 = 1;
/// Without duplicate address detection, which takes a second.
const NODAD: u8 = 2;
/// NLM_F_REQUEST, NLM_F_ACK.
const REQUEST: u16 = 1 | 4;
/// NLM_F_CREATE.
const CREATE: u16 = 0x400;

/// Brings it up, with these addresses of a /24 and a /64.
pub fn set_up(addresses: &[IpAddr]) -> io::Result<()> {
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    let netlink = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    let card = name_to_index(&netlink, "eth0")?;
    request(&netlink, &bring_up(card))?;
    addresses.iter().try_for_each(|address| request(&netlink, &add_address(card, *address)))
}

fn bring_up(index: u32) -> Vec<u8> {
    // struct ifinfomsg: family, pad, type, index, flags, change
    let body = [&[0; 4][..], &index.to_ne_bytes(), &UP.to_ne_bytes(), &UP.to_ne_bytes()].concat();
    message(NEW_LINK, REQUEST, &body)
}

fn add_address(index: u32, address: IpAddr) -> Vec<u8> {
    let (family, prefix, octets) = match address {
        IpAddr::V4(address) => (2_u8, 24_u8, address.octets().to_vec()),
        IpAddr::V6(address) => (10, 64, address.octets().to_vec()),
    };
    // struct ifaddrmsg: family, prefix length, flags, scope, index
    let mut body = [&[family, prefix, NODAD, 0][..], &index.to_ne_bytes()].concat();
    for kind in [ATTRIBUTE_LOCAL, ATTRIBUTE_ADDRESS] {
        let length = u16::try_from(4 + octets.len()).unwrap_or_default();
        body.extend([&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &octets].concat());
    }
    message(NEW_ADDRESS, REQUEST | CREATE, &body)
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap_or_default();
    let header =
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]].concat();
    [header, body.to_vec()].concat()
}

fn request(netlink: &OwnedFd, message: &[u8]) -> io::Result<()> {
    send(netlink, message, SendFlags::empty())?;
    let mut answer = [0; 4096];
    let (length, _) = recv(netlink, &mut answer[..], RecvFlags::empty())?;
    // struct nlmsgerr behind the header; zero is an acknowledgement.
    let error = answer.get(16..length.min(20)).and_then(|bytes| bytes.first_chunk().copied());
    match error.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
