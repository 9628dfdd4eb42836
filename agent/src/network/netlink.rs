//! A netlink conversation: one request, one answer, in order.

use std::{io, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use super::message::{self, HEADER, IFLA_ADDRESS, IFLA_NAME, IFLA_PERMANENT_ADDRESS};

const ERROR: u16 = 2;
const DONE: u16 = 3;
const NEW_LINK: u16 = 16;
/// Of `struct ifinfomsg`.
const LINK_BODY: usize = 16;
/// The kernel fills at most 32 KiB at a time.
const BUFFER: usize = 32 * 1024;

/// A network device of the guest.
#[derive(Debug, PartialEq, Eq)]
pub struct Device {
    pub index: u32,
    pub name: String,
    pub hardware_address: Vec<u8>,
    /// The address that it was made with.
    pub card: Vec<u8>,
}

/// A socket to the kernel's routing tables.
pub struct Netlink(OwnedFd);

impl Netlink {
    pub fn open() -> io::Result<Self> {
        // Protocol 0 of netlink is NETLINK_ROUTE.
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        Ok(Self(socket_with(family, kind, SocketFlags::CLOEXEC, None)?))
    }

    /// Sends a request and waits for its acknowledgement.
    pub fn request(&mut self, message: &[u8]) -> io::Result<()> {
        self.converse(message, |_, _| ())
    }

    /// All devices.
    pub fn devices(&mut self) -> io::Result<Vec<Device>> {
        let mut devices = Vec::new();
        self.converse(&message::list_links(), |kind, body| {
            if kind == NEW_LINK {
                devices.extend(device(body));
            }
        })?;
        Ok(devices)
    }

    fn converse(&mut self, message: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        send(&self.0, message, SendFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let (length, _) = recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((kind, body, behind)) = split_message(rest) {
                match kind {
                    DONE => return Ok(()),
                    ERROR => return acknowledgement(body),
                    kind => each(kind, body),
                }
                rest = behind;
            }
        }
    }
}

/// An error number of zero is an acknowledgement.
fn acknowledgement(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map(|number| i32::from_ne_bytes(*number)) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Type and body of the first message, and what comes after it.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn device(body: &[u8]) -> Option<Device> {
    let index = u32::from_ne_bytes(*body.get(4..)?.first_chunk()?);
    let mut device =
        Device { index, name: String::new(), hardware_address: Vec::new(), card: Vec::new() };
    let mut rest = body.get(LINK_BODY..)?;
    while let Some(length) = rest.first_chunk().map(|it| usize::from(u16::from_ne_bytes(*it))) {
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let payload = rest.get(4..length)?;
        match kind {
            IFLA_NAME => {
                let name = payload.strip_suffix(&[0]).unwrap_or(payload);
                device.name = String::from_utf8_lossy(name).into_owned();
            }
            IFLA_ADDRESS => device.hardware_address = payload.to_vec(),
            IFLA_PERMANENT_ADDRESS => device.card = payload.to_vec(),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(device)
}

#[cfg(test)]
mod tests {
    use super::{Netlink, acknowledgement, split_message};

    #[test]
    fn the_loopback_link_is_listed() {
        let devices = Netlink::open().unwrap().devices().unwrap();
        let loopback = devices.iter().find(|device| device.name == "lo").unwrap();
        assert_eq!(loopback.hardware_address, [0; 6]);
    }

    #[test]
    fn a_cut_message_is_none() {
        assert_eq!(split_message(&[]), None);
        assert_eq!(split_message(&[20, 0, 0, 0, 2, 0, 0, 0]), None);
        assert_eq!(split_message(&[3, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn an_error_carries_its_number() {
        let refused = acknowledgement(&(-17_i32).to_ne_bytes()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(17));
        assert!(acknowledgement(&[0; 4]).is_ok() && acknowledgement(&[]).is_err());
    }
}
