//! The shim fails, or is killed, at each step of a sandbox's way up (`KATA_FAULT`): nothing is left.
#![allow(clippy::unwrap_used)]

use std::{fs, process::Command};

use kata_guest_tests::{
    Bundle, Kata, Leftovers, Output, Wire, busybox, cgroups_named, run, set_network, snapshot,
};
use serde_json::json;

/// Steps that a container with a volume and a link passes on its way up.
const STEPS: &[&str] = &[
    "WriteLedger",
    "MakeCgroup",
    "LimitCgroup",
    "MountSharedTree",
    "AttachRoot",
    "AttachVolume",
    "WriteRecord",
    "ScanNetwork",
    "MakeTap",
    "RedirectLink",
    "LimitLink",
    "SpawnProxy",
    "BootVmm",
    "OpenLocalhost",
    "AwaitAgent",
    "StartSandbox",
];

/// A container with everything that has a step of its own.
struct Fixture {
    kata: Kata,
    bundle: Bundle,
    volume: tempfile::TempDir,
    wire: Wire,
    network: Vec<String>,
}

impl Fixture {
    fn new() -> Option<Self> {
        let (kata, root) = (Kata::installed()?, busybox()?);
        let volume = tempfile::tempdir().unwrap();
        fs::write(volume.path().join("file"), "precious").unwrap();
        let mut bundle = Bundle::new(&kata, root, &["sh", "-c", "exit 0"]);
        let mount = json!({"destination": "/data", "type": "bind", "options": ["rbind"],
                           "source": volume.path().to_str().unwrap()});
        bundle.config["mounts"].as_array_mut().unwrap().push(mount);
        let wire = Wire::new(&["192.0.2.2/24"], &["192.0.2.1/24"]);
        bundle.config["annotations"] =
            json!({"io.katacontainers.network.outbound_kbit_s": "1000000"});
        set_network(&mut bundle.config, Some(&wire.path()));
        bundle.write();
        let network = snapshot(Some(&wire.name));
        Some(Self { kata, bundle, volume, wire, network })
    }

    fn faulty(&self, arguments: &[&str], step: &str, how: &str) -> Output {
        let mut command: Command = self.kata.command(arguments);
        command.env("KATA_FAULT", format!("{step}={how}"));
        run(command, b"")
    }

    fn assert_nothing_left(&self, step: &str, id: &str) {
        let entries = fs::read_dir(self.kata.state()).into_iter().flatten().flatten();
        let names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        assert!(names.is_empty(), "{step}: {names:?} in the state directory");
        assert_eq!(cgroups_named(id), Vec::<String>::new(), "{step}: control groups");
        let holders = Leftovers::holders(&self.kata.state());
        assert_eq!(holders, Vec::<String>::new(), "{step}: processes");
        assert_eq!(snapshot(Some(&self.wire.name)), self.network, "{step}: the namespace");
        let volume = self.volume.path().join("file");
        assert_eq!(
            fs::read_to_string(volume).unwrap(),
            "precious",
            "{step}: a volume is the user's"
        );
    }
}

fn id(step: &str, how: &str) -> String {
    format!("fault-{step}-{how}-{}", std::process::id())
}

#[test]
fn a_step_that_fails_is_told_and_leaves_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    for step in STEPS {
        let id = id(step, "fail");
        let arguments = ["run", "--bundle", fixture.bundle.path(), &id];
        let output = fixture.faulty(&arguments, step, "fail");
        output.assert_one_line(&[step]);
        fixture.assert_nothing_left(step, &id);
    }
}

#[test]
fn a_shim_that_is_killed_under_run_leaves_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    for step in STEPS {
        let id = id(step, "run");
        let arguments = ["run", "--bundle", fixture.bundle.path(), &id];
        let output = fixture.faulty(&arguments, step, "kill");
        output.assert_one_line(&["shim"]);
        fixture.assert_nothing_left(step, &id);
    }
}

#[test]
fn a_shim_that_is_killed_at_any_step_can_be_deleted() {
    let Some(fixture) = Fixture::new() else { return };
    for step in STEPS {
        let id = id(step, "kill");
        let create = ["create", "--bundle", fixture.bundle.path(), &id];
        // The monitor keeps our pipes open as long as it lives.
        let mut command = fixture.kata.command(&create);
        command.env("KATA_FAULT", format!("{step}=kill"));
        let log = fs::File::create(fixture.bundle.file("log")).unwrap();
        let created = command.stderr(log).status().unwrap();
        if created.success() {
            fixture.kata.call(&["start", &id]).assert_one_line(&["shim"]);
            let state = fixture.kata.state_of(&id);
            assert_eq!(state["kata"]["ended"]["cause"], "shim_lost", "{step}: {state}");
        }
        let deleted = fixture.kata.call(&["delete", "--force", &id]);
        assert_eq!(deleted.code, 0, "{step}: {}", deleted.stderr());
        fixture.assert_nothing_left(step, &id);
    }
}

#[test]
fn a_shim_that_is_killed_on_the_way_down_leaves_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    let id = id("StopVmm", "kill");
    let arguments = ["run", "--bundle", fixture.bundle.path(), &id];
    let output = fixture.faulty(&arguments, "StopVmm", "kill");
    assert_eq!(output.code, 0, "the end was known before: {}", output.stderr());
    fixture.assert_nothing_left("StopVmm", &id);
}

#[test]
fn a_shim_that_fails_on_the_way_down_leaves_nothing() {
    let Some(fixture) = Fixture::new() else { return };
    let id = id("StopVmm", "fail");
    let arguments = ["run", "--bundle", fixture.bundle.path(), &id];
    let output = fixture.faulty(&arguments, "StopVmm", "fail");
    assert_eq!(output.code, 0, "{}", output.stderr());
    fixture.assert_nothing_left("StopVmm", &id);
}

#[test]
fn neither_redirect_nor_localhost_outlives_a_sandbox() {
    let Some(fixture) = Fixture::new() else { return };
    for (step, how) in [
        ("RestoreLink", "fail"),
        ("RestoreLink", "kill"),
        ("CloseLocalhost", "fail"),
        ("CloseLocalhost", "kill"),
    ] {
        let id = id(step, how);
        // Told, or not told any more by the shim: the next one to delete does the rest.
        let output = fixture.faulty(&["run", "--bundle", fixture.bundle.path(), &id], step, how);
        assert_eq!(fixture.kata.call(&["delete", "--force", &id]).code, 0, "{}", output.stderr());
        fixture.assert_nothing_left(step, &id);
    }
}
