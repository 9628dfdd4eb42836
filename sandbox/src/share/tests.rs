//! What is attached, where it leads, and who may write to it.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::symlink},
    path::{Path, PathBuf},
};

use kata_sys::{
    mount_attr::{self, MountAttributes, Reach},
    spawn::Spawn,
};
use rustix::{
    fs::CWD,
    mount::{MountAttrFlags, OpenTreeFlags, mount_bind, open_tree},
    thread::UnshareFlags,
};

use super::{Place, ShareError, SharedTree, Shown, VolumeKind, served};
use crate::step::Steps;

/// Runs `inside` with a tree of its own, in a mount namespace of its own.
fn with_tree(inside: impl FnOnce(&SharedTree, &Path, &Path) + Send) {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIP not root");
    }
    let scratch = tempfile::tempdir().unwrap();
    let [shared, host] = ["shared", "host"].map(|name| scratch.path().join(name));
    fs::create_dir(&host).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            kata_sys::jail::leave_namespaces(UnshareFlags::NEWNS).unwrap();
            let tree = SharedTree::mount(&shared, &Steps::from_environment()).unwrap();
            inside(&tree, &shared, &host);
            tree.unmount().unwrap();
        });
    });
}

fn detached(path: &Path) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags).unwrap()
}

fn read_only(path: &Path) -> OwnedFd {
    let tree = detached(path);
    let set = MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into();
    let attributes = MountAttributes { set, ..MountAttributes::default() };
    mount_attr::change(&tree, attributes, Reach::Mount).unwrap();
    tree
}

/// Attaches a tree that only this container has.
fn attach(
    tree: &SharedTree,
    container: &str,
    kind: VolumeKind,
    path: &Path,
) -> Result<Place, ShareError> {
    tree.attach_volume(container, (kind, None), detached(path), &Steps::from_environment())
}

/// Attaches a directory that others may have, too.
fn share(tree: &SharedTree, container: &str, directory: OwnedFd) -> Place {
    let shown = Shown::by(&directory, None).unwrap();
    let kind = VolumeKind::Directory;
    let steps = Steps::from_environment();
    tree.attach_volume(container, (kind, Some(shown)), directory, &steps).unwrap()
}

fn names(path: impl AsRef<Path>) -> Vec<PathBuf> {
    fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into()).collect()
}

#[test]
fn what_is_attached_is_there_until_it_is_detached() {
    with_tree(|tree, shared, host| {
        let steps = Steps::from_environment();
        fs::write(host.join("file"), "of the host").unwrap();
        tree.attach_root("c1", detached(host), &steps).unwrap();
        let place = attach(tree, "c1", VolumeKind::Directory, host).unwrap();
        assert_eq!(place, Place { number: 0, closed: false });
        attach(tree, "c1", VolumeKind::File, &host.join("file")).unwrap();
        tree.mount_root("c2", "tmpfs", c"mode=0700", &steps).unwrap();
        for path in ["roots/c1/file", "volumes/0/file", "volumes/1"] {
            assert_eq!(fs::read_to_string(shared.join(path)).unwrap(), "of the host");
        }
        fs::write(shared.join("roots/c2/file"), "of its own").unwrap();
        tree.detach("c1").unwrap();
        tree.detach("c1").unwrap();
        tree.detach("c2").unwrap();
        assert!(names(shared.join("roots")).is_empty() && names(shared.join("volumes")).is_empty());
        assert_eq!(names(host), [PathBuf::from("file")]);
    });
}

#[test]
fn what_shows_the_same_is_attached_once_for_all_who_use_it() {
    with_tree(|tree, shared, host| {
        fs::create_dir(host.join("below")).unwrap();
        let all = share(tree, "c1", detached(host)).number;
        assert_eq!(share(tree, "c2", detached(host)).number, all);
        assert_eq!(share(tree, "c2", read_only(host)), Place { number: all, closed: false });
        let below = share(tree, "c2", detached(&host.join("below"))).number;
        let own = attach(tree, "c2", VolumeKind::Directory, host).unwrap().number;
        assert!(below != all && own != all);
        let attached = || {
            let mut names = names(shared.join("volumes"));
            names.sort();
            names
        };
        tree.detach("c1").unwrap();
        assert_eq!(attached(), [all, below, own].map(|number| PathBuf::from(number.to_string())));
        tree.detach("c2").unwrap();
        assert!(attached().is_empty());
        assert_ne!(share(tree, "c3", detached(host)).number, all, "a number is never used twice");
    });
}

#[test]
fn what_can_not_be_detached_keeps_nothing_else_and_is_tried_again() {
    with_tree(|tree, shared, host| {
        let volumes = shared.join("volumes");
        tree.attach_root("c1", detached(host), &Steps::from_environment()).unwrap();
        let stuck = attach(tree, "c1", VolumeKind::Directory, host).unwrap().number.to_string();
        attach(tree, "c1", VolumeKind::Directory, host).unwrap();
        // Each attempt takes one away.
        (0..2).for_each(|_| mount_bind(host, volumes.join(&stuck)).unwrap());
        tree.detach("c1").unwrap_err();
        assert!(names(shared.join("roots")).is_empty());
        assert_eq!(names(&volumes), [PathBuf::from(&stuck)]);
        tree.attach_root("c2", detached(host), &Steps::from_environment()).unwrap();
        tree.detach("c2").unwrap();
        assert_eq!(names(&volumes), [PathBuf::from(&stuck)], "it is another's");
        tree.detach("c2").unwrap();
        assert!(names(&volumes).is_empty());
    });
}

#[test]
fn a_read_only_volume_is_opened_where_it_is_for_who_may_write() {
    with_tree(|tree, shared, host| {
        let steps = Steps::from_environment();
        let closed = share(tree, "c1", read_only(host)).number;
        // As the proxy, in another mount namespace from before.
        let proxy = Spawn {
            arguments: vec![c"sleep".into(), c"1000".into()],
            namespaces: UnshareFlags::NEWNS,
            ..Spawn::new(c"/bin/sleep".into())
        };
        let proxy = proxy.start().unwrap();
        let volume = shared.join("volumes").join(closed.to_string());
        let outside = volume.strip_prefix("/").unwrap();
        let root = Path::new("/proc").join(proxy.pid.as_raw_nonzero().to_string()).join("root");
        let write = |path: &Path| fs::write(path.join("file"), "x").map_err(|error| error.kind());
        let refused = Err(io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(share(tree, "c2", read_only(host)), Place { number: closed, closed: false });
        assert_eq!(share(tree, "c3", detached(host)), Place { number: closed, closed: true });
        assert_eq!((write(&volume), write(&root.join(outside))), (refused, refused));
        tree.open_volume(closed, None, &steps).unwrap();
        assert_eq!((write(&volume), write(&root.join(outside))), (Ok(()), refused));
        let not_a_mount = served::in_namespace_of(&proxy, |root| {
            served::allow_writing(
                root,
                outside.parent().unwrap().parent().unwrap().parent().unwrap(),
            )
        });
        not_a_mount.unwrap_err();
        served::in_namespace_of(&proxy, |root| served::allow_writing(root, outside)).unwrap();
        assert_eq!(write(&root.join(outside)), Ok(()));
        assert_eq!(share(tree, "c4", detached(host)), Place { number: closed, closed: false });
        tree.open_volume(closed + 1, None, &steps).unwrap_err();
        tree.detach("c1").unwrap();
        assert_eq!(write(&volume), Ok(()), "others use it");
    });
}

#[test]
fn a_volume_that_could_not_be_opened_is_opened_for_the_next_who_may_write() {
    with_tree(|tree, shared, host| {
        let steps = Steps::from_environment();
        let number = share(tree, "c1", read_only(host)).number;
        let closed = Place { number, closed: true };
        let ended = Spawn::new(c"/bin/true".into()).start().unwrap();
        ended.wait().unwrap();
        for container in ["c2", "c3"] {
            assert_eq!(share(tree, container, detached(host)), closed, "{container}");
            tree.open_volume(number, Some(&ended), &steps).unwrap_err();
            tree.detach(container).unwrap();
        }
        assert_eq!(share(tree, "c4", detached(host)), closed);
        tree.open_volume(number, None, &steps).unwrap();
        assert_eq!(share(tree, "c5", detached(host)), Place { number, closed: false });
        fs::write(shared.join("volumes").join(number.to_string()).join("file"), "x").unwrap();
    });
}

#[test]
fn a_tree_that_leads_to_the_host_is_not_followed() {
    with_tree(|tree, shared, host| {
        let steps = Steps::from_environment();
        fs::create_dir(host.join("c1")).unwrap();
        fs::write(host.join("0"), "of the host").unwrap();
        for half in ["roots", "volumes"] {
            fs::rename(shared.join(half), shared.join("away")).unwrap();
            symlink(host, shared.join(half)).unwrap();
            fs::rename(shared.join("away"), shared.join(format!("old-{half}"))).unwrap();
        }
        tree.attach_root("c2", detached(host), &steps).unwrap();
        tree.mount_root("c3", "tmpfs", c"", &steps).unwrap();
        attach(tree, "c1", VolumeKind::Directory, host).unwrap();
        attach(tree, "c2", VolumeKind::File, &host.join("0")).unwrap();
        tree.detach("c1").unwrap();
        let mut left = names(host);
        left.sort();
        assert_eq!(left, ["0", "c1"].map(PathBuf::from));
        assert_eq!(names(shared.join("old-volumes")), [PathBuf::from("1")]);
    });
}

#[test]
fn a_link_in_the_place_of_a_new_volume_is_no_place() {
    with_tree(|tree, shared, host| {
        symlink(host, shared.join("volumes/0")).unwrap();
        symlink(host.join("new"), shared.join("volumes/1")).unwrap();
        attach(tree, "c1", VolumeKind::Directory, host).unwrap_err();
        attach(tree, "c1", VolumeKind::File, host).unwrap_err();
        assert!(names(host).is_empty());
    });
}
