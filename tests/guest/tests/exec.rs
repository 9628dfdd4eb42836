//! `exec` with everything that can be said to it: what runc's process gets, ours gets.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    process::{Command, Stdio},
};

use kata_guest_tests::{
    Bundle, Container, Kata, Output, Running, busybox, debian, map_ids, meminfo_kib, run,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

const FOREVER: &[&str] = &["sleep", "1000"];

/// Says who it is and what it may.
const WHO: &str = "id; pwd; echo A=$A; umask; grep -E '^(Cap|NoNewPrivs|Groups)' /proc/self/status";

/// Runs a claim on runc and on Kata, each with a root and a running container of its own.
fn on_both(claim: impl Fn(&Kata, &Bundle, &Container<'_>)) {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let Some(root) = busybox() else { return };
        let bundle = Bundle::new(&kata, root, FOREVER);
        let container = Container::started(runtime, &bundle, "exec");
        claim(runtime, &bundle, &container);
    }
}

/// `exec OPTIONS ID COMMAND`.
fn exec(
    runtime: &Kata,
    options: &[&str],
    (container, command): (&Container<'_>, &[&str]),
) -> Command {
    runtime.command(&[&["exec"], options, &[&container.id], command].concat())
}

/// What a command with these options says, on runc and on Kata.
fn said_by_both(options: &[&str], script: &str) -> Vec<String> {
    let said = std::cell::RefCell::new(Vec::new());
    on_both(|runtime, _, container| {
        let done = run(exec(runtime, options, (container, &["sh", "-c", script])), b"");
        assert_eq!(done.code, 0, "{}", done.stderr());
        said.borrow_mut().push(done.stdout());
    });
    said.into_inner()
}

#[test]
fn options_make_the_same_process() {
    let everything: &[&[&str]] = &[
        &[],
        &["--user", "5"],
        &["-u", "5:6", "-g", "7", "-g", "8"],
        &["--cwd", "/tmp", "--env", "A=1", "--env", "B=2", "--no-new-privs"],
        &["-c", "CAP_SYS_TIME", "-c", "CAP_NET_ADMIN"],
        &["--cap", "CAP_SYS_TIME", "--user", "5"],
        &["--apparmor", "", "--process-label", "", "--ignore-paused"],
    ];
    for options in everything {
        if let [runc, kata] = &said_by_both(options, WHO)[..] {
            assert_eq!(runc, kata, "{options:?}");
            assert!(runc.contains("NoNewPrivs"), "{runc}");
        }
    }
}

#[test]
fn a_process_file_makes_the_same_process() {
    let said = std::cell::RefCell::new(Vec::new());
    on_both(|runtime, bundle, container| {
        let process = json!({
            "user": {"uid": 3, "gid": 4, "additionalGids": [9]},
            "args": ["sh", "-c", WHO], "cwd": "/tmp", "noNewPrivileges": true,
            "env": ["PATH=/bin:/usr/bin", "A=of the file"],
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
            "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}],
        });
        fs::write(bundle.file("process.json"), process.to_string()).unwrap();
        let file = bundle.file("process.json");
        let options = ["--process", file.to_str().unwrap()];
        let done = run(exec(runtime, &options, (container, &[])), b"");
        assert_eq!(done.code, 0, "{}", done.stderr());
        said.borrow_mut().push(done.stdout());
    });
    if let [runc, kata] = &said.into_inner()[..] {
        assert_eq!(runc, kata);
        assert!(kata.contains("A=of the file") && kata.contains("groups=9"), "{kata}");
    }
}

#[test]
fn what_follows_the_id_is_the_command() {
    on_both(|runtime, _, container| {
        for (command, wanted) in [
            (&["echo", "-d", "--tty", "x"][..], "-d --tty x\n"),
            (&["sh", "-c", "echo $0 $1", "--", "-e"], "-- -e\n"),
            (&["echo", "--", "--root", "/nowhere"], "-- --root /nowhere\n"),
        ] {
            let done = run(exec(runtime, &[], (container, command)), b"");
            assert_eq!((done.code, done.stdout().as_str()), (0, wanted), "{}", done.stderr());
        }
        let done = runtime.call(&["exec", "--", &container.id, "echo", "b"]);
        assert_eq!((done.code, done.stdout().as_str()), (0, "b\n"), "{}", done.stderr());
    });
}

#[test]
fn a_detached_process_outlives_the_command_and_has_a_pid() {
    on_both(|runtime, bundle, container| {
        let pid_file = bundle.file("exec-pid");
        let options = ["--detach", "--pid-file", pid_file.to_str().unwrap()];
        let mut command = exec(runtime, &options, (container, &["sleep", "1000"]));
        // The process keeps what it is given.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success());
        let pid: i32 = fs::read_to_string(pid_file).unwrap().parse().unwrap();
        assert!(fs::exists(format!("/proc/{pid}")).unwrap());
        let listed = container.exec(&["sh", "-c", "pidof sleep | wc -w"], b"");
        assert_eq!(listed.stdout(), "2\n");
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        // Ours by now, and nobody else's to reap.
        let pid = rustix::process::Pid::from_raw(pid);
        rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).unwrap();
    });
}

#[test]
fn in_a_paused_container_a_process_is_refused_or_waits() {
    on_both(|runtime, _, container| {
        container.must("pause");
        let refused = container.exec(&["true"], b"");
        assert_eq!(refused.code, 255, "{}", refused.stderr());
        let mut waiting = exec(runtime, &["--ignore-paused"], (container, &["echo", "ok"]));
        let waiting = waiting.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        container.must("resume");
        let done = waiting.wait_with_output().unwrap();
        assert_eq!((done.status.code(), &done.stdout[..]), (Some(0), &b"ok\n"[..]));
    });
}

#[test]
fn a_process_that_waits_for_a_paused_container_can_be_given_up() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, FOREVER);
    let container = Container::started(&kata, &bundle, "given-up");
    container.must("pause");
    let touch = ["touch", "/tmp/it-ran"];
    let shim = kata.host_pid(&container.id, "shimPid");
    let descriptors = || fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
    let before = descriptors();
    let waiting = exec(&kata, &["--ignore-paused"], (&container, &touch))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The shim has heard of it when it has its connection, and a descriptor or two that came by that.
    while descriptors() < before + 2 {
        std::thread::yield_now();
    }
    kill_process(Pid::from_child(&waiting), Signal::TERM).unwrap();
    let done = waiting.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&done.stderr).contains("interrupted by signal 15"));
    container.must("resume");
    // Asked for later, so made later than what was given up.
    for _ in 0..2 {
        let found = container.exec(&["test", "-e", "/tmp/it-ran"], b"");
        assert_eq!(found.code, 1, "{}", found.stderr());
    }
}

#[test]
fn a_pidfd_is_given_away() {
    // Not every runc that is packaged knows the option.
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, FOREVER);
    let path = bundle.file("pidfd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let container = Container::create_with(&kata, &bundle, "pidfd", |command| {
        command.arg("--pidfd-socket").arg(&path);
    });
    let (connection, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut kind = [0; 16];
    let received = rustix::net::recvmsg(
        &connection,
        &mut [std::io::IoSliceMut::new(&mut kind)],
        &mut ancillary,
        rustix::net::RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    assert_eq!(&kind[..received.bytes], b"standard");
    let message = ancillary.drain().next().unwrap();
    let rustix::net::RecvAncillaryMessage::ScmRights(mut fds) = message else { panic!() };
    let fd = std::os::fd::AsRawFd::as_raw_fd(&fds.next().unwrap());
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"));
    assert!(info.is_err() || info.unwrap().contains(&format!("Pid:\t{}", container.pid)));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, FOREVER);
    let container = Container::started(&kata, &bundle, "refused");
    for (options, words) in [
        (&["--preserve-fds", "1"][..], "--preserve-fds 1 is not supported"),
        (&["--cgroup", "/sub"], "--cgroup /sub is not supported"),
        (&["--user", "root"], "takes users and groups by number, as runc does"),
        (&["--cap", "CAP_NOPE", "--bogus"], "--bogus"),
    ] {
        let done = run(exec(&kata, options, (&container, &["true"])), b"");
        assert_ne!(done.code, 0, "{options:?}");
        assert!(done.stderr().contains(words), "{}", done.stderr());
    }
    let bundled = |options: &[&str]| {
        let words = [options, &["--bundle", bundle.path(), "refused"]].concat();
        kata.call(&words)
    };
    let words = "--preserve-fds 2 is not supported: descriptors beyond stderr can't enter a VM";
    for verb in ["create", "run"] {
        bundled(&[verb, "--preserve-fds", "2"]).assert_one_line(&[words]);
    }
    for option in ["--l3-cache-schema", "--mem-bw-schema"] {
        let refused = kata.call(&["update", option, "L3:0=f", &container.id]);
        refused.assert_one_line(&[option, "is not supported"]);
    }
    let refused = kata.call(&["spec", "--bundle", bundle.path(), "--rootless"]);
    refused.assert_one_line(&["--rootless is not supported"]);
}

/// sd_listen_fds(3): a supervisor that starts Kata with sockets hands them to this very process.
#[test]
fn sockets_of_a_supervisor_are_refused_by_name_and_those_of_others_are_not_ours() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, &["sh", "-c", "echo ${LISTEN_FDS-none}"]);
    bundle.write();
    let started_with = |pid: &str, words: &[&str]| {
        let script = format!("LISTEN_FDS=1 LISTEN_PID={pid} exec \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(kata.program()).arg("--root").arg(kata.state());
        command.args(words);
        run(command, b"")
    };
    let words = ["run", "--bundle", bundle.path(), "supervised"];
    let refused = started_with("$$", &words);
    refused.assert_one_line(&["LISTEN_FDS=1 is not supported: descriptors beyond stderr"]);
    let passed_on = started_with("1", &words);
    assert_eq!(
        (passed_on.code, passed_on.stdout()),
        (0, "none\n".to_owned()),
        "{}",
        passed_on.stderr()
    );
}

#[test]
fn a_stream_that_leads_nowhere_is_dev_null_inside_too() {
    // Detached, for otherwise runc itself puts pipes in between.
    on_both(|runtime, _, container| {
        let script = "stat -Lc %t:%T /proc/self/fd/0 /proc/self/fd/2; cat; echo lost >&2";
        let mut command = exec(runtime, &["--detach"], (container, &["sh", "-c", script]));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let done = command.output().unwrap();
        assert!(done.status.success(), "{done:?}");
        assert_eq!(String::from_utf8_lossy(&done.stdout), "1:3\n1:3\n");
    });
}

/// Tells of signals, the last of which has no name.
const LISTENER: &str = "for s in ABRT XCPU VTALRM PWR 37; do trap \"echo heard $s\" $s; done; trap 'exit 7' TERM; \
                        echo ready; while :; do read -t 1 line; done";

/// Sends them to a command that stands before that in the foreground, and asserts that it hears each.
fn assert_hears(mut command: Command) {
    let mut caller = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(caller.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(told.next().as_deref(), Some("ready"), "{command:?}");
    for signal in ["ABRT", "XCPU", "VTALRM", "PWR", "37"] {
        let sent = Command::new("kill").args(["-s", signal, &caller.id().to_string()]).status();
        assert!(sent.unwrap().success());
        assert_eq!(told.next(), Some(format!("heard {signal}")), "{command:?}");
    }
    kill_process(Pid::from_child(&caller), Signal::TERM).unwrap();
    assert_eq!(caller.wait().unwrap().code(), Some(7), "{command:?}");
}

#[test]
fn whatever_signal_run_and_exec_get_the_process_gets() {
    on_both(|runtime, _, container| {
        assert_hears(exec(runtime, &[], (container, &["sh", "-c", LISTENER])));
        let bundle = Bundle::new(runtime, busybox().unwrap(), &["sh", "-c", LISTENER]);
        assert_hears(runtime.command(&["run", "--bundle", bundle.path(), "listening"]));
    });
}

#[test]
fn options_of_runc_that_mean_nothing_here_are_taken() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut bundle = Bundle::new(&kata, root, FOREVER);
    bundle.config["linux"]["cgroupsPath"] =
        json!(format!("kt{}.slice:kata:test", std::process::id()));
    bundle.write();
    let mut command = Command::new(kata.program());
    command.args([
        "--systemd-cgroup",
        "--rootless",
        "false",
        "--criu",
        "criu",
        "--log-format",
        "json",
    ]);
    command.arg("--root").arg(kata.state());
    command.args(["create", "--no-pivot", "--no-new-keyring", "--no-subreaper"]);
    command.args(["--bundle", bundle.path(), "taken"]);
    command.stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().unwrap().success());
    let pid = kata.state_of("taken")["pid"].as_i64().unwrap();
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = format!("/kt{0}.slice/kata-test.scope", std::process::id());
    assert!(groups.lines().any(|line| line.ends_with(&path)), "{groups}");
    assert_eq!(kata.call(&["delete", "taken"]).code, 0);
}

/// Threads, descriptors and memory of its own (KiB) of a process; the guest's memory, which the proxy maps, is not.
fn usage(pid: i32) -> (usize, usize, u64) {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let resident = resident.trim().trim_end_matches(" kB").parse().unwrap();
    (count("task"), count("fd"), resident)
}

/// What the whole guest has: open files, tasks, memory (KiB) that is not to be had. No container sees PID 1 itself, but
/// whatever that keeps of a process is among it.
fn usage_of_guest(container: &Container<'_>) -> (u64, u64, u64) {
    let script = "sync; echo 3 > /proc/sys/vm/drop_caches 2>/dev/null; cat /proc/sys/fs/file-nr /proc/loadavg /proc/meminfo";
    let done = container.exec(&["sh", "-c", script], b"");
    let (text, word) =
        (done.stdout(), |text: &str, at| text.split_whitespace().nth(at).map(str::to_owned));
    let number = |word: Option<String>| word.unwrap().parse::<u64>().unwrap();
    let files = number(word(&text, 0));
    let tasks = text.lines().nth(1).and_then(|line| word(line, 3));
    let tasks = number(tasks.unwrap().split('/').nth(1).map(str::to_owned));
    let taken = meminfo_kib(&text, "MemTotal") - meminfo_kib(&text, "MemAvailable");
    (files, tasks, taken)
}

fn assert_no_growth(who: &str, before: (usize, usize, u64), after: (usize, usize, u64)) {
    // What belonged to the last one may be closed a moment later; forty would leave forty of a kind.
    assert!(after.0 < before.0 + 10, "threads of the {who}: {} after {}", after.0, before.0);
    assert!(after.1 < before.1 + 10, "descriptors of the {who}: {} after {}", after.1, before.1);
    assert!(after.2 < before.2 + 1024, "{who} has grown from {} to {} KiB", before.2, after.2);
}

#[test]
fn many_execs_at_once_and_in_a_row_say_what_they_should_and_leave_nothing() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, FOREVER);
    let container = Container::started(&kata, &bundle, "many");
    let one = |number: usize| {
        let script =
            format!("read line; echo $line {number}; echo e{number} >&2; exit {}", number % 200);
        let done = container.exec(&["sh", "-c", &script], b"in\n");
        assert_eq!(done.stdout(), format!("in {number}\n"), "{}", done.stderr());
        assert_eq!(done.stderr(), format!("e{number}\n"));
        assert_eq!(done.code, i32::try_from(number % 200).unwrap());
    };
    let at_once = || {
        std::thread::scope(|scope| {
            for number in 0..20 {
                scope.spawn(move || one(number));
            }
        });
    };
    let shim = kata.host_pid(&container.id, "shimPid");
    // Twice: what the first time makes room for, the second time uses.
    at_once();
    one(0);
    let proxy = kata.host_pid(&container.id, "proxyPid");
    let (before, before_proxy, before_guest) =
        (usage(shim), usage(proxy), usage_of_guest(&container));
    at_once();
    for number in 0..kata_guest_tests::repetitions(200) {
        one(number);
    }
    assert_no_growth("shim", before, usage(shim));
    assert_no_growth("proxy", before_proxy, usage(proxy));
    let (files, tasks, memory) = usage_of_guest(&container);
    assert!(files < before_guest.0 + 20, "open files of the guest: {files} after {before_guest:?}");
    assert!(tasks < before_guest.1 + 10, "tasks of the guest: {tasks} after {before_guest:?}");
    assert!(memory < before_guest.2 + 4096, "KiB in the guest: {memory} after {before_guest:?}");
    let left = container.exec(&["sh", "-c", "ls -d /proc/[0-9]* | wc -l"], b"");
    // The container's own, and the three that ask.
    assert!(left.stdout().trim().parse::<u32>().unwrap() <= 4, "{}", left.stdout());
}

fn assert_not_found(refused: &Output) {
    assert_ne!(refused.code, 0);
    let said = refused.stderr();
    let words = ["no such file or directory", "not a directory"];
    assert!(words.iter().any(|words| said.contains(words)), "{said}");
}

/// By its descriptors a process that is about to execute its program could reach the guest's own files: execve looks the program up,
/// and its interpreter, before it closes anything.
#[test]
fn a_program_is_looked_up_with_nothing_open_that_leads_out() {
    let Some(kata) = Kata::installed() else { return };
    let Some(root) = busybox() else { return };
    let bundle = Bundle::new(&kata, root, FOREVER);
    let container = Container::started(&kata, &bundle, "lookup");
    let outside = |number: u32| {
        let up = "../".repeat(8);
        format!("/proc/self/fd/{number}/{up}run/kata/roots/{}/bin/busybox", container.id)
    };
    for number in 3..=20 {
        let program = outside(number);
        let name = format!("/script-{number}");
        let write = format!("printf '#!{program} sh\necho out\n' > {name}; chmod 755 {name}");
        let done = container.exec(&["sh", "-c", &write], b"");
        assert_eq!(done.code, 0, "{}", done.stderr());
        for command in [&[&program, "true"][..], &[&name]] {
            let refused = container.exec(command, b"");
            assert_eq!(refused.stdout(), "");
            assert_not_found(&refused);
        }
    }
}

/// The same of the first process, whose program the host looks up before there is a guest: its interpreter it does not.
#[test]
fn the_first_program_has_no_interpreter_outside() {
    let Some(kata) = Kata::installed() else { return };
    for number in [3, 4, 5] {
        let Some(root) = busybox() else { return };
        let id = kata_guest_tests::unique("lookup");
        let up = "../".repeat(8);
        let program = format!("/proc/self/fd/{number}/{up}run/kata/roots/{id}/bin/busybox");
        let script = root.file("/script");
        fs::write(&script, format!("#!{program} sh\necho out\n")).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let bundle = Bundle::new(&kata, root, &["/script"]);
        let refused = kata.call(&["run", "--bundle", bundle.path(), &id]);
        assert_eq!(refused.stdout(), "");
        assert_not_found(&refused);
    }
}

/// Of each process the agent holds some descriptors, as long as it runs.
#[test]
fn as_many_processes_run_at_once_as_are_asked_for() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, FOREVER);
    let container = Container::started(&kata, &bundle, "crowd");
    let script = "ulimit -Sn; ulimit -Hn; read line; echo $line";
    let running: Vec<Running> = (0..kata_guest_tests::repetitions(160))
        .map(|_| Running::start(exec(&kata, &[], (&container, &["sh", "-c", script]))))
        .collect();
    for (number, mut process) in running.into_iter().enumerate() {
        process.write(b"in\n");
        let done = process.finish();
        let said = (done.code, done.stdout());
        assert_eq!(said, (0, "1024\n524288\nin\n".to_owned()), "{number}: {}", done.stderr());
    }
}

/// A key that one process of a container keeps is there for the others, and the runtime's session for none.
#[test]
fn processes_that_are_added_have_the_containers_keyring() {
    const SESSION: &str = "import ctypes; libc = ctypes.CDLL(None); \
        print(libc.syscall(250, 0, ctypes.c_long(-3), 0, 0, 0))";
    let Some(kata) = Kata::installed() else { return };
    for (runtime, mapped) in [(&Kata::oracle(), false), (&kata, false), (&kata, true)] {
        let Some(root) = debian() else { return };
        let script = format!("python3 -c '{SESSION}'; exec sleep 1000");
        let mut bundle = Bundle::new(&kata, root, &["sh", "-c", &script]);
        if mapped {
            map_ids(&mut bundle.config);
        }
        bundle.write();
        let container = Container::started(runtime, &bundle, "keyring");
        let first = container.stdout.until_has("\n");
        for options in [&[][..], &["--user", "5:5"]] {
            let added = run(exec(runtime, options, (&container, &["python3", "-c", SESSION])), b"");
            assert_eq!(added.code, 0, "{}", added.stderr());
            assert_eq!(added.stdout(), first, "{options:?} {:?} {mapped}", runtime.program());
        }
    }
}
