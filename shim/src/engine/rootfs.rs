//! The root file system that an engine describes as a list of mounts.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use kata_engine_api::containerd::mount;
use kata_spec::Layers;
use kata_sys::loop_device::{LoopDevice, attach};
use rustix::{
    fs::{Mode, OFlags, open},
    mount::{MountFlags, MountPropagationFlags, mount_change},
};
use thiserror::Error;

/// What mount(2) takes of options, with the zero at their end. The kernel cuts off what is longer, and says nothing.
const LONGEST_OPTIONS: usize = 4096;

/// Why it can't be mounted.
#[derive(Debug, Error)]
#[error("mount {kind} {from} on {to}", from = source_path, to = target.display())]
pub struct RootfsError {
    kind: String,
    source_path: String,
    target: PathBuf,
    source: io::Error,
}

/// One mount, as containerd describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    kind: String,
    source: String,
    target: String,
    options: Vec<String>,
}

impl From<&mount::Mount> for Mount {
    fn from(mount: &mount::Mount) -> Self {
        Self {
            kind: mount.type_.clone(),
            source: mount.source.clone(),
            target: mount.target.clone(),
            options: mount.options.clone(),
        }
    }
}

/// Mounts everything on `root`, in order. The caller is in a namespace of which nothing is seen elsewhere.
///
/// # Errors
/// [`RootfsError`].
pub fn mount_all(mounts: &[Mount], root: &Path) -> Result<(), RootfsError> {
    for mount in mounts {
        let target = root.join(mount.target.trim_start_matches('/'));
        mount.make(&target).map_err(|source| RootfsError {
            kind: mount.kind.clone(),
            source_path: mount.source.clone(),
            target: target.clone(),
            source,
        })?;
    }
    Ok(())
}

impl Mount {
    fn make(&self, target: &Path) -> io::Result<()> {
        // Words of containerd's own, for a pod with a user namespace; a file system would call them invalid.
        let maps = |option: &String| option.starts_with("uidmap=") || option.starts_with("gidmap=");
        if self.options.iter().any(maps) {
            let why = "uidmap and gidmap: the ids of a root can't be mapped";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        std::fs::create_dir_all(target)?;
        let parsed = Parsed::of(&self.options);
        let bind = parsed.flags.contains(MountFlags::BIND);
        let flags =
            if bind { parsed.flags & (MountFlags::BIND | MountFlags::REC) } else { parsed.flags };
        let mut data = parsed.data.join(",");
        // Open until the mount is made, which is when the kernel looks their names up.
        let mut layers = Vec::new();
        if self.kind == "overlay" && data.len() >= LONGEST_OPTIONS {
            data = by_descriptor(&parsed.data, &mut layers)?.join(",");
        }
        if data.len() >= LONGEST_OPTIONS {
            let why = format!("its options have {} bytes, and mount(2) takes a page", data.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let data = CString::new(data).map_err(io::Error::other)?;
        // Once it is mounted the mount has it, and gives it up with its own end.
        let device = if parsed.image { Some(self.attach(flags)?) } else { None };
        let source = device.as_ref().map_or(Path::new(&self.source), |device| &device.path);
        rustix::mount::mount(source, target, self.kind.as_str(), flags, data.as_c_str())?;
        let rest = parsed.flags & !(MountFlags::BIND | MountFlags::REC);
        if bind && !rest.is_empty() {
            // A bind mount takes its flags only afterwards.
            rustix::mount::mount_remount(target, MountFlags::BIND | rest, c"")?;
        }
        if !parsed.propagation.is_empty() {
            mount_change(target, parsed.propagation)?;
        }
        Ok(())
    }

    /// A block device of the image that is to be mounted.
    fn attach(&self, flags: MountFlags) -> io::Result<LoopDevice> {
        let is_read_only = flags.contains(MountFlags::RDONLY);
        let image = File::options().read(true).write(!is_read_only).open(&self.source)?;
        attach(image, is_read_only).map_err(|error| {
            io::Error::new(error.kind(), format!("make a loop device of the image: {error}"))
        })
    }
}

/// The options of an overlay with its lower layers named by descriptors, which are short, and which are added to `layers`.
fn by_descriptor(options: &[String], layers: &mut Vec<OwnedFd>) -> io::Result<Vec<String>> {
    let mut name = |path: &PathBuf| -> io::Result<String> {
        let layer = open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let layer = layer.map_err(|error| {
            io::Error::new(error.kind(), format!("open the layer {}: {error}", path.display()))
        })?;
        let name = format!("/proc/self/fd/{}", layer.as_raw_fd());
        layers.push(layer);
        Ok(name)
    };
    let mut named = Vec::new();
    for option in options {
        named.push(match option.strip_prefix("lowerdir=") {
            // Two colons have a meaning of their own, which must not get lost.
            Some(list) if !list.contains("::") => {
                let names =
                    Layers::split(list).iter().map(&mut name).collect::<io::Result<Vec<_>>>()?;
                format!("lowerdir={}", names.join(":"))
            }
            _ => option.clone(),
        });
    }
    Ok(named)
}

struct Parsed {
    flags: MountFlags,
    propagation: MountPropagationFlags,
    data: Vec<String>,
    /// The source is a file that has the file system in it.
    image: bool,
}

impl Parsed {
    fn of(options: &[String]) -> Self {
        let mut parsed = Self {
            flags: MountFlags::empty(),
            propagation: MountPropagationFlags::empty(),
            data: Vec::new(),
            image: false,
        };
        for option in options {
            if let Some((flag, set)) = flag(option) {
                parsed.flags.set(flag, set);
            } else if let Some(kind) = propagation(option) {
                parsed.propagation |= kind;
            } else if option == "loop" {
                parsed.image = true;
            } else if !option.starts_with("X-containerd.") {
                parsed.data.push(option.clone());
            }
        }
        parsed
    }
}

fn flag(option: &str) -> Option<(MountFlags, bool)> {
    Some(match option {
        "bind" => (MountFlags::BIND, true),
        "rbind" => (MountFlags::BIND | MountFlags::REC, true),
        "ro" => (MountFlags::RDONLY, true),
        "rw" | "defaults" => (MountFlags::RDONLY, false),
        "nosuid" => (MountFlags::NOSUID, true),
        "suid" => (MountFlags::NOSUID, false),
        "nodev" => (MountFlags::NODEV, true),
        "dev" => (MountFlags::NODEV, false),
        "noexec" => (MountFlags::NOEXEC, true),
        "exec" => (MountFlags::NOEXEC, false),
        "noatime" => (MountFlags::NOATIME, true),
        "relatime" => (MountFlags::RELATIME, true),
        "nodiratime" => (MountFlags::NODIRATIME, true),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<MountPropagationFlags> {
    let (kind, tree) = match option.strip_prefix('r') {
        Some(kind @ ("private" | "shared" | "slave" | "unbindable")) => (kind, true),
        _ => (option, false),
    };
    let kind = match kind {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(if tree { kind | MountPropagationFlags::REC } else { kind })
}

#[cfg(test)]
mod tests {
    use std::{
        fs, io,
        path::Path,
        process::{Command, Stdio},
        thread,
    };

    use kata_sys::jail::leave_namespaces;
    use rustix::{mount::MountFlags, process::geteuid, thread::UnshareFlags};

    use super::{Mount, Parsed, mount_all};

    fn overlay(options: Vec<String>) -> Mount {
        Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options }
    }

    /// Mounts so many layers as containerd names them, each of which is to be seen.
    fn mount_layers(at: &Path, count: usize) {
        rustix::mount::mount("layers", at, "tmpfs", MountFlags::empty(), c"").unwrap();
        let layers = at.join("io.containerd.snapshotter.v1.overlayfs/snapshots");
        let path = |number: usize| layers.join(format!("{number}/fs"));
        for number in 0..count {
            fs::create_dir_all(path(number)).unwrap();
            fs::write(path(number).join(number.to_string()), "").unwrap();
        }
        let [upper, work, root] = ["upper", "work", "root"].map(|name| at.join(name));
        for directory in [&upper, &work, &root] {
            fs::create_dir(directory).unwrap();
        }
        let lower: Vec<_> = (0..count).map(|number| path(number).display().to_string()).collect();
        let options = vec![
            "index=off".to_owned(),
            format!("workdir={}", work.display()),
            format!("upperdir={}", upper.display()),
            format!("lowerdir={}", lower.join(":")),
        ];
        mount_all(&[overlay(options)], &root).unwrap();
        assert_eq!(fs::read_dir(&root).unwrap().count(), count);
        fs::write(root.join("written"), "").unwrap();
        assert!(upper.join("written").exists());
    }

    #[test]
    fn an_overlay_has_all_its_layers_however_many_they_are() {
        if !geteuid().is_root() {
            return eprintln!("SKIP not root");
        }
        let directory = tempfile::tempdir().unwrap();
        // What a thread mounts in namespaces of its own goes with it.
        let mount = || {
            leave_namespaces(UnshareFlags::FS | UnshareFlags::NEWNS).unwrap();
            [2, 60, 127].into_iter().for_each(|count| mount_layers(directory.path(), count));
        };
        thread::scope(|scope| scope.spawn(mount).join().unwrap());
    }

    /// Mounts an image that has one file, and says whether it can be written to.
    fn mount_image(at: &Path, options: &[&str]) -> bool {
        let [tree, image, root] = ["tree", "image", "root"].map(|name| at.join(name));
        for directory in [&tree, &root] {
            fs::create_dir_all(directory).unwrap();
        }
        fs::write(tree.join("file"), "").unwrap();
        let made = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .args([&tree, &image])
            .arg("1M")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(made.unwrap().success());
        let mount = Mount {
            kind: "ext4".into(),
            source: image.to_str().unwrap().into(),
            target: String::new(),
            options: options.iter().map(|&option| option.into()).collect(),
        };
        mount_all(&[mount], &root).unwrap();
        assert!(root.join("file").exists());
        fs::write(root.join("written"), "").is_ok()
    }

    #[test]
    fn an_image_is_mounted_by_a_loop_device() {
        let runs = |name: &str| Command::new(name).arg("-V").stderr(Stdio::null()).status().is_ok();
        if !geteuid().is_root() || !Path::new("/dev/loop-control").exists() || !runs("mke2fs") {
            return eprintln!("SKIP not root, no loop devices or no mke2fs");
        }
        for (options, is_written) in [(["loop", "ro"], false), (["loop", "rw"], true)] {
            let directory = tempfile::tempdir().unwrap();
            let mount = || {
                leave_namespaces(UnshareFlags::FS | UnshareFlags::NEWNS).unwrap();
                assert_eq!(mount_image(directory.path(), &options), is_written);
            };
            thread::scope(|scope| scope.spawn(mount).join().unwrap());
        }
    }

    #[test]
    fn options_that_the_kernel_would_cut_off_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for kind in ["tmpfs", "overlay"] {
            let long = format!("device={}", "x".repeat(4096));
            let mount = Mount { kind: kind.into(), ..overlay(vec![long]) };
            let error = mount.make(directory.path()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{kind}: {error}");
        }
    }

    #[test]
    fn flags_are_told_from_data() {
        let options = ["rbind", "ro", "lowerdir=/a:/b", "index=off"].map(str::to_owned);
        let parsed = Parsed::of(&options);
        assert_eq!(parsed.flags, MountFlags::BIND | MountFlags::REC | MountFlags::RDONLY);
        assert_eq!(parsed.data, ["lowerdir=/a:/b", "index=off"]);
    }

    #[test]
    fn ids_of_a_root_are_not_mapped() {
        for option in ["uidmap=0:100000:65536", "gidmap=0:100000:65536"] {
            let mount = overlay(vec!["lowerdir=/a:/b".into(), option.into()]);
            let error = mount.make(Path::new("/no/such")).unwrap_err();
            assert!(error.to_string().contains("can't be mapped"), "{error}");
        }
    }

    #[test]
    fn the_last_word_counts() {
        let parsed = Parsed::of(&["ro".to_owned(), "rw".to_owned()]);
        assert!(parsed.flags.is_empty());
    }
}
