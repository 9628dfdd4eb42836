//! What CRI's validation suite (critest) asks of containers, as far as `pods.rs` and `streams.rs` don't. Each claim holds
//! for runc too, which tests the test.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
};

use kata_engine_tests::containerd::{
    Container, Containerd, Handler, KATA, Pod, RUNC, Release, config, resources,
    runtime::{
        ContainerConfig, ContainerFilter, ContainerState, ContainerStateValue, ContainerStats,
        ContainerStatsFilter, ListContainerStatsRequest, ListContainersRequest, Mount,
        MountPropagation, NamespaceMode, NamespaceOption, PodSandboxConfig, SecurityProfile,
        StatusRequest, security_profile, security_profile::ProfileType,
    },
    security,
};

fn on_both(claim: impl Fn(&Containerd, Handler)) {
    for release in Release::tried() {
        let Some(engine) = Containerd::start_release(release) else { return };
        for handler in [RUNC, KATA] {
            claim(&engine, handler);
        }
    }
}

/// A container that waits to be asked.
fn waiting<'a>(pod: &'a Pod, change: impl FnOnce(&mut ContainerConfig)) -> Container<'a> {
    let mut config = pod.script("exec sleep 1000");
    change(&mut config);
    pod.start(config)
}

/// What a failing command says.
fn complaint(container: &Container<'_>, command: &[&str]) -> String {
    let answer = container.exec(command);
    assert_ne!(answer.exit_code, 0, "{command:?}");
    String::from_utf8(answer.stderr).unwrap()
}

fn at(host: &str, container: &str) -> Mount {
    let (host_path, container_path) = (host.to_owned(), container.to_owned());
    Mount { host_path, container_path, ..Default::default() }
}

fn profile(kind: security_profile::ProfileType, file: &str) -> SecurityProfile {
    SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: file.to_owned(),
        ..Default::default()
    }
}

#[test]
fn paths_are_hidden_and_read_only_as_asked() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let volume = engine.file("volume");
        fs::create_dir_all(&volume).unwrap();
        fs::write(volume.join("secret"), "seen").unwrap();
        let container = waiting(&pod, |config| {
            security(config).masked_paths = vec!["/etc/passwd".into(), "/data".into()];
            security(config).readonly_paths = vec!["/tmp".into()];
            config.mounts = vec![at(&volume.display().to_string(), "/data")];
        });
        assert_eq!(container.output("cat /etc/passwd; ls /data"), "");
        let said = complaint(&container, &["touch", "/tmp/file"]);
        assert!(said.contains("Read-only file system"), "{said}");
        pod.remove();
    });
}

#[test]
fn a_profile_of_system_calls_is_the_containers() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let with = |profile: SecurityProfile, capability: &str| {
            waiting(&pod, |config| {
                security(config).seccomp = Some(profile).into();
                if !capability.is_empty() {
                    let capabilities = security(config).capabilities.mut_or_insert_default();
                    capabilities.add_capabilities = vec![capability.into()];
                }
            })
        };
        let free = with(profile(ProfileType::Unconfined, ""), "SYS_ADMIN");
        free.output("hostname free");
        let default = with(profile(ProfileType::RuntimeDefault, ""), "");
        assert_eq!(default.output("grep Seccomp: /proc/self/status"), "Seccomp:\t2");
        assert!(complaint(&default, &["hostname", "x"]).contains("not permitted"));
        let file = engine.file("seccomp.json");
        let rule = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["chmod", "fchmodat", "sethostname"], "action": "SCMP_ACT_ERRNO"}]}"#;
        fs::write(&file, rule).unwrap();
        let own = with(profile(ProfileType::Localhost, file.to_str().unwrap()), "SYS_ADMIN");
        assert!(complaint(&own, &["chmod", "400", "/"]).contains("not permitted"));
        assert!(complaint(&own, &["hostname", "x"]).contains("not permitted"));
        pod.remove();
    });
}

#[test]
fn only_who_may_manages_the_network() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let plain = waiting(&pod, |_| ());
        let bridge = ["brctl", "addbr", "foobar"];
        complaint(&plain, &bridge);
        let capable = waiting(&pod, |config| {
            let capabilities = security(config).capabilities.mut_or_insert_default();
            capabilities.add_capabilities = vec!["NET_ADMIN".into()];
        });
        assert_eq!(capable.exec(&bridge).exit_code, 0, "{:?}", capable.exec(&bridge));
        pod.remove();
    });
}

#[test]
fn a_privileged_container_is_so_in_its_own_kernel() {
    on_both(|engine, handler| {
        let mut config = config(engine);
        let linux = config.linux.mut_or_insert_default();
        linux.security_context.mut_or_insert_default().privileged = true;
        linux.sysctls = HashMap::from([("fs.mqueue.msg_max".to_owned(), "100".to_owned())]);
        // This machine's root has not all capabilities to give.
        if handler == RUNC {
            return;
        }
        let pod = Pod::run_with(engine, handler, config).unwrap();
        let container = waiting(&pod, |config| security(config).privileged = true);
        container.output("brctl addbr foobar && mount -t tmpfs none /home && hostname mine");
        assert_eq!(container.output("cat /proc/sys/fs/mqueue/msg_max"), "100");
        pod.remove();
    });
}

#[test]
fn a_volume_may_be_a_link_and_a_user_a_name() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let (real, link) = (engine.file("real"), engine.file("link"));
        fs::create_dir_all(&real).unwrap();
        fs::write(real.join("flag"), "there").unwrap();
        if !link.exists() {
            symlink(&real, &link).unwrap();
        }
        let container = waiting(&pod, |config| {
            let path = link.display().to_string();
            config.mounts = vec![at(&path, &path)];
            security(config).run_as_username = "nobody".into();
            config.working_dir = "/made/for/it".into();
            resources(config).oom_score_adj = 500;
        });
        assert_eq!(container.output(&format!("cat {}/flag", link.display())), "there");
        assert_eq!(container.output("id -nu; pwd"), "nobody\n/made/for/it");
        let own = "cat /proc/1/oom_score_adj";
        assert_eq!(container.output(own), "500");
        pod.remove();
    });
}

#[test]
fn the_pid_namespace_is_the_pods_unless_it_is_asked_for() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let first = |mode: NamespaceMode| {
            let container = waiting(&pod, |config| {
                let options = NamespaceOption { pid: mode.into(), ..Default::default() };
                security(config).namespace_options = Some(options).into();
            });
            container.output("tr '\\0' ' ' < /proc/1/cmdline")
        };
        assert_eq!(first(NamespaceMode::CONTAINER), "sleep 1000");
        assert!(!first(NamespaceMode::POD).contains("sleep 1000 "));
        pod.remove();
    });
}

#[test]
fn a_pod_needs_no_more_than_a_name() {
    on_both(|engine, handler| {
        let metadata = config(engine).metadata;
        let bare = PodSandboxConfig { metadata, ..Default::default() };
        let pod = Pod::run_with(engine, handler, bare).unwrap();
        let mut plain = pod.script("exec top");
        (plain.linux, plain.log_path) = (Some(Default::default()).into(), String::new());
        let container = pod.start(plain);
        assert_eq!(container.output("echo hello"), "hello");
        // Whoever shares its pid namespace is no init, and so ends by the first signal.
        container.stop(60);
        assert_eq!(container.status().state, ContainerState::CONTAINER_EXITED.into());
        pod.remove();
    });
}

/// What a kubelet asks for all the time: one type of figures that the engine does not know would cost it the whole list.
#[test]
fn pods_of_both_runtimes_are_listed_together() {
    for release in Release::tried() {
        let Some(engine) = Containerd::start_release(release) else { return };
        let pods = [RUNC, KATA].map(|handler| Pod::run(&engine, handler));
        let running = pods.each_ref().map(|pod| waiting(pod, |_| ()));
        let ended = pods.each_ref().map(|pod| pod.start(pod.script("exit 3")));
        ended.iter().for_each(|container| assert_eq!(container.ended().exit_code, 3));
        let cri = engine.cri();
        let figures = |filter: ContainerStatsFilter| {
            let filter = Some(filter).into();
            let request = ListContainerStatsRequest { filter, ..Default::default() };
            let stats = cri.list_container_stats(&request).unwrap().stats;
            let used = |one: &ContainerStats| one.memory.working_set_bytes.value > 0;
            let used = stats.into_iter().filter(used);
            used.map(|one| one.attributes.id.clone()).collect::<BTreeSet<_>>()
        };
        let ids = |all: &[&Container<'_>]| all.iter().map(|one| one.id.clone()).collect();
        assert!(figures(Default::default()).is_superset(&ids(&running.each_ref())));
        for ((pod, running), ended) in pods.iter().zip(&running).zip(&ended) {
            let pod_sandbox_id = pod.id.clone();
            let of_pod = ContainerStatsFilter { pod_sandbox_id, ..Default::default() };
            assert!(figures(of_pod).contains(&running.id));
            let listed = |state: ContainerState| {
                let state = ContainerStateValue { state: state.into(), ..Default::default() };
                let filter = ContainerFilter {
                    state: Some(state).into(),
                    pod_sandbox_id: pod.id.clone(),
                    ..Default::default()
                };
                let filter = Some(filter).into();
                let request = ListContainersRequest { filter, ..Default::default() };
                let all = cri.list_containers(&request).unwrap().containers;
                all.into_iter().map(|one| one.id).collect::<BTreeSet<_>>()
            };
            assert_eq!(listed(ContainerState::CONTAINER_RUNNING), ids(&[running]));
            assert_eq!(listed(ContainerState::CONTAINER_EXITED), ids(&[ended]));
        }
        pods.iter().for_each(Pod::remove);
    }
}

/// A directory of the host that is a mount of its own, with a place for others.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new(propagation: &str) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for name in ["later", "source"] {
            fs::create_dir(tree.0.path().join(name)).unwrap();
        }
        fs::write(tree.0.path().join("source/flag"), "").unwrap();
        mount(&["--bind"], tree.0.path(), tree.0.path());
        mount(&[propagation], Path::new(""), tree.0.path());
        tree
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        Command::new("umount").arg("-lR").arg(self.0.path()).status().ok();
    }
}

fn mount(options: &[&str], from: &Path, to: &Path) {
    let mut mount = Command::new("mount");
    mount.args(options).args((!from.as_os_str().is_empty()).then_some(from)).arg(to);
    assert!(mount.status().unwrap().success(), "{mount:?}");
}

#[test]
fn mounts_pass_between_host_and_container_as_asked() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        for (propagation, kind) in [
            (MountPropagation::PROPAGATION_PRIVATE, "--make-private"),
            (MountPropagation::PROPAGATION_HOST_TO_CONTAINER, "--make-shared"),
            (MountPropagation::PROPAGATION_BIDIRECTIONAL, "--make-shared"),
        ] {
            let tree = Tree::new(kind);
            let path = tree.0.path();
            let container = waiting(&pod, |config| {
                let volume = at(&path.display().to_string(), "/volume");
                config.mounts = vec![Mount { propagation: propagation.into(), ..volume }];
                let capabilities = security(config).capabilities.mut_or_insert_default();
                capabilities.add_capabilities = vec!["SYS_ADMIN".into()];
            });
            mount(&["--bind"], &path.join("source"), &path.join("later"));
            let follows = propagation != MountPropagation::PROPAGATION_PRIVATE;
            let seen = container.output("ls -A /volume/later");
            assert_eq!(seen, if follows { "flag" } else { "" }, "{propagation:?}");
            container.output("mkdir /volume/mine && mount --bind /etc /volume/mine");
            let comes_back = fs::read_dir(path.join("mine")).unwrap().count() > 0;
            // A guest's mounts are its own kernel's.
            let asked = propagation == MountPropagation::PROPAGATION_BIDIRECTIONAL;
            assert_eq!(comes_back, asked && handler == RUNC, "{propagation:?}");
        }
        pod.remove();
    });
}

#[test]
fn a_read_only_volume_is_so_down_to_what_is_mounted_in_it_when_asked() {
    on_both(|engine, handler| {
        let tree = Tree::new("--make-private");
        let path = tree.0.path();
        mount(&["-t", "tmpfs"], Path::new("none"), &path.join("later"));
        let pod = Pod::run(engine, handler);
        let with = |recursive_read_only: bool| {
            waiting(&pod, |config| {
                let volume = at(&path.display().to_string(), "/volume");
                config.mounts = vec![Mount { readonly: true, recursive_read_only, ..volume }];
            })
        };
        let plain = with(false);
        plain.output("touch /volume/later/file");
        assert!(complaint(&plain, &["touch", "/volume/file"]).contains("Read-only file system"));
        let handlers = pod.cri.status(&StatusRequest::default()).unwrap().runtime_handlers;
        let ours = handlers.into_iter().find(|it| it.name == handler.0).unwrap_or_default();
        if ours.features.recursive_read_only_mounts {
            let recursive = with(true);
            let said = complaint(&recursive, &["touch", "/volume/later/file"]);
            assert!(said.contains("Read-only file system"), "{said}");
        }
        pod.remove();
    });
}
