//! The stdio that an engine names: fifos, files, a program, or nothing.
//!
//! A fifo for output is opened for reading too, so that it has a reader while the engine restarts: nothing that is written
//! is lost, and nobody gets SIGPIPE. A fifo for input is opened for reading alone, as runc's shim does it: when the engine's
//! end is closed, that is the end of the input.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use kata_sys::spawn::Child;
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use thiserror::Error;

use super::logger::{Logger, LoggerError};

/// Why the stdio can't be used.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum StdioError {
    #[error("open {path} for {what}")]
    Open { what: &'static str, path: PathBuf, source: io::Error },
    #[error("run {uri:?} for the output")]
    Logger { uri: String, source: LoggerError },
    #[error(
        "{uri:?} is no kind of {what} that is known; there are fifos, file://, binary:// and nothing"
    )]
    Kind { what: &'static str, uri: String },
}

/// What the engine asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Where input comes from; empty for none.
    pub stdin: String,
    /// Where output goes; empty for nowhere.
    pub stdout: String,
    /// The same for errors; with a terminal there are none.
    pub stderr: String,
    /// The process has a terminal.
    pub terminal: bool,
}

/// The open descriptors, for a monitor.
#[derive(Debug)]
pub struct Stdio {
    fds: [OwnedFd; 3],
    /// What the output goes to, to be reaped.
    pub logger: Option<Child>,
}

impl Stdio {
    /// Opens what is named, for a container's id and namespace; waits for nothing but the program of `binary://`.
    ///
    /// # Errors
    /// [`StdioError`].
    pub fn open(names: &Names, owner: (&str, &str)) -> Result<Self, StdioError> {
        let stdin = open_input(&names.stdin)?;
        if let Target::Program(uri) = target(&names.stdout) {
            // It gets both, whatever is said of the other.
            let failed = |source| StdioError::Logger { uri: names.stdout.clone(), source };
            let Logger { process, stdout, stderr } = Logger::start(uri, owner).map_err(failed)?;
            return Ok(Self { fds: [stdin, stdout, stderr], logger: Some(process) });
        }
        let errors = if names.terminal { "" } else { &names.stderr };
        let outputs = [open_output("stdout", &names.stdout)?, open_output("stderr", errors)?];
        let [stdout, stderr] = outputs;
        Ok(Self { fds: [stdin, stdout, stderr], logger: None })
    }

    /// In the order of their numbers.
    pub fn borrow(&self) -> [BorrowedFd<'_>; 3] {
        self.fds.each_ref().map(AsFd::as_fd)
    }
}

fn open_input(uri: &str) -> Result<OwnedFd, StdioError> {
    match target(uri) {
        Target::Null => at("stdin", Path::new("/dev/null"), OFlags::RDONLY),
        Target::Path(path) => at("stdin", path, OFlags::RDONLY | OFlags::NONBLOCK),
        Target::File(_) | Target::Program(_) | Target::Unknown => {
            Err(StdioError::Kind { what: "stdin", uri: uri.into() })
        }
    }
}

fn open_output(what: &'static str, uri: &str) -> Result<OwnedFd, StdioError> {
    match target(uri) {
        Target::Null => at(what, Path::new("/dev/null"), OFlags::WRONLY),
        Target::File(path) => {
            if let Some(directory) = path.parent() {
                let made = std::fs::create_dir_all(directory);
                made.map_err(|source| StdioError::Open { what, path: path.into(), source })?;
            }
            at(what, path, OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND)
        }
        Target::Path(path) => {
            let fd = at(what, path, OFlags::RDWR | OFlags::NONBLOCK)?;
            let kind = fstat(&fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
            match kind {
                Ok(FileType::Fifo) => Ok(fd),
                // Opened again as what it is: a file is appended to.
                _ => at(what, path, OFlags::WRONLY | OFlags::APPEND),
            }
        }
        Target::Program(_) | Target::Unknown => Err(StdioError::Kind { what, uri: uri.into() }),
    }
}

fn at(what: &'static str, path: &Path, flags: OFlags) -> Result<OwnedFd, StdioError> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    open(path, flags, Mode::from_raw_mode(0o644)).map_err(|e| StdioError::Open {
        what,
        path: path.into(),
        source: e.into(),
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    Null,
    Path(&'a Path),
    File(&'a Path),
    Program(&'a str),
    Unknown,
}

fn target(uri: &str) -> Target<'_> {
    match uri.split_once("://") {
        None if uri.is_empty() => Target::Null,
        None => Target::Path(Path::new(uri)),
        Some(("fifo", path)) => Target::Path(Path::new(path)),
        Some(("file", path)) => Target::File(Path::new(path)),
        Some(("binary", program)) => Target::Program(program),
        Some(_) => Target::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::fd::OwnedFd,
    };

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::{Names, Stdio, StdioError};

    #[test]
    fn a_fifo_keeps_what_is_written_while_nobody_reads() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("out");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let names = Names { stdout: path.to_str().unwrap().into(), ..Names::default() };
        let Stdio { fds: [_, stdout, _], .. } = Stdio::open(&names, ("c", "n")).unwrap();
        let mut writer = std::fs::File::from(stdout);
        writer.write_all(b"early").unwrap();
        let mut reader = std::fs::File::open(&path).unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "early");
    }

    #[test]
    fn a_file_is_made_and_appended_to() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("deep/log");
        let names = Names { stdout: format!("file://{}", path.display()), ..Names::default() };
        for word in ["a", "b"] {
            let Stdio { fds: [_, stdout, _], .. } = Stdio::open(&names, ("c", "n")).unwrap();
            write(stdout, word);
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), "ab");
    }

    fn write(fd: OwnedFd, word: &str) {
        std::fs::File::from(fd).write_all(word.as_bytes()).unwrap();
    }

    #[test]
    fn kinds_that_are_not_known_are_refused_by_name() {
        let names = Names { stdout: "carrier-pigeon://x".into(), ..Names::default() };
        let error = Stdio::open(&names, ("c", "n")).unwrap_err();
        assert!(matches!(error, StdioError::Kind { .. }), "{error}");
    }
}
