//! The stdio that an engine names: fifos, files, a program, or nothing.
//!
//! A fifo for output is opened once the engine reads from it, else what a short process writes could be gone before the engine
//! comes; and for reading too, so that it has a reader while the engine restarts: nothing that is written is lost, and nobody
//! gets SIGPIPE. A fifo for input is opened for reading alone, as runc's shim does it: when the engine's
//! end is closed, that is the end of the input.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use kata_sys::spawn::Child;
use rustix::{
    fs::{FileType, Mode, OFlags, fstat, open},
    io::Errno,
};
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

/// An engine opens its end before it asks for a process, or at the same time. One that was killed in between does not.
const READER: Duration = Duration::from_secs(5);

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
    /// Opens what is named, for a container's id and namespace; waits for the engine's end of a fifo and for the program of
    /// `binary://`.
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
        let deadline = Instant::now() + READER;
        let stdout = open_output("stdout", &names.stdout, deadline)?;
        let stderr = open_output("stderr", errors, deadline)?;
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

fn open_output(what: &'static str, uri: &str, deadline: Instant) -> Result<OwnedFd, StdioError> {
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
            let file = at(what, path, OFlags::PATH)?;
            match fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
                Ok(FileType::Fifo) => open_fifo(&file, deadline)
                    .map_err(|source| StdioError::Open { what, path: path.into(), source }),
                _ => at(what, path, OFlags::WRONLY | OFlags::APPEND),
            }
        }
        Target::Program(_) | Target::Unknown => Err(StdioError::Kind { what, uri: uri.into() }),
    }
}

fn open_fifo(fifo: &OwnedFd, deadline: Instant) -> io::Result<OwnedFd> {
    // Held until there is another: a reader that finds no writer takes that for the end.
    let _writer = match reopen(fifo, OFlags::WRONLY | OFlags::NONBLOCK) {
        Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => {
            wait_for_reader(fifo, deadline)?
        }
        opened => Some(opened?),
    };
    // Without a reader this is one, and has the thread end that waits for one.
    reopen(fifo, OFlags::RDWR | OFlags::NONBLOCK)
}

fn wait_for_reader(fifo: &OwnedFd, deadline: Instant) -> io::Result<Option<OwnedFd>> {
    let (sender, opened) = mpsc::channel();
    let fifo = fifo.try_clone()?;
    let wait = move || sender.send(reopen(&fifo, OFlags::WRONLY));
    thread::Builder::new().name("fifo".into()).spawn(wait)?;
    opened.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok().transpose()
}

/// The very file, whatever its name leads to by now.
fn reopen(file: &OwnedFd, flags: OFlags) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(open(path, flags | OFlags::CLOEXEC, Mode::empty())?)
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
        fs::File,
        io::{Read, Write},
        os::fd::OwnedFd,
        sync::mpsc,
        thread,
        time::Duration,
    };

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::{Names, Stdio, StdioError};

    #[test]
    fn a_fifo_waits_for_its_reader_and_keeps_what_is_written_while_nobody_reads() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("out");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let names = Names { stdout: path.to_str().unwrap().into(), ..Names::default() };
        let (sender, opened) = mpsc::channel();
        thread::spawn(move || sender.send(Stdio::open(&names, ("c", "n")).unwrap()));
        opened.recv_timeout(Duration::from_millis(50)).unwrap_err();
        drop(File::open(&path).unwrap());
        let Stdio { fds: [_, stdout, _], .. } = opened.recv().unwrap();
        let mut writer = File::from(stdout);
        writer.write_all(b"early").unwrap();
        let mut reader = File::open(&path).unwrap();
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
        File::from(fd).write_all(word.as_bytes()).unwrap();
    }

    #[test]
    fn kinds_that_are_not_known_are_refused_by_name() {
        let names = Names { stdout: "carrier-pigeon://x".into(), ..Names::default() };
        let error = Stdio::open(&names, ("c", "n")).unwrap_err();
        assert!(matches!(error, StdioError::Kind { .. }), "{error}");
    }
}
