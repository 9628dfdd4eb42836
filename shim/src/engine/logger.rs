//! `binary://PROGRAM?KEY=VALUE`: a program of the engine's that takes a container's output and keeps it.
//!
//! By containerd's protocol it is run with `KEY VALUE` as arguments, and with nothing but the container's id and namespace
//! in its environment. It reads output from fd 3 and errors from fd 4, and closes fd 5 when it is ready to.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use kata_sys::spawn::{Child, Lifetime, Spawn, SpawnError};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pipe::{PipeFlags, pipe_with},
};
use thiserror::Error;

/// So long an engine's own shim waits for it, too.
const READY: Duration = Duration::from_secs(10);

/// Why there is no such program.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum LoggerError {
    #[error("the program's path, an argument or the container's id has a zero byte")]
    ZeroByte,
    #[error("make its pipes")]
    Pipe(#[source] io::Error),
    #[error("start it")]
    Start(#[from] SpawnError),
    #[error("wait until it is ready")]
    Wait(#[source] io::Error),
    #[error("it was not ready (fd 5 closed) within {} s", READY.as_secs())]
    Late,
}

/// One that is ready.
#[derive(Debug)]
pub struct Logger {
    /// To be reaped.
    pub process: Child,
    /// Where output is written to; the program sees its end when the last writer is gone.
    pub stdout: OwnedFd,
    /// The same for errors.
    pub stderr: OwnedFd,
}

impl Logger {
    /// Starts the program of a URI without its scheme, for a container's id and namespace.
    ///
    /// # Errors
    /// [`LoggerError`]; no process is left.
    pub fn start(uri: &str, (id, namespace): (&str, &str)) -> Result<Self, LoggerError> {
        let pair = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| LoggerError::Pipe(e.into()));
        let (output, stdout) = pair()?;
        let (errors, stderr) = pair()?;
        let (ready, told) = pair()?;
        let (program, arguments) = words(uri);
        let mut spawn = Spawn::new(c_string(program)?);
        for argument in arguments {
            spawn.arguments.push(c_string(argument)?);
        }
        spawn.environment = vec![
            c_string(format!("CONTAINER_ID={id}").into_bytes())?,
            c_string(format!("CONTAINER_NAMESPACE={namespace}").into_bytes())?,
        ];
        let null = rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(|e| LoggerError::Pipe(e.into()))?;
        let nothing = null.as_fd();
        spawn.fds = vec![nothing, nothing, nothing, output.as_fd(), errors.as_fd(), told.as_fd()];
        spawn.new_session = true;
        // It has to write down what is still in its pipes when everybody else is gone.
        spawn.lifetime = Lifetime::Own;
        let process = spawn.start()?;
        drop(told);
        if let Err(error) = await_ready(&ready) {
            process.kill().and_then(|()| process.wait()).map_err(LoggerError::Wait)?;
            return Err(error);
        }
        Ok(Self { process, stdout, stderr })
    }
}

/// Returns when the other side is closed, by hand or by its end.
fn await_ready(ready: &OwnedFd) -> Result<(), LoggerError> {
    let timeout = Timespec {
        tv_sec: READY.as_secs().cast_signed(),
        tv_nsec: i64::from(READY.subsec_nanos()),
    };
    let mut ready = [PollFd::new(ready, PollFlags::IN)];
    match rustix::io::retry_on_intr(|| poll(&mut ready, Some(&timeout))) {
        Ok(0) => Err(LoggerError::Late),
        Ok(_) => Ok(()),
        Err(error) => Err(LoggerError::Wait(error.into())),
    }
}

fn c_string(word: Vec<u8>) -> Result<CString, LoggerError> {
    CString::new(word).map_err(|_| LoggerError::ZeroByte)
}

/// The program, and its arguments.
fn words(uri: &str) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let arguments = pairs.flat_map(|pair| match pair.split_once('=') {
        Some((key, value)) => vec![key, value],
        None => vec![pair, ""],
    });
    let decode = |word: &str| decoded(&word.replace('+', " "));
    (decoded(path), arguments.map(decode).collect())
}

/// With `%41` as the byte that it stands for.
fn decoded(word: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = word.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let code =
            digits.filter(|_| first == b'%').and_then(|two| u8::from_str_radix(two, 16).ok());
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &tail[2..] } else { tail };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, os::unix::fs::PermissionsExt};

    use super::{Logger, LoggerError, words};

    #[test]
    fn a_query_is_arguments() {
        let (program, arguments) = words("/bin/a%20b?k=v%2Fw&flag&x=1+2");
        assert_eq!(program, b"/bin/a b");
        let arguments: Vec<_> =
            arguments.iter().map(|word| String::from_utf8_lossy(word)).collect();
        assert_eq!(arguments, ["k", "v/w", "flag", "", "x", "1 2"]);
    }

    #[test]
    fn the_program_gets_both_streams_and_says_when_it_is_ready() {
        let scratch = tempfile::tempdir().unwrap();
        let (program, log) = (scratch.path().join("log.sh"), scratch.path().join("log"));
        let script = "#!/bin/sh\nexec 5>&-\n{ echo $CONTAINER_NAMESPACE/$CONTAINER_ID; cat <&3; cat <&4; } > $2.new; mv $2.new $2\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let uri = format!("{}?to={}", program.display(), log.display());
        let Logger { process, stdout, stderr } = Logger::start(&uri, ("c1", "n")).unwrap();
        fs::File::from(stdout).write_all(b"out\n").unwrap();
        fs::File::from(stderr).write_all(b"err\n").unwrap();
        process.wait().unwrap();
        assert_eq!(fs::read_to_string(log).unwrap(), "n/c1\nout\nerr\n");
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let error = Logger::start("/no/such", ("c", "n")).unwrap_err();
        assert!(matches!(error, LoggerError::Start(_)), "{error}");
    }
}
