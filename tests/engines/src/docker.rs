//! docker, as Debian has it: dockerd starts a containerd of its own.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use serde_json::json;

use crate::{Engine, Kind, Netns, engine::installed, scratch::scratch};

/// What dockerd logs when it can be asked.
const READY: &str = "API listen on";

/// docker with a store of its own, the runtimes `kata` and `runc`, and the image `busybox`; `None`, after a word on why,
/// where it can't be had.
pub fn docker() -> Option<Engine> {
    let kata = installed(&["docker", "dockerd", "containerd", "runc"])?;
    let scratch = scratch();
    let at = |name: &str| scratch.path().join(name).display().to_string();
    fs::create_dir(at("home")).unwrap();
    let configuration = json!({
        "data-root": at("data"), "exec-root": at("exec"), "pidfile": at("pid"),
        "hosts": [format!("unix://{}", at("d.sock"))], "group": "root", "storage-driver": "overlay2",
        "bip": "10.92.0.1/16", "live-restore": true, "shutdown-timeout": 5,
        "runtimes": {"kata": {"path": kata}},
    });
    fs::write(at("daemon.json"), configuration.to_string()).unwrap();
    let mut engine = Engine { kind: Kind::Docker, scratch, netns: Netns::new(), daemon: None };
    engine.start_daemon();
    engine.import()?;
    Some(engine)
}

impl Engine {
    /// Starts dockerd and waits until it says that it answers.
    pub fn start_daemon(&mut self) {
        let mut command = self.beside("dockerd");
        command.arg("--config-file").arg(self.scratch().join("daemon.json"));
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

    /// The running daemon.
    pub fn daemon(&mut self) -> &mut Child {
        self.daemon.as_mut().expect("docker() has started it")
    }
}
