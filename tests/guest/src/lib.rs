//! How the guest tests start Kata, wait for it, and look at what it leaves.
//!
//! `cargo xtask test` sets the environment: `KATA_PREFIX` (an installed tree), `KATA_TEST_ROOT_BUSYBOX` and
//! `KATA_TEST_ROOT_DEBIAN` (root file systems), `KATA_TEST_FULL` (the counts that a release is judged by).
//! Without them a test says `SKIP` and passes; `xtask` counts that as a failure where it must not be.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

mod bundle;
mod capture;
mod command;
mod container;
mod disk;
mod groups;
pub mod image;
mod leftovers;
mod meminfo;
mod name;
mod namespace;
mod pace;
mod python;
mod root;
mod snapshot;
mod stored;
mod terminal;
mod wired;

use std::{
    env,
    path::{Path, PathBuf},
};

pub use bundle::{Bundle, map_ids};
pub use capture::Capture;
pub use command::{Output, Running, run};
pub use container::{Container, HostProcess, Traces, namespace};
pub use disk::{LoopDevice, Tmpfs};
pub use groups::HostGroup;
pub use leftovers::{Leftovers, cgroups_named};
pub use meminfo::meminfo_kib;
pub use name::unique;
pub use namespace::{Wire, beside, has_kind, ip, set_network};
pub use pace::{ceiling, within};
pub use python::{grant, python, run_bundle};
pub use root::{Root, busybox, debian};
pub use snapshot::{HostNetwork, snapshot};
pub use stored::{Stored, base};
pub use terminal::Terminal;
pub use wired::{Load, Wired};

/// An installed Kata with a state directory of its own, so that tests don't see each other's containers.
#[derive(Debug)]
pub struct Kata {
    program: PathBuf,
    state: tempfile::TempDir,
    /// Of [`Kata::copied`].
    copy: Option<tempfile::TempDir>,
    _host: HostNetwork,
}

impl Kata {
    /// The installed Kata; `None`, after a word on why, when the environment names none.
    pub fn installed() -> Option<Self> {
        let Some(prefix) = env::var_os("KATA_PREFIX") else {
            println!("SKIP KATA_PREFIX is not set; run cargo xtask test");
            return None;
        };
        let program = PathBuf::from(prefix).join("bin/kata-runtime");
        Some(Self::of(program))
    }

    /// A copy of the installed Kata, to do with as one likes.
    pub fn copied() -> Option<Self> {
        let installed = Self::installed()?;
        let copy = tempfile::tempdir().unwrap();
        let prefix = installed.program.ancestors().nth(2).unwrap().join(".");
        let copied =
            std::process::Command::new("cp").arg("-a").arg(prefix).arg(copy.path()).status();
        assert!(copied.unwrap().success());
        let program = copy.path().join("bin/kata-runtime");
        let mut kata = Self::of(program);
        kata.copy = Some(copy);
        Some(kata)
    }

    /// runc, which takes the same command line: what holds for it tests the test.
    pub fn oracle() -> Self {
        Self::of("runc".into())
    }

    fn of(program: PathBuf) -> Self {
        let state = tempfile::tempdir().unwrap();
        Self { program, state, copy: None, _host: HostNetwork::watch() }
    }

    /// True for [`Kata::oracle`].
    pub fn is_oracle(&self) -> bool {
        self.program.as_os_str() == "runc"
    }

    /// Major and minor, of [`Kata::oracle`] or of Kata.
    pub fn version(&self) -> (u32, u32) {
        let mut command = std::process::Command::new(&self.program);
        command.arg("--version");
        let output = run(command, b"");
        let said = output.stdout();
        let number = said.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned();
        let mut parts = number.split(['.', '-', '+']).map(|part| part.parse().unwrap());
        (parts.next().unwrap(), parts.next().unwrap())
    }

    /// The program itself, for commands without `--root`.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The state directory (`--root`).
    pub fn state(&self) -> PathBuf {
        self.state.path().join("state")
    }

    /// `kata-runtime --root STATE ARGUMENTS`, not started yet.
    pub fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(&self.program);
        command.arg("--root").arg(self.state()).args(arguments);
        command
    }

    /// Runs `kata-runtime ARGUMENTS` to its end, without input.
    pub fn call(&self, arguments: &[&str]) -> Output {
        run(self.command(arguments), b"")
    }

    /// Runs a shell script in a container on `root`, to its end, without input.
    pub fn shell(&self, root: &Root, script: &str) -> Output {
        self.call(&["run", "--rootfs", root.path(), "--", "sh", "-c", script])
    }

    /// The `state` of a container.
    pub fn state_of(&self, id: &str) -> serde_json::Value {
        let output = self.call(&["state", id]);
        assert_eq!(output.code, 0, "state of {id}: {}", output.stderr());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Pid of one of a container's host processes: `shimPid`, `vmmPid`, `proxyPid`.
    pub fn host_pid(&self, id: &str, which: &str) -> i32 {
        let state = self.state_of(id);
        let pid = state["kata"][which].as_i64().unwrap_or_else(|| panic!("{which} in {state}"));
        i32::try_from(pid).unwrap()
    }
}

impl Drop for Kata {
    /// What a failed test has left must not run on.
    fn drop(&mut self) {
        for id in self.call(&["list", "--quiet"]).stdout().lines() {
            self.call(&["delete", "--force", id]);
        }
    }
}

/// A count that CI cuts to a tenth, and a full run does not.
pub fn repetitions(full: usize) -> usize {
    if env::var_os("KATA_TEST_FULL").is_some() { full } else { full.div_ceil(10) }
}
