//! Starts the process, with every descriptor at its number.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream as StdStream},
    },
    path::Path,
};

use kata_sys::{
    scm::stream_pair,
    spawn::{Child, Spawn},
};
use rustix::{
    pipe::{PipeFlags, pipe_with},
    thread::UnshareFlags,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::{UnixStream, unix::pipe},
};

use super::{QemuSettings, command_line, files::Files};
use crate::{Accelerator, HypervisorError, VmConfig, jail::JailSpec};

/// Our ends of a started QEMU.
pub(super) struct Launched {
    pub(super) child: Child,
    pub(super) pidfd: AsyncFd<OwnedFd>,
    pub(super) qmp: UnixStream,
    pub(super) console: UnixStream,
    pub(super) stderr: pipe::Receiver,
    /// The launcher notices our death by it.
    pub(super) lifeline: OwnedFd,
}

/// Descriptors of the child, in the order of their numbers.
pub(super) struct Descriptors(Vec<OwnedFd>);

impl Descriptors {
    /// Takes a descriptor and says which number it has in the child.
    pub(super) fn add(&mut self, fd: OwnedFd) -> usize {
        self.0.push(fd);
        self.0.len() - 1
    }

    /// As if `count` had been added.
    #[cfg(test)]
    pub(super) fn test(count: usize) -> Self {
        let null = || File::open("/dev/null").expect("every test host has /dev/null").into();
        Self((0..count).map(|_| null()).collect())
    }
}

/// Call it on a thread that lives as long as the VM shall: QEMU ends with that thread.
pub(super) fn launch(
    settings: &QemuSettings,
    files: &Files,
    config: VmConfig,
) -> Result<Launched, HypervisorError> {
    let prepare = |what| move |source| HypervisorError::Prepare { what, source };
    let (qmp, far_qmp) = stream_pair().map_err(prepare("the monitor"))?;
    let (console, far_console) = stream_pair().map_err(prepare("the console"))?;
    let (stderr, far_stderr) = pipe().map_err(prepare("the standard streams"))?;
    let (far_lifeline, lifeline) = pipe().map_err(prepare("the lifeline"))?;
    let null = File::open("/dev/null").map_err(prepare("the standard streams"))?;
    let another = || null.try_clone().map_err(prepare("the standard streams"));
    // Number 3 is filled in below, when the arguments are known.
    let streams = [another()?.into(), another()?.into(), far_stderr, null.into(), far_lifeline];
    let mut descriptors = Descriptors(streams.into());
    let kvm = config.accelerator == Accelerator::Kvm;
    let sockets = command_line::Sockets { qmp: far_qmp, console: far_console };
    let mut arguments = vec![settings.binary.display().to_string()];
    arguments.extend(command_line::render(config, files, sockets, &mut descriptors)?);
    let mut spawn = match &settings.jail {
        None => plain(&settings.binary, arguments)?,
        Some(jail) => {
            let spec = JailSpec {
                program: settings.binary.clone(),
                arguments,
                user: jail.user,
                files: files.jailed.clone(),
                kvm,
                cgroup_procs: settings.cgroup_procs.clone(),
            };
            let place = crate::jail::SPEC_FD as usize;
            descriptors.0[place] = spec.to_memfd().map_err(prepare("the jail"))?;
            launcher(&jail.launcher)?
        }
    };
    spawn.fds = descriptors.0.iter().map(AsFd::as_fd).collect();
    spawn.new_session = true;
    // All that can fail on our side comes before there is a child to clean up.
    let qmp = stream(qmp).map_err(prepare("the monitor"))?;
    let console = stream(console).map_err(prepare("the console"))?;
    let stderr = pipe::Receiver::from_owned_fd(stderr).map_err(prepare("the standard streams"))?;
    let child = spawn.start().map_err(HypervisorError::Spawn)?;
    match watch(&child) {
        Ok(pidfd) => Ok(Launched { child, pidfd, qmp, console, stderr, lifeline }),
        Err(source) => {
            child.kill().map_err(HypervisorError::Kill)?;
            child.wait().map_err(HypervisorError::Kill)?;
            Err(HypervisorError::Prepare { what: "the watch", source })
        }
    }
}

fn plain(binary: &Path, arguments: Vec<String>) -> Result<Spawn<'static>, HypervisorError> {
    let program = text(binary.as_os_str().as_bytes())?;
    Ok(Spawn { arguments: texts(arguments)?, ..Spawn::new(program) })
}

fn launcher(command: &[String]) -> Result<Spawn<'static>, HypervisorError> {
    let program = command.first().ok_or_else(|| {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "no command for the launcher");
        HypervisorError::Prepare { what: "the jail", source }
    })?;
    let namespaces = UnshareFlags::NEWPID;
    let arguments = texts(command.to_vec())?;
    Ok(Spawn { arguments, namespaces, ..Spawn::new(text(program.as_bytes())?) })
}

fn texts(words: Vec<String>) -> Result<Vec<CString>, HypervisorError> {
    words.iter().map(|word| text(word.as_bytes())).collect()
}

fn text(bytes: &[u8]) -> Result<CString, HypervisorError> {
    CString::new(bytes).map_err(|error| HypervisorError::Prepare {
        what: "the command line",
        source: error.into(),
    })
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

fn stream(fd: OwnedFd) -> io::Result<UnixStream> {
    let stream = StdStream::from(fd);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

fn watch(child: &Child) -> io::Result<AsyncFd<OwnedFd>> {
    kata_sys::watch::watch(child.pidfd.try_clone()?, Interest::READABLE)
}
