//! A container at a terminal, as a person has one.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixListener,
    process::Command,
};

use kata_guest_tests::{Bundle, Container, Kata, Root, Terminal, busybox, map_ids, unique};
use rustix::{
    process::Signal,
    termios::{LocalModes, OutputModes, Termios},
};
use serde_json::json;

/// `run -t` of a command at a new terminal.
fn at_terminal(kata: &Kata, root: &Root, command: &[&str]) -> Terminal {
    let mut terminal = Terminal::open();
    let run = kata.command(&[&["run", "-t", "--rootfs", root.path(), "--"], command].concat());
    terminal.start(&run);
    terminal
}

/// `run -t` of a shell that says when it has set its traps.
fn shell(kata: &Kata, root: &Root, traps: &str, script: &str) -> Terminal {
    let script = format!("{traps} echo read''y; {script}");
    let terminal = at_terminal(kata, root, &["sh", "-c", &script]);
    terminal.screen.until_has("ready");
    terminal
}

/// Runs a claim at a terminal of Kata's and of runc's: a bundle with `script` in the foreground.
fn on_both(script: &str, claim: impl Fn(&mut Terminal)) {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let Some(root) = busybox() else { return };
        let mut bundle = Bundle::new(&kata, root, &["sh", "-c", script]);
        fs::write(bundle.root().file("/job"), JOB).unwrap();
        bundle.config["process"]["terminal"] = json!(true);
        bundle.write();
        let mut terminal = Terminal::open();
        let id = unique("terminal");
        println!("at a terminal of {:?}", runtime.program());
        terminal.start(&runtime.command(&["run", "--bundle", bundle.path(), &id]));
        claim(&mut terminal);
    }
}

/// Waits for signals.
const LOOP: &str = "while :; do read -t 1 line; done";

/// A job that says when it is in the foreground.
const JOB: &str = "trap 'echo continued' CONT; echo foreground; while :; do read -t 1 line; done";

/// What decides how a terminal behaves.
fn essence(modes: &Termios) -> String {
    format!(
        "{:?} {:?} {:?} {:?}",
        modes.input_modes, modes.output_modes, modes.control_modes, modes.local_modes
    )
}

#[test]
fn the_standard_streams_are_a_terminal() {
    on_both("tty; test -t 0 && test -t 1 && test -t 2 && echo all", |terminal| {
        let screen = terminal.screen.until_has("all");
        assert_eq!(terminal.wait(), 0);
        assert!(screen.contains("/dev/pts/0") || screen.contains("/dev/console"), "{screen:?}");
    });
}

#[test]
fn the_size_is_the_callers() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut terminal = Terminal::open();
    terminal.resize(17, 99);
    let run = ["run", "-t", "--rootfs", root.path(), "--", "stty", "size"];
    terminal.start(&kata.command(&run));
    terminal.screen.until_has("17 99");
    assert_eq!(terminal.wait(), 0);
}

#[test]
fn a_resize_reaches_the_program() {
    let script = format!("trap 'stty size' WINCH; echo read''y; {LOOP}");
    on_both(&script, |terminal| {
        terminal.screen.until_has("ready");
        terminal.resize(33, 121);
        terminal.screen.until_has("33 121");
    });
}

#[test]
fn control_c_interrupts_the_foreground() {
    let script = format!("trap 'echo interrup''ted; exit 5' INT; echo read''y; {LOOP}");
    on_both(&script, |terminal| {
        terminal.screen.until_has("ready");
        terminal.type_in("\x03");
        terminal.screen.until_has("interrupted");
        assert_eq!(terminal.wait(), 5);
    });
}

#[test]
fn control_c_ends_a_program_without_a_handler() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut terminal = shell(&kata, &root, "", "cat; exit $?");
    terminal.type_in("there\n");
    terminal.screen.until_has("there\r\nthere\r\n");
    terminal.type_in("\x03");
    // The shell is init of its namespace and has no handler: the kernel spares it, cat ends.
    assert_eq!(terminal.wait(), 130);
}

#[test]
fn control_d_is_the_end_of_input() {
    on_both("echo read''y; cat; echo e''nd", |terminal| {
        terminal.screen.until_has("ready");
        terminal.type_in("line\n\x04");
        terminal.screen.until_has("end");
        assert_eq!(terminal.wait(), 0);
    });
}

#[test]
fn a_shell_has_job_control() {
    on_both("exec sh -i", |terminal| {
        terminal.screen.until_has("# ");
        terminal.type_in("sh /job\n");
        terminal.screen.until_has("foreground");
        terminal.type_in("\x1a");
        terminal.screen.until_has("Stopped");
        terminal.type_in("fg\n");
        terminal.screen.until_has("continued");
        terminal.type_in("\x03");
        terminal.screen.until("a prompt after ^C", |text| {
            text.split_once("^C").is_some_and(|(_, after)| after.contains("# "))
        });
        terminal.type_in("echo status $?\n");
        terminal.screen.until_has("status 130");
        terminal.type_in("exit 4\n");
        assert_eq!(terminal.wait(), 4);
    });
}

#[test]
fn a_shell_does_not_complain() {
    on_both("exec sh -i", |terminal| {
        terminal.screen.until_has("# ");
        terminal.type_in("exit\n");
        assert_eq!(terminal.wait(), 0);
        let screen = terminal.screen.text();
        assert!(!screen.contains("can't access tty"), "{screen:?}");
    });
}

#[test]
fn output_by_name_reaches_a_terminal() {
    on_both("echo o''ut >/dev/stdout; echo e''rr >/dev/stderr; echo t''ty >/dev/tty", |terminal| {
        assert_eq!(terminal.wait(), 0);
        let screen = terminal.screen.until_has("tty");
        assert!(screen.contains("out\r\n") && screen.contains("err\r\n"), "{screen:?}");
    });
}

#[test]
fn a_newline_is_cooked_once() {
    on_both("echo one; echo two", |terminal| {
        assert_eq!(terminal.wait(), 0);
        assert_eq!(terminal.screen.until_has("two\r\n"), "one\r\ntwo\r\n");
    });
}

#[test]
fn all_output_arrives_before_the_end() {
    on_both("i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done", |terminal| {
        assert_eq!(terminal.wait(), 0, "{:?}", terminal.screen.text());
        let screen = terminal.screen.until_has("line 4999\r\n");
        assert_eq!(screen.matches('\n').count(), 5000);
    });
}

#[test]
fn the_callers_modes_are_restored_after_the_end() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut terminal = shell(&kata, &root, "", "read line; exit 3");
    assert!(!terminal.modes().local_modes.contains(LocalModes::ECHO), "raw while it runs");
    terminal.type_in("\n");
    assert_eq!(terminal.wait(), 3);
    assert_eq!(essence(&terminal.modes()), essence(&Terminal::open().modes()));
}

#[test]
fn the_callers_modes_are_restored_after_sigterm() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut terminal = shell(&kata, &root, "trap 'exit 6' TERM;", LOOP);
    terminal.signal(Signal::TERM);
    assert_eq!(terminal.wait(), 6);
    assert_eq!(essence(&terminal.modes()), essence(&Terminal::open().modes()));
}

#[test]
fn the_callers_modes_are_restored_when_the_vm_is_lost() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut terminal = shell(&kata, &root, "", "sleep 1000");
    let id = kata.call(&["list", "--quiet"]).stdout();
    let vmm = kata.host_pid(id.trim(), "vmmPid");
    rustix::process::kill_process(rustix::process::Pid::from_raw(vmm).unwrap(), Signal::KILL)
        .unwrap();
    assert_eq!(terminal.wait(), 137);
    assert_eq!(essence(&terminal.modes()), essence(&Terminal::open().modes()));
}

#[test]
fn a_hangup_of_the_terminal_ends_the_container() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut terminal = shell(&kata, &root, "trap 'exit 8' HUP;", LOOP);
    terminal.signal(Signal::HUP);
    assert_eq!(terminal.wait(), 8);
}

#[test]
fn exec_at_a_terminal_has_one() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
    let container = Container::started(&kata, &bundle, "exec-tty");
    let mut terminal = Terminal::open();
    terminal.resize(11, 44);
    let script = "trap 'stty size' WINCH; stty size; until read -t 1 line; do :; done; exit 7";
    terminal.start(&kata.command(&["exec", "-t", &container.id, "sh", "-c", script]));
    terminal.screen.until_has("11 44");
    terminal.resize(12, 55);
    terminal.screen.until_has("12 55");
    terminal.type_in("\n");
    assert_eq!(terminal.wait(), 7);
    assert_eq!(essence(&terminal.modes()), essence(&Terminal::open().modes()));
    assert_eq!(container.status(), "running");
}

/// The runtime itself is nobody in such a namespace, and so would be who makes the terminal.
#[test]
fn exec_at_a_terminal_has_one_in_a_user_namespace() {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let Some(root) = busybox() else { return };
        let mut bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
        map_ids(&mut bundle.config);
        bundle.write();
        let container = Container::started(runtime, &bundle, "exec-tty");
        for user in ["0:0", "5:5"] {
            let mut terminal = Terminal::open();
            let script = "stat -c owner=%u $(tty)";
            let exec = ["exec", "-t", "--user", user, &container.id, "sh", "-c", script];
            terminal.start(&runtime.command(&exec));
            let owner = format!("owner={}", user.split(':').next().unwrap());
            terminal.screen.until_has(&owner);
            assert_eq!(terminal.wait(), 0);
        }
    }
}

/// Creates a container whose terminal goes to a console socket.
fn at_console_socket(runtime: &Kata, script: &str, claim: impl FnOnce(&Container<'_>, &Terminal)) {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut bundle = Bundle::new(&kata, root, &["sh", "-c", script]);
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["consoleSize"] = json!({"height": 21, "width": 73});
    bundle.write();
    let listener = UnixListener::bind(bundle.file("console")).unwrap();
    let socket = |command: &mut Command| {
        command.arg("--console-socket").arg(bundle.file("console"));
    };
    let id = format!("console-socket-{}", script.len());
    let container = Container::create_with(runtime, &bundle, &id, socket);
    let terminal = Terminal::from_console_socket(&listener);
    container.must("start");
    claim(&container, &terminal);
}

#[test]
fn a_console_socket_gets_the_terminal() {
    let Some(kata) = Kata::installed() else { return };
    let script = "trap 'stty size' WINCH; stty size; until read -t 1 line; do :; done; echo g''ot $line; exit 9";
    for runtime in [&Kata::oracle(), &kata] {
        at_console_socket(runtime, script, |container, terminal| {
            terminal.screen.until_has("21 73");
            terminal.resize(13, 57);
            terminal.screen.until_has("13 57");
            terminal.type_in("something\n");
            terminal.screen.until_has("got something");
            assert_eq!(container.wait().0, 9);
        });
    }
}

#[test]
fn the_modes_are_those_that_runc_gives() {
    let Some(kata) = Kata::installed() else { return };
    let mut screens = Vec::new();
    for runtime in [&Kata::oracle(), &kata] {
        at_console_socket(runtime, "stty -a; echo d''one", |_, terminal| {
            screens.push(terminal.screen.until_has("done"));
        });
    }
    assert_eq!(screens.first(), screens.last());
    assert!(screens.iter().all(|screen| screen.contains("rows 21")), "{screens:?}");
}

#[test]
fn the_modes_on_the_callers_terminal_are_those_that_runc_gives() {
    let screens = std::cell::RefCell::new(Vec::new());
    // runc gives the terminal its size while the program runs already.
    let script =
        "until stty size 2>&1 | grep -q '^[1-9]'; do :; done; stty -a; echo d''one; read line";
    on_both(script, |terminal| {
        screens.borrow_mut().push(terminal.screen.until_has("done\r\n"));
        // The rest of its modes runc sets while the program runs already.
        assert!(terminal.modes().output_modes.contains(OutputModes::OPOST));
        terminal.type_in("\n");
        assert_eq!(terminal.wait(), 0);
    });
    let screens = screens.into_inner();
    assert_eq!(screens.first(), screens.last());
    assert!(screens.iter().all(|screen| screen.contains("-onlcr")), "{screens:?}");
}

#[test]
fn a_terminal_is_asked_for_only_where_there_is_one() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let output = kata.call(&["run", "-t", "--rootfs", root.path(), "--", "sh"]);
    assert_ne!(output.code, 0);
    assert!(output.stderr().contains("leave -t out"), "{}", output.stderr());
}

#[test]
fn binary_input_passes_a_raw_terminal() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut terminal = shell(&kata, &root, "", "stty raw -echo; echo set; head -c 256 | md5sum");
    terminal.screen.until_has("set");
    let all: Vec<u8> = (0..=255).collect();
    let mut md5sum = Command::new("md5sum");
    md5sum.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut md5sum = md5sum.spawn().unwrap();
    md5sum.stdin.take().unwrap().write_all(&all).unwrap();
    let mut wanted = String::new();
    md5sum.stdout.take().unwrap().read_to_string(&mut wanted).unwrap();
    md5sum.wait().unwrap();
    terminal.type_bytes(&all);
    terminal.screen.until_has(wanted.split(' ').next().unwrap());
    assert_eq!(terminal.wait(), 0);
}

#[test]
fn the_terminal_is_found_though_every_stream_leads_elsewhere() {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let Some(root) = busybox() else { return };
        let mut bundle = Bundle::new(&kata, root, &["sh", "-c", "stty size; tty"]);
        bundle.config["process"]["terminal"] = json!(true);
        bundle.write();
        let said = bundle.file("said");
        let id = unique("redirected");
        let run = runtime.command(&["run", "--bundle", bundle.path(), &id]);
        let mut redirected = Command::new("sh");
        let script = "said=$1; shift; exec \"$@\" </dev/null >\"$said\" 2>&1";
        redirected
            .args(["-c", script, "sh"])
            .arg(&said)
            .arg(run.get_program())
            .args(run.get_args());
        let mut terminal = Terminal::open();
        terminal.start(&redirected);
        let code = terminal.wait();
        let said = fs::read_to_string(said).unwrap();
        assert_eq!(code, 0, "{:?}: {said}", runtime.program());
        assert!(said.contains("/dev/"), "{:?}: {said}", runtime.program());
    }
}
