//! `mounts`: which the guest makes itself, which are volumes of the host, which can't be.

mod magic;
pub(crate) mod writing;

use std::{
    fs::{self, Metadata},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use kata_sys::{
    mount_table::MountTable,
    proc_files::{COVERING, SHOWN_OTHERWISE},
};
use rustix::fs::{StatVfsMountFlags, statfs, statvfs};
use serde_json::{Value, json};

pub use self::magic::TMPFS_MAGIC;
use self::magic::{CGROUP_MAGIC, CGROUP2_MAGIC, SYSFS_MAGIC};
use crate::{
    checked::{IdMap, MountPoint, Origin, VolumeSource},
    document::Document,
    error::SpecError,
    features::is_for_binding,
    memory::Memory,
    overlay,
    process::strings,
    rules::{devices::GUEST_DEVICES, elements, host_path, namespaces::check_map},
};

/// File systems that live in a kernel, so in the guest's.
pub(crate) const GUEST_TYPES: &[&str] = &[
    "proc",
    "sysfs",
    "tmpfs",
    "devpts",
    "mqueue",
    "cgroup",
    "cgroup2",
    "ramfs",
    "hugetlbfs",
    "bpf",
    "debugfs",
    "tracefs",
    "securityfs",
    "configfs",
    "fusectl",
    "binfmt_misc",
    "devtmpfs",
];

const CONTROL_GROUPS: &str = "/sys/fs/cgroup";
/// Each costs a guest some milliseconds, and engines make some dozens; a kernel would take 100,000.
const MOST_MOUNTS: usize = 2048;

const SHARED_MEMORY: &str = "/dev/shm";

/// Flags of a mount of the host's that a bind mount of it has, too.
const INHERITED: [(StatVfsMountFlags, &str); 6] = [
    (StatVfsMountFlags::RDONLY, "ro"),
    (StatVfsMountFlags::NOSUID, "nosuid"),
    (StatVfsMountFlags::NODEV, "nodev"),
    (StatVfsMountFlags::NOEXEC, "noexec"),
    (StatVfsMountFlags::NOATIME, "noatime"),
    (StatVfsMountFlags::NODIRATIME, "nodiratime"),
];

/// What the host has to do for the mounts.
pub(crate) struct Mounts {
    pub(crate) volumes: Vec<VolumeSource>,
    pub(crate) points: Vec<MountPoint>,
}

/// Sorts the mounts, and rewrites in the guest's copy what the guest makes differently.
pub(crate) fn check(
    document: &mut Document,
    config: &Value,
    guest: &mut Value,
    bundle: &Path,
) -> Result<Mounts, SpecError> {
    let mut mounts = Mounts { volumes: Vec::new(), points: Vec::new() };
    let list = elements(&config["mounts"]);
    if list.len() > MOST_MOUNTS {
        let why = format!("has {} mounts; a guest makes at most {MOST_MOUNTS}", list.len());
        let checked = Err::<(), _>(document.wrong("mounts", why));
        document.settle(checked)?;
    }
    let table = MountTable::default();
    for (index, value) in list.iter().enumerate() {
        let mount = Mount::new(index, value, (bundle, &table));
        let checked = mount.checked(document, config, value);
        let Some((mount, class)) = document.settle(checked)? else { continue };
        let for_guest = &mut guest["mounts"][index];
        // runc takes a relative destination for one below the root.
        for_guest["destination"] = json!(mount.destination);
        let held_by_host = mount.is_held_by_host(document, &class);
        mount.tell_of_writing(document, &class);
        let inherited = mount.inherited(&class);
        if mount.id_map.is_some() || held_by_host || !inherited.is_empty() {
            let mut options = mount.options_for_guest(held_by_host);
            options.extend(inherited);
            for_guest["options"] = json!(options);
        }
        let host = match class {
            Class::Guest => None,
            Class::Replaced(replacement) => {
                // What was a bind mount may have any word for a type, and to the guest a type means something.
                for_guest["type"] = json!("bind");
                for (name, value) in replacement {
                    for_guest[name] = value;
                }
                None
            }
            Class::Volume(volume) => {
                for_guest["type"] = json!("bind");
                let host = match &volume.origin {
                    // What containers have in memory the host may not see.
                    Origin::Path(path) => Some(path.clone()).filter(|_| volume.memory.is_none()),
                    // Made later; what it shows is in many places of the host.
                    Origin::Overlay(_) => {
                        for_guest["options"] = json!(overlay::binding(&mount.options));
                        None
                    }
                };
                mounts.volumes.push(volume);
                host
            }
        };
        mounts.points.push(MountPoint { destination: mount.destination, host });
    }
    Ok(mounts)
}

/// What becomes of a mount.
enum Class {
    /// The guest makes it as it is.
    Guest,
    /// The guest makes it with these fields.
    Replaced(Vec<(&'static str, Value)>),
    /// It needs something of the host's.
    Volume(VolumeSource),
}

struct Mount<'a> {
    table: &'a MountTable,
    index: usize,
    destination: PathBuf,
    kind: String,
    source: PathBuf,
    options: Vec<String>,
    id_map: Option<IdMap>,
}

impl<'a> Mount<'a> {
    fn new(index: usize, value: &Value, (bundle, table): (&Path, &'a MountTable)) -> Self {
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        Self {
            table,
            index,
            destination: Path::new("/").join(text("destination")),
            kind: text("type"),
            source: bundle.join(text("source")),
            options: strings(&value["options"]),
            id_map: None,
        }
    }

    fn checked(
        mut self,
        document: &mut Document,
        config: &Value,
        value: &Value,
    ) -> Result<(Self, Class), SpecError> {
        self.check_strings(document, value)?;
        self.id_map = self.check_id_map(document, config)?;
        let class = self.classify(document)?;
        self.check_place(document)?;
        if self.id_map.is_some() && !matches!(class, Class::Volume(_)) {
            let why = "only a bind mount of a directory or file of the host can be id-mapped";
            return Err(document.wrong(self.field("uidMappings"), why));
        }
        Ok((self, class))
    }

    fn field(&self, name: &str) -> String {
        format!("mounts[{}].{name}", self.index)
    }

    fn check_strings(&self, document: &Document, value: &Value) -> Result<(), SpecError> {
        let destination = value["destination"].as_str().unwrap_or_default();
        if destination.is_empty() {
            return Err(document.wrong(self.field("destination"), "must not be empty"));
        }
        if self.destination.components().any(|part| part.as_os_str() == "..") {
            return Err(document.wrong(self.field("destination"), "must not contain .."));
        }
        Ok(())
    }

    /// An image may name `/proc` as a volume: what the program finds there is to be the kernel's word. Kernel file systems
    /// are, and a tmpfs hides. A bind mount is what it shows, whatever type it has.
    fn check_place(&self, document: &mut Document) -> Result<(), SpecError> {
        let Ok(below) = self.destination.strip_prefix("/proc") else { return Ok(()) };
        if !self.is_bind() && COVERING.contains(&self.kind.as_str())
            || SHOWN_OTHERWISE.iter().any(|name| below == Path::new(name))
        {
            return Ok(());
        }
        let why = format!("{} can't be covered: it is of /proc", self.destination.display());
        Err(document.refuse(self.field("destination"), why))
    }

    /// The mount's own maps, or with `idmap` alone those of the container's user namespace.
    fn check_id_map(
        &self,
        document: &Document,
        config: &Value,
    ) -> Result<Option<IdMap>, SpecError> {
        let own = &config["mounts"][self.index];
        let maps = ["uidMappings", "gidMappings"];
        let asked = self.options.iter().rfind(|word| matches!(word.as_str(), "idmap" | "ridmap"));
        let owned = maps.map(|name| !elements(&own[name]).is_empty());
        let from = match (owned, asked) {
            ([false, false], None) => return Ok(None),
            ([false, false], Some(_)) => &config["linux"],
            ([true, true], _) => own,
            _ => {
                let why = "uidMappings and gidMappings need each other";
                return Err(document.wrong(self.field("uidMappings"), why));
            }
        };
        let [users, groups] = maps.map(|name| elements(&from[name]));
        if users.is_empty() || groups.is_empty() {
            let why =
                "idmap needs uidMappings and gidMappings, of the mount or of a user namespace";
            return Err(document.wrong(self.field("options"), why));
        }
        check_map(document, &self.field("uidMappings"), users)?;
        check_map(document, &self.field("gidMappings"), groups)?;
        let recursive = asked.is_some_and(|word| word == "ridmap");
        Ok(Some(IdMap::of([users, groups], recursive)))
    }

    /// The host has mapped the ids before the guest sees the mount.
    fn options_for_guest(&self, held_by_host: bool) -> Vec<&str> {
        let for_guest = |word: &&str| match *word {
            "idmap" | "ridmap" => false,
            "ro" => !held_by_host,
            _ => true,
        };
        self.options.iter().map(String::as_str).filter(for_guest).collect()
    }

    /// The flags of what is bound: a bind mount for which none are given keeps them, and the guest does not see them. Below
    /// it they would be everything's, so where something is or will be mounted there they stay with the host.
    fn inherited(&self, class: &Class) -> Vec<&'static str> {
        let Class::Volume(volume) = class else { return Vec::new() };
        let Origin::Path(path) = &volume.origin else { return Vec::new() };
        let is_flag = |word: &String| {
            let none = ["bind", "rbind", "idmap", "ridmap", "defaults"].contains(&word.as_str());
            !none && !is_propagation(word)
        };
        if self.options.iter().any(is_flag) {
            return Vec::new();
        }
        let Ok(filesystem) = statvfs(path) else { return Vec::new() };
        let set = |(flag, word): &(StatVfsMountFlags, _)| {
            filesystem.f_flag.contains(*flag).then_some(*word)
        };
        let words: Vec<_> = INHERITED.iter().filter_map(set).collect();
        let below = || volume.follows_host || self.table.has_below(path).unwrap_or(true);
        let alone = words.is_empty() || !volume.recursive || !below();
        if alone { words } else { Vec::new() }
    }

    /// Whether the host alone keeps a volume from being written to. What is mounted below it may be, as with mount(8), and
    /// a guest gives what it finds there the flags of the mount above.
    fn is_held_by_host(&self, document: &mut Document, class: &Class) -> bool {
        let Class::Volume(volume) = class else { return false };
        let Origin::Path(path) = &volume.origin else { return false };
        // Nothing is below what is in memory.
        let whole = volume.read_only_below
            || !volume.recursive
            || !volume.directory
            || volume.memory.is_some();
        // What can't be listed is as read-only as what is above.
        let below = || volume.follows_host || self.table.has_below(path).unwrap_or(false);
        if !volume.read_only || whole || volume.undivided || !below() {
            return false;
        }
        let why = "ro by the host: what is or will be mounted below it may be written to";
        document.translate(self.field("options"), why);
        true
    }

    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|word| word == option)
    }

    /// As for runc, to which the type of a bind mount means nothing.
    fn is_bind(&self) -> bool {
        self.kind == "bind" || self.has("bind") || self.has("rbind")
    }

    /// The last word counts, as for mount(8).
    fn is_read_only(&self) -> bool {
        self.options
            .iter()
            .rfind(|word| matches!(word.as_str(), "ro" | "rw"))
            .is_some_and(|word| word == "ro")
    }

    /// `shared` is no more than `slave` here: what is mounted in a guest is its own kernel's.
    fn follows_host(&self) -> bool {
        let last = self.options.iter().rfind(|word| is_propagation(word));
        last.is_some_and(|word| matches!(word.as_str(), "shared" | "rshared" | "slave" | "rslave"))
    }

    /// What can't be listed may be anything.
    fn is_undivided(&self, directory: bool) -> bool {
        let below = || self.table.has_below(&self.source).unwrap_or(true);
        let divided = directory && self.has("rbind") && below();
        let mapped = || self.table.is_id_mapped(&self.source).unwrap_or(true);
        !divided && !self.follows_host() && !mapped()
    }

    fn is_read_only_below(&self) -> bool {
        let words = |word: &&String| matches!(word.as_str(), "rro" | "rrw");
        self.options.iter().rfind(words).is_some_and(|word| word == "rro")
    }

    fn classify(&self, document: &mut Document) -> Result<Class, SpecError> {
        if self.is_bind() {
            return self.bind(document);
        }
        if GUEST_TYPES.contains(&self.kind.as_str()) {
            return Ok(Class::Guest);
        }
        if self.kind == "overlay" {
            return self.overlay(document);
        }
        if self.kind.is_empty() {
            return Err(document.wrong(self.field("type"), "is missing, and it is no bind mount"));
        }
        let why = format!(
            "a file system of type {} would be mounted from the host's devices or paths",
            self.kind
        );
        Err(document.refuse(self.field("type"), why))
    }

    fn overlay(&self, document: &mut Document) -> Result<Class, SpecError> {
        if self.id_map.is_some() {
            return Err(
                document.refuse(self.field("options"), "the ids of an overlay can't be mapped")
            );
        }
        let layers = overlay::parse(&self.options)
            .map_err(|why| document.wrong(self.field("options"), why))?;
        document.translate(self.field("type"), "mounted on the host, and shared as a volume");
        Ok(Class::Volume(VolumeSource {
            mount: self.index,
            read_only: self.is_read_only() || layers.upper.is_none(),
            origin: Origin::Overlay(layers),
            recursive: false,
            follows_host: false,
            undivided: true,
            directory: true,
            read_only_below: false,
            id_map: None,
            memory: None,
        }))
    }

    fn bind(&self, document: &mut Document) -> Result<Class, SpecError> {
        if let Some(word) = self.options.iter().find(|word| !is_for_binding(word)) {
            let why = format!("{word:?} is no option of a bind mount");
            return Err(document.wrong(self.field("options"), why));
        }
        let fault = |source| host_path(document, &self.field("source"), &self.source, source);
        let metadata = fs::metadata(&self.source).map_err(fault)?;
        let filesystem = statfs(&self.source).map_err(|error| fault(error.into()))?;
        // A magic number has 32 bits, the field of a 64-bit kernel has more.
        let magic = filesystem.f_type as u64;
        let kind = metadata.file_type();
        if !kind.is_dir() && !kind.is_file() {
            return self.special(document, &metadata);
        }
        let memory = self.id_map.is_none().then(|| Memory::at(&self.source)).flatten();
        let shared_memory = magic == TMPFS_MAGIC && self.destination == Path::new(SHARED_MEMORY);
        // What a kubelet has made for the pod is one wherever its containers have it.
        if shared_memory && memory.is_none() {
            let size = filesystem.f_blocks.saturating_mul(filesystem.f_bsize as u64);
            document
                .translate(self.field("source"), "shared memory of the guest, of the same size");
            return Ok(self.tmpfs(size));
        }
        if memory.is_some() && self.follows_host() {
            let why = "where it is in a guest's memory, nothing that the host mounts below appears";
            document.translate(self.field("options"), why);
        }
        match magic {
            SYSFS_MAGIC if self.source == Path::new("/sys") => {
                document.translate(self.field("source"), "the guest's /sys");
                Ok(self.kernel("sysfs"))
            }
            CGROUP_MAGIC | CGROUP2_MAGIC if self.source.starts_with(CONTROL_GROUPS) => {
                document.translate(self.field("source"), "the guest's control groups");
                Ok(self.control_groups())
            }
            magic => {
                if let Some(why) = magic::why_not_shared(magic, &self.source) {
                    return Err(document.refuse(self.field("source"), why));
                }
                Ok(Class::Volume(VolumeSource {
                    mount: self.index,
                    origin: Origin::Path(self.source.clone()),
                    recursive: self.has("rbind"),
                    follows_host: self.follows_host(),
                    undivided: self.is_undivided(kind.is_dir()),
                    directory: kind.is_dir(),
                    read_only: self.is_read_only(),
                    read_only_below: self.is_read_only_below(),
                    id_map: self.id_map.clone(),
                    memory,
                }))
            }
        }
    }

    /// Neither a directory nor a regular file: its meaning is in a kernel, and that is the host's.
    fn special(&self, document: &mut Document, metadata: &Metadata) -> Result<Class, SpecError> {
        let kind = metadata.file_type();
        let device = metadata.rdev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let known = GUEST_DEVICES
            .iter()
            .find(|(a, b, _)| (*a, *b) == (u64::from(major), u64::from(minor)))
            .filter(|_| kind.is_char_device());
        if let Some((_, _, name)) = known {
            document.translate(self.field("source"), format!("the guest's /dev/{name}"));
            return Ok(Class::Replaced(vec![("source", json!(format!("/dev/{name}")))]));
        }
        let what = if kind.is_socket() {
            "a socket"
        } else if kind.is_fifo() {
            "a fifo"
        } else {
            "a device"
        };
        let why = format!(
            "{} is {what} of the host, whose other end a VM can't reach",
            self.source.display()
        );
        Err(document.refuse(self.field("source"), why))
    }

    fn tmpfs(&self, size: u64) -> Class {
        let mut options = self.plain_options();
        options.extend(["mode=1777".to_owned(), format!("size={size}")]);
        Class::Replaced(vec![
            ("type", json!("tmpfs")),
            ("source", json!("shm")),
            ("options", json!(options)),
        ])
    }

    fn kernel(&self, kind: &'static str) -> Class {
        let options = self.plain_options();
        Class::Replaced(vec![
            ("type", json!(kind)),
            ("source", json!(kind)),
            ("options", json!(options)),
        ])
    }

    /// The guest has one hierarchy: who is given one of the host's by name, as systemd is, gets that one.
    fn control_groups(&self) -> Class {
        let Class::Replaced(mut fields) = self.kernel("cgroup") else { return Class::Guest };
        if self.destination.starts_with(CONTROL_GROUPS) {
            fields.push(("destination", json!(CONTROL_GROUPS)));
        }
        Class::Replaced(fields)
    }

    /// The options that are not about binding.
    fn plain_options(&self) -> Vec<String> {
        let about_binding = |option: &&String| matches!(option.as_str(), "bind" | "rbind");
        self.options.iter().filter(|option| !about_binding(option)).cloned().collect()
    }
}

fn is_propagation(word: &str) -> bool {
    let kind = word.strip_prefix('r').unwrap_or(word);
    ["shared", "slave", "private", "unbindable"].contains(&kind)
}
