//! Cards that wait for a link, out of every container's sight.

use std::{fs::File, io, os::fd::AsRawFd, thread};

use super::{
    message::LinkMessage,
    netlink::{Device, Netlink},
};

/// A network namespace that nothing runs in.
pub struct Spares {
    namespace: File,
    /// In it.
    netlink: Netlink,
    /// The guest's first one.
    home: File,
}

impl Spares {
    pub fn make() -> io::Result<Self> {
        let home = File::open("/proc/self/ns/net")?;
        let made = thread::spawn(|| {
            kata_sys::network::enter_new()?;
            Ok::<_, io::Error>((File::open("/proc/thread-self/ns/net")?, Netlink::open()?))
        });
        let (namespace, netlink) =
            made.join().map_err(|_| io::Error::other("its thread panicked"))??;
        Ok(Self { namespace, netlink, home })
    }

    /// Takes a device that `netlink`'s namespace has.
    pub fn take(&mut self, netlink: &mut Netlink, device: &Device) -> io::Result<()> {
        let aside = LinkMessage {
            name: Some(format!("spare{}", device.index)),
            up: Some(false),
            namespace: Some(self.namespace.as_raw_fd()),
            ..LinkMessage::of(device.index)
        };
        netlink.request(&aside.encode())
    }

    /// Gives a card to the guest's first namespace, at once under its name there if it may have that; false when it is not here.
    pub fn give(&mut self, card: &[u8], name: Option<&str>) -> io::Result<bool> {
        let devices = self.netlink.devices()?;
        let Some(device) = devices.iter().find(|device| device.card == card) else {
            return Ok(false);
        };
        let home = LinkMessage {
            name: name.map(str::to_owned),
            namespace: Some(self.home.as_raw_fd()),
            ..LinkMessage::of(device.index)
        };
        self.netlink.request(&home.encode()).map(|()| true)
    }
}
