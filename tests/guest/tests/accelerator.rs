//! What runs guests is told truly: with KVM, without, and where KVM is there and can't be used; and what guests have of a
//! host with KVM they have.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path, process::Command};

use kata_guest_tests::{Bundle, Container, Kata, Output, Wire, busybox, run, set_network};
use serde_json::{Value, json};

/// Makes a `/dev` of the caller's own, with what Kata needs and no `/dev/kvm`, does what is said, and becomes the program.
const SCRIPT: &str = "set -e; mount --make-rprivate /; mount -t tmpfs none \"$0\"; \
    cp -a /dev/null /dev/zero /dev/random /dev/urandom /dev/tty \"$0\"; mkdir \"$0/net\"; \
    cp -a /dev/net/tun \"$0/net\"; mount --rbind \"$0\" /dev; eval \"$1\"; shift; exec \"$@\"";

/// A node of the right number that may not be opened.
const FORBID: &str = "mkdir /dev/forbidden; mount -t tmpfs -o nodev none /dev/forbidden; \
    mknod /dev/forbidden/kvm c 10 232; ln -s forbidden/kvm /dev/kvm";

/// Runs Kata where `/dev` is as `change` makes it.
fn with_dev(kata: &Kata, change: &str, arguments: &[&str]) -> Output {
    let state = kata.state();
    let arguments = [&["--root", state.to_str().unwrap()], arguments].concat();
    called_with_dev(kata, change, &arguments)
}

fn called_with_dev(kata: &Kata, change: &str, arguments: &[&str]) -> Output {
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT]).arg(place.path()).arg(change);
    command.arg(kata.program()).args(arguments);
    run(command, b"")
}

/// What a check there finds about the accelerator, by itself. It has no place for state, so it boots no container: where
/// there is KVM otherwise, that one would be emulated twice, and take a minute.
fn chosen_with_dev(kata: &Kata, change: &str) -> (String, String) {
    let config = configured("auto");
    let config = config.path().to_str().unwrap();
    let words = ["--root", "/proc/none", "--config", config, "check", "--json"];
    accelerator(&called_with_dev(kata, change, &words))
}

/// What is said where guests are emulated, before the reason.
const EMULATED: &str = "TCG: guests are emulated: slow, and no security boundary (";

/// What `check --json` finds about the accelerator.
fn accelerator(output: &Output) -> (String, String) {
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", output.stdout(), output.stderr()));
    let findings = report["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["what"] == "accelerator").unwrap();
    let word = |name: &str| finding[name].as_str().unwrap().to_owned();
    (word("verdict"), word("detail"))
}

/// A configuration of the accelerator, with patience for a busy host.
fn configured(accelerator: &str) -> tempfile::TempDir {
    configured_with(accelerator, 180)
}

fn configured_with(accelerator: &str, timeout: u32) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "[hypervisor]\naccelerator = \"{accelerator}\"\n[boot]\ntimeout_kvm_s = {timeout}\n"
    );
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
        let why = match Path::new("/dev/kvm").exists() {
            true => "the processor shows neither vmx nor svm in /proc/cpuinfo)",
            false => "there is no /dev/kvm)",
        };
        assert_eq!((verdict, detail), ("warning".to_owned(), format!("{EMULATED}{why}")));
    }
}

#[test]
fn without_a_device_check_says_so_and_tcg_is_used() {
    let Some(kata) = Kata::installed() else { return };
    let (verdict, detail) = chosen_with_dev(&kata, "true");
    let line = format!("{EMULATED}there is no /dev/kvm)");
    assert_eq!((verdict, detail), ("warning".to_owned(), line));
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
    let Some(root) = busybox() else { return };
    let run = ["--config", config, "run", "--rootfs", root.path(), "--", "true"];
    with_dev(&kata, FORBID, &run).assert_one_line(&["/dev/kvm may not be opened"]);
    let (verdict, detail) = chosen_with_dev(&kata, FORBID);
    let line = format!("{EMULATED}/dev/kvm may not be opened");
    assert!(verdict == "warning" && detail.starts_with(&line), "{verdict}: {detail}");
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
    // One such KVM gives up at once, another one never says a word, in two boots.
    let config = configured_with("auto", 10);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", PRETEND, root.path()]).arg(kata.program());
    command.arg("--root").arg(kata.state()).arg("--config").arg(config.path());
    let mut output = run(command, b"");
    assert_eq!(output.code, 0, "{}", output.stderr());
    let stdout = output.stdout();
    let rest = stdout.strip_prefix("works\n").unwrap_or_else(|| panic!("{stdout}"));
    output.stdout = rest.as_bytes().to_vec();
    let (verdict, detail) = accelerator(&output);
    let line = format!("{EMULATED}KVM does not run a stock guest: ");
    assert!(verdict == "warning" && detail.starts_with(&line), "{verdict}: {detail}");
}

/// A container on a network, started.
fn connected<'a>(kata: &'a Kata, wire: &Wire, id: &str) -> Option<(Bundle, Container<'a>)> {
    let mut bundle = Bundle::new(kata, busybox()?, &["sleep", "1000"]);
    set_network(&mut bundle.config, Some(&wire.path()));
    bundle.write();
    let container = Container::started(kata, &bundle, id);
    Some((bundle, container))
}

/// What the descriptors of a process lead to.
fn opened(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = entries.map(|entry| fs::read_link(entry.unwrap().path()).unwrap());
    links.map(|link| link.to_str().unwrap().to_owned()).collect()
}

#[test]
fn packets_are_moved_by_the_hosts_kernel_where_it_can() {
    let Some(kata) = Kata::installed() else { return };
    let wire = Wire::new(&["192.0.2.2/24"], &["192.0.2.1/24"]);
    let Some((_bundle, container)) = connected(&kata, &wire, "packets") else { return };
    let ping = container.exec(&["ping", "-c", "1", "-W", "60", "192.0.2.1"], b"");
    assert_eq!(ping.code, 0, "{}{}", ping.stdout(), ping.stderr());
    let vmm = kata.host_pid(&container.id, "vmmPid");
    let devices = opened(vmm);
    let by_kernel = devices.iter().any(|path| path.ends_with("/vhost-net"));
    let able = host_has_kvm() && Path::new("/dev/vhost-net").exists();
    assert_eq!(by_kernel, able, "{devices:?}");
    let told = container.state()["kata"]["packets"].to_string();
    assert_eq!(told.contains("moved by the kernel"), able, "{told}");
    // The kernel names who does it after whom it does it for: a thread of it in newer kernels, a task of its own before.
    let threads = fs::read_dir(format!("/proc/{vmm}/task")).unwrap().map(|it| it.unwrap().path());
    let tasks = fs::read_dir("/proc").unwrap().map(|it| it.unwrap().path());
    let names = threads.chain(tasks).filter_map(|task| fs::read_to_string(task.join("comm")).ok());
    let worker = format!("vhost-{vmm}\n");
    assert_eq!(names.filter(|name| *name == worker).count() > 0, able, "{worker}");
}

/// The host's pool of huge pages, larger for as long as this lives.
struct Pool(u64);

impl Pool {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";

    fn size() -> u64 {
        fs::read_to_string(Self::FILE).unwrap().trim().parse().unwrap()
    }

    /// `None` when the host has no room for so many.
    fn grown_by(pages: u64) -> Option<Self> {
        let before = Self(Self::size());
        fs::write(Self::FILE, (before.0 + pages).to_string()).unwrap();
        (Self::size() == before.0 + pages).then_some(before)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        fs::write(Self::FILE, self.0.to_string()).unwrap();
    }
}

#[test]
fn memory_is_of_huge_pages_when_that_is_asked_for() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let Some(_pool) = Pool::grown_by(160) else {
        // The nested host has nothing else in its memory.
        assert!(!host_has_kvm(), "no room for huge pages");
        println!("SKIP this host has no room for huge pages; that of the tests under KVM has");
        return;
    };
    let mut bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
    bundle.config["annotations"] = json!({"io.katacontainers.vm.pages": "huge"});
    bundle.write();
    let container = Container::started(&kata, &bundle, "huge-pages");
    assert_eq!(container.exec(&["true"], b"").code, 0);
    let vmm = kata.host_pid(&container.id, "vmmPid");
    let rollup = fs::read_to_string(format!("/proc/{vmm}/smaps_rollup")).unwrap();
    let huge: u64 = rollup
        .lines()
        .filter(|line| line.starts_with("Shared_Hugetlb") || line.starts_with("Private_Hugetlb"))
        .map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap())
        .sum();
    // The guest has touched a good part of its memory.
    assert!(huge >= 16 << 10, "{rollup}");
}

#[test]
fn a_guest_defends_itself_against_its_processor_where_that_is_a_real_one() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let script = "cat /sys/devices/system/cpu/vulnerabilities/spectre_v1; \
                  grep -o mitigations=off /proc/cmdline";
    let said = kata.shell(&root, &format!("{script}; true")).stdout();
    if host_has_kvm() {
        assert!(said.starts_with("Mitigation: ") && said.lines().count() == 1, "{said}");
    } else {
        assert!(said.ends_with("\nmitigations=off\n"), "{said}");
    }
}
