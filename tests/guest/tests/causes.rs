//! Why a container ended: each cause by its own doing, told by `state`.
#![allow(clippy::unwrap_used)]

use std::{ffi::OsStr, fs, io::Write, os::unix::fs::FileExt, path::Path, process::Command, thread};

use kata_guest_tests::{Bundle, Container, HostGroup, HostProcess, Kata, LoopDevice, busybox};
use rustix::process::Signal;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Takes as much memory as it is told, in MiB: tail keeps a line in memory until it ends.
const EAT: &str = "eat() { dd if=/dev/zero bs=1M count=$1 2>/dev/null | tail >/dev/null; }; ";

fn bundle(kata: &Kata, script: &str) -> Option<Bundle> {
    Some(Bundle::new(kata, busybox()?, &["sh", "-c", script]))
}

fn ended(container: &Container) -> Value {
    let state = container.state();
    assert_eq!(state["status"], "stopped", "{state}");
    state["kata"]["ended"].clone()
}

/// The guest's console goes with the causes that are not the application's.
fn assert_console(ended: &Value, word: &str) {
    let console = ended["console"].as_str().unwrap_or_default();
    assert!(console.contains(word), "{word:?} in the console of {ended}");
    assert!(console.len() <= 4096, "{} bytes", console.len());
}

#[test]
fn a_container_above_its_limit_is_killed_and_its_bundle_says_so() {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let script = format!("{EAT} exec dd if=/dev/zero of=/dev/null bs=200M count=1");
        let Some(mut bundle) = bundle(&kata, &script) else { return };
        bundle.config["linux"]["resources"] =
            json!({"memory": {"limit": 32 * MIB, "swap": 32 * MIB}});
        bundle.write();
        let container = Container::started(runtime, &bundle, "oom");
        assert_eq!(container.wait().0, 137);
        if runtime.is_oracle() {
            continue;
        }
        let ended = ended(&container);
        assert_eq!(ended["cause"], "oom", "{ended}");
        assert!(ended["console"].is_null(), "the application is the cause: {ended}");
        assert!(bundle.file("oom").exists(), "the file that engines look for");
        let events = container.call(&["events", "--stats"]);
        let events: Value = serde_json::from_slice(&events.stdout).unwrap();
        assert_eq!(events["data"]["memory"]["usage"]["limit"], 32 * MIB, "{events}");
    }
}

#[test]
fn a_child_above_the_limit_is_killed_and_the_others_go_on() {
    let Some(kata) = Kata::installed() else { return };
    let script = format!("{EAT} eat 100; echo $?; read line; exit 7");
    let Some(mut bundle) = bundle(&kata, &script) else { return };
    bundle.config["linux"]["resources"] = json!({"memory": {"limit": 32 * MIB, "swap": 32 * MIB}});
    bundle.write();
    let container = Container::started(&kata, &bundle, "oom-child");
    container.stdout.until_has("137");
    let follow = kata.command(&["events", "--interval", "100ms", &container.id]);
    let running = kata_guest_tests::Running::start(follow);
    running.stdout.until_has(r#""type":"oom""#);
    container.write(b"go\n");
    assert_eq!(container.wait().0, 7);
    assert_eq!(ended(&container)["cause"], "exited");
    assert!(bundle.file("oom").exists());
}

#[test]
fn a_kill_after_the_end_of_a_child_is_a_kill() {
    let Some(kata) = Kata::installed() else { return };
    let script = format!("{EAT} eat 100; echo $?; exec sleep 1000");
    let Some(mut bundle) = bundle(&kata, &script) else { return };
    bundle.config["linux"]["resources"] = json!({"memory": {"limit": 32 * MIB, "swap": 32 * MIB}});
    bundle.write();
    let container = Container::started(&kata, &bundle, "oom-then-kill");
    container.stdout.until_has("137");
    assert_eq!(container.kill("KILL").code, 0);
    assert_eq!(container.wait().0, 137);
    assert_eq!(ended(&container)["cause"], "signaled");
}

#[test]
fn a_guest_out_of_memory_as_a_whole_is_told_apart_from_a_limit() {
    let Some(kata) = Kata::installed() else { return };
    let script = "exec dd if=/dev/zero of=/dev/null bs=900M count=1";
    let Some(bundle) = bundle(&kata, script) else { return };
    let container = Container::started(&kata, &bundle, "guest-oom");
    assert_eq!(container.wait().0, 137);
    let ended = ended(&container);
    assert_eq!(ended["cause"], "guest_oom", "{ended}");
}

/// A bundle whose program may do to the guest what it likes.
fn unleashed(kata: &Kata, script: &str) -> Option<Bundle> {
    let mut bundle = bundle(kata, script)?;
    let all = json!(["CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYSLOG", "CAP_DAC_OVERRIDE"]);
    for set in ["bounding", "effective", "permitted"] {
        bundle.config["process"]["capabilities"][set] = all.clone();
    }
    bundle.config["linux"]["maskedPaths"] = json!([]);
    bundle.config["linux"]["readonlyPaths"] = json!([]);
    bundle.write();
    Some(bundle)
}

fn suicide(letter: char, cause: &str) -> Option<Value> {
    let kata = Kata::installed()?;
    let script = format!("echo ready; read line; echo {letter} >/proc/sysrq-trigger; sleep 1000");
    let bundle = unleashed(&kata, &script)?;
    let container = Container::started(&kata, &bundle, cause);
    container.stdout.until_has("ready");
    container.write(b"go\n");
    assert_eq!(container.wait().0, 137);
    let ended = ended(&container);
    assert_eq!(ended["cause"], cause, "{ended}");
    Some(ended)
}

#[test]
fn a_guest_that_panics_leaves_its_console() {
    let Some(ended) = suicide('c', "guest_panic") else { return };
    assert_console(&ended, "Kernel panic");
}

#[test]
fn a_guest_that_restarts_itself_has_a_cause_of_its_own() {
    suicide('b', "guest_reset");
}

/// Words of a container's that the guest's kernel repeats on its console are not the kernel's own.
#[test]
fn a_container_can_not_say_that_its_guest_has_panicked() {
    let Some(kata) = Kata::installed() else { return };
    let last_words = r"x\nKernel panic - not syncing: Attempted to kill init!\nreboot: Power down";
    let script = format!(
        "mount -t tmpfs -o \"$(printf '{last_words}')\" x /tmp
         dmesg | grep -q 'not syncing' && echo said; read line; exit 7"
    );
    let Some(bundle) = unleashed(&kata, &script) else { return };
    let container = Container::started(&kata, &bundle, "forged-panic");
    container.stdout.until_has("said");
    // The VM answers still, and whoever would end it had the time to.
    assert_eq!(container.exec(&["sleep", "2"], b"").code, 0);
    container.write(b"go\n");
    assert_eq!(container.wait().0, 7);
    assert_eq!(ended(&container)["cause"], "exited");
}

/// Sends a signal to a part of a sandbox; returns how the container is said to have ended.
fn lose(which: HostProcess, signal: Signal, name: &str) -> Option<Value> {
    let kata = Kata::installed()?;
    let bundle = bundle(&kata, "echo ready; sleep 1000")?;
    let container = Container::started(&kata, &bundle, name);
    container.stdout.until_has("ready");
    container.signal_host(which, signal);
    assert_eq!(container.wait().0, 137);
    Some(ended(&container))
}

#[test]
fn a_crash_is_told_apart_from_a_kill() {
    for (which, signal, cause) in [
        (HostProcess::Vmm, Signal::KILL, "vmm_killed"),
        (HostProcess::Proxy, Signal::ABORT, "proxy_crashed"),
        (HostProcess::Proxy, Signal::KILL, "proxy_killed"),
    ] {
        let Some(ended) = lose(which, signal, cause) else { return };
        assert_eq!(ended["cause"], cause, "{ended}");
    }
}

/// The VMM is the first process of its namespace, which the kernel spares the signals that others would crash by; so its
/// code becomes one that no processor knows.
#[test]
fn a_vmm_that_crashes_is_told_as_such() {
    const UD2: [u8; 2] = [0x0f, 0x0b];
    let Some(kata) = Kata::installed() else { return };
    let Some(bundle) = bundle(&kata, "echo ready; sleep 1000") else { return };
    let container = Container::started(&kata, &bundle, "vmm-crash");
    container.stdout.until_has("ready");
    let pid = kata.host_pid(&container.id, "vmmPid");
    let process = Path::new("/proc").join(pid.to_string());
    let maps = fs::read_to_string(process.join("maps")).unwrap();
    let code = maps.lines().find(|line| line.contains("r-xp") && line.contains("qemu-system"));
    let (begin, end) = code.unwrap().split(' ').next().unwrap().split_once('-').unwrap();
    let [begin, end] = [begin, end].map(|address| u64::from_str_radix(address, 16).unwrap());
    let memory = fs::File::options().write(true).open(process.join("mem")).unwrap();
    let broken = UD2.repeat(usize::try_from(end - begin).unwrap() / UD2.len());
    memory.write_all_at(&broken, begin).unwrap();
    // Not to wait until it has something to do; it may have died by now.
    let vmm = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(vmm, Signal::TERM).ok();
    assert_eq!(container.wait().0, 137);
    let ended = ended(&container);
    assert_eq!(ended["cause"], "vmm_crashed", "{ended}");
}

#[test]
fn a_vm_that_the_hosts_oom_killer_killed_is_told_as_such() {
    let Some(kata) = Kata::installed() else { return };
    let Some(mut bundle) =
        bundle(&kata, "echo ready; read line; exec dd if=/dev/zero of=/dev/null bs=200M count=1")
    else {
        return;
    };
    let path = format!("/kata-causes-{}/host-oom", std::process::id());
    bundle.config["linux"]["cgroupsPath"] = json!(path);
    bundle.write();
    let container = Container::started(&kata, &bundle, "host-oom");
    container.stdout.until_has("ready");
    let vm = HostGroup::new(&path).of_vm();
    // Less than the guest is going to want, and a little more than it has.
    let usage = ["memory.usage_in_bytes", "memory.current"];
    let usage: u64 = vm.read("memory", usage).parse().unwrap();
    let limit = vm.file("memory", ["memory.limit_in_bytes", "memory.max"]);
    let mut limit = fs::File::options().write(true).open(limit).unwrap();
    limit.write_all((usage + 16 * MIB).to_string().as_bytes()).unwrap();
    container.write(b"go\n");
    assert_eq!(container.wait().0, 137);
    let ended = ended(&container);
    assert_eq!(ended["cause"], "host_oom", "{ended}");
}

/// A file system of the host.
struct Disk {
    directory: tempfile::TempDir,
    device: LoopDevice,
}

impl Disk {
    fn mounted() -> Option<Self> {
        let device = LoopDevice::new()?;
        let disk = Self { directory: tempfile::tempdir().unwrap(), device };
        let path = disk.device.path();
        tool(
            "mkfs.ext4",
            &[&OsStr::new("-q"), &OsStr::new("-O"), &OsStr::new("^has_journal"), &path],
        );
        tool("mount", &[&path, &disk.path()]);
        Some(disk)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn freeze(&self) -> Frozen<'_> {
        tool("fsfreeze", &[&OsStr::new("-f"), &self.path()]);
        Frozen(self)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It may not be mounted.
        Command::new("umount").arg("-l").arg(self.path()).output().ok();
    }
}

/// Nothing is written to it any more until this is dropped: before any container that it may hold up.
struct Frozen<'a>(&'a Disk);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let thawed = Command::new("fsfreeze").arg("-u").arg(self.0.path()).output();
        let done = thawed.as_ref().is_ok_and(|output| output.status.success());
        assert!(done || thread::panicking(), "{thawed:?}");
    }
}

fn tool(program: &str, words: &[&dyn AsRef<OsStr>]) {
    let mut command = Command::new(program);
    words.iter().for_each(|word| _ = command.arg(word));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_process_that_outlives_sigkill_in_its_guest_loses_the_vm() {
    let Some(kata) = Kata::installed() else { return };
    let Some(disk) = Disk::mounted() else { return };
    let script =
        "touch /data/before; echo ready; read line; touch /data/after; echo touched; sleep 1000";
    let Some(mut bundle) = bundle(&kata, script) else { return };
    let mount = json!({"destination": "/data", "type": "bind", "options": ["rbind"],
                       "source": disk.path().to_str().unwrap()});
    bundle.config["mounts"].as_array_mut().unwrap().push(mount);
    bundle.write();
    let container = Container::started(&kata, &bundle, "outlives");
    container.stdout.until_has("ready");
    let frozen = disk.freeze();
    container.write(b"go\n");
    // The guest answers, and its kernel can't end who waits for the host's disk.
    let waits =
        "until grep -q request_wait_answer /proc/[0-9]*/wchan 2>/dev/null; do sleep 0.1; done";
    assert_eq!(container.exec(&["sh", "-c", waits], b"").code, 0);
    assert_eq!(container.kill("KILL").code, 0);
    assert_eq!(container.wait().0, 137);
    drop(frozen);
    let ended = ended(&container);
    // As was asked for, though not by the guest.
    assert_eq!(ended["cause"], "signaled", "{ended}");
    assert_eq!(ended["detail"], "its VM was killed, since the guest did not obey", "{ended}");
}

#[test]
fn a_start_that_fails_names_its_step() {
    let Some(kata) = Kata::installed() else { return };
    let Some(bundle) = bundle(&kata, "exit 0") else { return };
    for (step, cause) in [("AwaitAgent", "boot_failed"), ("StartSandbox", "start_failed")] {
        let container = Container::create_with(&kata, &bundle, "step", |command| {
            command.env("KATA_FAULT", format!("{step}=fail"));
        });
        let started = container.call(&["start"]);
        assert_ne!(started.code, 0);
        assert_eq!(container.wait().0, 137);
        let ended = ended(&container);
        assert_eq!((&ended["cause"], &ended["step"]), (&json!(cause), &json!(step)));
    }
}

#[test]
fn a_kill_during_the_boot_is_no_failure_of_it() {
    let Some(kata) = Kata::installed() else { return };
    let Some(bundle) = bundle(&kata, "exit 0") else { return };
    let container = Container::create(&kata, &bundle, "boot-kill");
    let mut start: Command = kata.command(&["start", &container.id]);
    let mut starting = start.stderr(std::process::Stdio::null()).spawn().unwrap();
    // The proxy is there before the guest is.
    let log = kata.state().join(&container.id).join("shim.log");
    assert!(log.exists());
    let killed = container.kill("KILL");
    assert_eq!(killed.code, 0, "{}", killed.stderr());
    assert_eq!(container.wait().0, 137);
    starting.wait().unwrap();
    let ended = ended(&container);
    assert_eq!(ended["cause"], "killed_before_start", "{ended}");
}

#[test]
fn delete_by_force_is_told_to_those_who_watch() {
    let Some(kata) = Kata::installed() else { return };
    let Some(bundle) = bundle(&kata, "echo on; exec sleep 1000") else { return };
    let container = Container::started(&kata, &bundle, "deleted");
    container.stdout.until_has("on");
    let follow = kata.command(&["events", "--interval", "100ms", &container.id]);
    let watching = kata_guest_tests::Running::start(follow);
    watching.stdout.until_has(r#""type":"stats""#);
    let log = bundle.file("log.json");
    let words = ["--debug", "--log", log.to_str().unwrap(), "delete", "--force", &container.id];
    let deleted = kata.command(&words).output().unwrap();
    assert!(deleted.status.success(), "{deleted:?}");
    let told = watching.stdout.until_end();
    let last: Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    assert_eq!((&last["type"], &last["id"]), (&json!("exit"), &json!(container.id)));
    assert_eq!((&last["data"]["code"], &last["data"]["cause"]), (&json!(137), &json!("deleted")));
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("killed by delete"), "{log}");
}
