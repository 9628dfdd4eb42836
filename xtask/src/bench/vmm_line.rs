//! The command line of a bare VM: that of Kata's own VMM, word by word, with another guest in it. So machine, memory,
//! kernel, devices and accelerator are the same by construction.

use std::path::Path;

use anyhow::{Context, Result, bail};

/// Parameters of the kernel that only the agent reads.
const AGENTS_PARAMETER: &str = "kata.";

/// The sockets that the VMM inherits, each with its descriptor's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    pub qmp: usize,
    pub console: usize,
    pub vsock: usize,
    /// Of container roots, and of volumes.
    pub shares: [usize; 2],
    /// The card's tap, and what the kernel serves it by.
    pub tap: Option<usize>,
    pub vhost: Option<usize>,
}

#[derive(Clone, Debug)]
pub struct VmmLine {
    /// The program is the first.
    words: Vec<String>,
    pub numbers: Numbers,
}

impl VmmLine {
    /// Takes over the words of a running VMM, for a kernel and initrd outside of any jail.
    pub fn new(words: &[String], kernel: &Path, initrd: &Path) -> Result<Self> {
        let mut kept = Vec::new();
        let mut rest = words.iter();
        while let Some(word) = rest.next() {
            if word == "-L" {
                // Firmware of the jail.
                rest.next();
                continue;
            }
            kept.push(word.clone());
            let replaced = match word.as_str() {
                "-kernel" => kernel.display().to_string(),
                "-initrd" => initrd.display().to_string(),
                "-append" => without_nonce(rest.clone().next().context("-append without value")?),
                _ => continue,
            };
            rest.next();
            kept.push(replaced);
        }
        let number = |id: &str| chardev(words, id);
        let numbers = Numbers {
            qmp: number("qmp")?,
            console: number("console")?,
            vsock: number("vsock")?,
            shares: [number("share0")?, number("share1")?],
            tap: option(words, "tap,id=nic0,", "fd"),
            vhost: option(words, "tap,id=nic0,", "vhostfd"),
        };
        Ok(Self { words: kept, numbers })
    }

    /// Has process 1 perform a task.
    pub fn with_task(mut self, task: &str) -> Self {
        if let Some(at) = self.words.iter().position(|word| word == "-append") {
            self.words[at + 1].push_str(&format!(" bench={task}"));
        }
        self
    }

    /// Boots another kernel.
    pub fn with_kernel(mut self, kernel: &Path) -> Self {
        if let Some(at) = self.words.iter().position(|word| word == "-kernel") {
            self.words[at + 1] = kernel.display().to_string();
        }
        self
    }

    /// Gives the guest as much memory as another one has.
    pub fn with_memory(mut self, mebibytes: &str) -> Self {
        let Some(at) = self.words.iter().position(|word| word == "-m") else { return self };
        let (old, new) = (self.words[at + 1].clone(), format!("{mebibytes}M"));
        for word in &mut self.words {
            if *word == old {
                word.clone_from(&new);
            }
            *word = word.replace(&format!("size={old}"), &format!("size={new}"));
        }
        self
    }

    /// Attaches a disk image.
    pub fn with_disk(mut self, image: &Path) -> Self {
        let pci = self.words.iter().any(|word| word.starts_with("vhost-user-fs-pci"));
        let bus = if pci { "pci" } else { "device" };
        let drive = format!("file={},if=none,id=disk,format=raw,aio=threads", image.display());
        let device = format!("virtio-blk-{bus},drive=disk");
        self.words.extend(["-drive".into(), drive, "-device".into(), device]);
        self
    }

    /// The address of the card.
    pub fn mac(&self) -> Result<&str> {
        let card = self.words.iter().find(|word| word.contains("netdev=nic0,"));
        let mac = card.and_then(|card| card.split(',').find_map(|part| part.strip_prefix("mac=")));
        mac.context("the VMM has no card")
    }

    pub fn words(&self) -> &[String] {
        &self.words
    }
}

fn without_nonce(parameters: &str) -> String {
    let kept: Vec<&str> =
        parameters.split(' ').filter(|word| !word.starts_with(AGENTS_PARAMETER)).collect();
    kept.join(" ")
}

/// A number among the options of the word that begins with `start`.
fn option(words: &[String], start: &str, name: &str) -> Option<usize> {
    let options = words.iter().find_map(|word| word.strip_prefix(start))?;
    let mut options = options.split(',').filter_map(|option| option.split_once('='));
    options.find(|(key, _)| *key == name)?.1.parse().ok()
}

/// The descriptor of `-chardev socket,id=ID,fd=N`.
fn chardev(words: &[String], id: &str) -> Result<usize> {
    let start = format!("socket,id={id},fd=");
    let mut numbers = words.iter().filter_map(|word| word.strip_prefix(&start)?.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(number), None) => Ok(number),
        _ => bail!("the VMM has not one chardev {id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::VmmLine;

    fn words() -> Vec<String> {
        let line = "qemu -L /firmware -m 256M -kernel /guest/kernel -initrd /guest/initrd -append P \
                    -chardev socket,id=qmp,fd=5 -chardev socket,id=console,fd=6 \
                    -chardev socket,id=vsock,fd=7 -chardev socket,id=share0,fd=8 \
                    -device vhost-user-fs-device,chardev=share0,tag=roots \
                    -chardev socket,id=share1,fd=9";
        let parameters = "console=ttyS0 kata.nonce=00ff quiet";
        line.split_whitespace().map(|word| word.replace('P', parameters)).collect()
    }

    #[test]
    fn only_guest_and_firmware_are_exchanged() {
        let line = VmmLine::new(&words(), "/k".as_ref(), "/i".as_ref()).unwrap().with_task("byte");
        let text = line.words().join(" ");
        let start =
            "qemu -m 256M -kernel /k -initrd /i -append console=ttyS0 quiet bench=byte -chardev";
        assert!(text.starts_with(start), "{text}");
        assert_eq!((line.numbers.qmp, line.numbers.shares), (5, [8, 9]));
    }

    #[test]
    fn a_disk_is_on_the_bus_of_the_other_devices() {
        let line = VmmLine::new(&words(), "/k".as_ref(), "/i".as_ref()).unwrap();
        let text = line.with_disk("/d".as_ref()).words().join(" ");
        assert!(text.ends_with("-device virtio-blk-device,drive=disk"), "{text}");
    }

    #[test]
    fn kernel_and_memory_can_be_exchanged() {
        let mut words = words();
        words
            .extend(["-object".into(), "memory-backend-memfd,id=memory,size=256M,share=on".into()]);
        let line = VmmLine::new(&words, "/k".as_ref(), "/i".as_ref()).unwrap();
        let text = line.with_kernel("/other".as_ref()).with_memory("128").words().join(" ");
        assert!(text.contains(" -m 128M -kernel /other -initrd /i "), "{text}");
        assert!(text.ends_with("size=128M,share=on"), "{text}");
    }

    #[test]
    fn a_vmm_without_a_device_is_nothing_to_compare_with() {
        let words: Vec<String> =
            words().into_iter().filter(|word| !word.contains("vsock")).collect();
        let error = VmmLine::new(&words, "/k".as_ref(), "/i".as_ref()).unwrap_err();
        assert_eq!(error.to_string(), "the VMM has not one chardev vsock");
    }
}
