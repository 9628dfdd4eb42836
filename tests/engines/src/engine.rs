//! One engine and its state.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use kata_guest_tests::{Output, Running, busybox, run};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::Netns;

/// Which engine it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// podman.
    Podman,
    /// docker, with a daemon of its own.
    Docker,
}

/// What runs a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// What is tested.
    Kata,
    /// What tests the test.
    Runc,
}

impl Runtime {
    /// Its name in the engines' configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kata => "kata",
            Self::Runc => "runc",
        }
    }
}

/// An engine of a test's own. Dropping it removes all that it has.
#[derive(Debug)]
pub struct Engine {
    pub(crate) kind: Kind,
    pub(crate) scratch: TempDir,
    pub(crate) netns: Netns,
    pub(crate) kata: PathBuf,
    pub(crate) daemon: Option<Child>,
    /// Where its programs are, if not where Debian installs them.
    pub(crate) programs: Option<PathBuf>,
    /// Whether containers of one network find each other by name.
    pub(crate) names: bool,
}

/// The installed `kata-runtime`, if this machine has it and all of `programs`; else a word on why not.
pub(crate) fn installed(programs: &[&str]) -> Option<PathBuf> {
    let Some(prefix) = env::var_os("KATA_PREFIX") else {
        println!("SKIP KATA_PREFIX is not set; run cargo xtask test");
        return None;
    };
    let there = |program: &&&str| {
        ["/usr/bin", "/usr/sbin"].iter().any(|place| Path::new(place).join(program).exists())
    };
    if let Some(missing) = programs.iter().find(|program| !there(program)) {
        println!("SKIP there is no {missing} here; run cargo xtask test");
        return None;
    }
    Some(PathBuf::from(prefix).join("bin/kata-runtime"))
}

impl Engine {
    /// Its directory.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// What it calls for Kata.
    pub fn runtime(&self) -> &Path {
        &self.kata
    }

    /// Which it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its network namespace.
    pub fn network(&self) -> &Netns {
        &self.netns
    }

    /// A program in its network namespace and its directory.
    pub fn beside(&self, program: &str) -> Command {
        let mut command = self.netns.command(program);
        // conmon leaves files where it is started.
        command.current_dir(self.scratch());
        command
    }

    /// One of its programs, in its network namespace and its directory; it finds the others, and Kata's shim.
    pub(crate) fn program(&self, name: &str) -> Command {
        let installed = "/usr/sbin:/usr/bin:/sbin:/bin";
        let Some(programs) = &self.programs else {
            let mut command = self.beside(name);
            command.env("PATH", installed);
            return command;
        };
        let shim = self.kata.parent().unwrap().display();
        let mut command = self.beside(programs.join(name).to_str().unwrap());
        command.env("PATH", format!("{}:{shim}:{installed}", programs.display()));
        command
    }

    /// The release of it whose options are its own, `26` of docker.
    pub fn release(&self) -> Option<&'static str> {
        self.programs.as_ref().map(|_| "26")
    }

    /// The engine's command line, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match self.kind {
            Kind::Podman => self.beside("podman"),
            Kind::Docker => self.program("docker"),
        };
        let path = |name: &str| self.scratch().join(name);
        match self.kind {
            Kind::Podman => command
                .env("HOME", path("home"))
                .env("CONTAINERS_CONF", path("containers.conf"))
                .env("CONTAINERS_STORAGE_CONF", path("storage.conf")),
            Kind::Docker => command
                .env("HOME", path("home"))
                .args(["-H", &format!("unix://{}", path("d.sock").display())]),
        };
        command.args(arguments);
        command
    }

    /// Runs the engine's command line to its end, without input.
    pub fn call(&self, arguments: &[&str]) -> Output {
        run(self.command(arguments), b"")
    }

    /// The same, which must succeed; its output without the last newline.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.call(arguments);
        assert_eq!(output.code, 0, "{arguments:?}: {}", output.stderr());
        output.stdout().trim_end().to_owned()
    }

    /// `run|create|exec …` with the runtime where this engine wants it named.
    pub fn with(&self, runtime: Runtime, command: &str, arguments: &[&str]) -> Command {
        let option = ["--runtime", runtime.name()];
        match self.kind {
            Kind::Podman => self.command(&[&option, &[command][..], arguments].concat()),
            Kind::Docker if ["run", "create"].contains(&command) => {
                self.command(&[&[command][..], &option, arguments].concat())
            }
            Kind::Docker => self.command(&[&[command], arguments].concat()),
        }
    }

    /// Runs a container to its end.
    pub fn run(&self, runtime: Runtime, arguments: &[&str]) -> Output {
        run(self.with(runtime, "run", arguments), b"")
    }

    /// Starts a program of the engine that goes on for a while.
    pub fn start(&self, runtime: Runtime, command: &str, arguments: &[&str]) -> Running {
        Running::start(self.with(runtime, command, arguments))
    }

    /// Puts the busybox root into the engine's store, as `busybox`.
    pub(crate) fn import(&self) -> Option<()> {
        let root = busybox()?;
        let archive = self.scratch().join("busybox.tar");
        let mut tar = Command::new("tar");
        tar.args(["--numeric-owner", "-C", root.path(), "-cf"]).arg(&archive).arg(".");
        assert!(tar.status().unwrap().success());
        self.ok(&["import", archive.to_str().unwrap(), "busybox"]);
        fs::remove_file(archive).unwrap();
        Some(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let all = self.call(&["ps", "-aq"]).stdout();
        let time: &[&str] = if self.kind == Kind::Podman { &["-t", "0"] } else { &[] };
        for id in all.split_whitespace() {
            self.call(&[&["rm", "-f"], time, &[id]].concat());
        }
        if self.kind == Kind::Podman {
            // Unmounts what the store has mounted.
            self.call(&["system", "reset", "--force"]);
        }
        if let Some(daemon) = &mut self.daemon {
            // One that has ended already is as good.
            kill_process(Pid::from_child(daemon), Signal::TERM).ok();
            daemon.wait().ok();
        }
    }
}
