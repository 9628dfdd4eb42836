//! A container from its bundle, up to the point where only `start` is missing.
//!
//! ```text
//! directory ─► shim spawned ─► monitor spawned ─► monitor ready ─► hooks ─► trees taken ─► handover ─► pid file ─► confirmed
//! ```
//!
//! Both programs come up while this one goes on. Until the last step is done [`Undo`] owns all of it, and undoes it
//! when it is dropped.

use std::{
    fs,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use kata_config::Prefix;
use kata_engine_api::handover::{Create, Request, TerminalSize};
use kata_hooks::life::Owed;
use kata_spec::{Network, Trees};
use kata_sys::{scm, spawn::Child};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use serde_json::Value;

use crate::{
    args::Creating,
    bundle::Bundle,
    failure::Failure,
    handover::{ask, confirm, further_packets, sealed},
    hooks,
    id::ContainerId,
    image::{self, ImageRoot},
    journal::Journal,
    offline, pid_file,
    programs::{
        Monitor, MonitorNetwork, MonitorPlan, Terminal, View, network_of, open_namespace,
        start_monitor, start_shim,
    },
    sandbox_dir::{Root, SandboxDir},
};

/// Where the terminal of a process goes, if it has one.
#[derive(Debug)]
pub enum Console {
    /// It has none.
    None,
    /// To the caller's own terminal, of this size.
    Callers(TerminalSize),
    /// To this connected socket.
    Socket(OwnedFd),
}

impl Console {
    /// Connects to a console socket.
    pub fn connect(path: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(path)
            .map_err(Failure::host(format!("connect to the console socket {}", path.display())))?;
        Ok(Self::Socket(stream.into()))
    }

    /// What the monitor is told.
    pub fn terminal(&self) -> Terminal<'_> {
        match self {
            Self::None => Terminal::None,
            Self::Callers(_) => Terminal::Callers,
            Self::Socket(socket) => Terminal::New(socket.as_fd()),
        }
    }

    /// The size that is known before the first resize.
    pub fn size(&self) -> Option<TerminalSize> {
        match self {
            Self::Callers(size) => Some(*size),
            Self::None | Self::Socket(_) => None,
        }
    }
}

/// What is to be made.
pub struct Creation<'a> {
    pub root: &'a Root,
    pub prefix: &'a Prefix,
    pub id: &'a ContainerId,
    pub console: Console,
    pub told: Told<'a>,
    /// What the shim is told by its environment.
    pub shim_environment: &'a [String],
    pub journal: &'a Journal,
}

/// Who is told of the process that stands for another one.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    pub pid_file: Option<&'a Path>,
    pub pidfd_socket: Option<&'a Path>,
}

impl<'a> Told<'a> {
    /// As it was typed.
    pub fn of(typed: &'a Creating) -> Self {
        let Creating { pid_file, pidfd_socket, .. } = typed;
        Self { pid_file: pid_file.as_deref(), pidfd_socket: pidfd_socket.as_deref() }
    }

    /// Tells them; `kind` is runc's word for the kind of process.
    pub fn tell(&self, monitor: &Monitor, kind: &str) -> Result<(), Failure> {
        if let Some(path) = self.pidfd_socket {
            let failed = || Failure::host(format!("send a pidfd to {}", path.display()));
            let socket = UnixStream::connect(path).map_err(failed())?;
            scm::send(&socket, kind.as_bytes(), &[monitor.child.pidfd.as_fd()]).map_err(failed())?;
        }
        match self.pid_file {
            Some(path) => pid_file::write(path, monitor.pid()),
            None => Ok(()),
        }
    }
}

/// A container that is created.
pub struct Created {
    pub dir: SandboxDir,
    pub monitor: Child,
    /// While it is open the shim keeps the container; so it does when the container was started.
    handover: OwnedFd,
}

impl Created {
    /// The pid that stands for the container.
    pub fn pid(&self) -> u32 {
        self.monitor.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// From here on the container outlives this process, though nobody has started it.
    pub fn confirm(&self) {
        // Whoever asks for it next finds out about a shim that is gone.
        confirm(&self.handover).ok();
    }
}

/// The spec to go by.
pub enum Source<'a> {
    /// A bundle that was read and checked.
    Bundle(Box<Bundle>),
    /// A spec that was made up; it is kept in the sandbox's own directory.
    Spec(&'a Value),
    /// The same, with a root that the shim makes of layers.
    Image(&'a Value, &'a ImageRoot),
}

/// Makes a container.
pub fn create(creation: &Creation<'_>, source: Source<'_>) -> Result<Created, Failure> {
    let dir = creation.root.create(creation.id)?;
    let mut undo = Undo { creation, dir: &dir, processes: Vec::new(), owed: None, armed: true };
    let (monitor, handover) = make(creation, &mut undo, source)?;
    undo.armed = false;
    drop(undo);
    Ok(Created { dir, monitor, handover })
}

fn make(
    creation: &Creation<'_>,
    undo: &mut Undo<'_>,
    source: Source<'_>,
) -> Result<(Child, OwnedFd), Failure> {
    let dir = undo.dir;
    let image = match source {
        Source::Image(_, image) => Some(image),
        Source::Bundle(_) | Source::Spec(_) => None,
    };
    let shim = start_shim(creation.prefix, dir, creation.shim_environment)?;
    undo.owns(&shim)?;
    creation.journal.debug(&format!("shim {} starts in {}", shim.pid, dir.path.display()));
    let bundle = match source {
        Source::Bundle(bundle) => *bundle,
        Source::Spec(spec) => keep(dir, spec)?,
        Source::Image(spec, _) => {
            make_place(dir)?;
            keep(dir, spec)?
        }
    };
    let joined = match &bundle.spec.network {
        Network::Path(path) => Some(open_namespace(path)?),
        Network::New => None,
    };
    let seen = Trees::seen(&bundle.spec)?;
    let plan = MonitorPlan {
        view: Some(View {
            root: seen.root.as_fd(),
            volumes: seen.volumes.iter().map(|(tree, path)| (tree.as_fd(), *path)).collect(),
        }),
        container: creation.id,
        exec: None,
        terminal: creation.console.terminal(),
        network: match (&bundle.spec.network, &joined) {
            (_, Some(namespace)) => MonitorNetwork::Join(namespace.as_fd()),
            (Network::New | Network::Path(_), None) => MonitorNetwork::New,
        },
    };
    let (monitor, pipe) = start_monitor(creation.prefix, dir, &plan)?;
    undo.owns(&monitor.child)?;
    pipe.wait()?;
    creation.journal.debug(&format!("monitor {} stands for {}", monitor.pid(), creation.id));
    let network = match bundle.spec.network {
        Network::New => Some(network_of(&monitor)?),
        Network::Path(_) => joined,
    };
    let owed = hooks::owed(&bundle, creation.id);
    if let Some(owed) = owed.as_ref().filter(|owed| owed.survives_creation()) {
        hooks::keep(owed, dir)?;
        undo.owed = Some(owed.clone());
    }
    let hooks = hooks::creating(&bundle, creation.id, monitor.pid());
    let trees = hooks.run(network.as_ref().map(AsFd::as_fd), || {
        bundle.find_program(image.map(ImageRoot::view).as_deref())?;
        Ok::<_, Failure>(Trees::take(&bundle.spec)?)
    })?;
    let handover =
        hand_over(creation, dir, &Parts { bundle, trees, network, image, monitor: &monitor })?;
    creation.journal.debug("the shim has taken the container");
    if let Some(owed) = owed.filter(|owed| !owed.survives_creation()) {
        hooks::keep(&owed, dir)?;
    }
    creation.told.tell(&monitor, "standard")?;
    Ok((monitor.child, handover))
}

/// What goes to the shim.
struct Parts<'a> {
    bundle: Bundle,
    trees: Trees,
    network: Option<OwnedFd>,
    image: Option<&'a ImageRoot>,
    monitor: &'a Monitor,
}

fn hand_over(
    creation: &Creation<'_>,
    dir: &SandboxDir,
    parts: &Parts<'_>,
) -> Result<OwnedFd, Failure> {
    let Parts { bundle, trees, network, image, monitor } = parts;
    let config = sealed("config.json", &bundle.config)?;
    let mut fds: Vec<BorrowedFd<'_>> =
        vec![monitor.control.as_fd(), config.as_fd(), trees.root.as_fd()];
    fds.extend(network.iter().map(AsFd::as_fd));
    fds.extend(trees.volumes.iter().map(AsFd::as_fd));
    let request = Request::Create(Create {
        id: creation.id.to_string(),
        bundle: bundle.spec.bundle.display().to_string(),
        monitor_pid: monitor.pid(),
        network_namespace: network.is_some(),
        volumes: trees.volumes.len(),
        further_packets: further_packets(fds.len()),
        terminal_size: creation.console.size().or_else(|| first_size(bundle)),
        callers_terminal: matches!(creation.console, Console::Callers(_)),
        layers: image.map(ImageRoot::layers).transpose()?,
    });
    ask(dir, &request, &fds)
}

fn first_size(bundle: &Bundle) -> Option<TerminalSize> {
    let size = bundle.spec.process.terminal_size?;
    Some(TerminalSize { rows: size.rows, columns: size.columns })
}

/// The root of a container of an image, as its spec names it. The layers are mounted where only the sandbox sees them, so that
/// for the host it is empty.
fn make_place(dir: &SandboxDir) -> Result<(), Failure> {
    let path = dir.path.join(image::ROOT);
    fs::create_dir(&path).map_err(Failure::host(format!("make {}", path.display())))
}

/// Keeps a made-up spec where `exec` finds it later.
fn keep(dir: &SandboxDir, spec: &Value) -> Result<Bundle, Failure> {
    let file = dir.path.join("config.json");
    let bundle = Bundle::made(spec, &dir.path)?;
    fs::write(&file, &bundle.config).map_err(Failure::host(format!("write {}", file.display())))?;
    Ok(bundle)
}

/// Undoes an unfinished creation when it is dropped.
struct Undo<'a> {
    creation: &'a Creation<'a>,
    dir: &'a SandboxDir,
    /// Pidfds of our children.
    processes: Vec<OwnedFd>,
    /// Hooks that have to follow those which have run.
    owed: Option<Owed>,
    armed: bool,
}

impl Undo<'_> {
    fn owns(&mut self, child: &Child) -> Result<(), Failure> {
        let pidfd = child.pidfd.try_clone();
        if pidfd.is_err() {
            // Nothing but this knows of the child.
            child.kill().ok();
        }
        self.processes.push(pidfd.map_err(Failure::host("keep hold of a child process"))?);
        Ok(())
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        // The failure that led here is the one that is told; what can't be undone now, `delete --force` can later.
        for process in &self.processes {
            pidfd_send_signal(process, Signal::KILL).ok();
            waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED).ok();
        }
        // Whoever has deleted it meanwhile has done all of this, and what has its path and id now is another container's.
        if self.dir.is_gone() {
            return;
        }
        if self.dir.path.join("ledger").exists()
            && let Err(failure) = offline::delete(self.creation.prefix, self.dir)
        {
            // Nothing but the ledger knows what is left.
            let line = failure.line();
            let path = self.dir.path.display();
            self.creation.journal.warn(&format!("{path} is left to delete --force: {line}"));
            return;
        }
        if !self.dir.is_gone() {
            self.dir.discard();
        }
        if let Some(owed) = self.owed.as_ref().filter(|_| self.dir.is_gone()) {
            hooks::warn(self.creation.journal, owed.poststop());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kata_config::Prefix;
    use serde_json::json;

    use super::{Console, Creation, Told, Undo};
    use crate::{bundle::Bundle, hooks, journal::Journal, sandbox_dir::Root};

    #[test]
    fn what_cannot_be_undone_now_can_be_later() {
        let scratch = tempfile::tempdir().unwrap();
        let stopped = scratch.path().join("stopped");
        let mut spec = kata_spec::default_for("/", &["sh".into()], false);
        let touch = format!(": > {}", stopped.display());
        spec["hooks"] = json!({ "poststop": [{ "path": "/bin/sh", "args": ["sh", "-c", touch] }] });
        let id = "c1".parse().unwrap();
        let owed = hooks::owed(&Bundle::made(&spec, scratch.path()).unwrap(), &id);
        let root = Root::new(&scratch.path().join("state")).unwrap();
        let dir = root.create(&id).unwrap();
        let creation = Creation {
            root: &root,
            // No shim is there that could replay the ledger.
            prefix: &Prefix::at(scratch.path()),
            id: &id,
            console: Console::None,
            told: Told { pid_file: None, pidfd_socket: None },
            shim_environment: &[],
            journal: &Journal::default(),
        };
        let undo = || {
            let (processes, owed) = (Vec::new(), owed.clone());
            drop(Undo { creation: &creation, dir: &dir, processes, owed, armed: true });
        };
        let ledger = dir.path.join("ledger");
        fs::write(&ledger, "").unwrap();
        undo();
        assert!(ledger.exists() && !stopped.exists());
        fs::remove_file(&ledger).unwrap();
        undo();
        assert!(dir.is_gone() && stopped.exists());
    }
}
