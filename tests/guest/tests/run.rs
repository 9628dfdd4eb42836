//! `kata-runtime run`: bytes, ends and errors.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use kata_guest_tests::{Bundle, Kata, Running, busybox, repetitions, run};

#[test]
fn the_container_has_a_kernel_of_its_own() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let guest = kata.shell(&root, "uname -r");
    assert_eq!(guest.code, 0, "{}", guest.stderr());
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(guest.stdout().trim(), host.trim());
}

#[test]
fn exit_codes_are_the_programs() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let nested = |signal| format!("sh -c 'kill -{signal} $$'; exit $?");
    for (script, code) in [
        ("exit 0".to_owned(), 0),
        ("exit 1".to_owned(), 1),
        ("exit 42".to_owned(), 42),
        (nested("KILL"), 137),
        (nested("TERM"), 143),
        (nested("SEGV"), 139),
    ] {
        let output = kata.shell(&root, &script);
        assert_eq!(output.code, code, "{script}: {}", output.stderr());
    }
}

#[test]
fn a_missing_program_is_127_and_one_that_may_not_run_126() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    std::fs::write(root.file("/plain"), "no program").unwrap();
    let missing = kata.call(&["run", "--rootfs", root.path(), "--", "no-such-program"]);
    assert_eq!(missing.code, 127);
    assert!(
        missing.stderr().contains("executable file not found in $PATH"),
        "{}",
        missing.stderr()
    );
    let plain = kata.call(&["run", "--rootfs", root.path(), "--", "/plain"]);
    assert_eq!(plain.code, 126);
    assert!(plain.stderr().contains("permission denied"), "{}", plain.stderr());
}

#[test]
fn every_byte_of_a_program_that_ends_at_once_arrives() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    for round in 0..repetitions(200) {
        let output = kata.shell(&root, "dd if=/dev/zero bs=65536 count=16 2>/dev/null");
        assert_eq!(output.code, 0, "{}", output.stderr());
        assert_eq!(output.stdout.len(), 1 << 20, "round {round}");
    }
}

#[test]
fn both_directions_at_once_lose_nothing() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let size = repetitions(256).max(64) << 20;
    let input: Vec<u8> = (0..size).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect();
    let output = run(kata.command(&["run", "--rootfs", root.path(), "--", "cat"]), &input);
    assert_eq!(output.code, 0, "{}", output.stderr());
    assert!(output.stdout == input, "{} bytes came of {size}", output.stdout.len());
}

#[test]
fn large_writes_in_the_guest_do_not_stall() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let output = kata.shell(&root, "dd if=/dev/zero bs=256k count=64 2>/dev/null");
    assert_eq!(output.stdout.len(), 16 << 20, "{}", output.stderr());
}

#[test]
fn standard_streams_can_be_opened_by_name() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let output = kata.shell(&root, "echo out >/dev/stdout; echo err >/dev/stderr");
    assert_eq!((output.stdout().as_str(), output.stderr().as_str()), ("out\n", "err\n"));
}

#[test]
fn end_of_input_ends_a_reader() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut running = Running::start(kata.command(&[
        "run",
        "--rootfs",
        root.path(),
        "--",
        "sh",
        "-c",
        "cat; echo end",
    ]));
    running.write(b"one\n");
    assert_eq!(running.finish().stdout(), "one\nend\n");
}

#[test]
fn a_container_is_kept_when_asked_for() {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let Some(root) = busybox() else { return };
        let bundle = Bundle::new(&kata, root, &["sh", "-c", "exit 7"]);
        let id = format!("kept-{}", std::process::id());
        let output = run(runtime.command(&["run", "--keep", "--bundle", bundle.path(), &id]), b"");
        assert_eq!(output.code, 7, "{}", output.stderr());
        assert_eq!(runtime.state_of(&id)["status"], "stopped", "{:?}", runtime.program());
        assert_eq!(runtime.call(&["delete", &id]).code, 0);
        assert_ne!(runtime.call(&["state", &id]).code, 0);
    }
}

/// podman's own suite makes such a copy; runc is one file, and does not mind.
#[test]
fn a_copy_of_the_program_finds_the_installation_in_path() {
    let Some(kata) = Kata::installed() else { return };
    let prefix_of = |place: &str, path: &Path| {
        let scratch = tempfile::tempdir().unwrap();
        let copy = scratch.path().join(place).join("any-name");
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        // By a program of its own: what another thread of this one forks has the copy open for writing for a
        // moment, and what somebody has open so can't be executed.
        let mut copying = Command::new("cp");
        copying.args([kata.program(), &copy]);
        assert_eq!(run(copying, b"").code, 0);
        let mut command = Command::new(&copy);
        command.arg("env").env("PATH", path);
        let said = run(command, b"").stdout();
        let line = said.lines().find(|line| line.starts_with("prefix:")).unwrap().to_owned();
        (PathBuf::from(line["prefix:".len()..].trim()), scratch.path().canonicalize().unwrap())
    };
    let bin = kata.program().parent().unwrap();
    let (prefix, _) = prefix_of("elsewhere", bin);
    assert_eq!(prefix, bin.canonicalize().unwrap().parent().unwrap());
    // One that lies in an installation, whole or not, is of that one.
    let (prefix, own) = prefix_of("bin", bin);
    assert_eq!(prefix, own);
}
