//! The system calls that serving files and streams takes; any other one kills the process, and the kernel logs which.
//!
//! Two filters, as each can give one answer only: clone3(2), whose flags a filter can't see, "does not exist", so that the C
//! library falls back to clone(2); everything else that is not on the list is the end.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

/// A filter that could not be made or installed.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The rules contradict each other.
    #[error("cannot compile the filter")]
    Compile(#[from] seccompiler::BackendError),
    /// seccomp(2).
    #[error("cannot install the filter")]
    Install(#[from] seccompiler::Error),
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: TargetArch = TargetArch::aarch64;

/// Calls that are allowed whatever their arguments.
const ALLOWED: &[libc::c_long] = &[
    // Memory, but for mmap and mprotect.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_membarrier,
    // Threads, but for clone.
    libc::SYS_futex,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // Time and randomness.
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    // Streams, but for making them.
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    // Descriptors.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    // Files, below a root that shows nothing but the shared tree.
    libc::SYS_copy_file_range,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_getxattr,
    libc::SYS_linkat,
    libc::SYS_listxattr,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_readlinkat,
    libc::SYS_removexattr,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_setxattr,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_syncfs,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    // Acting for a user of the guest.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
];

/// Calls that only x86-64 has, and uses where other architectures use their successors.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[libc::c_long] =
    &[libc::SYS_epoll_create, libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[libc::c_long] = &[];

/// What an argument must be.
enum Only {
    /// This value.
    Is(libc::c_int),
    /// These bits set, the others as they like.
    Has(libc::c_int),
    /// None of these bits set.
    Lacks(libc::c_int),
}

/// Of fcntl(2). The owner of a descriptor is not among them: the kernel sends that one signals in the proxy's name.
const DESCRIPTOR_COMMANDS: [libc::c_int; 6] = [
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
];

/// Calls that are allowed with some arguments; a call that is listed more than once, with any of these.
fn conditional() -> Vec<(libc::c_long, Vec<(u8, Only)>)> {
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    let own_pid = rustix::process::getpid().as_raw_nonzero().get();
    let mut calls = vec![
        // Data is never code.
        (libc::SYS_mmap, vec![(2, Only::Lacks(libc::PROT_EXEC))]),
        (libc::SYS_mprotect, vec![(2, Only::Lacks(libc::PROT_EXEC))]),
        (libc::SYS_clone, vec![(0, Only::Has(libc::CLONE_THREAD)), (0, Only::Lacks(namespaces))]),
        // A working directory of its own for each thread of virtiofsd.
        (libc::SYS_unshare, vec![(0, Only::Is(libc::CLONE_FS))]),
        (libc::SYS_prctl, vec![(0, Only::Is(libc::PR_SET_NAME))]),
        // libcap-ng looks at all sets before it changes the effective one.
        (libc::SYS_prctl, vec![(0, Only::Is(libc::PR_CAPBSET_READ))]),
        (
            libc::SYS_prctl,
            vec![(0, Only::Is(libc::PR_CAP_AMBIENT)), (1, Only::Is(libc::PR_CAP_AMBIENT_IS_SET))],
        ),
        (libc::SYS_tgkill, vec![(0, Only::Is(own_pid))]),
        (libc::SYS_socketpair, vec![(0, Only::Is(libc::AF_UNIX))]),
    ];
    calls
        .extend(DESCRIPTOR_COMMANDS.map(|command| (libc::SYS_fcntl, vec![(1, Only::Is(command))])));
    calls
}

/// Installs the filter for this thread and all that it starts.
///
/// # Errors
/// [`FilterError`].
pub fn install() -> Result<(), FilterError> {
    let no_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    apply_filter(&compile(no_clone3, SeccompAction::Allow, absent)?)?;
    let list = rules()?;
    apply_filter(&compile(list, SeccompAction::KillProcess, SeccompAction::Allow)?)?;
    Ok(())
}

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, FilterError> {
    let always = ALLOWED.iter().chain(ALLOWED_HERE).chain(&[libc::SYS_clone3]);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        always.map(|call| (*call, Vec::new())).collect();
    for (call, conditions) in conditional() {
        let conditions = conditions
            .into_iter()
            .map(|(argument, only)| condition(argument, &only))
            .collect::<Result<Vec<_>, _>>()?;
        rules.entry(call).or_default().push(SeccompRule::new(conditions)?);
    }
    Ok(rules)
}

fn condition(argument: u8, only: &Only) -> Result<SeccompCondition, seccompiler::BackendError> {
    let bits = |value: &libc::c_int| u64::from(value.cast_unsigned());
    let (operator, value) = match only {
        Only::Is(value) => (SeccompCmpOp::Eq, bits(value)),
        Only::Has(mask) => (SeccompCmpOp::MaskedEq(bits(mask)), bits(mask)),
        Only::Lacks(mask) => (SeccompCmpOp::MaskedEq(bits(mask)), 0),
    };
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, FilterError> {
    Ok(SeccompFilter::new(rules, otherwise, listed, ARCHITECTURE)?.try_into()?)
}

/// Runs `inside` in a thread whose calls of this number fail with this error.
#[cfg(test)]
pub(crate) fn without<T: Send>(call: i64, errno: i32, inside: impl FnOnce() -> T + Send) -> T {
    let refusal = SeccompAction::Errno(errno.unsigned_abs());
    let calls = BTreeMap::from([(call, Vec::new())]);
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            apply_filter(&compile(calls, SeccompAction::Allow, refusal).unwrap()).unwrap();
            inside()
        });
        thread.join().unwrap()
    })
}

#[cfg(test)]
mod tests {
    use seccompiler::SeccompAction;

    use super::{ALLOWED, DESCRIPTOR_COMMANDS, compile, rules};

    #[test]
    fn the_list_compiles() {
        let program = compile(rules().unwrap(), SeccompAction::KillProcess, SeccompAction::Allow);
        // BPF_MAXINSNS of the kernel.
        assert!(program.unwrap().len() < 4096);
    }

    #[test]
    fn nothing_reaches_another_process_or_the_network() {
        let never = [
            libc::SYS_kill,
            libc::SYS_ptrace,
            libc::SYS_pidfd_open,
            libc::SYS_process_vm_writev,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_execve,
            libc::SYS_ioctl,
            libc::SYS_mount,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_fcntl,
        ];
        assert!(never.iter().all(|call| !ALLOWED.contains(call)));
        // Whom a descriptor's signals go to, and which.
        let never = [libc::F_SETOWN, 15, 10];
        assert!(never.iter().all(|command| !DESCRIPTOR_COMMANDS.contains(command)));
    }
}
