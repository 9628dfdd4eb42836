//! Cards that the VMM adds while the guest runs: its kernel finds them in its own time.

use std::{io, os::fd::OwnedFd, time::Duration};

use kata_sys::watch::watch;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, recv,
        socket_with,
    },
};
use tokio::{io::Interest, time::timeout};

use super::{netlink::Netlink, words::hardware_address};
use crate::order::{Failure, Step};

/// RTMGRP_LINK.
const LINKS: u32 = 1;

/// Emulated, on a busy host, a card was there after half a second; the ceiling is for one that never comes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Messages read before the agent's other tasks have a turn.
const AT_ONCE: u32 = 64;

/// Waits until a card has a device; false when that takes too long.
pub async fn of(card: &str) -> Result<bool, Failure> {
    let address = hardware_address(card)?;
    match timeout(PATIENCE, wait(&address)).await {
        Ok(waited) => waited.map(|()| true).step(|| format!("wait for card {card}")),
        Err(_) => Ok(false),
    }
}

async fn wait(card: &[u8]) -> io::Result<()> {
    // Listened before it is looked, so that no device is missed.
    let events = watch(subscribe()?, Interest::READABLE)?;
    let mut netlink = Netlink::open()?;
    loop {
        if netlink.devices()?.iter().any(|device| device.card == card) {
            return Ok(());
        }
        let mut ready = events.readable().await?;
        if drain(events.get_ref())? {
            ready.clear_ready();
        } else {
            tokio::task::yield_now().await;
        }
    }
}

fn subscribe() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Protocol 0 of netlink is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, LINKS))?;
    Ok(socket)
}

/// What is told does not matter, only that something is; so neither does what was lost. False when there may be more: what
/// is left is to be read before the next wait, for of an overrun queue the kernel tells nothing until it is empty.
fn drain(events: &OwnedFd) -> io::Result<bool> {
    for _ in 0..AT_ONCE {
        match recv(events, &mut [0; 1][..], RecvFlags::TRUNC) {
            Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}
