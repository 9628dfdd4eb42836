//! A user namespace with the same ids as outside: root in it may act for any user, but only on what the rest of its jail
//! shows it, and holds no power over anything that belongs to the host.
//!
//! Only a process outside may write such a map, so a short-lived child stays there and writes it.

use std::{
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags, open, openat},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, WaitOptions, waitpid},
    thread::UnshareFlags,
};

/// The calling process's directory in /proc.
///
/// # Errors
/// Those of open(2).
pub fn own_directory() -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(open("/proc/self", flags, Mode::empty())?)
}

/// Moves the calling process, which must have one thread, into a new user namespace with the ids of the present one.
///
/// `own` is the process's directory in /proc ([`own_directory`]), which may be out of sight by now.
///
/// # Errors
/// Those of the system calls involved; `Other` when the maps could not be written.
pub fn enter_identity(own: &OwnedFd) -> io::Result<()> {
    let maps = ["uid_map", "gid_map"].map(|name| identity(own, name).map(|map| (name, map)));
    let [users, groups] = maps;
    let maps = [users?, groups?];
    let (go, ready) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: unshare(CLONE_THREAD) changes nothing: it fails unless the caller is the only thread.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } != 0 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "more than one thread"));
    }
    // SAFETY: the caller is the only thread (checked above), so no lock in the copy is held by a thread that it lacks.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    let Some(child) = Pid::from_raw(child) else {
        drop(ready);
        let failed = write_maps(go, own, &maps).is_err();
        // SAFETY: ends the copy without running what the original has registered for its own end.
        unsafe { libc::_exit(i32::from(failed)) };
    };
    drop(go);
    let unshared = crate::fork::unshare(UnshareFlags::NEWUSER);
    let told = unshared.and_then(|()| Ok(rustix::io::write(&ready, b"x")?));
    // An error of ours ends the child as well: it reads the end of the pipe.
    drop(ready);
    let ended = loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            ended => break ended?,
        }
    };
    told?;
    match ended {
        Some((_, status)) if status.exit_status() == Some(0) => Ok(()),
        _ => Err(io::Error::other("the maps of the user namespace were not taken")),
    }
}

/// A new user namespace with these maps (lines of: first id inside, first id outside, count) and nobody in it.
///
/// # Errors
/// Those of the system calls involved: `EINVAL` for a map that the kernel does not take.
pub fn with_maps(users: &str, groups: &str) -> io::Result<OwnedFd> {
    let (end, hold) = pipe_with(PipeFlags::CLOEXEC)?;
    let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with a null stack this is fork(2): the copy has its own memory.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    let child = i32::try_from(child).ok().and_then(Pid::from_raw);
    let Some(child) = child else {
        drop(hold);
        // Until the other end is closed; nothing here needs a lock, whatever threads the original has.
        rustix::io::read(&end, &mut [0]).ok();
        // SAFETY: ends the copy without running what the original has registered for its own end.
        unsafe { libc::_exit(0) };
    };
    let made = described(child, users, groups);
    drop(hold);
    while let Err(rustix::io::Errno::INTR) = waitpid(Some(child), WaitOptions::empty()) {}
    made
}

fn described(child: Pid, users: &str, groups: &str) -> io::Result<OwnedFd> {
    let path = format!("/proc/{}", child.as_raw_nonzero());
    let own = open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for (name, map) in [("uid_map", users), ("gid_map", groups)] {
        let file = openat(&own, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        // In one write: the kernel takes a map only whole.
        std::fs::File::from(file).write_all(map.as_bytes())?;
    }
    Ok(openat(&own, "ns/user", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The map that gives every id of the present namespace the same number in a new one.
fn identity(own: &OwnedFd, name: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = std::fs::File::from(openat(own, name, flags, Mode::empty())?);
    let map = io::read_to_string(file)?;
    identity_of(&map).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an id map"))
}

fn identity_of(map: &str) -> Option<String> {
    let mut identity = String::new();
    for line in map.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (first, _, count) = (fields.next()?, fields.next()?, fields.next()?);
        identity.push_str(&format!("{first} {first} {count}\n"));
    }
    Some(identity)
}

fn write_maps(go: OwnedFd, own: impl AsFd, maps: &[(&str, String)]) -> io::Result<()> {
    let mut byte = [0];
    if rustix::io::read(&go, &mut byte)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    for (name, map) in maps {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        // In one write: the kernel takes a map only whole.
        std::fs::File::from(openat(&own, *name, flags, Mode::empty())?)
            .write_all(map.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::identity_of;

    #[test]
    fn an_identity_keeps_every_range_in_place() {
        let map = "         0     100000       1000\n      5000     200000          1\n";
        assert_eq!(identity_of(map).unwrap(), "0 0 1000\n5000 5000 1\n");
        assert_eq!(identity_of("0 0\n"), None);
    }
}
