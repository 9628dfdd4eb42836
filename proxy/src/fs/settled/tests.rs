//! What the guest is told, what it is refused, and what it may hold.

use std::{
    ffi::{CStr, CString},
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::Path,
};

use virtiofsd::{
    filesystem::{Context, Extensions, FileSystem, FsOptions},
    passthrough::{Config, PassthroughFs},
};

use super::{Changes, Settled};
use crate::fs::pressure::Pressure;

/// Descriptors of a process, where they are few.
const LIMIT: u64 = 256;

/// Descriptors that no test has.
const MANY: u64 = 1 << 20;

fn context() -> Context {
    Context { uid: 0.into(), gid: 0.into(), pid: 0 }
}

fn settled(tree: &Path, changes: Changes) -> Settled {
    pressed(tree, changes, Pressure::new(MANY, |_, _| true))
}

fn pressed(tree: &Path, changes: Changes, pressure: Pressure) -> Settled {
    let root_dir = tree.to_str().unwrap().to_owned();
    let config = Config { root_dir, guest_fd_limit: MANY, ..Config::default() };
    let settled = Settled::new(PassthroughFs::new(config).unwrap(), changes, pressure);
    settled.init(FsOptions::empty()).unwrap();
    settled
}

/// What the guest is told of links, and the answer to a close of what was never open.
fn promises(changes: Changes) -> (bool, Option<i32>) {
    let tree = std::env::temp_dir().to_str().unwrap().to_owned();
    let fs = PassthroughFs::new(Config { root_dir: tree, ..Config::default() }).unwrap();
    let settled = Settled::new(fs, changes, Pressure::new(MANY, |_, _| true));
    let options = settled.init(FsOptions::all()).unwrap();
    let flushed = settled.flush(context(), 1, 7, 0).unwrap_err();
    assert!(!options.contains(FsOptions::EXPORT_SUPPORT), "then `.` is a name");
    (options.contains(FsOptions::CACHE_SYMLINKS), flushed.raw_os_error())
}

#[test]
fn links_are_kept_and_closes_not_asked_for_only_where_nobody_else_changes_anything() {
    assert_eq!(promises(Changes::Guests), (true, Some(libc::ENOSYS)));
    assert_eq!(promises(Changes::Anybodys), (false, Some(libc::EBADF)));
}

#[test]
fn two_shares_together_leave_descriptors() {
    crate::alone("fs::settled::tests::two_shares_together_leave_descriptors", || {
        let tree = tempfile::tempdir().unwrap();
        let attached = tree.path().join("c1");
        fs::create_dir(&attached).unwrap();
        (0..LIMIT).for_each(|n| fs::write(attached.join(n.to_string()), "").unwrap());
        let pressure = Pressure::new(LIMIT, |_, _| true);
        let shares = [Changes::Guests, Changes::Anybodys]
            .map(|changes| pressed(tree.path(), changes, pressure.clone()));
        let root_of = |share: &Settled| share.lookup(context(), 1, c"c1").unwrap().inode;
        let roots = shares.each_ref().map(root_of);
        let look_up = |share: usize, n: u64| {
            let name = CString::new(n.to_string()).unwrap();
            shares[share].lookup(context(), roots[share], &name).map(|entry| entry.inode)
        };
        let full = |attempt: io::Result<()>| {
            assert_eq!(attempt.unwrap_err().raw_os_error(), Some(libc::ENFILE));
        };
        let held: Vec<u64> = (0..LIMIT).map_while(|n| look_up(0, n).ok()).collect();
        assert!(held.len() > 190, "{}", held.len());
        for number in [0, 1] {
            full(look_up(number, LIMIT - 1).map(drop));
            full(shares[number].opendir(context(), 1, 0).map(drop));
            assert_eq!(root_of(&shares[number]), roots[number], "an error would unmount it");
        }
        let streams: Vec<_> = (0..LIMIT / 10).map(|_| File::open("/dev/null").unwrap()).collect();
        assert!(streams.iter().all(|file| u64::try_from(file.as_raw_fd()).unwrap() < LIMIT));
        drop(streams);
        shares[0].forget(context(), held[7], 1);
        look_up(1, 0).unwrap();
    });
}

#[test]
fn what_a_file_that_is_a_volume_is_like_is_not_kept() {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("0"), "").unwrap();
    fs::create_dir(tree.path().join("1")).unwrap();
    fs::write(tree.path().join("1/in"), "").unwrap();
    let settled = settled(tree.path(), Changes::Anybodys);
    let kept = |parent, name| {
        let entry = settled.lookup(context(), parent, name).unwrap();
        let (_, later) = settled.getattr(context(), entry.inode, None).unwrap();
        assert_eq!(entry.attr_timeout, later);
        (entry.inode, !later.is_zero())
    };
    let (directory, directory_is_kept) = kept(1, c"1");
    assert!(directory_is_kept && kept(directory, c"in").1);
    let (file, file_is_kept) = kept(1, c"0");
    assert!(!file_is_kept);
    settled.forget(context(), file, 1);
    assert!(!settled.singles.has(file), "forgotten, and known all the same");
}

#[test]
fn the_name_of_what_is_attached_is_not_kept() {
    let tree = tempfile::tempdir().unwrap();
    fs::create_dir_all(tree.path().join("c1/etc")).unwrap();
    for changes in [Changes::Guests, Changes::Anybodys] {
        let settled = settled(tree.path(), changes);
        let root = settled.lookup(context(), 1, c"c1").unwrap();
        assert!(root.entry_timeout.is_zero() && !root.attr_timeout.is_zero(), "{changes:?}");
        let inside = settled.lookup(context(), root.inode, c"etc").unwrap();
        assert!(!inside.entry_timeout.is_zero(), "{changes:?}");
    }
}

/// Each request that has a name, with this one.
fn attempts(settled: &Settled, name: &CStr) -> Vec<io::Result<()>> {
    let none = Extensions::default;
    vec![
        settled.lookup(context(), 1, name).map(drop),
        settled.symlink(context(), c"/etc", 1, name, none()).map(drop),
        settled.mknod(context(), 1, name, libc::S_IFREG, 0, 0, none()).map(drop),
        settled.mkdir(context(), 1, name, 0o755, 0, none()).map(drop),
        settled.create(context(), 1, name, 0o644, false, 0, 0, none()).map(drop),
        settled.link(context(), 1, 1, name).map(drop),
        settled.rename(context(), 1, c"in", 1, name, 0),
        settled.rename(context(), 1, name, 1, c"other", 0),
        settled.unlink(context(), 1, name),
        settled.rmdir(context(), 1, name),
    ]
}

#[test]
fn a_path_is_no_name() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    fs::create_dir_all(tree.join("in")).unwrap();
    fs::write(scratch.path().join("out"), "").unwrap();
    let settled = settled(&tree, Changes::Guests);
    let names = [c"", c".", c"..", c"/", c"in/", c"./in", c"../out", c"../new", c"../tree"];
    for name in names {
        for (number, attempt) in attempts(&settled, name).into_iter().enumerate() {
            let error = attempt.unwrap_err().raw_os_error();
            assert_eq!(error, Some(libc::EINVAL), "{name:?}, request {number}");
        }
    }
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);
    assert!(
        settled
            .lookup(context(), 1, c"..in")
            .is_err_and(|e| e.raw_os_error() == Some(libc::ENOENT))
    );
    settled.rename(context(), 1, c"in", 1, c"...", 0).unwrap();
    settled.lookup(context(), 1, c"...").unwrap();
}

#[test]
fn a_volume_has_one_name_however_often_it_is_looked_up() {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("0"), "").unwrap();
    let settled = settled(tree.path(), Changes::Anybodys);
    for name in [c"0", c"./0", c"././0", c"../0", c"/0", c"0"] {
        settled.lookup(context(), 1, name).map(drop).unwrap_or_default();
    }
    assert_eq!(settled.singles.count(), 1);
}
