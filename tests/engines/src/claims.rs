//! What holds for every engine. Each claim is a test in the program of each engine.

mod verbs;

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use kata_guest_tests::{Leftovers, repetitions, run};

use crate::{
    Cases, Engine, Kind, Life, Runtime,
    options::{self, Table},
};

pub use verbs::{restart_policies_are_kept, verbs_say_what_they_say_with_runc};

/// Makes a test of each claim, for one engine.
#[macro_export]
macro_rules! claims_of {
    ($engine:ident: $($claim:ident)*) => { $(
        #[test]
        fn $claim() {
            let Some(engine) = $engine() else { return };
            $crate::claims::$claim(&engine);
        }
    )* };
}

const BOTH: [Runtime; 2] = [Runtime::Runc, Runtime::Kata];

fn the_same(engine: &Engine, live: impl Fn(&Engine, Runtime) -> String) {
    let [runc, kata] = BOTH.map(|runtime| live(engine, runtime));
    assert_eq!(kata, runc, "Kata on the left, runc on the right");
}

/// Output, ports, exec, pause, rename, stop and restart.
pub fn a_server_lives_as_with_runc(engine: &Engine) {
    the_same(engine, |engine, runtime| {
        let port = if runtime == Runtime::Kata { "18081:80" } else { "18080:80" };
        let mut life = Life::new(engine, runtime, "server");
        let follow = life.serve(&["-p", port, "-e", "A=1"]);
        life.fetch(&format!("http://127.0.0.1:{}/", &port[..5]));
        life.ask(
            &["exec", "-e", "B=2", "-w", "/tmp", "-u", "1:2"],
            &["sh", "-c", "echo $A $B $PWD; id; exit 7"],
        );
        life.ask(&["exec"], &["nope"]);
        life.ask(&["exec"], &["/etc/passwd"]);
        life.ask(&["inspect", "-f", "{{.State.Status}} {{.State.Running}}"], &[]);
        life.ask(&["pause"], &[]);
        life.ask(&["inspect", "-f", "{{.State.Status}}"], &[]);
        life.ask(&["unpause"], &[]);
        life.ask(&["exec"], &["echo", "back"]);
        life.ask(&["diff"], &[]);
        life.ask(&["stop", "-t", "30"], &[]);
        life.ask(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}"], &[]);
        let logs = follow.finish();
        assert_eq!(logs.stdout(), "ready\nstopping\n");
        assert_eq!(logs.stderr(), "warned\n");
        life.ask(&["start"], &[]);
        life.ask(&["restart", "-t", "0"], &[]);
        life.ask(&["kill", "-s", "KILL"], &[]);
        life.ask(&["wait"], &[]);
        life.ask(&["kill"], &[]);
        life.ask(&["rm"], &[]);
        life.transcript()
    });
}

/// Files go in and out while it runs, into volumes too, and nothing of the host is touched.
pub fn files_are_copied_while_it_runs(engine: &Engine) {
    let file = engine.scratch().join("copied");
    fs::write(&file, "text\n").unwrap();
    let file = file.to_str().unwrap();
    let volume = engine.scratch().join("volume");
    fs::create_dir_all(&volume).unwrap();
    the_same(engine, |engine, runtime| {
        let mut life = Life::new(engine, runtime, "files");
        let volume = format!("{}:/data/deep", volume.display());
        let _follow = life.serve(&["--network", "none", "--tmpfs", "/memory", "-v", &volume]);
        for place in ["/unheard-of-place", "/data/deep/in-volume"] {
            engine.ok(&["cp", file, &format!("{}:{place}", life.name())]);
            life.ask(&["exec"], &["cat", place]);
            assert!(!fs::exists(place).unwrap(), "{place} is on the host");
        }
        if engine.kind() == Kind::Podman {
            copies_are_seen_or_refused(engine, &mut life, file);
        }
        let out = engine.scratch().join("out");
        let out = out.to_str().unwrap();
        engine.ok(&["cp", &format!("{}:/www/index.html", life.name()), out]);
        assert_eq!(fs::read_to_string(out).unwrap(), "page\n");
        engine.ok(&["cp", &format!("{}:/etc/passwd", life.name()), out]);
        assert_eq!(fs::read_to_string(out).unwrap().lines().count(), 2, "that is the host's");
        let image = format!("committed-{}", runtime.name());
        engine.ok(&["commit", life.name(), &image]);
        let output =
            engine.run(runtime, &["--rm", "--network", "none", &image, "cat", "/www/index.html"]);
        assert_eq!(output.stdout(), "page\n", "{}", output.stderr());
        life.ask(&["rm", "-f"], &[]);
        life.transcript()
    });
}

/// What is replaced while the container is paused is seen by it. podman looks for the places of the container's mounts,
/// which docker does not.
fn copies_are_seen_or_refused(engine: &Engine, life: &mut Life<'_>, file: &str) {
    let copy = |life: &Life<'_>, place: &str| {
        engine.call(&["cp", file, &format!("{}:{place}", life.name())]).code == 0
    };
    // The container knows a directory of that name.
    life.ask(&["exec"], &["sh", "-c", "mkdir -p /place/copied; ls -d /place/copied"]);
    life.ask(&["pause"], &[]);
    engine.ok(&["cp", "--overwrite", file, &format!("{}:/place", life.name())]);
    life.ask(&["unpause"], &[]);
    life.ask(&["exec"], &["cat", "/place/copied"]);
    let copied = copy(life, "/memory/copied");
    let seen = engine.call(&["exec", life.name(), "cat", "/memory/copied"]);
    assert_eq!(copied, seen.code == 0, "{}", seen.stderr());
}

/// Resize, Ctrl-C, the end of a shell.
pub fn a_terminal_is_one(engine: &Engine) {
    for runtime in BOTH {
        let life = Life::new(engine, runtime, "terminal");
        let mut terminal =
            life.at_terminal("run", &["--rm", "-it", "--network", "none", "busybox", "sh"]);
        terminal.screen.until_has("# ");
        // docker's client tells the size that it finds, and only then listens for another one, which is lost in between.
        terminal.type_in("until [ \"$(stty size)\" = '24 80' ]; do :; done; echo fi''rst\r");
        terminal.screen.until_has("first");
        terminal.type_in("echo se''cond\r");
        terminal.screen.until_has("second");
        terminal.resize(33, 111);
        terminal.type_in("until [ \"$(stty size)\" = '33 111' ]; do :; done; echo siz''ed\r");
        terminal.screen.until_has("sized");
        terminal.type_in("sh -c 'echo wait\"\"ing; exec sleep 600'\r");
        // Said by what is in the foreground already, so that it and not the shell is interrupted.
        terminal.screen.until_has("waiting");
        terminal.type_in("\u{3}");
        terminal.type_in("echo go''on\r");
        terminal.screen.until_has("goon");
        terminal.type_in("exit 5\r");
        assert_eq!(terminal.wait(), 5, "{runtime:?}");
    }
}

/// The keys that detach leave it running; attach takes it up again.
pub fn keys_detach(engine: &Engine) {
    let codes = BOTH.map(|runtime| {
        let life = Life::new(engine, runtime, "detach");
        let name = life.name().to_owned();
        let arguments = [
            "-it",
            "--detach-keys",
            "ctrl-a",
            "--network",
            "none",
            "--name",
            &name,
            "busybox",
            "sh",
        ];
        let mut terminal = life.at_terminal("run", &arguments);
        terminal.screen.until_has("# ");
        terminal.type_in("\u{1}");
        terminal.wait();
        assert_eq!(life.field(".State.Status"), "running", "{runtime:?}");
        let mut again = life.at_terminal("attach", &[&name]);
        again.type_in("echo here a''gain; exit 6\r");
        again.screen.until_has("here again");
        let code = again.wait();
        engine.ok(&["rm", "-f", &name]);
        code
    });
    // podman 4.3 says 0 here, whatever the container said.
    assert_eq!(codes[0], codes[1]);
}

/// A missing command is 127, one that can't be executed 126, and what the engine does not take 125.
pub fn codes_of_failure_are_those_of_the_engine(engine: &Engine) {
    for (command, code) in [("nope", 127), ("/etc/passwd", 126)] {
        let output = engine.run(Runtime::Kata, &["--rm", "--network", "none", "busybox", command]);
        assert_eq!(output.code, code, "{}", output.stderr());
    }
    assert_eq!(engine.run(Runtime::Kata, &["--nonsense", "busybox"]).code, 125);
}

/// Many, several at a time; nothing is left of them.
pub fn a_hundred_leave_nothing(engine: &Engine) {
    let words = ["--rm", "busybox", "sh", "-c", "echo out; exit 42"];
    let once = || {
        let output = engine.run(Runtime::Kata, &words);
        assert_eq!((output.code, output.stdout().as_str()), (42, "out\n"), "{}", output.stderr());
    };
    // What the first one makes for all, like the bridge, is no leftover.
    once();
    let before = Leftovers::now();
    let left = AtomicUsize::new(repetitions(100));
    let work = || {
        while left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_ok()
        {
            once();
        }
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(work);
        }
    });
    Leftovers::assert_none_since(&before);
}

/// `live-restore`: no byte of output is lost or comes twice, and the container obeys.
pub fn containers_go_on_when_dockerd_is_killed(docker: &mut Engine) {
    let counter =
        "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done; echo counted; exec sleep 600";
    let words = ["-d", "--name", "counter", "busybox", "sh", "-c", counter];
    docker.run(Runtime::Kata, &words);
    let pid = docker.ok(&["inspect", "-f", "{{.State.Pid}}", "counter"]);
    docker.crash_daemon();
    assert_eq!(
        docker.ok(&["inspect", "-f", "{{.State.Pid}} {{.State.Status}}", "counter"]),
        format!("{pid} running")
    );
    let follow = docker.start(Runtime::Kata, "logs", &["-f", "counter"]);
    let text = follow.stdout.until_has("counted\n");
    let wanted: String = (0..3000).map(|i| format!("{i}\n")).collect();
    assert_eq!(text, wanted + "counted\n", "output was lost or came twice");
    assert_eq!(docker.ok(&["exec", "counter", "echo", "controllable"]), "controllable");
    docker.ok(&["kill", "counter"]);
    assert_eq!(docker.ok(&["wait", "counter"]), "137");
}

/// What has no answer but the VM's is refused, and the other container goes on.
pub fn the_network_of_another_container_is_left_alone(engine: &Engine) {
    let taken = "another sandbox has this network namespace";
    let lived_in = "another container lives in this network namespace";
    for (owner, said, shims) in [(Runtime::Runc, lived_in, 0), (Runtime::Kata, taken, 1)] {
        the_network_is_left_alone(engine, owner, said);
        assert_eq!(shims_below(engine).len(), shims, "{owner:?}");
    }
}

fn the_network_is_left_alone(engine: &Engine, owner: Runtime, said: &str) {
    let mut life = Life::new(engine, owner, "neighbour");
    let _follow = life.serve(&[]);
    let links = |life: &mut Life<'_>| life.ask(&["exec"], &["ip", "-o", "link"]);
    let before = links(&mut life);
    let network = format!("--network=container:{}", life.name());
    let output = engine.run(Runtime::Kata, &["--rm", &network, "busybox", "true"]);
    assert_ne!(output.code, 0);
    assert!(output.stderr().contains(said), "{}", output.stderr());
    assert_eq!(links(&mut life), before);
    let address = match engine.kind() {
        Kind::Podman | Kind::Docker => life.field(".NetworkSettings.IPAddress"),
    };
    let mut wget = engine.beside("wget");
    wget.args(["-qO-", "--timeout=20", &format!("http://{address}/")]);
    assert_eq!(run(wget, b"").stdout(), "page\n");
}

/// Kata's shims that work for an engine.
fn shims_below(engine: &Engine) -> Vec<PathBuf> {
    let is_shim = |process: &PathBuf| {
        let program = fs::read_link(process.join("exe")).unwrap_or_default();
        program.ends_with("containerd-shim-kata-v2") && engine.network().has(process)
    };
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    processes.filter(is_shim).collect()
}

/// Stages, what goes from one to the next, and that none of it is made by the host's kernel.
pub fn three_stages_are_built(engine: &Engine, build: impl Fn(&Engine, &str) -> Command) {
    let context = engine.scratch().join("context");
    fs::create_dir(&context).unwrap();
    fs::write(
        context.join("Dockerfile"),
        "FROM busybox AS one\nRUN mkdir /out && uname -r > /out/kernel && echo one > /out/one\n\
         FROM busybox AS two\nCOPY --from=one /out/one /in/one\nRUN cat /in/one > /two && echo two >> /two\n\
         FROM busybox\nCOPY --from=two /two /final\nCOPY --from=one /out/kernel /kernel\n\
         RUN echo three >> /final\nCMD cat /final\n",
    )
    .unwrap();
    let built = run(build(engine, context.to_str().unwrap()), b"");
    assert_eq!(built.code, 0, "{}{}", built.stdout(), built.stderr());
    let run = |command: &[&str]| {
        let words = [&["--rm", "--network", "none", "built"], command].concat();
        engine.run(Runtime::Runc, &words).stdout()
    };
    assert_eq!(run(&[]), "one\ntwo\nthree\n");
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(run(&["cat", "/kernel"]), host);
}

/// A network that is connected to a running container is there, and goes when it is taken away.
pub fn networks_come_and_go_while_it_runs(engine: &Engine) {
    for (name, subnet) in [("one", "10.93.1.0/24"), ("two", "10.93.2.0/24")] {
        engine.ok(&["network", "create", "--subnet", subnet, name]);
    }
    the_same(engine, |engine, runtime| {
        let mut life = Life::new(engine, runtime, "networks");
        let _follow = life.serve(&["--network", "one"]);
        let links = "for link in /sys/class/net/eth*; do basename $link; done; \
                     ip route | cut -d' ' -f1 | sort";
        engine.ok(&["network", "connect", "two", life.name()]);
        // The guest follows the namespace of the host; that is not the engine's to wait for.
        let appeared = "until ip address show eth1 | grep -q 'inet 10.93.2'; do sleep 0.1; done";
        life.ask(&["exec"], &["timeout", "60", "sh", "-c", appeared]);
        life.ask(&["exec"], &["sh", "-c", links]);
        let address = life.field("(index .NetworkSettings.Networks \"two\").IPAddress");
        life.fetch(&format!("http://{address}/"));
        engine.ok(&["network", "disconnect", "two", life.name()]);
        let gone = "while test -e /sys/class/net/eth1; do sleep 0.1; done";
        life.ask(&["exec"], &["timeout", "60", "sh", "-c", gone]);
        life.ask(&["exec"], &["sh", "-c", links]);
        life.ask(&["rm", "-f"], &[]);
        life.transcript()
    });
}

/// A container on a network of the user's own: an address of its choice, a volume that another one takes over, and names,
/// where the engine has them.
pub fn neighbours_find_each_other(engine: &Engine) {
    let (four, six) = (["--subnet", "10.94.0.0/24"], ["--ipv6", "--subnet", "fd00:94::/64"]);
    engine.ok(&[&["network", "create"], &four[..], &six[..], &["street"]].concat());
    the_same(engine, |engine, runtime| {
        let mut life = Life::new(engine, runtime, "house");
        let place =
            ["--network", "street", "--ip", "10.94.0.9", "--ip6", "fd00:94::9", "-v", "/shared"];
        let named = [&place[..], &["--network-alias", "number-9"]].concat();
        let docker = engine.kind() == Kind::Docker;
        let _follow = life.serve(if engine.names { &named } else { &place });
        life.ask(
            &["exec"],
            &["sh", "-c", "ip -o addr show dev eth0 scope global | cut -d' ' -f6,7"],
        );
        let mut visit = vec!["--rm", "--network", "street", "--volumes-from", life.name()];
        let link = format!("{}:nine", life.name());
        let hosts = match (docker, engine.names) {
            (true, _) => "10.94.0.9 number-9 nine",
            (false, true) => "10.94.0.9 number-9",
            (false, false) => "10.94.0.9",
        };
        visit.extend(if docker { ["--link", &link] } else { ["--requires", life.name()] });
        let script =
            format!("for host in {hosts}; do wget -qO- http://$host/; done; ls -d /shared");
        visit.extend(["busybox", "sh", "-c", &script]);
        let visited = engine.run(runtime, &visit);
        let told = (visited.code, visited.stdout(), visited.stderr());
        life.ask(&["rm", "-f"], &[]);
        format!("{}{told:?}", life.transcript())
    });
}

/// Each option that the engine shows has a row, and each row is of an option.
pub fn every_option_that_is_shown_has_a_row(engine: &Engine) {
    let table = Table::of(engine.kind());
    let mut missing = Vec::new();
    for command in ["run", "create", "exec", "update"] {
        let shown = options::shown(engine, command);
        assert!(shown.len() > 5, "{command}: {shown:?}");
        let rows = |name: &str| {
            let rows = table.option.get(name).into_iter().flatten();
            rows.filter(|(_, row)| row.is_of(engine.release())).map(|(option, _)| option)
        };
        // `create` has the options of `run`, but for a few.
        let known: Vec<&String> = match command {
            "create" => rows("create").chain(rows("run")).collect(),
            command => rows(command).collect(),
        };
        missing.extend(
            shown
                .iter()
                .filter(|option| !known.contains(option))
                .map(|option| format!("{command} {option}: no row")),
        );
        missing.extend(
            rows(command)
                .filter(|option| !shown.contains(option))
                .map(|option| format!("{command} {option}: not an option of this engine")),
        );
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The cases of the table.
pub fn options_do_what_they_do_with_runc(engine: &Engine) {
    let table = Table::of(engine.kind()).for_release(engine.release());
    let faults = Cases { engine }.run(&table.case);
    assert!(faults.is_empty(), "{faults:#?}");
}

/// Those of `exec`.
pub fn options_of_exec_do_what_they_do_with_runc(engine: &Engine) {
    let table = Table::of(engine.kind());
    let cases = Cases { engine };
    for runtime in [Runtime::Runc, Runtime::Kata] {
        engine.run(runtime, &["-d", "--name", runtime.name(), "busybox", "sleep", "600"]);
    }
    let faults = cases.exec(&table.exec);
    assert!(faults.is_empty(), "{faults:#?}");
}

/// Those of `update`, of a container that runs.
pub fn options_of_update_do_what_they_do_with_runc(engine: &Engine) {
    let table = Table::of(engine.kind());
    let faults = Cases { engine }.update(&table.update);
    assert!(faults.is_empty(), "{faults:#?}");
}
