//! `kata-runtime run --image`: what a container sees of its image, and what is said about images that are broken.
#![allow(clippy::unwrap_used)]

use std::{env, fs, path::Path, process::Command};

use kata_guest_tests::{
    Running, Stored, Tmpfs, base, cgroups_named,
    image::{Image, Layer, gzipped, hex, named, packed, with_type},
    run,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal},
};
use serde_json::{Value, json};

/// An image of busybox alone that does this.
fn simple(config: Value) -> Option<Image> {
    Some(Image::of(&[base()?], config))
}

/// Version 2 of what `security.capability` holds: CAP_CHOWN, permitted and effective.
const CHOWN: &[u8] = &[1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn middle() -> Vec<u8> {
    Layer::new()
        .directory("usr/lib/", 0o755)
        .symlink("lib", "/usr/lib")
        .file("hidden", 0o644, b"middle")
        .file("opaque/below", 0o644, b"middle")
        .file("opaque/deep/below", 0o644, b"middle")
        .file("replaced/file", 0o644, b"middle")
        .file("became", 0o644, b"middle")
        .file("setuid", 0o4755, b"middle")
        .records(&[("uid", b"1000"), ("gid", b"1001"), ("mtime", b"1000000000.5")])
        .file("owned", 0o640, b"middle")
        .entry((b'3', "device", ""), (0o666, (1, 3)), b"")
        .entry((b'6', "fifo", ""), (0o600, (0, 0)), b"")
        .records(&[("path", format!("long/{}", "n".repeat(200)).as_bytes())])
        .file("short", 0o644, b"long")
        .end()
}

fn upper() -> Vec<u8> {
    Layer::new()
        .whiteout(".wh.hidden")
        .whiteout("opaque/.wh..wh..opq")
        .file("opaque/own", 0o644, b"upper")
        .file("replaced", 0o644, b"upper")
        .directory("became/", 0o750)
        .file("became/inside", 0o644, b"upper")
        .file("lib/through", 0o644, b"upper")
        .hard_link("linked", "owned")
        .hard_link("busybox", "bin/busybox")
        .end()
}

#[test]
fn three_layers_are_seen_as_one_tree() {
    let (Some(fixture), Some(base)) = (Stored::installed(), base()) else { return };
    let image = Image::empty();
    let layers = [gzipped(&base), middle(), gzipped(&upper())];
    let types = ["tar+gzip", "tar", "tar+gzip"];
    let descriptors: Vec<Value> = layers
        .iter()
        .zip(types)
        .map(|(layer, name)| {
            with_type(image.blob(layer), &format!("application/vnd.oci.image.layer.v1.{name}"))
        })
        .collect();
    let diff_ids = [&base, &middle(), &upper()].map(|layer| format!("sha256:{}", hex(layer)));
    let mut image = image;
    let manifest = image.manifest_of(&descriptors, &diff_ids, json!({}));
    image.list(manifest);
    let script = r#"
ls -d /hidden /.wh.hidden /opaque/.wh..wh..opq 2>&1 | wc -l
ls /opaque
cat /replaced /became/inside /usr/lib/through /linked; echo
readlink /lib
stat -c '%n %a %u %g %h %Y' /became /setuid /owned /linked
stat -c '%F %t %T %a' /device /fifo
ls /long | wc -c
cmp /busybox /bin/busybox && stat -c %h /busybox
touch /owned /new && rm /replaced && mkdir /replaced && echo writable
"#;
    let expected = "\
3\nown\nupperupperuppermiddle\n/usr/lib\n\
/became 750 0 0 2 1000000000\n/setuid 4755 0 0 1 1000000000\n\
/owned 640 1000 1001 2 1000000000\n/linked 640 1000 1001 2 1000000000\n\
character special file 1 3 666\nfifo 0 0 600\n201\n2\nwritable\n";
    for _ in 0..2 {
        // What the first has written the second does not see.
        let output = fixture.run(&image.reference(), &["--", "sh", "-c", script]);
        assert_eq!((output.code, output.stdout().as_str()), (0, expected), "{}", output.stderr());
        fixture.assert_nothing_left("after a run");
    }
    assert_eq!(fixture.names("layers").len(), 3);
}

#[test]
fn the_configuration_of_an_image_is_applied() {
    let (Some(fixture), Some(base)) = (Stored::installed(), base()) else { return };
    let accounts = Layer::new()
        .file("etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\nweb:x:33:44::/srv:/bin/sh\n")
        .file("etc/group", 0o644, b"root:x:0:\nweb:x:44:\ndisk:x:6:web\n")
        .end();
    let config = json!({
        "Env": ["PATH=/bin", "A=image", "B=image"],
        "Entrypoint": ["sh", "-c"],
        "Cmd": ["echo $A $B; pwd; id -u; id -G; echo $HOME"],
        "WorkingDir": "/made/for/it",
        "User": "web",
        "StopSignal": "SIGQUIT",
        "Labels": {"io.katacontainers.config.hypervisor.path": "/bin/false"},
    });
    let image = Image::of(&[base, accounts], config);
    let output = fixture.run(&image.reference(), &["-e", "B=typed"]);
    assert_eq!(
        output.stdout(),
        "image typed\n/made/for/it\n33\n44 6\n/srv\n",
        "{}",
        output.stderr()
    );
    let typed = ["-u", "1000:disk", "-w", "/tmp", "--", "pwd; id -u; id -g"];
    assert_eq!(fixture.run(&image.reference(), &typed).stdout(), "/tmp\n1000\n6\n");
    let output = fixture.run(&image.reference(), &["--entrypoint", "echo", "--", "a", "b"]);
    assert_eq!((output.code, output.stdout().as_str()), (0, "a b\n"), "{}", output.stderr());
    for (arguments, words) in [
        (&["--entrypoint", ""][..], &["no command"][..]),
        (&["-u", "nobody"], &["no user \"nobody\""]),
        (&["--entrypoint", "nope"], &["\"nope\": executable file not found in $PATH"]),
    ] {
        fixture.run(&image.reference(), arguments).assert_one_line(words);
        fixture.assert_nothing_left("after a refusal");
    }
}

#[test]
fn capabilities_of_files_count() {
    let (Some(fixture), Some(base)) = (Stored::installed(), base()) else { return };
    let root = env::var_os("KATA_TEST_ROOT_BUSYBOX").unwrap();
    let busybox = fs::read(Path::new(&root).join("bin/busybox")).unwrap();
    let programs = Layer::new()
        .records(&[("SCHILY.xattr.security.capability", CHOWN)])
        .file("capable/chown", 0o755, &busybox)
        .directory("tmp/", 0o1777)
        .end();
    let image = Image::of(&[base, programs], json!({"User": "1000:1000"}));
    let script = "touch /tmp/a; chown 7 /tmp/a 2>&1 | grep -c 'not permitted'; /capable/chown 7 /tmp/a; \
                  stat -c %u /tmp/a";
    let output = fixture.run(&image.reference(), &["--", "sh", "-c", script]);
    assert_eq!((output.code, output.stdout().as_str()), (0, "1\n7\n"), "{}", output.stderr());
}

#[test]
fn archives_are_read_as_directories_are() {
    let (Some(fixture), Some(base)) = (Stored::installed(), base()) else { return };
    let scratch = tempfile::tempdir().unwrap();
    let config = json!({"Cmd": ["echo", "ran"]});
    let mut image = Image::empty();
    let manifest = image.manifest(std::slice::from_ref(&base), config.clone());
    image.list(named(manifest, "one"));
    let other = image.manifest(&[base.clone(), middle()], json!({}));
    image.list(named(other, "docker.io/library/two:1"));
    let archive = image.archive(scratch.path());
    let archive = archive.to_str().unwrap();
    let output = fixture.run(&format!("oci-archive:{archive}:one"), &[]);
    assert_eq!((output.code, output.stdout().as_str()), (0, "ran\n"), "{}", output.stderr());
    let two = format!("oci-archive:{archive}:docker.io/library/two:1");
    let output = fixture.run(&two, &["--", "cat", "/hidden"]);
    assert_eq!((output.code, output.stdout().as_str()), (0, "middle"), "{}", output.stderr());
    let both = ["one", "docker.io/library/two:1"];
    fixture.run(&format!("oci-archive:{archive}"), &[]).assert_one_line(&both);
    fixture.run(&format!("oci-archive:{archive}:three"), &[]).assert_one_line(&both);
    // docker save as it long was: no digests but the configuration's name.
    let saved = tempfile::tempdir().unwrap();
    fs::create_dir(saved.path().join("layer")).unwrap();
    fs::write(saved.path().join("layer/layer.tar"), &base).unwrap();
    let file = json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&base))]},
    });
    let name = format!("{}.json", hex(file.to_string().as_bytes()));
    fs::write(saved.path().join(&name), file.to_string()).unwrap();
    let list = json!([{"Config": name, "RepoTags": ["it:latest"], "Layers": ["layer/layer.tar"]}]);
    fs::write(saved.path().join("manifest.json"), list.to_string()).unwrap();
    let archive = scratch.path().join("saved.tar");
    fs::write(&archive, packed(saved.path())).unwrap();
    let output = fixture.run(&format!("docker-archive:{}:it", archive.display()), &[]);
    assert_eq!((output.code, output.stdout().as_str()), (0, "ran\n"), "{}", output.stderr());
}

#[test]
fn an_archive_may_be_compressed_as_a_whole() {
    let (Some(fixture), Some(image)) =
        (Stored::installed(), simple(json!({"Cmd": ["echo", "ran"]})))
    else {
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let archive = image.archive(scratch.path());
    assert!(Command::new("gzip").arg(&archive).status().unwrap().success());
    let output = fixture.run(&format!("oci-archive:{}.gz", archive.display()), &[]);
    assert_eq!((output.code, output.stdout().as_str()), (0, "ran\n"), "{}", output.stderr());
    fixture.assert_nothing_left("after an archive was unpacked");
}

#[test]
fn prune_removes_the_layers_that_nobody_uses() {
    let (Some(fixture), Some(base)) = (Stored::installed(), base()) else { return };
    let mut image = Image::empty();
    let used = image
        .manifest(std::slice::from_ref(&base), json!({"Cmd": ["sh", "-c", "echo up; exec cat"]}));
    image.list(used);
    let id = format!("image-prune-{}", std::process::id());
    let running = Running::start(fixture.command(&image.reference(), &["--name", &id]));
    running.stdout.until_has("up");
    let mut other = Image::empty();
    let unused = other.manifest(&[base.clone(), middle()], json!({"Cmd": ["true"]}));
    other.list(unused);
    assert_eq!(fixture.run(&other.reference(), &[]).code, 0);
    assert_eq!(fixture.names("layers").len(), 2);
    let store = fixture.store();
    let prune = || fixture.kata.call(&["prune", "--store", store.to_str().unwrap()]).stdout();
    assert_eq!(prune(), "1 layers removed\n");
    assert_eq!(fixture.names("layers"), [format!("sha256-{}", hex(&base))]);
    assert_eq!(fixture.kata.call(&["delete", "--force", &id]).code, 0);
    drop(running);
    assert_eq!(prune(), "1 layers removed\n");
    assert_eq!((fixture.names("layers").len(), prune().as_str()), (0, "0 layers removed\n"));
    fixture.assert_nothing_left("after prune");
    // What was removed is unpacked anew.
    assert_eq!(fixture.run(&other.reference(), &[]).code, 0);
}

/// Puts a store on a disk of its own, on which there is so much room besides what is always left free.
fn small_disk(fixture: &Stored, room_mib: u64) -> Tmpfs {
    const RESERVE_MIB: u64 = 256;
    let path = fixture.store();
    fs::create_dir(&path).unwrap();
    Tmpfs::mount(&path, &format!("size={}m,mode=700", RESERVE_MIB + room_mib))
}

#[test]
fn layers_that_nobody_uses_make_room_for_others() {
    let (Some(fixture), Some(base)) = (Stored::installed(), base()) else { return };
    let _disk = small_disk(&fixture, 12);
    let layer = |name: &str, mib: usize| Layer::new().file(name, 0o644, &vec![7; mib << 20]).end();
    let image = |name: &str, config: Value| Image::of(&[base.clone(), layer(name, 8)], config);
    let first = image("first", json!({"Cmd": ["sh", "-c", "echo up; exec cat"]}));
    let second = image("second", json!({"Cmd": ["echo", "ran"]}));
    let id = format!("image-room-{}", std::process::id());
    let running = Running::start(fixture.command(&first.reference(), &["--name", &id]));
    running.stdout.until_has("up");
    fixture.run(&second.reference(), &[]).assert_one_line(&["layer 2", "there is no room"]);
    assert_eq!((fixture.names("layers").len(), fixture.names("drafts").len()), (2, 0));
    assert_eq!(fixture.kata.call(&["delete", "--force", &id]).code, 0);
    drop(running);
    let output = fixture.run(&second.reference(), &[]);
    assert_eq!((output.code, output.stdout().as_str()), (0, "ran\n"), "{}", output.stderr());
    // What both have was in use all the time.
    let layers = fixture.names("layers");
    assert!(layers.len() == 2 && layers.contains(&format!("sha256-{}", hex(&base))), "{layers:?}");
    let scratch = tempfile::tempdir().unwrap();
    // What is compressed as a whole takes room before it is looked at.
    let third = Image::of(&[base.clone(), layer("third", 1)], json!({"Cmd": ["echo", "ran"]}));
    let archive = third.archive(scratch.path());
    fs::write(&archive, gzipped(&fs::read(&archive).unwrap())).unwrap();
    let output = fixture.run(&format!("oci-archive:{}", archive.display()), &[]);
    assert_eq!((output.code, output.stdout().as_str()), (0, "ran\n"), "{}", output.stderr());
    assert_eq!(fixture.names("layers").len(), 2);
    fixture.assert_nothing_left("after room was made");
}

#[test]
fn the_image_for_this_machine_is_chosen() {
    let (Some(fixture), Some(base)) = (Stored::installed(), base()) else { return };
    let platform = |mut manifest: Value, architecture: &str| {
        manifest["platform"] = json!({"os": "linux", "architecture": architecture});
        manifest
    };
    let mut image = Image::empty();
    let right = image.manifest(&[base], json!({"Cmd": ["echo", "right"]}));
    let wrong = image.manifest(&[middle()], json!({}));
    let foreign = platform(wrong.clone(), "s390x");
    let index = image.index(&[foreign.clone(), platform(right, "amd64")]);
    image.list(index);
    let output = fixture.run(&image.reference(), &[]);
    assert_eq!((output.code, output.stdout().as_str()), (0, "right\n"), "{}", output.stderr());
    let mut image = Image::empty();
    image.blob_file(&wrong);
    image.list(foreign);
    fixture.run(&image.reference(), &["--", "true"]).assert_one_line(&["linux/s390x", "amd64"]);
}

#[test]
fn several_that_unpack_the_same_image_at_once_share_it() {
    let (Some(fixture), Some(image)) =
        (Stored::installed(), simple(json!({"Cmd": ["echo", "ran"]})))
    else {
        return;
    };
    // What one that was killed has left is not taken for a layer.
    let digest = hex(&base().unwrap());
    let stale = fixture.store().join("drafts").join(format!("sha256-{digest}"));
    let made = Command::new("mkdir").args(["-m", "700", "-p"]).arg(stale.join("tree/bin")).status();
    assert!(made.unwrap().success());
    for part in ["", "drafts"] {
        let path = fixture.store().join(part);
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    }
    let runs: Vec<Running> =
        (0..3).map(|_| Running::start(fixture.command(&image.reference(), &[]))).collect();
    for run in runs {
        let output = run.finish();
        assert_eq!((output.code, output.stdout().as_str()), (0, "ran\n"), "{}", output.stderr());
    }
    assert_eq!(fixture.names("layers"), [format!("sha256-{digest}")]);
    fixture.assert_nothing_left("after three at once");
}

#[test]
fn what_a_run_wrote_goes_with_it_whoever_is_killed() {
    let (Some(fixture), Some(image)) = (Stored::installed(), simple(json!({}))) else { return };
    let script = ["--", "sh", "-c", "mkdir -p /a/b/c && echo x >/a/b/c/d && echo up && exec cat"];
    for victim in ["runtime", "shimPid"] {
        let id = format!("image-{victim}-{}", std::process::id());
        let arguments = [&["--name", &id][..], &script].concat();
        let running = Running::start(fixture.command(&image.reference(), &arguments));
        running.stdout.until_has("up");
        assert_eq!(fixture.names("runs").len(), 1);
        let pid = match victim {
            "runtime" => running.pid(),
            which => rustix::process::Pid::from_raw(fixture.kata.host_pid(&id, which)).unwrap(),
        };
        kill_process(pid, Signal::KILL).unwrap();
        drop(running);
        let deleted = fixture.kata.call(&["delete", "--force", &id]);
        assert_eq!(deleted.code, 0, "{}", deleted.stderr());
        fixture.assert_nothing_left(victim);
    }
}

#[test]
fn a_step_that_fails_leaves_nothing() {
    let (Some(fixture), Some(image)) = (Stored::installed(), simple(json!({"Cmd": ["true"]})))
    else {
        return;
    };
    for step in ["MakeWritable", "MountLayers", "BootVmm"] {
        for how in ["fail", "kill"] {
            let id = format!("image-{step}-{how}-{}", std::process::id());
            let mut command = fixture.command(&image.reference(), &["--name", &id]);
            command.env("KATA_FAULT", format!("{step}={how}"));
            let output = run(command, b"");
            assert_ne!(output.code, 0, "{step} {how}");
            fixture.kata.call(&["delete", "--force", &id]);
            fixture.assert_nothing_left(&format!("{step} {how}"));
        }
    }
}

#[test]
fn what_a_machine_that_went_down_has_left_goes_with_the_next_run() {
    let (Some(fixture), Some(image)) = (Stored::installed(), simple(json!({"Cmd": ["true"]})))
    else {
        return;
    };
    assert_eq!(fixture.run(&image.reference(), &[]).code, 0);
    // Nobody holds a lock on it.
    fs::create_dir_all(fixture.store().join("runs/gone/upper/deep")).unwrap();
    fs::create_dir_all(fixture.store().join("drafts/gone/tree")).unwrap();
    assert_eq!(fixture.run(&image.reference(), &[]).code, 0);
    fixture.assert_nothing_left("after the next run");
}

#[test]
fn check_repairs_what_a_killed_shim_has_left() {
    let (Some(fixture), Some(image)) = (Stored::installed(), simple(json!({}))) else { return };
    let id = format!("image-repair-{}", std::process::id());
    let script = ["--name", &id, "--", "sh", "-c", "echo up; exec cat"];
    let running = Running::start(fixture.command(&image.reference(), &script));
    running.stdout.until_has("up");
    let shim = fixture.kata.host_pid(&id, "shimPid");
    // The runtime goes first, for it would clean up.
    kill_process(running.pid(), Signal::KILL).unwrap();
    let shim = pidfd_open(Pid::from_raw(shim).unwrap(), PidfdFlags::empty()).unwrap();
    pidfd_send_signal(&shim, Signal::KILL).unwrap();
    let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&shim, PollFlags::IN)], Some(&limit)).unwrap(), 1);
    drop(running);
    assert_eq!((fixture.names("runs").len(), cgroups_named(&id).is_empty()), (1, false));
    let store = fixture.store();
    let repaired = fixture.kata.call(&["check", "--repair", "--store", store.to_str().unwrap()]);
    assert!(repaired.stdout().contains("cleaned up after 1 sandboxes"), "{}", repaired.stdout());
    assert_eq!((fixture.names("runs").len(), cgroups_named(&id).is_empty()), (0, true));
    // How it ended can still be asked.
    assert_eq!(fixture.kata.state_of(&id)["kata"]["ended"]["cause"], "shim_lost");
    assert_eq!(fixture.kata.call(&["delete", &id]).code, 0);
    fixture.assert_nothing_left("after delete");
}
