//! A thread in a mount namespace of its own goes into the jail as far as a thread can: to its root.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::symlink,
    },
    path::Path,
    sync::mpsc,
};

use rustix::{
    fs::{Mode, OFlags, fstat, open, openat},
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change},
    thread::UnshareFlags,
};

use super::{become_root, copy_tree, open_proc};

/// Attaches a directory of the host as a volume of this number.
type Attach<'a> = &'a dyn Fn(u32);

/// Runs `inside` at the root of a jail whose tree has the volume 0.
fn jailed(inside: impl FnOnce(Attach<'_>) + Send) {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIP not root");
    }
    let scratch = tempfile::tempdir().unwrap();
    let [shared, host] = ["shared", "host"].map(|name| scratch.path().join(name));
    [&shared, &host].into_iter().for_each(|path| fs::create_dir(path).unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            kata_sys::jail::leave_namespaces(UnshareFlags::NEWNS).unwrap();
            mount("shared", &shared, "tmpfs", MountFlags::empty(), c"mode=0755").unwrap();
            mount_change(&shared, MountPropagationFlags::SHARED).unwrap();
            ["roots", "volumes"].iter().for_each(|name| fs::create_dir(shared.join(name)).unwrap());
            attach(&host, &shared, 0);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let tree = open(&shared, flags, Mode::empty()).unwrap();
            let (wish, wishes) = mpsc::channel();
            let (done, dones) = mpsc::channel();
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    enter_root(&tree);
                    inside(&|number| {
                        wish.send(number).unwrap();
                        dones.recv().unwrap();
                    });
                });
                for number in wishes {
                    attach(&host, &shared, number);
                    done.send(()).unwrap();
                }
            });
        });
    });
}

fn attach(host: &Path, shared: &Path, number: u32) {
    let place = shared.join(format!("volumes/{number}"));
    fs::create_dir(&place).unwrap();
    mount_bind(host, place).unwrap();
}

fn enter_root(tree: &OwnedFd) {
    let copy = copy_tree(tree).unwrap();
    kata_sys::jail::leave_namespaces(UnshareFlags::NEWNS).unwrap();
    become_root(&copy).unwrap();
}

#[test]
fn where_the_shim_resolves_names_nothing_can_be_changed() {
    jailed(|_| {
        let attempts = [
            fs::create_dir("/volumes/1"),
            File::create("/volumes/1").map(drop),
            fs::rename("/volumes", "/away"),
            symlink("/etc", "/roots/c1"),
            fs::remove_dir("/roots"),
            fs::set_permissions("/volumes", std::os::unix::fs::PermissionsExt::from_mode(0o700)),
        ];
        for attempt in attempts {
            assert_eq!(attempt.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
    });
}

#[test]
fn what_is_attached_before_and_later_can_be_written_to() {
    jailed(|attach| {
        attach(1);
        fs::write("/volumes/1/file", "x").unwrap();
        assert_eq!(fs::read("/volumes/0/file").unwrap(), b"x");
        fs::create_dir("/volumes/1/directory").unwrap();
    });
}

#[test]
fn the_directory_of_descriptors_leads_to_descriptors_and_nowhere_else() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIP not root");
    }
    let proc = open_proc().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let number = file.as_raw_fd().to_string();
    jailed(|_| {
        let opened = |path: &str| openat(&proc, path, OFlags::PATH, Mode::empty());
        for path in ["../../sys", "../sys", "../../../etc", "../status"] {
            assert_eq!(opened(path).unwrap_err(), rustix::io::Errno::NOENT, "{path}");
        }
        assert_eq!(fstat(opened("..").unwrap()).unwrap().st_ino, fstat(&proc).unwrap().st_ino);
        let reopened = openat(&proc, &number, OFlags::RDWR, Mode::empty()).unwrap();
        rustix::io::write(&reopened, b"x").unwrap();
    });
    assert_eq!(fs::read(file.path()).unwrap(), b"x");
}
