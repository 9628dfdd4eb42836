//! docker, as Debian has it: dockerd starts a containerd of its own.

use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader},
    os::fd::AsFd,
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use kata_guest_tests::ceiling;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, kill_process, pidfd_open,
        set_child_subreaper, waitid,
    },
};
use serde_json::json;

use crate::{Engine, Kind, Netns, engine::installed, scratch::scratch};

/// What dockerd logs when it can be asked.
const READY: &str = "API listen on";

/// docker with a store of its own, the runtimes `kata` and `runc`, and the image `busybox`; `None`, after a word on why,
/// where it can't be had.
pub fn docker() -> Option<Engine> {
    let kata = installed(&["docker", "dockerd", "containerd", "runc"])?;
    start(kata, None)
}

/// The same, of a later Debian: docker 26, with compose.
pub fn docker_26() -> Option<Engine> {
    start(installed(&["runc"])?, Some(programs_of_26()?))
}

/// The same, which starts Kata's own shim where it otherwise has runc's call `kata-runtime`.
pub fn docker_26_with_shim() -> Option<Engine> {
    let kata = installed(&["runc"])?;
    start(kata.with_file_name("containerd-shim-kata-v2"), Some(programs_of_26()?))
}

fn programs_of_26() -> Option<PathBuf> {
    let programs = env::var_os("KATA_TEST_DOCKER");
    if programs.is_none() {
        println!("SKIP KATA_TEST_DOCKER is not set; run cargo xtask test");
    }
    programs.map(PathBuf::from)
}

fn start(kata: PathBuf, programs: Option<PathBuf>) -> Option<Engine> {
    let called = if kata.ends_with("kata-runtime") { "path" } else { "runtimeType" };
    let scratch = scratch();
    let at = |name: &str| scratch.path().join(name).display().to_string();
    fs::create_dir_all(at("home/.docker")).unwrap();
    let mut configuration = json!({
        "data-root": at("data"), "exec-root": at("exec"), "pidfile": at("pid"),
        "hosts": [format!("unix://{}", at("d.sock"))], "group": "root", "storage-driver": "overlay2",
        "bip": "10.92.0.1/16", "live-restore": true, "shutdown-timeout": 5,
        "runtimes": {"kata": {called: &kata}},
    });
    if let Some(programs) = &programs {
        configuration["init-path"] = json!(programs.join("tini-static"));
        let plugins = json!({"cliPluginsExtraDirs": [programs]});
        fs::write(at("home/.docker/config.json"), plugins.to_string()).unwrap();
    }
    fs::write(at("daemon.json"), configuration.to_string()).unwrap();
    let (kind, netns) = (Kind::Docker, Netns::new());
    let mut engine = Engine { kind, scratch, netns, kata, daemon: None, programs, names: true };
    engine.start_daemon(&[]);
    engine.import()?;
    Some(engine)
}

impl Engine {
    /// Starts dockerd, with options, and waits until it says that it answers.
    pub fn start_daemon(&mut self, options: &[&str]) {
        let mut command = self.program("dockerd");
        command.arg("--config-file").arg(self.scratch().join("daemon.json")).args(options);
        let log = self.scratch().join("log");
        let mut daemon = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(daemon.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        let ready = lines.by_ref().map_while(Result::ok).any(|line| {
            let ready = line.contains(READY);
            said.push(line);
            ready
        });
        assert!(ready, "dockerd ended: {said:#?}");
        // Somebody has to read what it goes on to say.
        std::thread::spawn(move || {
            let mut log = File::create(log).unwrap();
            for line in lines.map_while(Result::ok) {
                std::io::Write::write_all(&mut log, format!("{line}\n").as_bytes()).ok();
            }
        });
        self.daemon = Some(daemon);
    }

    /// Ends dockerd as an administrator does.
    pub fn stop_daemon(&mut self) {
        let daemon = self.daemon();
        kill_process(Pid::from_child(daemon), Signal::TERM).unwrap();
        daemon.wait().unwrap();
    }

    /// SIGKILL for dockerd, and a new one. Its containerd dies with it, and somebody has to reap that: this process, for good.
    pub fn crash_daemon(&mut self) {
        set_child_subreaper(Some(getpid())).unwrap();
        let file = self.scratch().join("exec/containerd/containerd.pid");
        let pid = fs::read_to_string(file).unwrap().trim().parse().unwrap();
        let containerd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        let daemon = self.daemon();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        let timeout = Timespec::try_from(ceiling(Duration::from_secs(60))).unwrap();
        let dead = poll(&mut [PollFd::new(&containerd, PollFlags::IN)], Some(&timeout)).unwrap();
        assert_ne!(dead, 0, "containerd {pid} outlives dockerd");
        // Before this process took such children it may have become somebody else's.
        let reaped = waitid(WaitId::PidFd(containerd.as_fd()), WaitIdOptions::EXITED);
        assert!(matches!(reaped, Ok(_) | Err(Errno::CHILD)), "{reaped:?}");
        self.start_daemon(&[]);
    }

    /// The running daemon.
    pub fn daemon(&mut self) -> &mut Child {
        self.daemon.as_mut().expect("docker() has started it")
    }
}
