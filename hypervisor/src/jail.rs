//! The jail of a VMM, seen from both sides: what the driver asks for, and the launcher that carries it out.
//!
//! The launcher is a fresh process with one thread, in a pid namespace of its own already. It reads its
//! [`JailSpec`] from [`SPEC_FD`], leaves the host's mounts, IPC and network, enters a tree of exactly the listed files,
//! becomes a user with no privilege at all, and executes the VMM. Nothing of a guest has run by then. What it can't
//! do it says in one line on stderr, which the driver reads, and exits.

use std::{
    convert::Infallible,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use kata_sys::{
    inherit,
    jail::{
        self, Access, Device, Entry, JailError, Resource, Tree,
        filter::{self, Refusal},
    },
};
use rustix::{fs::MemfdFlags, thread::UnshareFlags};
use serde::{Deserialize, Serialize};

/// The descriptor that the launcher reads its specification from.
pub const SPEC_FD: i32 = 3;

/// The descriptor by which the launcher notices that its parent is gone.
pub const LIFELINE_FD: i32 = 4;

/// Open files that a VMM may have; a small VM needs about 40.
const OPEN_FILES: u64 = 1024;

/// Major and minor number of `/dev/kvm`, from the kernel's `devices.txt`.
const KVM: (u32, u32) = (10, 232);

/// A host file and where the VMM finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailFile {
    /// On the host.
    pub host: PathBuf,
    /// In the jail.
    pub path: PathBuf,
}

impl JailFile {
    /// A file that is where it is on the host.
    pub fn same(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { host: path.clone(), path }
    }
}

/// What to execute, and all that it gets to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailSpec {
    /// Path in the jail.
    pub program: PathBuf,
    /// argv, the name of the program included.
    pub arguments: Vec<String>,
    /// User and group id of the VMM; no other process has it.
    pub user: u32,
    /// Files and directories, read-only.
    pub files: Vec<JailFile>,
    /// Whether there is a `/dev/kvm`.
    pub kvm: bool,
    /// `cgroup.procs` files of the groups to join, for hosts where a process can't be born into its group.
    pub cgroup_procs: Vec<PathBuf>,
}

/// Why the launcher did not execute the VMM.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Reading it.
    #[error("cannot read the specification of the jail")]
    Spec(#[source] io::Error),
    /// Parsing it.
    #[error("cannot understand the specification of the jail")]
    Json(#[source] serde_json::Error),
    /// The driver's end was not inherited.
    #[error("no lifeline of the launcher")]
    Lifeline(#[source] io::Error),
    /// A control group.
    #[error("cannot join the group {}", .path.display())]
    Group {
        /// Its `cgroup.procs`.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A step.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// execve(2), in the jail.
    #[error("cannot execute {} in the jail", .program.display())]
    Execute {
        /// Path in the jail.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl JailSpec {
    /// The specification in a memfd, to be inherited as [`SPEC_FD`].
    ///
    /// # Errors
    /// Those of memfd_create(2) and write(2).
    pub fn to_memfd(&self) -> io::Result<OwnedFd> {
        let fd = rustix::fs::memfd_create("kata-jail", MemfdFlags::CLOEXEC)?;
        let mut file = File::from(fd);
        file.write_all(&serde_json::to_vec(self)?)?;
        Ok(file.into())
    }

    fn inherited() -> Result<Self, LaunchError> {
        let mut file = inherit::take(SPEC_FD).map(File::from).map_err(LaunchError::Spec)?;
        let mut text = Vec::new();
        // The offset is where the writer left it.
        file.seek(SeekFrom::Start(0)).map_err(LaunchError::Spec)?;
        file.read_to_end(&mut text).map_err(LaunchError::Spec)?;
        serde_json::from_slice(&text).map_err(LaunchError::Json)
    }

    fn tree(&self) -> Tree {
        let bind = |file: &JailFile| Entry::Bind {
            host: file.host.clone(),
            path: file.path.clone(),
            access: Access::ReadOnly,
        };
        let mut entries: Vec<Entry> = self.files.iter().map(bind).collect();
        if self.kvm {
            let device = Device { major: KVM.0, minor: KVM.1, owner: self.user };
            entries.push(Entry::Device { path: "/dev/kvm".into(), device });
        }
        Tree { entries }
    }
}

/// First to be struck by the OOM killer; see proc_pid_oom_score_adj(5).
const MOST_EXPENDABLE: &str = "1000";

/// Enters the jail that [`SPEC_FD`] describes and becomes the VMM.
///
/// For the first lines of `main`, before any thread exists.
///
/// # Errors
/// [`LaunchError`]; part of the jail has then been entered, so all that is left to do is to report it and exit.
pub fn enter_and_exec() -> Result<Infallible, LaunchError> {
    let spec = JailSpec::inherited()?;
    let lifeline = inherit::take(LIFELINE_FD).map_err(LaunchError::Lifeline)?;
    // A guest that comes up goes before those that run; the driver's user lowers it. Raising needs no right, and a host without
    // an OOM killer nothing.
    fs::write("/proc/self/oom_score_adj", MOST_EXPENDABLE).ok();
    for path in &spec.cgroup_procs {
        join(path).map_err(|source| LaunchError::Group { path: path.clone(), source })?;
    }
    let namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWNET;
    jail::leave_namespaces(namespaces)?;
    spec.tree().enter()?;
    jail::limit(Resource::Core, 0)?;
    jail::limit(Resource::Nofile, OPEN_FILES)?;
    jail::become_user(spec.user, spec.user, &lifeline)?;
    filter::deny(&refusals())?;
    let mut command = Command::new(&spec.program);
    if let Some((name, rest)) = spec.arguments.split_first() {
        command.arg0(name).args(rest);
    }
    let source = command.env_clear().exec();
    Err(LaunchError::Execute { program: spec.program, source })
}

/// Zero stands for the writer.
fn join(procs: &Path) -> io::Result<()> {
    File::options().write(true).open(procs)?.write_all(b"0")
}

/// What a VMM never does; QEMU's own filter, which comes with its first lines, is tighter still.
fn refusals() -> Vec<Refusal> {
    use libc::{
        SYS_acct, SYS_add_key, SYS_bpf, SYS_delete_module, SYS_finit_module, SYS_fsmount,
        SYS_fsopen, SYS_init_module, SYS_io_uring_enter, SYS_io_uring_register, SYS_io_uring_setup,
        SYS_kcmp, SYS_kexec_file_load, SYS_kexec_load, SYS_keyctl, SYS_mount, SYS_mount_setattr,
        SYS_move_mount, SYS_name_to_handle_at, SYS_open_by_handle_at, SYS_open_tree,
        SYS_perf_event_open, SYS_pidfd_getfd, SYS_pivot_root, SYS_process_vm_readv,
        SYS_process_vm_writev, SYS_ptrace, SYS_quotactl, SYS_reboot, SYS_request_key, SYS_setns,
        SYS_socket, SYS_swapoff, SYS_swapon, SYS_umount2, SYS_unshare, SYS_userfaultfd,
    };
    let always = [
        SYS_acct,
        SYS_add_key,
        SYS_bpf,
        SYS_delete_module,
        SYS_finit_module,
        SYS_fsmount,
        SYS_fsopen,
        SYS_init_module,
        SYS_io_uring_enter,
        SYS_io_uring_register,
        SYS_io_uring_setup,
        SYS_kcmp,
        SYS_kexec_file_load,
        SYS_kexec_load,
        SYS_keyctl,
        SYS_mount,
        SYS_mount_setattr,
        SYS_move_mount,
        SYS_name_to_handle_at,
        SYS_open_by_handle_at,
        SYS_open_tree,
        SYS_perf_event_open,
        SYS_pidfd_getfd,
        SYS_pivot_root,
        SYS_process_vm_readv,
        SYS_process_vm_writev,
        SYS_ptrace,
        SYS_quotactl,
        SYS_reboot,
        SYS_request_key,
        SYS_setns,
        SYS_swapoff,
        SYS_swapon,
        SYS_umount2,
        SYS_unshare,
        SYS_userfaultfd,
    ];
    let mut refusals: Vec<Refusal> = always.into_iter().map(Refusal::Always).collect();
    // All its sockets were made for it; a new one could only be of a family that no namespace confines (vsock).
    let unix = Refusal::Unless { call: SYS_socket, argument: 0, value: libc::AF_UNIX as u32 };
    refusals.push(unix);
    refusals
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Seek},
    };

    use super::{JailFile, JailSpec};

    #[test]
    fn a_specification_survives_its_memfd() {
        let spec = JailSpec {
            program: "/usr/bin/vmm".into(),
            arguments: vec!["vmm".into(), "-append".into(), "a \"b\", c".into()],
            user: 64_000,
            files: vec![JailFile::same("/lib/libc.so.6")],
            kvm: true,
            cgroup_procs: vec!["/sys/fs/cgroup/kata/cgroup.procs".into()],
        };
        let mut file = File::from(spec.to_memfd().unwrap());
        file.rewind().unwrap();
        let mut text = Vec::new();
        file.read_to_end(&mut text).unwrap();
        assert_eq!(serde_json::from_slice::<JailSpec>(&text).unwrap(), spec);
    }
}
