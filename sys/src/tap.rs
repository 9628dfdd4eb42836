//! Tap devices: the host end of a guest's network card.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::fs::{Mode, OFlags, open};

/// Longest interface name, its NUL included.
const NAME_SIZE: usize = libc::IFNAMSIZ;

/// A tap that lives exactly as long as its descriptors, with virtio-net headers on its frames.
#[derive(Debug)]
pub struct Tap {
    /// Frames go in and out here, by each of them alike.
    pub queues: Vec<OwnedFd>,
    /// Name in the network namespace of the thread that made it.
    pub name: String,
}

/// Makes a tap with so many queues, at least one, in the calling thread's network namespace.
///
/// `name` may hold one `%d`, which the kernel replaces by the first free number.
///
/// # Errors
/// Those of opening `/dev/net/tun` and of its TUNSETIFF ioctl; `InvalidInput` for a name that is too long.
pub fn make(name: &str, queues: usize) -> io::Result<Tap> {
    let many = queues > 1;
    let (first, name) = open_queue(name, many)?;
    let mut all = vec![first];
    for _ in 1..queues {
        all.push(open_queue(&name, many)?.0);
    }
    Ok(Tap { queues: all, name })
}

fn open_queue(name: &str, one_of_many: bool) -> io::Result<(OwnedFd, String)> {
    if name.len() >= NAME_SIZE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface name is too long"));
    }
    let fd =
        open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    // SAFETY: `ifreq` is a C struct of integers and byte arrays, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let many = if one_of_many { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | many;
    request.ifr_ifru.ifru_flags =
        flags.try_into().map_err(|_| io::Error::other("tap flags do not fit a short"))?;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`; `request` is one and outlives the call.
    let status = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes: Vec<u8> = request.ifr_name.iter().map(|byte| byte.cast_unsigned()).collect();
    let name = CStr::from_bytes_until_nul(&bytes).map_err(io::Error::other)?;
    Ok((fd, name.to_string_lossy().into_owned()))
}
