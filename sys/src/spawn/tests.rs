use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    thread,
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    thread::UnshareFlags,
};

use super::{Exit, Lifetime, Spawn, SpawnError};

fn shell(script: &str) -> Spawn<'static> {
    let words = ["sh", "-c", script].map(|word| CString::new(word).unwrap());
    Spawn { arguments: words.into(), ..Spawn::new(c"/bin/sh".into()) }
}

fn pipe() -> (File, OwnedFd) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    (reader.into(), writer)
}

/// Runs a script and returns what it wrote to stdout.
fn output(mut spawn: Spawn<'_>) -> (String, Exit) {
    let null: OwnedFd = File::open("/dev/null").unwrap().into();
    let (mut reader, writer) = pipe();
    let mut fds = vec![null.as_fd(), writer.as_fd(), null.as_fd()];
    fds.extend(spawn.fds.iter().skip(3));
    let child = Spawn { fds, arguments: std::mem::take(&mut spawn.arguments), ..spawn }.start();
    let child = child.unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    (text, child.wait().unwrap())
}

#[test]
fn the_end_is_told_as_it_was() {
    assert_eq!(shell("exit 42").start().unwrap().wait().unwrap(), Exit::Code(42));
    assert_eq!(shell("kill -TERM $$").start().unwrap().wait().unwrap(), Exit::Signal(15));
}

#[test]
fn a_program_that_is_not_there_is_an_error_of_the_caller() {
    let error = Spawn::new(c"/no/such/program".into()).start().unwrap_err();
    let SpawnError::Execute { program, source } = error else { panic!("{error:?}") };
    assert_eq!(program.as_c_str(), c"/no/such/program");
    assert_eq!(source.kind(), io::ErrorKind::NotFound);
}

#[test]
fn descriptors_are_where_they_were_asked_for_and_nothing_else_is_inherited() {
    let (mut first, first_writer) = pipe();
    let (mut second, second_writer) = pipe();
    // Not close-on-exec: only the spawner keeps it out of the child.
    let stray: OwnedFd = File::open("/").unwrap().into();
    rustix::io::fcntl_setfd(&stray, rustix::io::FdFlags::empty()).unwrap();
    let null: OwnedFd = File::open("/dev/null").unwrap().into();
    let fds = vec![null.as_fd(), first_writer.as_fd(), null.as_fd(), second_writer.as_fd()];
    let script =
        "for n in $(seq 0 64); do test -e /proc/$$/fd/$n && echo $n; done; echo second >&3";
    let child = Spawn { fds, ..shell(script) }.start().unwrap();
    drop((first_writer, second_writer));
    let (mut list, mut text) = (String::new(), String::new());
    first.read_to_string(&mut list).unwrap();
    second.read_to_string(&mut text).unwrap();
    assert_eq!((list.as_str(), text.as_str()), ("0\n1\n2\n3\n", "second\n"));
    assert_eq!(child.wait().unwrap(), Exit::Code(0));
}

#[test]
fn descriptors_may_change_places() {
    let (mut reader, writer) = pipe();
    let null: OwnedFd = File::open("/dev/null").unwrap().into();
    let zero = rustix::stdio::stdin();
    // The caller's 0 becomes the child's 3, while the child's 0 is something else.
    let fds = vec![null.as_fd(), writer.as_fd(), null.as_fd(), zero];
    let child = Spawn { fds, ..shell("readlink /proc/$$/fd/3") }.start().unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    assert_eq!(text.trim(), fs::read_link("/proc/self/fd/0").unwrap().to_str().unwrap());
}

#[test]
fn standard_streams_that_are_left_out_are_null() {
    let (_, writer) = pipe();
    drop(writer);
    let child = shell("test /proc/$$/fd/0 -ef /dev/null && echo to nobody").start().unwrap();
    assert_eq!(child.wait().unwrap(), Exit::Code(0));
}

#[test]
fn no_signal_is_ignored_or_blocked_in_the_child() {
    let (status, _) = output(shell("cat /proc/self/status"));
    for field in ["SigIgn", "SigBlk"] {
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        assert!(line.ends_with("0000000000000000"), "{line}");
    }
}

#[test]
fn the_environment_is_what_was_given() {
    let environment = vec![c"ONE=1".into()];
    let env = Spawn { environment, ..Spawn::new(c"/usr/bin/env".into()) };
    assert_eq!(output(env), ("ONE=1\n".into(), Exit::Code(0)));
}

#[test]
fn a_child_ends_with_the_thread_that_spawned_it() {
    let (mut reader, writer) = pipe();
    let null: OwnedFd = File::open("/dev/null").unwrap().into();
    // Its reader outlives it: it must not end of a pipe that is closed.
    let (child, _reader) = thread::spawn(move || {
        let fds = vec![null.as_fd(), writer.as_fd(), null.as_fd()];
        let child = Spawn { fds, ..shell("echo up; exec cat /dev/zero") }.start().unwrap();
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        (child, reader)
    })
    .join()
    .unwrap();
    assert_eq!(child.wait().unwrap(), Exit::Signal(9));
}

#[test]
fn a_child_with_a_life_of_its_own_outlives_the_thread() {
    let (reader, mut writer) = {
        let (reader, writer) = pipe();
        (OwnedFd::from(reader), File::from(writer))
    };
    let child = thread::spawn(move || {
        let spawn = Spawn { lifetime: Lifetime::Own, ..shell("read line; test $line = go") };
        Spawn { fds: vec![reader.as_fd()], ..spawn }.start().unwrap()
    })
    .join()
    .unwrap();
    writer.write_all(b"go\n").unwrap();
    assert_eq!(child.wait().unwrap(), Exit::Code(0));
}

#[test]
fn an_ended_child_is_known_before_and_after_it_is_reaped() {
    let child = shell("read line").start().unwrap();
    child.wait().unwrap();
    assert!(child.has_ended().unwrap());
    let (_reader, writer) = pipe();
    let idle = Spawn { fds: vec![writer.as_fd()], ..shell("exec sleep 1000") }.start().unwrap();
    assert!(!idle.has_ended().unwrap());
    idle.kill().unwrap();
    idle.wait().unwrap();
    assert!(idle.has_ended().unwrap());
}

#[test]
fn a_killed_child_is_reaped_once_and_known_to_all_who_ask() {
    let child = shell("exec cat /dev/zero").start().unwrap();
    assert_eq!(child.try_wait().unwrap(), None);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap(), Exit::Signal(9));
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap(), Exit::Signal(9));
    assert_eq!(child.try_wait().unwrap(), Some(Exit::Signal(9)));
}

#[test]
fn a_session_is_the_childs_own() {
    let spawn = Spawn { new_session: true, ..shell("cut -d' ' -f6 /proc/$$/stat; echo $$") };
    let (text, _) = output(spawn);
    let (session, pid) = text.trim().split_once('\n').unwrap();
    assert_eq!(session, pid);
}

#[test]
fn new_user_and_pid_namespaces_keep_every_id() {
    let namespaces = UnshareFlags::NEWUSER | UnshareFlags::NEWPID;
    let script = "cat /proc/self/uid_map; echo $$ >&2; echo $$";
    let null: OwnedFd = File::open("/dev/null").unwrap().into();
    let (mut reader, writer) = pipe();
    let fds = vec![null.as_fd(), writer.as_fd(), null.as_fd()];
    let child = match (Spawn { namespaces, fds, ..shell(script) }).start() {
        Ok(child) => child,
        Err(error) => return eprintln!("SKIP no user namespaces here: {error}"),
    };
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    let (map, pid) = text.trim().rsplit_once('\n').unwrap();
    assert_eq!(pid, "1");
    let words = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
    assert_eq!(words(map), words(&fs::read_to_string("/proc/self/uid_map").unwrap()));
}

#[test]
fn a_child_that_ends_the_moment_it_starts_is_no_error() {
    for _ in 0..50 {
        assert_eq!(shell("exit 0").start().unwrap().wait().unwrap(), Exit::Code(0));
    }
}

#[test]
fn threads_that_allocate_do_no_harm() {
    let threads: Vec<_> = (0..8)
        .map(|_| {
            thread::spawn(|| {
                for _ in 0..20 {
                    let hoard: Vec<Vec<u8>> = (1..50).map(|n| vec![0; n * 100]).collect();
                    assert_eq!(shell("exit 3").start().unwrap().wait().unwrap(), Exit::Code(3));
                    drop(hoard);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
