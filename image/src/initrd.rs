//! What is in the initrd.

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::cpio::{Kind, Writer};

/// The directories of the tree, which the agent soon leaves for a root of its own.
const DIRECTORIES: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];
/// Where the agent looks for modules, and the file that lists them in load order.
const MODULES: &str = "modules";
const ORDER: &str = "modules/order";

/// Why an initrd could not be described or written.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name would leave the modules' directory, or collide with a file of the image's own.
    #[error("{name:?} is not the file name of a kernel module")]
    ModuleName {
        /// The name that was given.
        name: String,
    },
    /// The same module twice would be refused by the guest's kernel, at boot.
    #[error("module {name} is added twice")]
    ModuleTwice {
        /// The name that was given.
        name: String,
    },
    /// The archive could not be written.
    #[error("write the initrd")]
    Write(#[source] io::Error),
}

/// An initrd: what the guest's kernel unpacks and starts.
#[derive(Debug)]
pub struct Initrd {
    agent: Vec<u8>,
    order: Vec<String>,
    modules: BTreeMap<String, Vec<u8>>,
}

impl Initrd {
    /// An initrd that starts `agent`, the bytes of a static executable, as PID 1.
    pub fn new(agent: Vec<u8>) -> Self {
        Self { agent, order: Vec::new(), modules: BTreeMap::new() }
    }

    /// Adds a kernel module, an uncompressed `NAME.ko`; the agent loads modules in the order in which they were added.
    ///
    /// # Errors
    /// [`ImageError::ModuleName`] and [`ImageError::ModuleTwice`].
    pub fn add_module(&mut self, name: &str, module: Vec<u8>) -> Result<(), ImageError> {
        if !is_module_name(name) {
            return Err(ImageError::ModuleName { name: name.to_owned() });
        }
        if self.modules.insert(name.to_owned(), module).is_some() {
            return Err(ImageError::ModuleTwice { name: name.to_owned() });
        }
        self.order.push(name.to_owned());
        Ok(())
    }

    /// Writes the archive; equal inputs give equal bytes.
    ///
    /// # Errors
    /// [`ImageError::Write`], also when a file is too large for the format (4 GiB).
    pub fn write_to(&self, out: impl Write) -> Result<(), ImageError> {
        self.write(Writer::new(out)).map_err(ImageError::Write)
    }

    fn write(&self, mut archive: Writer<impl Write>) -> io::Result<()> {
        let order: String = self.order.iter().map(|name| format!("{name}\n")).collect();
        let mut entries: BTreeMap<String, (u32, Kind<'_>)> = BTreeMap::new();
        for name in DIRECTORIES {
            entries.insert(name.to_owned(), (0o755, Kind::Directory));
        }
        // The kernel opens /dev/console for PID 1 before anything could mount a devtmpfs.
        let console = Kind::CharDevice { major: 5, minor: 1 };
        entries.insert("dev/console".to_owned(), (0o600, console));
        let null = Kind::CharDevice { major: 1, minor: 3 };
        entries.insert("dev/null".to_owned(), (0o666, null));
        entries.insert("init".to_owned(), (0o755, Kind::File(&self.agent)));
        if !self.order.is_empty() {
            entries.insert(MODULES.to_owned(), (0o755, Kind::Directory));
            entries.insert(ORDER.to_owned(), (0o644, Kind::File(order.as_bytes())));
        }
        for (name, module) in &self.modules {
            entries.insert(format!("{MODULES}/{name}"), (0o644, Kind::File(module)));
        }
        // Sorted by name, so a directory comes before what is in it.
        for (name, (permissions, kind)) in &entries {
            archive.entry(name, *permissions, *kind)?;
        }
        archive.finish()
    }
}

fn is_module_name(name: &str) -> bool {
    name.strip_suffix(".ko").is_some_and(|stem| {
        !stem.is_empty()
            && stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::reader::{Entry, parse};

    fn bytes(initrd: &Initrd) -> Vec<u8> {
        let mut out = Vec::new();
        initrd.write_to(&mut out).unwrap();
        out
    }

    fn with_modules(names: &[&str]) -> Initrd {
        let mut initrd = Initrd::new(b"\x7fELF agent".to_vec());
        for name in names {
            initrd.add_module(name, name.as_bytes().to_vec()).unwrap();
        }
        initrd
    }

    fn find<'a>(entries: &'a [Entry], name: &str) -> &'a Entry {
        entries.iter().find(|entry| entry.name == name).unwrap()
    }

    #[test]
    fn equal_inputs_give_equal_bytes() {
        let names = ["b.ko", "a.ko"];
        assert_eq!(bytes(&with_modules(&names)), bytes(&with_modules(&names)));
    }

    #[test]
    fn the_agent_is_an_executable_init() {
        let entries = parse(&bytes(&with_modules(&[])));
        let init = find(&entries, "init");
        assert_eq!(init.data, b"\x7fELF agent");
        assert_eq!(init.fields[1], 0o100_755);
    }

    #[test]
    fn console_is_character_device_5_1_for_root_alone() {
        let entries = parse(&bytes(&with_modules(&[])));
        let console = find(&entries, "dev/console");
        assert_eq!(console.fields[1], 0o020_600);
        assert_eq!((console.fields[9], console.fields[10]), (5, 1));
    }

    #[test]
    fn nothing_of_the_building_machine_is_in_a_header() {
        for entry in parse(&bytes(&with_modules(&["a.ko"]))) {
            let [_, _, uid, gid, _, mtime, _, major, minor, ..] = entry.fields;
            assert_eq!([uid, gid, mtime, major, minor], [0; 5], "{}", entry.name);
        }
    }

    #[test]
    fn inode_numbers_are_unique_so_that_no_entry_is_taken_for_a_hard_link() {
        let entries = parse(&bytes(&with_modules(&["a.ko", "b.ko"])));
        let inodes: Vec<u32> = entries.iter().map(|entry| entry.fields[0]).collect();
        assert_eq!(inodes, (1..=inodes.len() as u32).collect::<Vec<_>>());
    }

    #[test]
    fn a_directory_comes_before_its_files() {
        let entries = parse(&bytes(&with_modules(&["a.ko"])));
        for (at, entry) in entries.iter().enumerate() {
            let Some((parent, _)) = entry.name.rsplit_once('/') else { continue };
            assert!(entries[..at].iter().any(|before| before.name == parent), "{}", entry.name);
        }
    }

    #[test]
    fn modules_are_listed_in_the_order_in_which_they_were_added() {
        let entries = parse(&bytes(&with_modules(&["zlast-first.ko", "a_1.ko"])));
        assert_eq!(find(&entries, "modules/order").data, b"zlast-first.ko\na_1.ko\n");
        assert_eq!(find(&entries, "modules/a_1.ko").data, b"a_1.ko");
    }

    #[test]
    fn without_modules_there_is_no_module_directory() {
        let entries = parse(&bytes(&with_modules(&[])));
        assert!(entries.iter().all(|entry| !entry.name.starts_with("modules")));
    }

    #[test]
    fn a_module_name_cannot_leave_its_directory() {
        for name in ["../init.ko", "a/b.ko", "order", ".ko", "a.ko\n", "a.ko.xz", ""] {
            let refused = Initrd::new(Vec::new()).add_module(name, Vec::new());
            assert!(matches!(refused, Err(ImageError::ModuleName { .. })), "{name:?}");
        }
    }

    #[test]
    fn a_module_is_added_once() {
        let mut initrd = with_modules(&["a.ko"]);
        let again = initrd.add_module("a.ko", Vec::new());
        assert!(matches!(again, Err(ImageError::ModuleTwice { .. })));
    }

    #[test]
    fn data_of_every_length_is_padded_to_the_next_header() {
        for length in 0..9 {
            let initrd = Initrd::new(vec![b'x'; length]);
            assert_eq!(find(&parse(&bytes(&initrd)), "init").data.len(), length);
        }
    }
}
