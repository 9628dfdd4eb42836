//! The steps change the process for good, so each test runs itself again as a process of its own.

use std::{
    env,
    ffi::CString,
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::FileTypeExt},
    path::PathBuf,
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    thread::UnshareFlags,
};

use super::{
    Access, Device, Entry, Resource, Tree, become_user,
    filter::{Refusal, deny},
    leave_namespaces, limit,
};
use crate::spawn::{Exit, Spawn};

const USER: u32 = 64_321;

/// Runs `inside` in a child process; its panics are this test's.
fn jailed(name: &str, inside: impl FnOnce()) {
    if env::var_os("KATA_JAIL_TEST").is_some() {
        return inside();
    }
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIP not root");
    }
    let name = CString::new(format!("jail::tests::{name}")).unwrap();
    let arguments = vec![c"test".into(), c"--exact".into(), name, c"--nocapture".into()];
    let environment = vec![c"KATA_JAIL_TEST=1".into()];
    let null = File::open("/dev/null").unwrap();
    let output = rustix::stdio::stderr();
    let fds = vec![null.as_fd(), output, output];
    let itself = Spawn { arguments, environment, fds, ..Spawn::new(c"/proc/self/exe".into()) };
    assert_eq!(itself.start().unwrap().wait().unwrap(), Exit::Code(0));
}

fn bind(host: &str, path: &str, access: Access) -> Entry {
    Entry::Bind { host: host.into(), path: path.into(), access }
}

fn status(field: &str) -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_tree_is_all_there_is() {
    jailed("the_tree_is_all_there_is", || {
        leave_namespaces(UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWNET)
            .unwrap();
        let device = Device { major: 1, minor: 3, owner: USER };
        let entries = vec![
            bind("/etc/passwd", "/deep/below/passwd", Access::ReadOnly),
            bind("/etc", "/etc", Access::ReadOnly),
            bind("/tmp", "/scratch", Access::Writable),
            Entry::Device { path: "/dev/null".into(), device },
        ];
        Tree { entries }.enter().unwrap();
        let mut names: Vec<PathBuf> =
            fs::read_dir("/").unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        assert_eq!(names, ["/deep", "/dev", "/etc", "/scratch"].map(PathBuf::from));
        assert!(!fs::read("/deep/below/passwd").unwrap().is_empty());
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        fs::write("/dev/null", "x").unwrap();
        for path in ["/new", "/etc/new", "/deep/below/passwd"] {
            let error = fs::write(path, "x").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem, "{path}");
        }
        let probe = "/scratch/kata-jail-test";
        fs::write(probe, "x").unwrap();
        fs::remove_file(probe).unwrap();
    });
}

#[test]
fn a_path_cannot_lead_out_of_the_tree() {
    jailed("a_path_cannot_lead_out_of_the_tree", || {
        leave_namespaces(UnshareFlags::NEWNS).unwrap();
        for path in ["/../x", "relative", "/a/../../b"] {
            let entries = vec![bind("/etc/passwd", path, Access::ReadOnly)];
            assert!(Tree { entries }.enter().is_err(), "{path}");
        }
    });
}

#[test]
fn nothing_is_left_of_root() {
    jailed("nothing_is_left_of_root", || {
        let (lifeline, _parent) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        limit(Resource::Core, 0).unwrap();
        become_user(USER, USER, &lifeline).unwrap();
        for field in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(field), "0000000000000000", "{field}");
        }
        assert_eq!(status("NoNewPrivs"), "1");
        assert_eq!(status("Groups"), "");
        let all = [USER; 4].map(|id| id.to_string()).join(" ");
        assert_eq!((status("Uid"), status("Gid")), (all.clone(), all));
        assert!(rustix::process::parent_process_death_signal().unwrap().is_some());
    });
}

#[test]
fn a_dead_parent_is_noticed() {
    jailed("a_dead_parent_is_noticed", || {
        let (lifeline, parent) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(parent);
        assert!(become_user(USER, USER, &lifeline).is_err());
    });
}

#[test]
fn refused_calls_fail_and_others_work() {
    jailed("refused_calls_fail_and_others_work", || {
        let (lifeline, _parent) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        become_user(USER, USER, &lifeline).unwrap();
        let unix = Refusal::Unless {
            call: libc::SYS_socket,
            argument: 0,
            value: u32::try_from(libc::AF_UNIX).unwrap(),
        };
        deny(&[Refusal::Always(libc::SYS_getpriority), unix, Refusal::Always(libc::SYS_sync)])
            .unwrap();
        let socket =
            |family| rustix::net::socket(family, rustix::net::SocketType::STREAM, None).map(drop);
        assert_eq!(socket(rustix::net::AddressFamily::INET), Err(rustix::io::Errno::PERM));
        assert_eq!(socket(rustix::net::AddressFamily::UNIX), Ok(()));
        let priority = rustix::process::getpriority_process(None);
        assert_eq!(priority, Err(rustix::io::Errno::PERM));
    });
}
