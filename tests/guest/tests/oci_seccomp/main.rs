//! System call filters, on the first process of a container and on those that are added; runc answers the same.
#![allow(clippy::unwrap_used)]

mod calls;

use calls::CALLS;
use kata_guest_tests::{Bundle, Container, Kata, busybox, debian};
use serde_json::{Value, json};

/// docker's default profile as the engine resolves it for a container with the default capabilities on x86-64.
const PROFILE: &str = include_str!("docker.json");
const PROBE: &str = include_str!("probe.py");

const AF_VSOCK: u64 = 40;

fn bundle(kata: &Kata, args: &[&str], seccomp: Value) -> Option<Bundle> {
    let mut bundle = Bundle::new(kata, debian()?, args);
    bundle.config["linux"]["seccomp"] = seccomp;
    bundle.write();
    Some(bundle)
}

/// What the probe says on a line of its own.
fn parse(printed: &str) -> (String, Vec<u64>) {
    let said: Value = serde_json::from_str(printed.trim()).unwrap();
    let answers = said["answers"].as_array().unwrap().iter();
    let answers = answers.map(|answer| answer.as_u64().unwrap()).collect();
    (said["mode"].as_str().unwrap().to_owned(), answers)
}

#[test]
fn dockers_profile_answers_as_on_runc() {
    let Some(kata) = Kata::installed() else { return };
    let mut asked: Vec<Value> =
        CALLS.iter().map(|call| json!([call.number, call.arguments])).collect();
    assert!(asked.len() > 60);
    asked.push(json!([41, [AF_VSOCK, 1, 0]]));
    let asked = json!(asked).to_string();
    let script = format!("python3 -c \"$0\" '{asked}'; exec cat");
    for runtime in [&Kata::oracle(), &kata] {
        let profile = serde_json::from_str(PROFILE).unwrap();
        let Some(bundle) = bundle(&kata, &["sh", "-c", &script, PROBE], profile) else { return };
        let container = Container::started(runtime, &bundle, "docker-profile");
        let first = container.stdout.until_has("]}\n");
        let added = container.exec(&["python3", "-c", PROBE, &asked], b"");
        assert_eq!(added.code, 0, "{}", added.stderr());
        for (process, printed) in [("first", first), ("added", added.stdout())] {
            let (mode, answers) = parse(&printed);
            assert_eq!(mode, "2", "mode of the {process} process");
            let (vsock, answers) = answers.split_last().unwrap();
            let wrong: Vec<_> = CALLS
                .iter()
                .zip(answers)
                .filter(|(call, answer)| call.answer != **answer)
                .map(|(call, answer)| format!("{} is {answer}, not {}", call.name, call.answer))
                .collect();
            assert_eq!(wrong, [""; 0], "{process} process on {:?}", runtime.program());
            assert_eq!(*vsock, 1, "the profile has no vsock");
        }
        let refused = container.exec(&["unshare", "-U", "true"], b"");
        assert_ne!(refused.code, 0);
        assert!(refused.stderr().contains("Operation not permitted"), "{}", refused.stderr());
    }
}

/// vsock is no way into the agent, whatever a profile allows: the family does not exist.
#[test]
fn there_is_no_vsock() {
    const NO_SUCH_FAMILY: u64 = 97;
    let Some(kata) = Kata::installed() else { return };
    let asked = json!([[41, [AF_VSOCK, 1, 0]]]).to_string();
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    let Some(bundle) = bundle(&kata, &["python3", "-c", PROBE, &asked], profile) else { return };
    let container = Container::started(&kata, &bundle, "no-vsock");
    assert_eq!(parse(&container.stdout.until_has("]}\n")).1, [NO_SUCH_FAMILY]);
}

/// Calls that need nothing: one for each operator, number and name.
const COMPARED: [(u64, &str, &str); 7] = [
    (140, "getpriority", "SCMP_CMP_EQ"),
    (121, "getpgid", "SCMP_CMP_NE"),
    (124, "getsid", "SCMP_CMP_LT"),
    (146, "sched_get_priority_max", "SCMP_CMP_LE"),
    (147, "sched_get_priority_min", "SCMP_CMP_GT"),
    (145, "sched_getscheduler", "SCMP_CMP_GE"),
    (29, "shmget", "SCMP_CMP_MASKED_EQ"),
];

/// What the rule of each operator says of an argument; the masked one wants the third bit alone of three.
fn holds(operator: &str, argument: u64) -> bool {
    match operator {
        "SCMP_CMP_EQ" => argument == 10,
        "SCMP_CMP_NE" => argument != 10,
        "SCMP_CMP_LT" => argument < 10,
        "SCMP_CMP_LE" => argument <= 10,
        "SCMP_CMP_GT" => argument > 10,
        "SCMP_CMP_GE" => argument >= 10,
        "SCMP_CMP_MASKED_EQ" => argument & 0b111 == 0b100,
        other => panic!("{other}"),
    }
}

/// Another architecture's 64 bits count, too.
const ARGUMENTS: [u64; 6] = [4, 9, 10, 11, 12, (1 << 32) + 10];
/// No call of [`COMPARED`] ends so by itself.
const MARK: u64 = 77;

fn operators() -> Value {
    let rules = COMPARED.map(|(_, name, op)| {
        let value = if op == "SCMP_CMP_MASKED_EQ" { 0b111 } else { 10 };
        let argument = json!({"index": 0, "value": value, "valueTwo": 0b100, "op": op});
        json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": MARK, "args": [argument]})
    });
    let actions = [
        ("sched_rr_get_interval", "SCMP_ACT_KILL"),
        ("mincore", "SCMP_ACT_KILL_PROCESS"),
        ("readahead", "SCMP_ACT_KILL_THREAD"),
        ("vhangup", "SCMP_ACT_TRAP"),
        ("times", "SCMP_ACT_TRACE"),
        ("sync", "SCMP_ACT_LOG"),
        ("sched_yield", "SCMP_ACT_ALLOW"),
    ];
    let actions = actions.map(|(name, action)| json!({"names": [name], "action": action}));
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": rules.into_iter().chain(actions).collect::<Vec<_>>(),
    })
}

#[test]
fn every_operator_and_action_is_runcs() {
    let Some(kata) = Kata::installed() else { return };
    let asked: Vec<_> = COMPARED
        .iter()
        .flat_map(|(number, ..)| ARGUMENTS.map(|argument| json!([number, [argument, 0, 0]])))
        .collect();
    let asked = json!(asked).to_string();
    for runtime in [&Kata::oracle(), &kata] {
        let script = format!("python3 -c \"$0\" '{asked}'; exec cat");
        let Some(bundle) = bundle(&kata, &["sh", "-c", &script, PROBE], operators()) else {
            return;
        };
        let container = Container::started(runtime, &bundle, "filter-words");
        let (_, answers) = parse(&container.stdout.until_has("]}\n"));
        let expected = COMPARED.iter().flat_map(|(_, _, operator)| {
            ARGUMENTS.map(|argument| (*operator, argument, holds(operator, argument)))
        });
        for ((operator, argument, holds), answer) in expected.zip(answers) {
            assert_eq!(answer == MARK, holds, "{operator} 10, of {argument}: {answer}");
        }
        // SIGSYS ends whom a filter kills or traps; a tracer that is not there means that there is no such call.
        let ends = [(148, 159), (27, 159), (187, 159), (153, 159), (100, 38), (162, 0), (24, 0)];
        for (number, code) in ends {
            let script = format!(
                "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n\
                 raise SystemExit(ctypes.get_errno() if libc.syscall({number}, 0, 0, 0) == -1 else 0)"
            );
            let ended = container.exec(&["python3", "-c", &script], b"");
            assert_eq!(ended.code, code, "call {number} on {:?}", runtime.program());
        }
    }
}

/// Calls that a small program makes to say a word, and those that a runtime makes after it has loaded a filter, but for
/// those that are left out.
fn few_calls(default: &str, left_out: &[&str]) -> Value {
    const OF_A_WORD: &str = "access arch_prctl brk clock_gettime close dup dup2 dup3 execve exit exit_group faccessat \
        faccessat2 fcntl fstat fstatfs futex getcwd getdents64 getegid geteuid getgid getpgrp getpid getppid getrandom gettid \
        getuid ioctl lseek madvise mmap mprotect mremap munmap nanosleep newfstatat openat poll ppoll pread64 prctl \
        prlimit64 read readlink readlinkat restart_syscall rseq rt_sigaction rt_sigprocmask rt_sigreturn \
        sched_getaffinity sched_yield set_robust_list set_tid_address sigaltstack stat statx tgkill uname write writev \
        clone clone3 epoll_create1 epoll_ctl epoll_pwait eventfd2 pipe2 chdir fchdir setgid setuid setgroups capget capset \
        close_range sendmsg recvmsg sendto open lstat umask keyctl setsid seccomp openat2 pidfd_open pidfd_send_signal \
        waitid wait4 getgroups unshare time clock_nanosleep";
    let names: Vec<&str> =
        OF_A_WORD.split_whitespace().filter(|name| !left_out.contains(name)).collect();
    json!({
        "defaultAction": default,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
    })
}

/// What only the runtime does, a profile need not allow, as far as runc needs no more.
#[test]
fn a_profile_need_not_allow_what_only_the_runtime_does() {
    let Some(kata) = Kata::installed() else { return };
    let cases: [(&str, &[&str], bool); 5] = [
        ("SCMP_ACT_KILL", &["seccomp"], false),
        ("SCMP_ACT_TRAP", &["seccomp"], false),
        ("SCMP_ACT_KILL_PROCESS", &["seccomp", "capset"], true),
        ("SCMP_ACT_ERRNO", &["seccomp", "capset"], true),
        ("SCMP_ACT_ERRNO", &["seccomp"], false),
    ];
    for (default, left_out, no_new_privileges) in cases {
        for runtime in [&Kata::oracle(), &kata] {
            let Some(root) = busybox() else { return };
            let mut bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
            bundle.config["linux"]["seccomp"] = few_calls(default, left_out);
            bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
            bundle.write();
            let what = format!("{default} {left_out:?} {:?}", runtime.program());
            let container = Container::started(runtime, &bundle, "few-calls");
            let added = container.exec(&["echo", "a word"], b"");
            let said = (added.code, added.stdout());
            assert_eq!(said, (0, "a word\n".to_owned()), "{what}: {}", added.stderr());
            assert_eq!(container.status(), "running", "{what}");
        }
    }
}
