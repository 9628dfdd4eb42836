//! Users of an image, by the rules that docker and podman share: `USER[:GROUP]`, each a name or a number.
//!
//! Names are looked up in the image's own files, with what is below its root and nothing else. A number needs no entry. A
//! user without a group gets the group of its entry, and every group that lists it.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2},
    io::Errno,
};

/// Longest list of users or groups that is read.
const LONGEST: u64 = 1 << 20;

/// Whom a process is to run as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Ids of other groups.
    pub additional_gids: Vec<u32>,
}

/// Why there is no such user.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// A list.
    #[error("cannot read /{name} of the root")]
    Read {
        /// Path below the root.
        name: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// No such name.
    #[error("there is no {kind} {name:?} in /{list} of the root")]
    Unknown {
        /// User or group.
        kind: &'static str,
        /// As it was given.
        name: String,
        /// Where it was looked for.
        list: &'static str,
    },
}

const PASSWD: &str = "etc/passwd";
const GROUP: &str = "etc/group";

/// Finds a user of the tree at `root`; an empty word means root.
///
/// # Errors
/// [`UserError`].
pub fn find_user(root: impl AsFd, word: &str) -> Result<User, UserError> {
    let (user, group) = match word.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (word, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let passwd = read(root.as_fd(), PASSWD)?;
    let entry = passwd.lines().filter_map(Account::parse).find(|entry| entry.is(user));
    let (uid, own_gid, name) = match (&entry, number(user)) {
        (Some(entry), _) => (entry.uid, entry.gid, Some(entry.name)),
        (None, Some(uid)) => (uid, 0, None),
        (None, None) => return Err(unknown("user", user, PASSWD)),
    };
    if group.is_none() && name.is_none() {
        return Ok(User { uid, gid: own_gid, additional_gids: Vec::new() });
    }
    let groups = read(root.as_fd(), GROUP)?;
    let mut groups = groups.lines().filter_map(Group::parse);
    let Some(group) = group else {
        let name = name.unwrap_or_default();
        let lists = |group: &Group<'_>| group.members.split(',').any(|member| member == name);
        let mut additional_gids: Vec<u32> = groups.filter(lists).map(|group| group.gid).collect();
        additional_gids.sort_unstable();
        additional_gids.dedup();
        return Ok(User { uid, gid: own_gid, additional_gids });
    };
    let is_wanted = |entry: &Group<'_>| match number(group) {
        Some(gid) => entry.gid == gid,
        None => entry.name == group,
    };
    let gid = groups.find(is_wanted).map(|entry| entry.gid).or(number(group));
    let gid = gid.ok_or_else(|| unknown("group", group, GROUP))?;
    Ok(User { uid, gid, additional_gids: Vec::new() })
}

fn unknown(kind: &'static str, name: &str, list: &'static str) -> UserError {
    UserError::Unknown { kind, name: name.chars().take(80).collect(), list }
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

impl<'a> Account<'a> {
    /// `name:password:uid:gid:…`; a line that is something else is none.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = number(fields.nth(1)?)?;
        Some(Self { name, uid, gid: number(fields.next()?)? })
    }

    fn is(&self, user: &str) -> bool {
        match number(user) {
            Some(uid) => self.uid == uid,
            None => self.name == user,
        }
    }
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    /// `name:password:gid:member,member`.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = number(fields.nth(1)?)?;
        Some(Self { name, gid, members: fields.next().unwrap_or_default() })
    }
}

fn number(word: &str) -> Option<u32> {
    // "+1" would parse.
    let plain = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| word.parse().ok()).flatten()
}

/// A list of the image; an empty one where there is none.
fn read(root: BorrowedFd<'_>, name: &'static str) -> Result<String, UserError> {
    let failed = |source| UserError::Read { name, source };
    let file = match open(root, name) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        file => File::from(file.map_err(|error| failed(error.into()))?),
    };
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LONGEST {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn open(root: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    // A fifo in its place must not hold us up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // A device is not even opened: its driver might act on it.
    let looked = openat2(root, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    match FileType::from_raw_mode(fstat(&looked)?.st_mode) {
        FileType::RegularFile => openat2(root, name, flags, Mode::empty(), resolve),
        _ => Err(Errno::INVAL),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::{User, find_user};

    fn find(word: &str) -> Result<User, String> {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let passwd = "# no entry\nroot:x:0:0:root:/root:/bin/sh\nweb:x:33:44:::\n";
        fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        let group = "root:x:0:\nweb:x:44:\ndisk:x:6:web,other\ntape:x:5:other,web\n";
        fs::write(root.path().join("etc/group"), group).unwrap();
        let opened = fs::File::open(root.path()).unwrap();
        find_user(&opened, word).map_err(|error| error.to_string())
    }

    fn user(uid: u32, gid: u32, additional: &[u32]) -> Result<User, String> {
        Ok(User { uid, gid, additional_gids: additional.to_vec() })
    }

    #[test]
    fn names_and_numbers_are_looked_up_in_the_image() {
        assert_eq!(find(""), user(0, 0, &[]));
        assert_eq!(find("web"), user(33, 44, &[5, 6]));
        assert_eq!(find("33"), user(33, 44, &[5, 6]));
        assert_eq!(find("web:disk"), user(33, 6, &[]));
        assert_eq!(find("web:"), user(33, 44, &[5, 6]));
        assert_eq!(find("1000"), user(1000, 0, &[]));
        assert_eq!(find("1000:2000"), user(1000, 2000, &[]));
        assert_eq!(find(":disk"), user(0, 6, &[]));
        assert!(find("nobody").unwrap_err().contains("no user \"nobody\" in /etc/passwd"));
        assert!(find("web:none").unwrap_err().contains("no group \"none\""));
        assert!(find("4294967296").is_err());
    }

    #[test]
    fn lists_that_are_no_files_of_the_image_are_not_read() {
        let root = tempfile::tempdir().unwrap();
        let opened = fs::File::open(root.path()).unwrap();
        assert_eq!(find_user(&opened, "7").unwrap(), User { uid: 7, ..User::default() });
        assert!(find_user(&opened, "root").is_err());
        fs::create_dir(root.path().join("etc")).unwrap();
        // Within the root it leads nowhere.
        symlink("/etc/passwd", root.path().join("etc/passwd")).unwrap();
        assert!(find_user(&opened, "root").unwrap_err().to_string().contains("cannot read"));
        fs::remove_file(root.path().join("etc/passwd")).unwrap();
        symlink("/dev/zero", root.path().join("etc/passwd")).unwrap();
        assert!(find_user(&opened, "root").is_err());
    }
}
