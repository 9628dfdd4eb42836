//! A container under `kata-runtime run`, as a person starts it.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::stand::{PROGRAM, Stand};
use super::vmm_line::VmmLine;

/// Its only container at a time.
pub const ID: &str = "bench";

/// How often its state is asked for at most; one question takes some 10 ms.
const STATES: usize = 1000;

/// How it is started.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// `--rootfs`, with the words for the benchmark's program.
    Root(&'a [&'a str]),
    /// The same, and the shim says each step.
    Traced(&'a [&'a str]),
    /// `--bundle`.
    Bundle(&'a Path),
}

/// The processes of the host that stand for it.
#[derive(Clone, Copy, Debug)]
pub struct Pids {
    pub runtime: u32,
    pub monitor: u32,
    pub shim: u32,
    pub proxy: u32,
    pub vmm: u32,
}

impl Pids {
    pub fn named(&self) -> [(&'static str, u32); 5] {
        [
            ("runtime", self.runtime),
            ("monitor", self.monitor),
            ("shim", self.shim),
            ("proxy", self.proxy),
            ("VMM", self.vmm),
        ]
    }
}

#[derive(Debug)]
pub struct Container<'a> {
    stand: &'a Stand,
    child: Child,
    stdin: Option<ChildStdin>,
    pub stdout: ChildStdout,
    /// Right before `kata-runtime` was executed.
    pub started: Instant,
    /// The same moment on the clock of logs.
    pub clock: SystemTime,
}

impl<'a> Container<'a> {
    pub fn start(stand: &'a Stand, source: Source<'_>) -> Result<Self> {
        let mut command = kata(stand);
        if matches!(source, Source::Traced(_)) {
            command.arg("--debug");
        }
        command.arg("run");
        match source {
            Source::Root(words) | Source::Traced(words) => {
                command.arg("--rootfs").arg(stand.root()).args([ID, "--", PROGRAM]).args(words)
            }
            Source::Bundle(bundle) => command.arg("--bundle").arg(bundle).arg(ID),
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let (started, clock) = (Instant::now(), SystemTime::now());
        let mut child = command.spawn().context("start kata-runtime")?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("no pipe for the output")?;
        Ok(Self { stand, child, stdin, stdout, started, clock })
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the input is closed")?;
        stdin.write_all(bytes).context("write to the container")
    }

    /// The state, once the start is recorded: a first byte may be here before.
    pub fn state(&self) -> Result<Value> {
        await_status(self.stand, "running")
    }

    pub fn pids(&self) -> Result<Pids> {
        let state = self.state()?;
        let number = |value: &Value, what| {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            number.with_context(|| format!("no pid of the {what} in {state}"))
        };
        Ok(Pids {
            runtime: self.child.id(),
            monitor: number(&state["pid"], "monitor")?,
            shim: number(&state["kata"]["shimPid"], "shim")?,
            proxy: number(&state["kata"]["proxyPid"], "proxy")?,
            vmm: number(&state["kata"]["vmmPid"], "VMM")?,
        })
    }

    /// The command line of the VMM, for bare guests.
    pub fn vmm_line(&self) -> Result<VmmLine> {
        let path = format!("/proc/{}/cmdline", self.pids()?.vmm);
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let words: Vec<String> =
            text.trim_end_matches('\0').split('\0').map(str::to_owned).collect();
        VmmLine::new(&words, &self.stand.kernel(), &self.stand.initrd())
    }

    /// A file of the sandbox's directory.
    pub fn file(&self, name: &str) -> std::path::PathBuf {
        self.stand.state().join(ID).join(name)
    }

    /// Runs the program once more in the container, to its end.
    pub fn exec(&self, words: &[&str]) -> Result<()> {
        let mut command = kata(self.stand);
        command.args(["exec", ID, PROGRAM]).args(words).stdin(Stdio::null());
        let status = command.status().context("start kata-runtime")?;
        if !status.success() {
            bail!("kata-runtime exec {words:?} ended with {status}");
        }
        Ok(())
    }

    /// Closes the input and waits for the end.
    pub fn finish(mut self) -> Result<()> {
        drop(self.stdin.take());
        let status = self.child.wait().context("wait for kata-runtime")?;
        if !status.success() {
            bail!("kata-runtime run ended with {status}");
        }
        Ok(())
    }

    /// Ends it, whatever it does.
    pub fn kill(mut self) -> Result<()> {
        let forced = kata(self.stand).args(["delete", "--force", ID]).status();
        if !forced.context("start kata-runtime")?.success() {
            bail!("kata-runtime delete --force failed");
        }
        self.child.wait().context("wait for kata-runtime").map(drop)
    }
}

/// After a measurement that failed half-way nothing stays behind; after `finish` there is nothing left to do.
impl Drop for Container<'_> {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let forced = ["delete", "--force", ID].map(OsString::from);
            kata(self.stand).args(forced).status().ok();
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// The state of the container, once it has a status.
pub fn await_status(stand: &Stand, status: &str) -> Result<Value> {
    for _ in 0..STATES {
        let output = kata(stand).args(["state", ID]).output().context("start kata-runtime")?;
        let state: Value = serde_json::from_slice(&output.stdout)
            .context("understand the state of the container")?;
        if state["status"] == status {
            return Ok(state);
        }
    }
    bail!("the container is never said to be {status}")
}

pub fn kata(stand: &Stand) -> Command {
    let mut command = Command::new(stand.prefix().runtime());
    command.arg("--root").arg(stand.state());
    command
}
