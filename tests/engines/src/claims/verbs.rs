//! The verbs that people need less often, and what an engine does by itself when a container ends.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use kata_guest_tests::ceiling;

use super::{BOTH, the_same};
use crate::{Engine, Life, Runtime};

/// Rename, port, export, stats, top, and the ways of exec that wait for nothing or have a terminal.
pub fn verbs_say_what_they_say_with_runc(engine: &Engine) {
    the_same(engine, |engine, runtime| {
        let port = if runtime == Runtime::Kata { "18181:80" } else { "18180:80" };
        let mut life = Life::new(engine, runtime, "verbs");
        let _follow = life.serve(&["-p", port]);
        let (name, other) = (life.name().to_owned(), format!("other-{}", life.name()));
        engine.ok(&["rename", &name, &other]);
        assert_eq!(engine.ok(&["exec", &other, "echo", "renamed"]), "renamed");
        engine.ok(&["rename", &other, &name]);
        let ports = engine.ok(&["port", &name]).replace(&port[..5], "PORT");
        exported(engine, &name);
        numbers_are_told(engine, &name);
        life.ask(&["exec", "-d"], &["sh", "-c", "echo detached > /tmp/detached"]);
        let script = "until [ -s /tmp/detached ]; do sleep 0.1; done; cat /tmp/detached";
        life.ask(&["exec"], &["timeout", "60", "sh", "-c", script]);
        let mut terminal = life.at_terminal("exec", &["-it", &name, "sh"]);
        terminal.screen.until_has("# ");
        terminal.type_in("test -t 0 && echo term''inal; exit 9\r");
        terminal.screen.until_has("terminal");
        assert_eq!(terminal.wait(), 9, "{runtime:?}");
        life.ask(&["rm", "-f"], &[]);
        format!("{}{ports}", life.transcript())
    });
}

/// The archive has what the container has written.
fn exported(engine: &Engine, name: &str) {
    let archive = engine.scratch().join(format!("{name}.tar"));
    let mut export = engine.command(&["export", name]);
    export.stdout(Stdio::from(fs::File::create(&archive).unwrap()));
    assert!(export.status().unwrap().success());
    let taken = Command::new("tar")
        .args(["-xO", "--wildcards", "-f"])
        .arg(&archive)
        .arg("*www/index.html")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&taken.stdout), "page\n", "{taken:?}");
}

/// Engines read the host's groups and processes: what is there is the process that stands for the container.
fn numbers_are_told(engine: &Engine, name: &str) {
    let used = engine.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}}", name]);
    assert!(!used.starts_with("0B"), "{used}");
    let top = engine.ok(&["top", name]);
    assert!(top.lines().count() > 1, "{top}");
}

/// What ends with an error is started again as often as was said; what is stopped stays so.
pub fn restart_policies_are_kept(engine: &Engine) {
    for runtime in BOTH {
        let life = Life::new(engine, runtime, "again");
        let failing = "echo begun; exit 3";
        let words = ["-d", "--name", life.name(), "--network", "none", "--restart", "on-failure:2"];
        let run = engine.run(runtime, &[&words[..], &["busybox", "sh", "-c", failing]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr());
        let state = ".RestartCount}} {{.State.Status}} {{.State.ExitCode";
        let deadline = Instant::now() + ceiling(Duration::from_secs(60));
        while life.field(state) != "2 exited 3" {
            assert!(Instant::now() < deadline, "{runtime:?}: {}", life.field(state));
            thread::sleep(Duration::from_millis(50));
        }
        let logs = engine.ok(&["logs", life.name()]);
        assert_eq!(logs.lines().collect::<Vec<_>>(), ["begun"; 3], "{runtime:?}");
        engine.ok(&["rm", "-f", life.name()]);
        let mut life = Life::new(engine, runtime, "always");
        let _follow = life.serve(&["--network", "none", "--restart", "always"]);
        engine.ok(&["stop", "-t", "30", life.name()]);
        assert_eq!(life.field(".State.Status}} {{.State.ExitCode"), "exited 3", "{runtime:?}");
        engine.ok(&["start", life.name()]);
        let pid = life.field(".State.Pid");
        let deadline = Instant::now() + ceiling(Duration::from_secs(60));
        // By itself, not by the user.
        engine.call(&["exec", life.name(), "kill", "1"]);
        while matches!(life.field(".State.Pid"), now if now == pid || now == "0") {
            assert!(Instant::now() < deadline, "{runtime:?}: it is not started again");
            thread::sleep(Duration::from_millis(50));
        }
        engine.ok(&["rm", "-f", life.name()]);
    }
}
