//! What is claimed, one function each.

use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use kata_sys::signal_number::SignalNumber;

/// A prefix with the real command line, a bundle, and an empty state directory.
struct Host {
    scratch: tempfile::TempDir,
}

impl Host {
    fn new(arguments: &[&str]) -> Self {
        let host = Self { scratch: tempfile::tempdir().unwrap() };
        let runtime = Path::new(env!("CARGO_BIN_EXE_kata-runtime"));
        let this = env::current_exe().unwrap();
        for (from, to) in [
            (runtime, "p/bin/kata-runtime"),
            (&this, "p/bin/containerd-shim-kata-v2"),
            (&this, "p/libexec/kata/kata-monitor"),
            (&this, "b/rootfs/program"),
        ] {
            let to = host.path(to);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::hard_link(from, &to).or_else(|_| fs::copy(from, &to).map(drop)).unwrap();
        }
        assert_eq!(host.run(&["spec", "--bundle", "b"]).0, 0);
        let text = fs::read(host.path("b/config.json")).unwrap();
        let mut spec: serde_json::Value = serde_json::from_slice(&text).unwrap();
        spec["process"]["terminal"] = false.into();
        spec["process"]["args"] = arguments.into();
        fs::write(host.path("b/config.json"), spec.to_string()).unwrap();
        host
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.scratch.path().join(relative)
    }

    fn mood(self, mood: &str) -> Self {
        fs::write(self.path("p/mood"), mood).unwrap();
        self
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.path("p/bin/kata-runtime"));
        command.arg("--root").arg(self.path("root")).args(words);
        command.current_dir(self.scratch.path());
        // Files: a container that lives on would keep pipes open, and whoever reads them waiting.
        let file = |name: &str| File::create(self.path(name)).unwrap();
        command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err"));
        command
    }

    fn run(&self, words: &[&str]) -> (i32, String) {
        let status = self.command(words).status().unwrap();
        (status.code().unwrap(), fs::read_to_string(self.path("out")).unwrap())
    }

    /// Exit code and what was complained.
    fn told(&self, words: &[&str]) -> (i32, String) {
        let (code, _) = self.run(words);
        (code, fs::read_to_string(self.path("err")).unwrap())
    }

    fn spawn(&self, words: &[&str]) -> Child {
        self.command(words).spawn().unwrap()
    }

    fn status(&self, id: &str) -> Option<String> {
        let (_, text) = self.run(&["state", id]);
        let state: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(state["status"].as_str().unwrap().to_owned())
    }

    /// No state is left, and no process whose program is in our prefix. A monitor that nobody waits for may still be ending.
    fn assert_nothing_is_left(&self) {
        assert_eq!(fs::read_dir(self.path("root")).map(Iterator::count).unwrap_or_default(), 0);
        let left = (0..100).find_map(|_| {
            let left = self.programs();
            if left.is_empty() {
                return Some(());
            }
            thread::sleep(Duration::from_millis(20));
            None
        });
        assert!(left.is_some(), "{:?} are left", self.programs());
    }

    /// Those of our prefix that run.
    fn programs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir("/proc").unwrap();
        let programs =
            entries.filter_map(|entry| fs::read_link(entry.unwrap().path().join("exe")).ok());
        programs.filter(|program| program.starts_with(self.scratch.path())).collect()
    }
}

/// Waits for what comes within moments; the bound only catches what never does.
fn until(mut holds: impl FnMut() -> bool) {
    assert!((0..1000).any(|_| {
        thread::sleep(Duration::from_millis(10));
        holds()
    }));
}

pub fn all() -> ExitCode {
    let claims: &[(&str, fn())] = &[
        ("the_exit_code_of_run_is_the_command_s", the_exit_code_of_run_is_the_command_s),
        ("a_signal_to_run_reaches_the_container", a_signal_to_run_reaches_the_container),
        ("a_container_lives_from_create_to_delete", a_container_lives_from_create_to_delete),
        ("a_refused_create_leaves_nothing", a_refused_create_leaves_nothing),
        ("a_shim_that_dies_leaves_nothing", a_shim_that_dies_leaves_nothing),
        ("a_pid_file_that_cannot_be_written_undoes_the_create", unwritable_pid_file),
        ("a_start_that_fails_leaves_nothing_of_run", a_start_that_fails_leaves_nothing_of_run),
        ("force_deletes_what_runs", force_deletes_what_runs),
        ("events_end_with_their_reader", events_end_with_their_reader),
        ("a_container_that_is_being_created_has_not_stopped", being_created),
        ("a_create_that_fails_late_spares_the_next_of_its_id", spares_the_next),
        ("the_log_has_what_the_parser_finds", the_log_has_what_the_parser_finds),
        ("without_a_log_the_lines_of_json_are_on_stderr", json_on_stderr),
    ];
    for (name, claim) in claims {
        claim();
        println!("{name} ... ok");
    }
    ExitCode::SUCCESS
}

fn the_exit_code_of_run_is_the_command_s() {
    for code in ["0", "1", "42", "255"] {
        let host = Host::new(&["/program", "exit", code]);
        assert_eq!(host.told(&["run", "-b", "b", "c1"]), (code.parse().unwrap(), String::new()));
        host.assert_nothing_is_left();
    }
}

fn a_signal_to_run_reaches_the_container() {
    // Those that end a program: TERM, ABRT, ALRM, XCPU, VTALRM, PWR, and the last two that have no name.
    for signal in [15, 6, 14, 24, 26, 30, 37, 64] {
        let host = Host::new(&["/program", "wait"]);
        let mut run = host.spawn(&["run", "-b", "b", "c1"]);
        // Each round is a whole program; the bound only catches a container that never runs.
        assert!((0..1000).any(|_| host.status("c1").as_deref() == Some("running")));
        let pid = rustix::process::Pid::from_child(&run);
        SignalNumber::parse(signal).unwrap().send_to(pid).unwrap();
        assert_eq!(run.wait().unwrap().code(), Some(128 + i32::try_from(signal).unwrap()));
        host.assert_nothing_is_left();
    }
}

fn a_container_lives_from_create_to_delete() {
    let host = Host::new(&["/program", "wait"]);
    assert_eq!(host.told(&["create", "-b", "b", "--pid-file", "pid", "c1"]), (0, String::new()));
    let pid = fs::read_to_string(host.path("pid")).unwrap();
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(program, host.path("p/libexec/kata/kata-monitor").canonicalize().unwrap());
    assert_eq!(host.status("c1").as_deref(), Some("created"));

    let (code, complaint) = host.told(&["create", "-b", "b", "c1"]);
    assert!(
        code == 1 && complaint.contains("container with given ID already exists"),
        "{complaint}"
    );
    assert_eq!(host.told(&["start", "c1"]), (0, String::new()));
    assert_eq!(host.status("c1").as_deref(), Some("running"));
    let (code, complaint) = host.told(&["delete", "c1"]);
    let words = "cannot delete container c1 that is not stopped: running";
    assert!(code == 1 && complaint.contains(words), "{complaint}");
    assert_eq!(host.run(&["list", "-q"]), (0, "c1\n".to_owned()));
    assert_eq!(host.told(&["kill", "c1", "KILL"]), (0, String::new()));
    let (code, complaint) = host.told(&["kill", "c1", "15"]);
    assert!(code == 1 && complaint.contains("container not running"), "{complaint}");
    assert_eq!(host.told(&["delete", "c1"]), (0, String::new()));
    assert_eq!(host.told(&["delete", "c1"]).0, 1);
    assert_eq!(host.told(&["delete", "--force", "c1"]), (0, String::new()));
    host.assert_nothing_is_left();
}

fn a_refused_create_leaves_nothing() {
    let host = Host::new(&["/program"]).mood("refuses");
    let (code, complaint) = host.told(&["create", "-b", "b", "c1"]);
    assert_eq!(
        (code, complaint.as_str()),
        (126, "kata-runtime: create: exec: \"x\": permission denied\n")
    );
    host.assert_nothing_is_left();
}

fn a_shim_that_dies_leaves_nothing() {
    let host = Host::new(&["/program"]).mood("dies");
    let (code, complaint) = host.told(&["create", "-b", "b", "c1"]);
    assert!(code == 1 && complaint.contains("the shim ended without an answer"), "{complaint}");
    host.assert_nothing_is_left();
}

fn unwritable_pid_file() {
    let host = Host::new(&["/program", "wait"]);
    let (code, complaint) =
        host.told(&["create", "-b", "b", "--pid-file", "no/such/dir/pid", "c1"]);
    assert!(code == 1 && complaint.contains("no/such/dir/pid"), "{complaint}");
    host.assert_nothing_is_left();
}

fn a_start_that_fails_leaves_nothing_of_run() {
    let host = Host::new(&["/program", "fail"]);
    let (code, complaint) = host.told(&["run", "-b", "b", "c1"]);
    assert!(code == 127 && complaint.contains("executable file not found in $PATH"), "{complaint}");
    host.assert_nothing_is_left();
}

fn force_deletes_what_runs() {
    let host = Host::new(&["/program", "wait"]);
    assert_eq!(host.told(&["run", "-d", "-b", "b", "c1"]), (0, String::new()));
    assert_eq!(host.status("c1").as_deref(), Some("running"));
    assert_eq!(host.told(&["delete", "--force", "c1"]), (0, String::new()));
    host.assert_nothing_is_left();
}

fn events_end_with_their_reader() {
    let host = Host::new(&["/program", "wait"]);
    assert_eq!(host.told(&["run", "-d", "-b", "b", "c1"]), (0, String::new()));
    let mut events = host.command(&["events", "--interval", "50ms", "c1"]);
    let mut events = events.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(events.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains(r#""type":"stats""#), "{line}");
    // The next one has nobody to go to.
    let ended = (0..200).find_map(|_| {
        thread::sleep(Duration::from_millis(50));
        events.try_wait().unwrap()
    });
    events.kill().ok();
    assert_eq!(ended.map(|status| status.code()), Some(Some(0)));
    assert_eq!(host.told(&["delete", "--force", "c1"]), (0, String::new()));
    host.assert_nothing_is_left();
}

fn being_created() {
    let host = Host::new(&["/program", "wait"]).mood("waits");
    let mut create = host.spawn(&["create", "-b", "b", "c1"]);
    let words = "container not running: c1 is still being created";
    until(|| host.told(&["state", "c1"]).1.contains(words));
    for line in [&["state", "c1"][..], &["ps", "c1"], &["exec", "c1", "true"]] {
        let (_, complaint) = host.told(line);
        assert!(complaint.contains(words), "{complaint}");
    }
    assert_eq!(host.run(&["list", "--format", "json"]), (0, "[]\n".to_owned()));
    assert!(fs::read_to_string(host.path("err")).unwrap().contains(words));
    fs::write(host.path("p/mood"), "").unwrap();
    assert!(create.wait().unwrap().success());
    assert_eq!(host.status("c1").as_deref(), Some("created"));
    assert_eq!(host.told(&["delete", "--force", "c1"]), (0, String::new()));
    host.assert_nothing_is_left();
}

fn spares_the_next() {
    let host = Host::new(&["/program", "wait"]);
    let text = fs::read(host.path("b/config.json")).unwrap();
    let mut spec: serde_json::Value = serde_json::from_slice(&text).unwrap();
    spec["root"]["path"] = host.path("b/rootfs").to_str().unwrap().into();
    fs::create_dir(host.path("b2")).unwrap();
    fs::write(host.path("b2/config.json"), spec.to_string()).unwrap();
    let [hooked, go] = ["hooked", "go"].map(|name| host.path(name));
    let script = format!(
        ">{}; until [ -e {} ]; do sleep 0.05; done; exit 1",
        hooked.display(),
        go.display()
    );
    spec["hooks"]["createRuntime"] =
        serde_json::json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }]);
    fs::write(host.path("b/config.json"), spec.to_string()).unwrap();

    let mut create = host.spawn(&["create", "-b", "b", "c1"]);
    until(|| hooked.exists());
    // As a delete that does not wait for the hook.
    fs::remove_dir_all(host.path("root/c1")).unwrap();
    assert_eq!(host.told(&["create", "-b", "b2", "c1"]), (0, String::new()));
    fs::write(host.path("root/c1/ledger"), "").unwrap();
    fs::write(go, "").unwrap();
    assert_eq!(create.wait().unwrap().code(), Some(1));
    assert_eq!(host.status("c1").as_deref(), Some("created"));
    assert_eq!(host.told(&["delete", "--force", "c1"]), (0, String::new()));
    host.assert_nothing_is_left();
}

fn the_log_has_what_the_parser_finds() {
    let host = Host::new(&["/program"]);
    for words in [&["state", "a/b"][..], &["strat", "c1"], &["--nosuch", "list"]] {
        let mut line = vec!["--log", "log", "--log-format", "json"];
        line.extend(words);
        let (code, complaint) = host.told(&line);
        let text = fs::read_to_string(host.path("log")).unwrap();
        let logged: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((code, &logged["level"]), (1, &"error".into()));
        assert_eq!(complaint, format!("kata-runtime: {}\n", logged["msg"].as_str().unwrap()));
        fs::remove_file(host.path("log")).unwrap();
    }
}

fn json_on_stderr() {
    let host = Host::new(&["/program"]);
    for words in [&["state", "c1"][..], &["state", "a/b"], &["--log", "no/such/dir/log", "list"]] {
        let mut line = vec!["--log-format", "json"];
        line.extend(words);
        let (code, complaint) = host.told(&line);
        let told: serde_json::Value = serde_json::from_str(&complaint).unwrap();
        assert_eq!((code, &told["level"]), (1, &"error".into()), "{complaint}");
        assert_eq!(complaint.lines().count(), 1);
    }
}
