//! What CRI's validation suite (critest) asks of containers, as far as `pods.rs` and `streams.rs` don't. Each claim holds
//! for runc too, which tests the test.
#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, fs, os::unix::fs::symlink};

use kata_engine_tests::containerd::{
    Container, Containerd, Handler, KATA, Pod, RUNC, Release, config, resources,
    runtime::{
        ContainerConfig, Mount, NamespaceMode, NamespaceOption, SecurityProfile, security_profile,
        security_profile::ProfileType,
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
