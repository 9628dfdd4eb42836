//! A container and its init, from the order to execve.

use std::{
    convert::Infallible,
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use kata_protocol::sysctl::path_of_name;
use kata_sys::fork::{self, Fork, Forked};
use rustix::{
    fs::{Gid, Mode, Uid},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, setsid, umask},
    system::{setdomainname, sethostname},
    thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use super::{
    Control, become_process, credentials,
    exec::{Last, launch},
    filter::Filters,
    namespaces, rlimits, rootfs, scheduling,
    sources::Sources,
    terminal,
};
use crate::{
    order::{Failure, Report, Step, TerminalSize},
    spec::{Linux, NamespaceKind, Process, Spec},
};

/// What a container is made from.
pub(super) struct Creation<'a> {
    pub(super) control: &'a Control,
    pub(super) spec: Spec,
    pub(super) root: PathBuf,
    pub(super) container_id: String,
    pub(super) terminal: Option<TerminalSize>,
}

/// What the helper hands its copy, the init to be.
struct Carried<'a> {
    /// Has a byte once the ids are mapped.
    mapped: OwnedFd,
    /// The cgroup namespace to join.
    groups: Option<OwnedFd>,
    sources: Sources,
    filters: &'a Filters,
}

impl Creation<'_> {
    /// Clones the init and sees it into its user namespace; the rest is the init's own work.
    pub(super) fn run(&self, cgroup: OwnedFd) -> Result<(), Failure> {
        let process = self.spec.process.as_ref();
        let process = process.ok_or_else(|| Failure::invalid("the spec has no process"))?;
        let nothing = Linux::default();
        let linux = self.spec.linux.as_ref().unwrap_or(&nothing);
        set_oom_score(process)?;
        credentials::own_streams(process, &linux.shared())?;
        set_sysctls(linux, Sysctls::OfTheNetwork)?;
        if linux.makes(NamespaceKind::User) {
            rlimits::make_room(&process.rlimits)?;
        }
        let filters = Filters::compile(linux.seccomp.as_ref())?;
        let groups = namespaces::join(linux)?;
        namespaces::make_time_namespace(linux)?;
        let sources = Sources::take((&self.container_id, &self.root), &self.spec, linux)?;
        let (mapped, map) = pipe_with(PipeFlags::CLOEXEC).step(|| "make a pipe")?;
        let made = Some(namespaces::to_make(linux));
        match fork::fork(&Fork { namespaces: made, cgroup: Some(cgroup.as_fd()) })
            .step(|| "clone the container's init")?
        {
            Forked::Copy => {
                drop((cgroup, map));
                let carried = Carried { mapped, groups, sources, filters: &filters };
                become_process(self.control, || self.settle(process, linux, carried))
            }
            Forked::Original(pid, pidfd) => {
                scheduling::apply(pid, process)?;
                let filters = filters.document()?;
                self.control.forked((pid, true), &[pidfd.as_fd(), filters.as_fd()])?;
                if linux.makes(NamespaceKind::User) {
                    namespaces::map_ids(pid, linux)?;
                    rustix::io::write(&map, &[0]).step(|| "release the container's init")?;
                }
                Ok(())
            }
        }
    }

    fn settle(
        &self,
        process: &Process,
        linux: &Linux,
        Carried { mapped, groups, sources, filters }: Carried<'_>,
    ) -> Result<Infallible, Failure> {
        if linux.makes(NamespaceKind::User) {
            wait_for_id_maps(&mapped)?;
            become_root_of_namespace()?;
        }
        drop(mapped);
        setsid().step(|| "lead a session")?;
        umask(Mode::empty());
        if linux.makes(NamespaceKind::Cgroup) {
            // Only now, in the container's cgroup: it becomes the root of what the container sees.
            fork::unshare(UnshareFlags::NEWCGROUP).step(|| "make cgroup namespace")?;
        }
        if let Some(groups) = groups {
            namespaces::join_groups(groups)?;
        }
        name_host(&self.spec)?;
        set_sysctls(linux, Sysctls::OfTheRest)?;
        rootfs::enter(&self.spec, linux, sources)?;
        let terminal = match self.terminal {
            Some(size) => {
                let terminal = terminal::acquire(process, size)?;
                terminal.become_console()?;
                Some(terminal)
            }
            None => None,
        };
        let container = Some((self.container_id.as_str(), self.spec.hooks.as_ref()));
        launch(
            self.control,
            process,
            &linux.shared(),
            Last { container, filters, terminal, waits: true },
        )
    }
}

/// The agent's own score keeps the OOM killer off; every process gets its own, 0 unless the spec says more.
pub(super) fn set_oom_score(process: &Process) -> Result<(), Failure> {
    let score = process.oom_score_adj.unwrap_or(0);
    fs::write("/proc/self/oom_score_adj", score.to_string())
        .step(|| format!("set oom_score_adj to {score}"))
}

fn wait_for_id_maps(mapped: &OwnedFd) -> Result<(), Failure> {
    let mut byte = [0];
    let length = rustix::io::read(mapped, &mut byte).step(|| "wait for the id maps")?;
    if length == 0 {
        return Err(Failure::invalid("the helper ended before the ids were mapped"));
    }
    Ok(())
}

/// Becomes root of the user namespace that this process is in: what it makes there belongs to somebody who exists there.
pub(super) fn become_root_of_namespace() -> Result<(), Failure> {
    set_thread_groups(&[]).step(|| "drop groups in the user namespace")?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .step(|| "become group 0 of the namespace")?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).step(|| "become user 0 of the namespace")
}

fn name_host(spec: &Spec) -> Result<(), Failure> {
    let new = spec.linux.as_ref().is_some_and(|linux| linux.makes(NamespaceKind::Uts));
    if !new {
        return Ok(());
    }
    if let Some(name) = &spec.hostname {
        sethostname(name.as_bytes()).step(|| format!("set hostname {name}"))?;
    }
    if let Some(name) = &spec.domainname {
        setdomainname(name.as_bytes()).step(|| format!("set domainname {name}"))?;
    }
    Ok(())
}

/// Those of the network belong to the sandbox's namespace, over which a container's user namespace has no power.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sysctls {
    OfTheNetwork,
    OfTheRest,
}

fn set_sysctls(linux: &Linux, which: Sysctls) -> Result<(), Failure> {
    const UNPRIVILEGED_PORTS: &str = "net/ipv4/ip_unprivileged_port_start";
    if which == Sysctls::OfTheNetwork && linux.makes(NamespaceKind::User) {
        // Its root could open any port of a network namespace of its own.
        set_sysctl(UNPRIVILEGED_PORTS, "0")?;
    }
    let mut all = sysctl_paths(&linux.sysctl)?;
    all.retain(|(path, _)| path.starts_with("net/") == (which == Sysctls::OfTheNetwork));
    require_sysctls(all)
}

/// Names as paths below `/proc/sys`, with their values.
pub fn sysctl_paths<'a>(
    named: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<Vec<(String, &'a String)>, Failure> {
    named.into_iter().map(|(name, value)| Ok((sysctl_path(name)?, value))).collect()
}

fn sysctl_path(name: &str) -> Result<String, Failure> {
    let path = path_of_name(name);
    if path.split('/').any(|part| part == "..") {
        return Err(Failure::invalid(format!("sysctl {name:?} is no sysctl")));
    }
    Ok(path)
}

/// Sets kernel parameters of the caller's namespaces, by their paths, and returns those that could not be. The kernel checks some
/// against others: what is refused at first is tried once more behind the rest.
pub fn set_all_sysctls(sysctls: Vec<(String, &String)>) -> Vec<(String, Failure)> {
    let is_refused = |(path, value): &(String, &String)| set_sysctl(path, value).is_err();
    let late: Vec<_> = sysctls.into_iter().filter(is_refused).collect();
    let refused = |(path, value): (String, &String)| {
        set_sysctl(&path, value).err().map(|failure| (path, failure))
    };
    late.into_iter().filter_map(refused).collect()
}

/// As [`set_all_sysctls`]; the first that could not be set is the failure.
pub fn require_sysctls(sysctls: Vec<(String, &String)>) -> Result<(), Failure> {
    set_all_sysctls(sysctls).into_iter().next().map_or(Ok(()), |(_, failure)| Err(failure))
}

/// Sets a kernel parameter of the caller's namespaces.
pub fn set_sysctl(path: &str, value: &str) -> Result<(), Failure> {
    fs::write(Path::new("/proc/sys").join(path), value).step(|| format!("set sysctl {path}"))
}

impl Control {
    /// Tells of the process. Its pidfd, the first file, names it even when it is reaped before the agent looks.
    pub(super) fn forked(
        &self,
        (pid, waits): (Pid, bool),
        files: &[BorrowedFd<'_>],
    ) -> Result<(), Failure> {
        let pid = pid.as_raw_nonzero().get();
        self.report(&Report::Forked { pid, waits }, files)
    }

    /// As something to keep through the change of root.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
