//! Finding and executing a container's program, with the words that engines look for in an error.

use std::{collections::BTreeMap, ffi::CString, fs::File, io::Read, path::Path};

use kata_sys::fork;
use rustix::{
    fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, accessat, open, stat},
    io::Errno,
};

use crate::{
    order::{Failure, FailureKind, Step, plain},
    spec::Process,
};

/// Thousands of users; more is not worth waiting for.
const LONGEST_PASSWD: u64 = 1 << 20;

/// What execve takes, with nothing left to look up.
#[derive(Debug)]
pub struct Program {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// Finds the program as the process would: with its user, working directory and PATH.
    pub fn find(process: &Process) -> Result<Self, Failure> {
        let name = process.args.first().ok_or_else(|| Failure::invalid("process.args is empty"))?;
        let text = |text: &String| {
            CString::new(text.as_str())
                .map_err(|_| Failure::invalid("process.args or process.env contains a NUL"))
        };
        let mut environment = settled(&process.env);
        let home = |uid| format!("HOME={}", home(&read_passwd(), uid));
        match environment.iter_mut().find(|word| word.starts_with("HOME=")) {
            Some(word) if word == "HOME=" => *word = home(process.user.uid),
            Some(_) => {}
            None => environment.push(home(process.user.uid)),
        }
        Ok(Self {
            path: text(&search(name, search_path(&process.env))?)?,
            arguments: process.args.iter().map(text).collect::<Result<_, _>>()?,
            environment: environment.iter().map(text).collect::<Result<_, _>>()?,
        })
    }

    /// What it finds in its environment; HOME is one of it.
    pub fn variables(&self) -> Vec<String> {
        self.environment.iter().map(|word| word.to_string_lossy().into_owned()).collect()
    }

    /// Becomes the program; returns only why it could not.
    pub fn execute(&self) -> Failure {
        let error = fork::execute(&self.path, &self.arguments, &self.environment);
        let kind = match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTDIR) => FailureKind::NotFound,
            Some(Errno::ACCESS | Errno::PERM | Errno::NOEXEC | Errno::ISDIR) => {
                FailureKind::PermissionDenied
            }
            _ => FailureKind::Internal,
        };
        Failure {
            kind,
            message: format!("exec {}: {}", self.path.to_string_lossy(), plain(&error)),
        }
    }
}

/// The root's own list of users; whatever keeps it from being read, there is then none.
fn read_passwd() -> String {
    // What the container has put there may be a pipe that nobody writes to.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut text = Vec::new();
    if let Ok(file) = open("/etc/passwd", flags, Mode::empty()) {
        // What was read before an error counts.
        File::from(file).take(LONGEST_PASSWD).read_to_end(&mut text).ok();
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Home directory of a user, `/` for one that is not listed.
fn home(passwd: &str, uid: u32) -> &str {
    let entry = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2).is_some_and(|field| field.parse() == Ok(uid)));
    entry.and_then(|fields| fields.get(5).copied()).filter(|home| !home.is_empty()).unwrap_or("/")
}

/// Each variable once, as it was assigned last, in the place of its first assignment: programs look for either.
fn settled(environment: &[String]) -> Vec<String> {
    let name = |word: &String| word.split('=').next().unwrap_or_default().to_owned();
    let mut last: BTreeMap<String, &String> =
        environment.iter().map(|word| (name(word), word)).collect();
    environment.iter().filter_map(|word| last.remove(&name(word))).cloned().collect()
}

fn search_path(environment: &[String]) -> &str {
    // The last assignment is the one that a shell would see.
    environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default()
}

fn search(name: &str, path: &str) -> Result<String, Failure> {
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(Errno::NOENT | Errno::NOTDIR) => {
                let why = format!("stat {name}: no such file or directory");
                Err(not_run(FailureKind::NotFound, name, &why))
            }
            // Engines make 126 of these words, for a directory too.
            Err(Errno::ISDIR | Errno::ACCESS | Errno::PERM) => {
                Err(not_run(FailureKind::PermissionDenied, name, "permission denied"))
            }
            Err(error) => Err(error).step(|| format!("exec: {name:?}: stat {name}")),
        };
    }
    path.split(':')
        // As for runc, the working directory is no place for programs.
        .filter(|directory| directory.starts_with('/'))
        .map(|directory| format!("{directory}/{name}"))
        .find(|candidate| !name.is_empty() && executable(candidate).is_ok())
        .ok_or_else(|| not_run(FailureKind::NotFound, name, "executable file not found in $PATH"))
}

fn executable(path: &str) -> rustix::io::Result<()> {
    if FileType::from_raw_mode(stat(path)?.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

fn not_run(kind: FailureKind, name: &str, why: &str) -> Failure {
    Failure { kind, message: format!("exec: {name:?}: {why}") }
}

/// Enters the working directory, as root if the user may not.
#[derive(Debug)]
pub struct WorkingDirectory<'a> {
    path: &'a Path,
    entered: bool,
}

impl<'a> WorkingDirectory<'a> {
    /// Before the change of user: a directory that only root may enter serves, as with runc.
    pub fn enter_as_root(path: &'a str) -> Result<Self, Failure> {
        let path = Path::new(if path.is_empty() { "/" } else { path });
        if !path.is_absolute() {
            return Err(Failure::invalid(format!("process.cwd {path:?} is not absolute")));
        }
        Ok(Self { path, entered: rustix::process::chdir(path).is_ok() })
    }

    /// After it: one that only the user may enter serves too.
    pub fn enter_as_user(self) -> Result<(), Failure> {
        if !self.entered {
            let text = self.path.display();
            rustix::process::chdir(self.path).map_err(|error| Failure {
                kind: FailureKind::Internal,
                message: format!(
                    "chdir to cwd (\"{text}\") set in config.json failed: {}",
                    plain(&error)
                ),
            })?;
        }
        // The kernel says "(unreachable)" of a directory outside of the root: nothing may be inherited from there.
        let here = rustix::process::getcwd(Vec::new()).step(|| "find the working directory")?;
        if !here.as_bytes().starts_with(b"/") {
            return Err(Failure::invalid("the working directory is outside of the container"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{home, search, search_path};
    use crate::order::FailureKind;

    #[test]
    fn a_program_without_a_slash_is_searched_in_path() {
        assert_eq!(search("sh", "/nonexistent:/bin").unwrap(), "/bin/sh");
        let error = search("no-such-program", "/bin").unwrap_err();
        assert_eq!(error.kind, FailureKind::NotFound);
        assert_eq!(error.message, "exec: \"no-such-program\": executable file not found in $PATH");
        for path in ["", ":", ".", "../../../../../../../../bin"] {
            assert_eq!(search("sh", path).unwrap_err().kind, FailureKind::NotFound, "{path}");
        }
    }

    #[test]
    fn a_missing_path_is_worded_as_runc_words_it() {
        let error = search("/no/such", "/bin").unwrap_err();
        assert_eq!(error.message, "exec: \"/no/such\": stat /no/such: no such file or directory");
    }

    #[test]
    fn what_may_not_be_executed_is_permission_denied() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = search(file.path().to_str().unwrap(), "").unwrap_err();
        assert_eq!(error.kind, FailureKind::PermissionDenied);
        assert!(error.message.ends_with(": permission denied"), "{error}");
        let error = search("/etc/", "").unwrap_err();
        assert!(error.message.ends_with(": permission denied"), "{error}");
    }

    #[test]
    fn home_is_the_listed_one_or_the_root() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbroken\nme:x:1000:1000::/users/me:/bin/sh\nno:x:7:7::";
        assert_eq!(home(passwd, 0), "/root");
        assert_eq!(home(passwd, 1000), "/users/me");
        assert_eq!(home(passwd, 7), "/");
        assert_eq!(home(passwd, 5), "/");
    }

    #[test]
    fn the_last_path_counts() {
        let environment = ["PATH=/a".to_owned(), "X=1".into(), "PATH=/b".into()];
        assert_eq!(search_path(&environment), "/b");
        assert_eq!(super::settled(&environment), ["PATH=/b", "X=1"]);
    }
}
