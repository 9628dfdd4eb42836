//! Configurations as engines write them: taken whole, and what the guest gets of them.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use kata_spec::{
    Checked, IdRange, Network, Origin, SpecError, TerminalSize, TreeError, Trees, check,
    check_beside, default_for, explain, features, parse_process, read_config, reference,
};
use rustix::{
    fs::{CWD, FileType, Mode, mkdirat, mknodat},
    io::Errno,
    mount::{MountFlags, mount},
    thread::UnshareFlags,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A bundle with this config, a root, a directory `data` and a file `hosts`.
fn bundle(config: &str) -> TempDir {
    let bundle = tempfile::tempdir().unwrap();
    for directory in ["rootfs", "data"] {
        fs::create_dir(bundle.path().join(directory)).unwrap();
    }
    fs::write(bundle.path().join("hosts"), "").unwrap();
    fs::write(bundle.path().join("config.json"), config).unwrap();
    bundle
}

fn load(bundle: &Path) -> Result<Checked, SpecError> {
    let json = read_config(&bundle.join("config.json")).unwrap();
    check(&serde_json::from_slice(&json).unwrap(), bundle)
}

fn guest(checked: &Checked) -> Value {
    serde_json::from_slice(&checked.guest_spec(|number| format!("/volumes/{number}"))).unwrap()
}

fn explained<'a>(checked: &'a Checked, field: &str) -> Vec<(&'a str, &'a str)> {
    let lines = checked.explain().filter(|line| line.field == field);
    lines.map(|line| (line.treatment, line.detail.as_str())).collect()
}

#[test]
fn runcs_default_is_run_as_it_is() {
    let bundle = bundle(include_str!("configs/runc.json"));
    let checked = load(bundle.path()).unwrap();
    assert_eq!(checked.rootfs, bundle.path().join("rootfs"));
    assert!(checked.read_only_root && checked.process.terminal && checked.volumes.is_empty());
    assert_eq!((checked.network.clone(), checked.hostname.as_str()), (Network::New, "runc"));
    let original: Value = serde_json::from_str(include_str!("configs/runc.json")).unwrap();
    let guest = guest(&checked);
    for part in ["process", "mounts", "hostname"] {
        assert_eq!(guest[part], original[part], "{part}");
    }
}

#[test]
fn dockers_reaches_the_guest_without_what_is_the_hosts() {
    let bundle = bundle(include_str!("configs/docker.json"));
    let checked = load(bundle.path()).unwrap();
    let size = TerminalSize { rows: 40, columns: 120 };
    assert_eq!(checked.process.terminal_size, Some(size));
    assert_eq!(checked.cgroups_path.as_deref(), Some("/docker/4e1"));
    let (memory, cpu) = (&checked.limits.memory, &checked.limits.cpu);
    assert_eq!((memory.limit, memory.swap), (Some(128 << 20), Some(256 << 20)));
    assert_eq!((cpu.shares, cpu.quota, cpu.period), (Some(512), Some(50_000), Some(100_000)));
    assert_eq!((cpu.cpus.as_deref(), checked.limits.pids.limit), (None, Some(100)));
    let [hosts, data] = &checked.volumes[..] else { panic!("{:?}", checked.volumes) };
    assert_eq!((hosts.mount, hosts.directory, hosts.read_only), (7, false, false));
    assert_eq!((data.mount, data.directory, data.read_only), (8, true, true));
    assert_eq!(data.origin, Origin::Path(bundle.path().join("data")));
    assert!(data.recursive);

    let guest = guest(&checked);
    assert_eq!(guest["mounts"][7]["source"], "/volumes/0");
    assert_eq!(guest["mounts"][8]["source"], "/volumes/1");
    assert_eq!(guest["process"]["capabilities"]["bounding"], json!(["CAP_CHOWN", "CAP_NET_RAW"]));
    for absent in [
        "/hooks/prestart",
        "/annotations",
        "/linux/cgroupsPath",
        "/process/apparmorProfile",
        "/root/path",
    ] {
        assert_eq!(guest.pointer(absent), None, "{absent}");
    }
    let text = guest.to_string();
    assert!(!text.contains(bundle.path().to_str().unwrap()), "a host path in {text}");
}

#[test]
fn podmans_is_translated_and_every_translation_is_told() {
    let bundle = bundle(include_str!("configs/podman.json"));
    let checked = load(bundle.path()).unwrap();
    assert_eq!(checked.network, Network::Path("/run/netns/netns-1".into()));
    assert_eq!(checked.cgroups_path.as_deref(), Some("machine.slice:libpod:1234"));
    let guest = guest(&checked);
    assert_eq!(guest["mounts"][1]["type"], "sysfs");
    assert_eq!(
        guest["mounts"][1]["options"],
        json!(["rprivate", "nosuid", "noexec", "nodev", "ro"])
    );
    assert_eq!(guest["mounts"][2]["source"], "/dev/null");
    assert_eq!(guest["mounts"][3]["destination"], "/run/secrets");
    assert_eq!(guest.pointer("/linux/namespaces/1"), Some(&json!({"type": "network"})));
    assert_eq!(guest["process"]["rlimits"][1]["hard"], u64::MAX);
    assert_eq!(explained(&checked, "linux.futureField")[0].0, "unknown");
    assert_eq!(explained(&checked, "mounts[1].source")[0].1, "the guest's /sys");
    assert_eq!(explained(&checked, "process.selinuxLabel")[0].0, "host only");
}

#[test]
fn the_default_is_what_it_says() {
    let root = tempfile::tempdir().unwrap();
    let args = ["uname".to_owned(), "-r".to_owned()];
    let config = default_for(root.path().to_str().unwrap(), &args, true);
    let checked = check(&config, Path::new("/")).unwrap();
    assert_eq!(checked.process.args, args);
    assert_eq!(checked.network, Network::New);
    assert!(checked.process.terminal && !checked.read_only_root);
    assert!(checked.explain().all(|line| line.treatment != "unknown"));
}

#[test]
fn sysctls_have_the_names_that_they_were_given() {
    let bundle = bundle("{}");
    let mut config = default_for("rootfs", &["sh".to_owned()], false);
    config["linux"]["sysctl"] = json!({
        "net.ipv4.ip_forward": "1", "net/ipv4/conf/eth0.7/rp_filter": "2",
    });
    let checked = check(&config, bundle.path()).unwrap();
    let set = [("net.ipv4.ip_forward", "1"), ("net/ipv4/conf/eth0.7/rp_filter", "2")];
    let set = set.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(checked.sysctls(), set.into());
}

#[test]
fn shared_memory_from_the_engine_becomes_the_guests_own() {
    let bundle = bundle("{}");
    let tmpfs = Path::new("/dev/shm");
    if rustix::fs::statfs(tmpfs).unwrap().f_type != 0x0102_1994 {
        eprintln!("SKIP /dev/shm is no tmpfs here");
        return;
    }
    let mut config = default_for("rootfs", &["sh".to_owned()], false);
    config["mounts"] = json!([{"destination": "/dev/shm", "type": "bind", "source": tmpfs, "options": ["bind", "nosuid"]}]);
    let checked = check(&config, bundle.path()).unwrap();
    let mount = guest(&checked)["mounts"][0].clone();
    assert!(checked.volumes.is_empty());
    assert_eq!(mount["type"], "tmpfs");
    let size = mount["options"][2].as_str().unwrap();
    assert!(size.strip_prefix("size=").unwrap().parse::<u64>().unwrap() > 0);
}

#[test]
fn a_pods_directory_in_memory_is_that_at_every_place_of_a_container() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIP not root");
    }
    let bundle = bundle("{}");
    let volume = bundle.path().join("volumes/kubernetes.io~empty-dir/data");
    fs::create_dir_all(&volume).unwrap();
    let inside = || {
        kata_sys::jail::leave_namespaces(UnshareFlags::NEWNS).unwrap();
        mount("tmpfs", &volume, "tmpfs", MountFlags::empty(), c"size=8m").unwrap();
        let mut config = default_for("rootfs", &["sh".to_owned()], false);
        for (place, options, told) in [
            ("/memory", ["rbind", "rprivate"], 0),
            ("/dev/shm", ["rbind", "rprivate"], 0),
            ("/dev/shm", ["rbind", "rslave"], 1),
        ] {
            config["mounts"] = json!([{"destination": place, "type": "bind", "source": volume, "options": options}]);
            let checked = check(&config, bundle.path()).unwrap();
            let [source] = &checked.volumes[..] else { panic!("{place}: {:?}", checked.volumes) };
            assert_eq!(source.memory.as_ref().map(|memory| memory.bytes), Some(8 << 20), "{place}");
            let told_of = explained(&checked, "mounts[0].options");
            assert_eq!(told_of.len(), told, "{place} {options:?}: {told_of:?}");
            let on_host = || {
                let seen = Trees::seen(&checked).unwrap();
                mkdirat(&seen.volumes[0].0, "made", Mode::RWXU)
            };
            assert_eq!(on_host(), Err(Errno::ROFS), "{place}: it would not be in the guest");
            fs::write(volume.join("file"), "").unwrap();
            assert_eq!(on_host(), Ok(()), "{place}: it is the host's");
            fs::remove_file(volume.join("file")).unwrap();
            fs::remove_dir(volume.join("made")).unwrap();
        }
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap());
}

#[test]
fn a_bind_mount_is_one_whatever_its_type() {
    let bundle = bundle("{}");
    let mut config = default_for("rootfs", &["sh".to_owned()], false);
    let bind = |kind: &str, source: &str| json!({"destination": "/x", "type": kind, "source": source, "options": ["rbind"]});
    config["mounts"] = json!([
        bind("tmpfs", "data"),
        bind("proc", "hosts"),
        bind("none", "data"),
        bind("tmpfs", "/dev/null"),
        {"destination": "/y", "source": "data", "options": ["bind"]},
    ]);
    let checked = check(&config, bundle.path()).unwrap();
    assert_eq!(checked.volumes.len(), 4);
    for mount in guest(&checked)["mounts"].as_array().unwrap() {
        assert_eq!(mount["type"], "bind", "{mount}");
    }
}

#[test]
fn a_volume_is_undivided_where_nothing_is_mounted_below_nor_will_be() {
    let bundle = bundle("{}");
    let mut config = default_for("rootfs", &["sh".to_owned()], false);
    let own = bundle.path().to_str().unwrap();
    for (source, options, undivided) in [
        (own, &["rbind", "ro"][..], true),
        (own, &["rbind", "rslave"], false),
        (own, &["bind", "shared"], false),
        ("/", &["bind"], true),
        ("/", &["rbind", "rprivate"], false),
        ("/etc/passwd", &["rbind"], true),
    ] {
        config["mounts"] = json!([{"destination": "/v", "source": source, "options": options}]);
        let checked = check(&config, bundle.path()).unwrap();
        assert_eq!(checked.volumes[0].undivided, undivided, "{source} {options:?}");
    }
}

#[test]
fn what_a_hook_has_mounted_below_divides_a_volume() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIP not root");
    }
    let bundle = bundle("{}");
    let below = bundle.path().join("data/below");
    fs::create_dir(&below).unwrap();
    let inside = || {
        kata_sys::jail::leave_namespaces(UnshareFlags::NEWNS).unwrap();
        let mut config = default_for("rootfs", &["sh".to_owned()], false);
        let volume =
            |options: &[&str]| json!({"destination": "/v", "source": "data", "options": options});
        config["mounts"] = json!([volume(&["rbind"]), volume(&["bind"])]);
        let mut checked = check(&config, bundle.path()).unwrap();
        let mut undivided = || {
            checked.look_below_volumes();
            [checked.volumes[0].undivided, checked.volumes[1].undivided]
        };
        assert_eq!(undivided(), [true, true]);
        mount("tmpfs", &below, "tmpfs", MountFlags::empty(), None).unwrap();
        assert_eq!(undivided(), [false, true]);
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap());
}

#[test]
fn an_overlay_becomes_a_volume() {
    let bundle = bundle("{}");
    let mut config = default_for("rootfs", &["sh".to_owned()], false);
    config["mounts"] = json!([{"destination": "/o", "type": "overlay", "source": "/anywhere",
        "options": ["lowerdir=/a:/b", "nosuid"]}]);
    let checked = check(&config, bundle.path()).unwrap();
    let Origin::Overlay(layers) = &checked.volumes[0].origin else { panic!("{checked:?}") };
    assert_eq!(layers.lower, [Path::new("/a"), Path::new("/b")]);
    assert!(checked.volumes[0].read_only && checked.volumes[0].directory);
    let mount = guest(&checked)["mounts"][0].clone();
    assert_eq!(
        (mount["type"].as_str(), mount["source"].as_str()),
        (Some("bind"), Some("/volumes/0"))
    );
    assert_eq!(mount["options"], json!(["bind", "nosuid"]));
}

#[test]
fn an_overlay_that_is_read_only_is_so_on_the_host() {
    let bundle = bundle("{}");
    for layer in ["lower", "upper", "work"] {
        fs::create_dir(bundle.path().join(layer)).unwrap();
    }
    let layer = |option: &str, name: &str| format!("{option}={}/{name}", bundle.path().display());
    let layers = [layer("lowerdir", "lower"), layer("upperdir", "upper"), layer("workdir", "work")];
    let mut config = default_for("rootfs", &["sh".to_owned()], false);
    for (word, written) in [("ro", Err(Errno::ROFS)), ("rw", Ok(()))] {
        let mut options = layers.to_vec();
        options.push(word.to_owned());
        config["mounts"] = json!([{"destination": "/o", "type": "overlay", "options": options}]);
        let trees = match Trees::take(&check(&config, bundle.path()).unwrap()) {
            Ok(trees) => trees,
            Err(TreeError::Take { .. }) => return eprintln!("SKIP not root"),
            Err(error) => panic!("{error:?}"),
        };
        assert_eq!(mkdirat(&trees.volumes[0], "made", Mode::RWXU), written, "{word}");
    }
}

#[test]
fn without_a_name_the_guest_has_the_hosts() {
    let bundle = bundle("{}");
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut config = default_for("rootfs", &["sh".to_owned()], false);
    config["hostname"] = Value::Null;
    assert_eq!(check(&config, bundle.path()).unwrap().hostname, name);
    config["linux"]["namespaces"].as_array_mut().unwrap().retain(|it| it["type"] != "uts");
    assert_eq!(check(&config, bundle.path()).unwrap().hostname, name);
}

#[test]
fn a_listener_of_a_profile_that_asks_nobody_stays_on_the_host() {
    let bundle = bundle("");
    let mut config = default_for("rootfs", &["sh".to_owned()], false);
    config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": "/run/listener", "listenerMetadata": "of a container"});
    let checked = check(&config, bundle.path()).unwrap();
    assert_eq!(guest(&checked)["linux"]["seccomp"], json!({"defaultAction": "SCMP_ACT_ALLOW"}));
}

#[test]
fn a_process_for_exec_keeps_the_rights_of_its_container() {
    let bundle = bundle(include_str!("configs/docker.json"));
    let checked = load(bundle.path()).unwrap();
    let process = checked.process_with(&["id".to_owned()], false).to_string();
    let process = parse_process(process.as_bytes(), "process").unwrap();
    assert_eq!((process.args.as_slice(), process.terminal), (&["id".to_owned()][..], false));
    assert_eq!(process.env, checked.process.env);
    let error = parse_process(b"{\"args\": [\"id\"]}", "process.json").unwrap_err();
    assert_eq!(error.to_string(), "process.json: cwd: is missing");
}

#[test]
fn a_namespace_of_a_neighbour_is_shared_and_no_other() {
    let mut config = default_for("/", &["sh".to_owned()], false);
    config["linux"]["namespaces"][2] = json!({"type": "ipc", "path": "/proc/77/ns/ipc"});
    let neighbours = |kind: &str, path: &Path| {
        (path == Path::new("/proc/77/ns/ipc")).then(|| format!("/run/ns/{kind}"))
    };
    let checked = check_beside(&config, Path::new("/"), &neighbours).unwrap();
    assert_eq!(guest(&checked)["linux"]["namespaces"][2]["path"], "/run/ns/ipc");
    let error = check(&config, Path::new("/")).unwrap_err().to_string();
    assert!(error.contains("linux.namespaces[2].path: refused"), "{error}");
}

#[test]
fn control_groups_of_a_neighbour_are_out_of_reach_from_a_user_namespace() {
    let mut config = default_for("/", &["sh".to_owned()], false);
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "cgroup");
    let index = namespaces.len();
    namespaces.push(json!({"type": "cgroup", "path": "/proc/77/ns/cgroup"}));
    let neighbours = |_: &str, _: &Path| Some("/run/ns/cgroup".to_owned());
    let alone = check_beside(&config, Path::new("/"), &neighbours).unwrap();
    assert_eq!(guest(&alone)["linux"]["namespaces"][index]["path"], "/run/ns/cgroup");
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    config["linux"]["uidMappings"] = map.clone();
    config["linux"]["gidMappings"] = map;
    let error = check_beside(&config, Path::new("/"), &neighbours).unwrap_err().to_string();
    let refused = format!("linux.namespaces[{index}].path: refused");
    assert!(error.contains(&refused) && error.contains("user namespace"), "{error}");
}

#[test]
fn an_id_mapped_volume_is_the_hosts_work() {
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    let mut config = default_for("/", &["sh".to_owned()], false);
    config["mounts"] = json!([{
        "destination": "/x", "type": "bind", "source": "/", "options": ["rbind", "ridmap", "rro"],
        "uidMappings": map, "gidMappings": map,
    }]);
    let checked = check(&config, Path::new("/")).unwrap();
    let [volume] = &checked.volumes[..] else { panic!() };
    let map = volume.id_map.as_ref().unwrap();
    assert!(map.recursive && volume.read_only_below && !volume.read_only);
    assert_eq!(map.users, [IdRange { inside: 0, outside: 1000, count: 10 }]);
    let mount = guest(&checked)["mounts"][0].clone();
    assert_eq!(mount["options"], json!(["rbind", "rro"]));
    assert_eq!(mount.get("uidMappings"), None);
}

#[test]
fn every_device_of_a_host_becomes_every_device_of_the_guest() {
    let mut config = default_for("/", &["sh".to_owned()], false);
    let device = |major: u64| json!({"path": "/dev/x", "type": "b", "major": major, "minor": 0});
    config["linux"]["devices"] =
        json!([device(8), {"path": "/dev/f", "type": "c", "major": 10, "minor": 229}]);
    config["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    let checked = check(&config, Path::new("/")).unwrap();
    assert_eq!(guest(&checked)["linux"]["devices"][0]["optional"], true);
    assert_eq!(guest(&checked)["linux"]["devices"][1].get("optional"), None);
}

#[test]
fn features_promise_nothing_that_the_table_refuses() {
    let features = features();
    let hooks = features["hooks"].as_array().unwrap();
    assert_eq!(hooks.len(), 6);
    assert!(hooks.contains(&json!("startContainer")));
    let namespaces = features["linux"]["namespaces"].as_array().unwrap();
    assert!(namespaces.contains(&json!("user")));
    let flags = features["linux"]["seccomp"]["supportedFlags"].to_string();
    assert!(!flags.contains("WAIT_KILLABLE"), "{flags}");
    assert!(!features["linux"]["seccomp"]["actions"].to_string().contains("NOTIFY"));
    let types = features["annotations"]["io.katacontainers.mounts.types"].as_str().unwrap();
    assert!(types.contains("tmpfs,") && !types.contains("debugfs"), "{types}");
}

#[test]
fn a_config_that_cannot_be_read_is_named() {
    let bundle = tempfile::tempdir().unwrap();
    let error = explain(bundle.path()).unwrap_err();
    let path = bundle.path().join("config.json");
    assert_eq!(error.to_string(), format!("cannot read {}", path.display()));
    fs::write(&path, "{\n  \"ociVersion\": 1.0.2\n}").unwrap();
    let SpecError::Syntax { document, source } = explain(bundle.path()).unwrap_err() else {
        panic!()
    };
    assert_eq!((document, source.line(), source.column()), (path.display().to_string(), 2, 20));
}

#[test]
fn a_config_is_a_file_of_a_bounded_length() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    std::os::unix::fs::symlink("/dev/zero", path("zeroes")).unwrap();
    fs::create_dir(path("directory")).unwrap();
    for (name, length) in [("long", 16 << 20), ("longer", (16 << 20) + 1)] {
        fs::File::create(path(name)).unwrap().set_len(length).unwrap();
    }
    for (name, words) in [
        ("fifo", "not a regular file"),
        ("zeroes", "not a regular file"),
        ("directory", "Is a directory"),
        ("longer", "longer than 16 MiB"),
    ] {
        let error = read_config(&path(name)).unwrap_err().to_string();
        assert!(error.contains(words), "{name}: {error}");
    }
    assert_eq!(read_config(&path("long")).unwrap().len(), 16 << 20);
}

#[test]
fn the_reference_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/oci.md");
    if std::env::var_os("KATA_WRITE_REFERENCE").is_some() {
        fs::write(&path, reference()).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(written, reference(), "run this test with KATA_WRITE_REFERENCE=1");
}
