//! Block devices of the host, which are disks here.

use std::{fs, io, path::Path};

use crate::spec::{Device, DeviceRule};

/// Where the kernel tells of its disks.
const DISKS: &str = "/sys/block";

impl Device {
    /// As it is in the guest.
    pub fn located(mut self) -> io::Result<Self> {
        if let Some(serial) = &self.disk {
            (self.major, self.minor) = number(Path::new(DISKS), serial)?;
        }
        Ok(self)
    }
}

impl DeviceRule {
    /// For the device as it is in the guest.
    pub fn located(&self) -> io::Result<Self> {
        let mut rule = self.clone();
        if let Some(serial) = &self.disk {
            let (major, minor) = number(Path::new(DISKS), serial)?;
            (rule.major, rule.minor) = (Some(major.into()), Some(minor.into()));
        }
        Ok(rule)
    }
}

/// Number of the disk that says this serial number.
fn number(disks: &Path, serial: &str) -> io::Result<(u32, u32)> {
    for disk in fs::read_dir(disks)? {
        let disk = disk?.path();
        // Not every disk has one.
        if fs::read_to_string(disk.join("serial")).is_ok_and(|said| said.trim_end() == serial) {
            let number = fs::read_to_string(disk.join("dev"))?;
            let parsed = number
                .trim_end()
                .split_once(':')
                .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
            return parsed.ok_or_else(|| io::Error::other(format!("odd number {number:?}")));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no disk {serial}")))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::number;

    #[test]
    fn a_disk_is_found_by_its_serial_number() {
        let disks = tempfile::tempdir().unwrap();
        for (name, serial, dev) in [("loop0", None, "7:0"), ("vdb", Some("7:3"), "254:16")] {
            let disk = disks.path().join(name);
            fs::create_dir(&disk).unwrap();
            fs::write(disk.join("dev"), format!("{dev}\n")).unwrap();
            // virtio's is without a newline.
            if let Some(serial) = serial {
                fs::write(disk.join("serial"), serial).unwrap();
            }
        }
        assert_eq!(number(disks.path(), "7:3").unwrap(), (254, 16));
        assert!(number(disks.path(), "7:0").is_err());
    }
}
