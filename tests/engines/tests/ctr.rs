//! Tasks by `ctr`, below every containerd that this machine has. Each claim holds for runc too, which tests the test.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    thread,
    time::{Duration, Instant},
};

use kata_engine_tests::containerd::{BUSYBOX, Containerd, KATA, RUNC, Release};
use kata_guest_tests::{Output, Terminal, busybox, run};
use rustix::process::Signal;
use serde_json::{Value, json};

fn everywhere(claim: impl Fn(&Containerd, &str)) {
    on(Release::installed().into_iter().chain(Release::later()), claim);
}

fn on(releases: impl IntoIterator<Item = Release>, claim: impl Fn(&Containerd, &str)) {
    for release in releases {
        println!("containerd of {}", release.directory().display());
        let Some(engine) = Containerd::start_release(release) else { return };
        for (_, runtime) in [RUNC, KATA] {
            claim(&engine, runtime);
        }
    }
}

/// `ctr` with these words, to its end.
fn ctr(engine: &Containerd, words: &[&str]) -> Output {
    run(engine.ctr(words), b"")
}

fn ok(engine: &Containerd, words: &[&str]) -> String {
    let output = ctr(engine, words);
    assert_eq!(output.code, 0, "{words:?}: {}", output.stderr());
    output.stdout()
}

/// The column of a task's state.
fn state(engine: &Containerd, id: &str) -> String {
    let list = ok(engine, &["task", "ls"]);
    let line = list.lines().find(|line| line.starts_with(&format!("{id} ")));
    line.unwrap_or_default().split_whitespace().last().unwrap_or_default().to_owned()
}

fn stopped(engine: &Containerd, id: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while state(engine, id) != "STOPPED" {
        assert!(Instant::now() < deadline, "{}", state(engine, id));
    }
}

#[test]
fn a_task_lives_by_every_verb() {
    everywhere(|engine, runtime| {
        let script = "trap 'exit 5' TERM; touch /tmp/ready; while :; do sleep 0.1; done";
        ok(engine, &["run", "-d", "--runtime", runtime, BUSYBOX, "t", "sh", "-c", script]);
        assert_eq!(state(engine, "t"), "RUNNING");
        let exec = |id: &str, script: &str| {
            ctr(engine, &["task", "exec", "--exec-id", id, "t", "sh", "-c", script])
        };
        exec("wait", "until [ -e /tmp/ready ]; do sleep 0.05; done");
        let more = exec("e", "echo out; echo err >&2; exit 3");
        assert_eq!((more.code, more.stdout(), more.stderr()), (3, "out\n".into(), "err\n".into()));
        let processes = ok(engine, &["task", "ps", "t"]);
        assert!(processes.lines().count() > 1, "{processes}");
        let metrics = ok(engine, &["task", "metrics", "t"]);
        assert!(metrics.contains("memory.usage"), "{metrics}");
        ok(engine, &["task", "pause", "t"]);
        assert_eq!(state(engine, "t"), "PAUSED");
        ok(engine, &["task", "resume", "t"]);
        assert_eq!(state(engine, "t"), "RUNNING");
        ok(engine, &["task", "kill", "-s", "TERM", "t"]);
        stopped(engine, "t");
        assert_ne!(ctr(engine, &["task", "kill", "t"]).code, 0);
        // Some tell the task's code by their own.
        ctr(engine, &["task", "delete", "t"]);
        assert_eq!(state(engine, "t"), "");
        ok(engine, &["container", "delete", "t"]);
    });
}

#[test]
fn a_run_has_its_input_its_output_and_its_code() {
    everywhere(|engine, runtime| {
        let script = "read line; echo \"$line\"; echo err >&2; exit 7";
        let words = ["run", "--rm", "--runtime", runtime, BUSYBOX, "r", "sh", "-c", script];
        let done = run(engine.ctr(&words), b"through and through\n");
        let said = (done.code, done.stdout(), done.stderr());
        assert_eq!(said, (7, "through and through\n".into(), "err\n".into()));
        let mut terminal = Terminal::open();
        let words = ["run", "--rm", "-t", "--runtime", runtime, BUSYBOX, "s", "sh"];
        terminal.start(&engine.ctr(&words));
        terminal.screen.until("a prompt", |text| text.contains("# "));
        terminal.resize(33, 111);
        terminal.type_in("until [ \"$(stty size)\" = '33 111' ]; do :; done; echo re''sized\n");
        let deadline = Instant::now() + Duration::from_secs(60);
        while !terminal.screen.text().contains("resized") {
            // ctr begins to follow the size some time after the task has begun to write.
            terminal.signal(Signal::WINCH);
            assert!(Instant::now() < deadline, "{}", terminal.screen.text());
            thread::sleep(Duration::from_millis(50));
        }
        terminal.type_in("exit 4\n");
        assert_eq!(terminal.wait(), 4);
    });
}

#[test]
fn output_goes_to_a_file_or_to_a_program() {
    on(Release::installed(), |engine, runtime| {
        let (file, log, program) =
            (engine.file("own/file"), engine.file("taken"), engine.file("taker"));
        // Its environment has no PATH. What it has written is there in one step.
        let script = format!(
            "#!/bin/sh\ntrap '' TERM\nexec 5>&-\n{{ echo $CONTAINER_NAMESPACE/$CONTAINER_ID $1; /bin/cat <&3; /bin/cat <&4; }} > {0}.new\n\
             /bin/mv {0}.new {0}\n",
            log.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let program = format!("binary://{}?to=x", program.display());
        let expected = [
            // Two streams would write over each other, below runc's shim.
            (format!("file://{}", file.display()), &file, "echo out", "out"),
            (program, &log, "echo out; echo err >&2", "default/l err out to"),
        ];
        for (uri, file, script, expected) in expected {
            fs::remove_file(file).ok();
            let words = ["run", "-d", "--log-uri", &uri, "--runtime", runtime, BUSYBOX, "l"];
            ok(engine, &[&words[..], &["sh", "-c", script]].concat());
            stopped(engine, "l");
            // runc's shim lets a program go with the task, and tells it to by a signal.
            ok(engine, &["task", "delete", "l"]);
            ok(engine, &["container", "delete", "l"]);
            let deadline = Instant::now() + Duration::from_secs(30);
            loop {
                let text = fs::read_to_string(file).unwrap_or_default();
                let mut words: Vec<&str> = text.split_whitespace().collect();
                // Two streams have no order between them.
                words.sort_unstable();
                if words.join(" ") == expected {
                    break;
                }
                assert!(Instant::now() < deadline, "{runtime} {uri}: {text:?}");
                thread::sleep(Duration::from_millis(20));
            }
        }
    });
}

/// The kinds of hooks that run on the host, in their order.
const HOOKS: [&str; 5] = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];

/// A hook that is a shell script; `$pid` is what it is told.
fn hook(script: &str) -> Value {
    let script = format!("pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/;t;s/.*//'); {script}");
    let path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": [path]}])
}

#[test]
fn hooks_run_on_the_host_around_a_task() {
    // The engine only passes them on.
    on(Release::installed(), |engine, runtime| {
        let Some(root) = busybox() else { return };
        let root = root.path();
        let (log, file) = (engine.file("hooks.log"), engine.file("spec.json"));
        let mut spec: Value = serde_json::from_str(&ok(engine, &["oci", "spec"])).unwrap();
        spec["root"]["path"] = json!(root);
        spec["process"]["args"] = json!(["sh", "-c", "cat /from-hook; exit 6"]);
        spec["process"]["env"] = json!(["PATH=/bin"]);
        // Not the group above those of all others, which would end with it.
        spec["linux"]["cgroupsPath"] = json!("/default/h");
        let mut run = |hooks: Value| {
            spec["hooks"] = hooks;
            fs::write(&file, spec.to_string()).unwrap();
            fs::write(&log, "").unwrap();
            let path = file.to_str().unwrap();
            let done = ctr(engine, &["run", "--rm", "--runtime", runtime, "--config", path, "h"]);
            // Of a container that did not come to run, ctr leaves its own note.
            ctr(engine, &["container", "delete", "h"]);
            done
        };
        let noted = || fs::read_to_string(&log).unwrap();
        let note = |kind: &str| format!("echo {kind} >> {};", log.display());
        let mut hooks = json!({});
        for kind in HOOKS {
            hooks[kind] = hook(&note(kind));
        }
        let network = "[ $(readlink /proc/$pid/ns/net) != $(readlink /proc/self/ns/net) ] &&";
        let given = format!("{} {network} echo given > {root}/from-hook", note("createRuntime"));
        hooks["createRuntime"] = hook(&given);
        // Longer than the connection to a shim is kept that has nothing left to do.
        hooks["poststop"] = hook(&format!("sleep 7; {}", note("poststop")));
        let done = run(hooks.clone());
        assert_eq!((done.code, done.stdout()), (6, "given\n".to_owned()), "{}", done.stderr());
        assert_eq!(noted().lines().collect::<Vec<_>>(), HOOKS);
        hooks["createRuntime"] = hook("echo why >&2; exit 3");
        let refused = run(hooks);
        assert_eq!(refused.code, 1);
        let said = refused.stderr();
        assert!(said.contains("hook #0") && said.contains("why"), "{said}");
        assert!(!noted().contains("createContainer"), "{}", noted());
        assert_eq!(state(engine, "h"), "");
    });
}

#[test]
fn an_engine_may_choose_the_configuration_and_is_told_what_the_runtime_is() {
    let Some(engine) = Containerd::start() else { return };
    let file = engine.file("own.toml");
    let run = |text: &str| {
        fs::write(&file, text).unwrap();
        let path = file.to_str().unwrap();
        let options = ["run", "--rm", "--runtime", KATA.1, "--runtime-config-path", path];
        let done =
            ctr(&engine, &[&options, &[BUSYBOX, "o", "head", "-1", "/proc/meminfo"][..]].concat());
        ctr(&engine, &["container", "delete", "o"]);
        done
    };
    let total = |text: &str| {
        let done = run(text);
        let said = done.stdout();
        let number = said.split_whitespace().nth(1);
        number.unwrap_or_else(|| panic!("{}", done.stderr())).parse::<u64>().unwrap()
    };
    let (small, large) = (total("[vm]\nmemory_mib = 200\n"), total("[vm]\nmemory_mib = 500\n"));
    assert!(small < 200 << 10 && large > 400 << 10, "{small} {large}");
    let wrong = run("[vm]\nmemroy_mib = 200\n");
    assert_eq!(wrong.code, 1);
    assert!(wrong.stderr().contains("memroy_mib"), "{}", wrong.stderr());
    // An older ctr has no such verb.
    let Some(release) = Release::later().pop() else { return };
    let Some(engine) = Containerd::start_release(release) else { return };
    let told = ok(&engine, &["plugins", "inspect-runtime", "--runtime", KATA.1]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["Name"], KATA.1, "{told}");
    assert_eq!(told["Features"]["ociVersionMin"], "1.0.0", "{told}");
}

/// What is attached for a container by the time its create fails is gone with the shim; the files are the user's.
#[test]
fn a_create_that_fails_takes_no_file_of_the_users() {
    let Some(mut engine) = Containerd::start() else { return };
    engine.restart_with(&[("KATA_FAULT", "WriteRecord=fail")]);
    let precious = engine.file("volume").join("deep/precious");
    fs::create_dir_all(precious.parent().unwrap()).unwrap();
    fs::write(&precious, "kept").unwrap();
    let volume = engine.file("volume").display().to_string();
    let mount = format!("type=bind,src={volume},dst=/v,options=rbind:rw");
    let words = ["run", "--rm", "--runtime", KATA.1, "--mount", &mount, BUSYBOX, "f", "true"];
    let failed = ctr(&engine, &words);
    assert_ne!(failed.code, 0);
    assert!(failed.stderr().contains("KATA_FAULT"), "{}", failed.stderr());
    assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");
}
