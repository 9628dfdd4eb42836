//! Broken input: one line that names what and where, an exit code, and nothing left.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use kata_guest_tests::{Bundle, Kata, Leftovers, Tmpfs, busybox, cgroups_named, run};
use serde_json::{Value, json};

/// A bundle that would run, to be broken.
fn bundle(kata: &Kata) -> Option<Bundle> {
    Some(Bundle::new(kata, busybox()?, &["sh", "-c", "exit 0"]))
}

/// An id that no other test uses, to look for what is left.
fn id(name: &str) -> String {
    format!("error-{name}-{}", std::process::id())
}

/// Asserts that nothing is left of `id`: its directory, its groups, a process that was started for it.
fn assert_nothing_left(kata: &Kata, id: &str) {
    let left = fs::read_dir(kata.state()).map(|entries| entries.flatten().count()).unwrap_or(0);
    assert_eq!(left, 0, "entries in the state directory");
    assert_eq!(cgroups_named(id), Vec::<String>::new(), "control groups");
    assert_eq!(Leftovers::holders(&kata.state()), Vec::<String>::new(), "processes");
}

/// Changes a bundle that would run, creates and starts it, and asserts the line.
fn refused(name: &str, words: &[&str], change: impl FnOnce(&mut Bundle)) {
    let Some(kata) = Kata::installed() else { return };
    let Some(mut bundle) = bundle(&kata) else { return };
    change(&mut bundle);
    let id = id(name);
    let output = kata.call(&["run", "--bundle", bundle.path(), &id]);
    output.assert_one_line(words);
    assert_nothing_left(&kata, &id);
}

/// The same for a change to the spec.
fn refused_spec(name: &str, words: &[&str], change: impl FnOnce(&mut Value)) {
    refused(name, words, |bundle| {
        change(&mut bundle.config);
        bundle.write();
    });
}

/// The same for a configuration file.
fn refused_configuration(name: &str, words: &[&str], text: &str) {
    let Some(kata) = Kata::installed() else { return };
    let Some(bundle) = bundle(&kata) else { return };
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("config.toml"), text).unwrap();
    let (id, config) = (id(name), directory.path().to_str().unwrap());
    let output = kata.call(&["--config", config, "run", "--bundle", bundle.path(), &id]);
    output.assert_one_line(words);
    assert_nothing_left(&kata, &id);
}

/// The same for an id.
fn refused_id(id: &str, words: &[&str]) {
    let Some(kata) = Kata::installed() else { return };
    let Some(bundle) = bundle(&kata) else { return };
    for verb in ["run", "create"] {
        let output = kata.call(&[verb, "--bundle", bundle.path(), id]);
        output.assert_one_line(words);
    }
    assert_nothing_left(&kata, "kata-test-no-id");
}

#[test]
fn no_config_json() {
    refused("none", &["config.json", "No such file"], |bundle| {
        fs::remove_file(bundle.file("config.json")).unwrap();
    });
}

#[test]
fn no_bundle() {
    let Some(kata) = Kata::installed() else { return };
    let output = kata.call(&["run", "--bundle", "/no/such/bundle", &id("bundle")]);
    output.assert_one_line(&["/no/such/bundle", "No such file"]);
}

#[test]
fn config_json_that_is_no_json() {
    refused("malformed", &["config.json", "line 1"], |bundle| {
        fs::write(bundle.file("config.json"), "{ \"process\": nonsense").unwrap();
    });
}

#[test]
fn config_json_that_is_a_directory() {
    refused("directory", &["config.json", "s a directory"], |bundle| {
        fs::remove_file(bundle.file("config.json")).unwrap();
        fs::create_dir(bundle.file("config.json")).unwrap();
    });
}

#[test]
fn an_absent_root() {
    refused_spec("root", &["root.path", "/no/such/root"], |spec| {
        spec["root"]["path"] = json!("/no/such/root");
    });
}

#[test]
fn a_root_that_is_a_file() {
    refused("file", &["root.path", "ot a directory"], |bundle| {
        fs::write(bundle.file("plain"), "").unwrap();
        bundle.config["root"]["path"] = json!("plain");
        bundle.write();
    });
}

#[test]
fn an_absent_root_for_run_rootfs() {
    let Some(kata) = Kata::installed() else { return };
    let output = kata.call(&["run", "--rootfs", "/no/such/root", "--", "true"]);
    output.assert_one_line(&["/no/such/root", "No such file"]);
}

#[test]
fn an_id_with_slashes() {
    refused_id("a/../b", &["a/../b", "'/'"]);
}

#[test]
fn an_id_of_2000_characters() {
    refused_id(&"x".repeat(2000), &["2000 characters"]);
}

#[test]
fn an_empty_id() {
    refused_id("", &["id is empty"]);
}

#[test]
fn an_id_that_leaves_the_state_directory() {
    refused_id("..", &["\"..\""]);
}

#[test]
fn a_field_of_the_wrong_type() {
    refused_spec("type", &["process.args", "list", "config.json"], |spec| {
        spec["process"]["args"] = json!("sh -c ls");
    });
}

#[test]
fn another_major_version_of_the_spec() {
    refused_spec("version", &["ociVersion", "2.0.0"], |spec| spec["ociVersion"] = json!("2.0.0"));
}

#[test]
fn an_annotation_of_ours_that_there_is_not() {
    refused_spec("annotation", &["io.katacontainers.vm.memory_mb", "vm.memory_mib"], |spec| {
        spec["annotations"] = json!({"io.katacontainers.vm.memory_mb": "64"});
    });
}

#[test]
fn an_annotation_that_only_the_administrator_may_set() {
    refused_spec("host-only", &["io.katacontainers.hypervisor.path"], |spec| {
        spec["annotations"] = json!({"io.katacontainers.hypervisor.path": "/bin/sh"});
    });
}

#[test]
fn no_arguments() {
    refused_spec("args", &["process.args"], |spec| spec["process"]["args"] = json!([]));
}

#[test]
fn a_relative_working_directory() {
    refused_spec("cwd", &["process.cwd", "absolute"], |spec| spec["process"]["cwd"] = json!("tmp"));
}

#[test]
fn a_field_that_is_refused_by_name() {
    refused_spec("rdt", &["linux.intelRdt", "refused"], |spec| {
        spec["linux"]["intelRdt"] = json!({"closID": "guaranteed"});
    });
}

#[test]
fn a_volume_whose_source_is_absent() {
    refused_spec("volume", &["mounts[", "/no/such/volume"], |spec| {
        let mount = json!({"destination": "/data", "type": "bind", "source": "/no/such/volume",
                           "options": ["rbind"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    });
}

#[test]
fn a_network_namespace_that_is_absent() {
    refused_spec("netns", &["/run/netns/no-such", "No such file"], |spec| {
        for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "network" {
                namespace["path"] = json!("/run/netns/no-such");
            }
        }
    });
}

#[test]
fn a_control_group_outside_of_the_hierarchy() {
    refused_spec("cgroup", &["cgroupsPath", "/../../escape"], |spec| {
        spec["linux"]["cgroupsPath"] = json!("/../../escape");
    });
}

#[test]
fn no_qemu() {
    let text = "[hypervisor]\npath = \"/no/such/qemu\"\n";
    refused_configuration("qemu", &["QEMU", "/no/such/qemu", "hypervisor.path"], text);
}

#[test]
fn a_qemu_that_is_another_program() {
    let text = "[hypervisor]\npath = \"/bin/true\"\n";
    refused_configuration("true", &["/bin/true"], text);
}

#[test]
fn no_kernel() {
    let text = "[kernel]\npath = \"/no/such/vmlinux\"\n";
    refused_configuration("kernel", &["kernel", "/no/such/vmlinux"], text);
}

#[test]
fn a_kernel_that_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmlinux");
    fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
    let text = format!("[kernel]\npath = {path:?}\n");
    refused_configuration("no-kernel", &[path.to_str().unwrap()], &text);
}

#[test]
fn an_initrd_of_random_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("random-bytes");
    let random: Vec<u8> = fs::File::open("/dev/urandom")
        .and_then(|file| {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut std::io::Read::take(file, 1 << 20), &mut bytes)?;
            Ok(bytes)
        })
        .unwrap();
    fs::write(&path, random).unwrap();
    let text = format!("[initrd]\npath = {path:?}\n");
    refused_configuration("initrd", &["kernel panicked", path.to_str().unwrap()], &text);
}

#[test]
fn too_little_memory_for_any_guest() {
    refused_spec("memory", &["io.katacontainers.vm.memory_mib", "64"], |spec| {
        spec["annotations"] = json!({"io.katacontainers.vm.memory_mib": "16"});
    });
}

#[test]
fn an_unknown_key_in_the_configuration() {
    let text = "[hypervisor]\npth = \"/usr/bin/qemu-system-x86_64\"\n";
    refused_configuration("key", &["config.toml:2", "pth", "hypervisor.path"], text);
}

#[test]
fn a_state_directory_that_can_not_be_written() {
    let Some(kata) = Kata::installed() else { return };
    let Some(bundle) = bundle(&kata) else { return };
    // Root may write everywhere but where there is nothing to write to.
    let mut command = Command::new(kata.program());
    command.args(["--root", "/proc/kata", "run", "--bundle", bundle.path(), &id("ro")]);
    let output = run(command, b"");
    output.assert_one_line(&["/proc/kata", "state directory"]);
}

/// The log is there, too: a line that can't be written must not end who wrote it.
#[test]
fn a_state_directory_without_room() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let directory = tempfile::tempdir().unwrap();
    for pages in [1, 2, 3] {
        let full = Tmpfs::mount(directory.path(), &format!("nr_blocks={pages}"));
        let state = directory.path().join("state");
        let state = state.to_str().unwrap();
        let rootfs = root.path();
        let mut command = Command::new(kata.program());
        command.args(["--root", state, "run", "--rootfs", rootfs, "--", "true"]);
        let output = run(command, b"");
        let left = fs::read_dir(state).map_or(0, Iterator::count);
        drop(full);
        // More than one page may do: how much a record and a log take is not promised.
        if pages == 1 || output.code != 0 {
            output.assert_one_line(&["No space left on device"]);
        }
        assert_eq!(left, 0, "{pages} pages");
    }
}

/// What was done is recorded when there is room again.
#[test]
fn a_state_directory_that_fills_up_later() {
    let Some(kata) = Kata::installed() else { return };
    let Some(mut bundle) = bundle(&kata) else { return };
    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.write();
    let (directory, id) = (tempfile::tempdir().unwrap(), id("fills"));
    let _mounted = Tmpfs::mount(directory.path(), "nr_blocks=64");
    let state = directory.path().join("state");
    let command = |words: &[&str]| {
        let mut command = Command::new(kata.program());
        command.arg("--root").arg(&state).args(words).arg(&id);
        command
    };
    let mut create = command(&["run", "--detach", "--bundle", bundle.path()]);
    // The monitor keeps what it is given.
    create.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(create.status().unwrap().success());
    let filler = directory.path().join("filler");
    fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
    let paused = run(command(&["pause"]), b"");
    assert_eq!(paused.code, 0, "{}", paused.stderr());
    fs::remove_file(&filler).unwrap();
    let told: Value = serde_json::from_slice(&run(command(&["state"]), b"").stdout).unwrap();
    assert_eq!(told["status"], "paused", "{told}");
    assert_eq!(run(command(&["delete", "--force"]), b"").code, 0);
}

#[test]
fn a_caller_whose_files_are_nobodys() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut command = Command::new("sh");
    let script = "umask 777; exec \"$@\"";
    let run_in_root = kata.command(&["run", "--rootfs", root.path(), "--", "echo", "ran"]);
    command.args(["-c", script, "sh"]).arg(run_in_root.get_program()).args(run_in_root.get_args());
    let output = run(command, b"");
    assert_eq!((output.code, output.stdout().as_str()), (0, "ran\n"), "{}", output.stderr());
}

#[test]
fn a_program_that_may_not_be_executed() {
    refused("plain", &["/plain", "permission denied"], |bundle| {
        fs::write(bundle.root().file("/plain"), "").unwrap();
        let mode = fs::Permissions::from_mode(0o644);
        fs::set_permissions(bundle.root().file("/plain"), mode).unwrap();
        bundle.config["process"]["args"] = json!(["/plain"]);
        bundle.write();
    });
}

#[test]
fn a_terminal_without_a_console_socket() {
    let Some(kata) = Kata::installed() else { return };
    let Some(mut bundle) = bundle(&kata) else { return };
    bundle.config["process"]["terminal"] = json!(true);
    bundle.write();
    let id = id("console");
    let output = kata.call(&["create", "--bundle", bundle.path(), &id]);
    output.assert_one_line(&["--console-socket"]);
    assert_nothing_left(&kata, &id);
}

#[test]
fn words_that_are_no_command() {
    let Some(kata) = Kata::installed() else { return };
    for (words, named) in [
        (&["strat", "c1"][..], "strat"),
        (&["state"], "<ID>"),
        (&["run", "--no-such-option", "c1"], "--no-such-option"),
    ] {
        kata.call(words).assert_one_line(&[named]);
    }
}

#[test]
fn a_tool_that_reads_json_logs_gets_the_same_line() {
    let Some(kata) = Kata::installed() else { return };
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let mut command: Command = kata.command(&["--log-format", "json", "--log"]);
    command.arg(&log).args(["run", "--bundle", "/no/such/bundle", &id("log")]);
    let output = run(command, b"");
    output.assert_one_line(&["/no/such/bundle"]);
    let line: Value = serde_json::from_slice(&fs::read(&log).unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(output.stderr().contains(line["msg"].as_str().unwrap()), "{line}");
}
