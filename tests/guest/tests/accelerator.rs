//! What runs guests is told truly: with KVM, without, and where KVM is there and can't be used.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path, process::Command};

use kata_guest_tests::{Kata, Output, busybox, run};
use serde_json::Value;

/// Makes a `/dev` of the caller's own, with what Kata needs and no `/dev/kvm`, does what is said, and becomes the program.
const SCRIPT: &str = "set -e; mount --make-rprivate /; mount -t tmpfs none \"$0\"; \
    cp -a /dev/null /dev/zero /dev/random /dev/urandom /dev/tty \"$0\"; mkdir \"$0/net\"; \
    cp -a /dev/net/tun \"$0/net\"; mount --rbind \"$0\" /dev; eval \"$1\"; shift; exec \"$@\"";

/// A node of the right number that may not be opened.
const FORBID: &str = "mkdir /dev/forbidden; mount -t tmpfs -o nodev none /dev/forbidden; \
    mknod /dev/forbidden/kvm c 10 232; ln -s forbidden/kvm /dev/kvm";

/// Runs Kata where `/dev` is as `change` makes it.
fn with_dev(kata: &Kata, change: &str, arguments: &[&str]) -> Output {
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT]).arg(place.path()).arg(change);
    command.arg(kata.program()).arg("--root").arg(kata.state()).args(arguments);
    run(command, b"")
}

/// What `check --json` finds about the accelerator.
fn accelerator(output: &Output) -> (String, String) {
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", output.stdout(), output.stderr()));
    let findings = report["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["what"] == "accelerator").unwrap();
    let word = |name: &str| finding[name].as_str().unwrap().to_owned();
    (word("verdict"), word("detail"))
}

/// A configuration of one line about the accelerator.
fn configured(accelerator: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let text = format!("[hypervisor]\naccelerator = \"{accelerator}\"\n");
    fs::write(directory.path().join("config.toml"), text).unwrap();
    directory
}

fn host_has_kvm() -> bool {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
    Path::new("/dev/kvm").exists()
        && cpuinfo.split_whitespace().any(|word| word == "svm" || word == "vmx")
}

#[test]
fn check_says_what_runs_guests_on_this_host() {
    let Some(kata) = Kata::installed() else { return };
    let config = configured("auto");
    let output = kata.call(&["--config", config.path().to_str().unwrap(), "check", "--json"]);
    assert_eq!(output.code, 0, "{}", output.stdout());
    let (verdict, detail) = accelerator(&output);
    if host_has_kvm() {
        assert_eq!((verdict.as_str(), detail.as_str()), ("ok", "KVM: a guest was booted with it"));
    } else {
        assert!(verdict == "warning" && detail.starts_with("TCG: "), "{verdict}: {detail}");
    }
}

#[test]
fn without_a_device_check_says_so_and_tcg_is_used() {
    let Some(kata) = Kata::installed() else { return };
    let config = configured("auto");
    let arguments = ["--config", config.path().to_str().unwrap(), "check", "--json"];
    let (verdict, detail) = accelerator(&with_dev(&kata, "true", &arguments));
    assert!(verdict == "warning" && detail.contains("(there is no /dev/kvm)"), "{detail}");
}

#[test]
fn kvm_by_name_without_a_device_is_an_error() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let config = configured("kvm");
    let config = config.path().to_str().unwrap();
    let output = with_dev(&kata, "true", &["--config", config, "check", "--json"]);
    assert_eq!(output.code, 1, "{}", output.stdout());
    let (verdict, detail) = accelerator(&output);
    assert!(verdict == "failed" && detail.ends_with("there is no /dev/kvm"), "{detail}");
    let run = ["--config", config, "run", "--rootfs", root.path(), "--", "true"];
    with_dev(&kata, "true", &run).assert_one_line(&["there is no /dev/kvm"]);
}

#[test]
fn a_device_that_may_not_be_opened_is_told_from_none() {
    let Some(kata) = Kata::installed() else { return };
    let config = configured("kvm");
    let config = config.path().to_str().unwrap();
    let output = with_dev(&kata, FORBID, &["--config", config, "check", "--json"]);
    let (verdict, detail) = accelerator(&output);
    assert!(verdict == "failed" && detail.contains("/dev/kvm may not be opened"), "{detail}");
}

/// Lets the processor look as if it could virtualise, checks, runs a container, and shows what was found.
const PRETEND: &str = "set -e; mount --make-rprivate /; mount -t tmpfs none /run; \
    sed 's/^flags.*/& svm/' /proc/cpuinfo >/run/cpuinfo; mount --bind /run/cpuinfo /proc/cpuinfo; \
    \"$@\" check --json >/run/found || true; \"$@\" run --rootfs \"$0\" -- echo works; cat /run/found";

#[test]
fn a_kvm_that_runs_no_guest_is_told_and_not_used() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    if host_has_kvm() || !Path::new("/dev/kvm").exists() {
        println!("SKIP this host has no KVM that is there and does not work");
        return;
    }
    let config = configured("auto");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", PRETEND, root.path()]).arg(kata.program());
    command.arg("--root").arg(kata.state()).arg("--config").arg(config.path());
    let mut output = run(command, b"");
    assert_eq!(output.code, 0, "{}", output.stderr());
    let stdout = output.stdout();
    let rest = stdout.strip_prefix("works\n").unwrap_or_else(|| panic!("{stdout}"));
    output.stdout = rest.as_bytes().to_vec();
    let (verdict, detail) = accelerator(&output);
    let why = "(KVM does not run a stock guest: ";
    assert!(verdict == "warning" && detail.contains(why), "{verdict}: {detail}");
}
