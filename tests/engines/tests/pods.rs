//! Pods by CRI: what a kubelet relies on. Each claim holds for runc too, which tests the test.
#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, fs, path::Path, time::Duration};

use kata_engine_tests::containerd::{
    Containerd, Handler, KATA, Pod, RUNC, Release, Task, config, resources,
    runtime::{
        ContainerState, DNSConfig, LinuxContainerResources, Mount, NamespaceMode, NamespaceOption,
        PodSandboxState, PodSandboxStatsRequest, UpdateContainerResourcesRequest,
    },
    security,
};
use kata_guest_tests::{cgroups_named, run};
use rustix::{io::Errno, process::test_kill_process};

fn on_both(claim: impl Fn(&Containerd, Handler)) {
    for release in Release::tried() {
        let Some(engine) = Containerd::start_release(release) else { return };
        for handler in [RUNC, KATA] {
            claim(&engine, handler);
        }
    }
}

#[test]
fn containers_of_a_pod_see_each_other_and_go_one_by_one() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        assert!(!pod.status().network.ip.is_empty());
        let server = pod.start(pod.script("echo here; while :; do echo hello | nc -l -p 80; done"));
        let client = pod.start(pod.script("exec sleep 1000"));
        assert_eq!(client.output("until nc 127.0.0.1 80; do :; done"), "hello");
        assert_eq!(client.output("hostname"), pod.config.hostname);
        assert_eq!(server.log_lines(), ["stdout F here"]);
        server.stop(0);
        assert_eq!(server.ended().exit_code, 137);
        server.remove();
        assert_eq!(client.output("echo still"), "still");
        let third = pod.start(pod.script("exit 3"));
        assert_eq!(third.ended().exit_code, 3);
        pod.remove();
    });
}

#[test]
fn a_shared_pid_namespace_shows_the_pod_and_a_target_its_container() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let shared = |mode: NamespaceMode, target: &str| {
            let mut config = pod.script("exec sleep 1234");
            let target_id = target.to_owned();
            let namespaces = NamespaceOption { pid: mode.into(), target_id, ..Default::default() };
            security(&mut config).namespace_options = Some(namespaces).into();
            pod.start(config)
        };
        let sleepers = "ps -o args | grep -c '^sleep 1234'";
        let own = shared(NamespaceMode::CONTAINER, "");
        let one = shared(NamespaceMode::POD, "");
        let other = shared(NamespaceMode::POD, "");
        assert_eq!(own.output(sleepers), "1");
        assert_eq!(one.output(sleepers), "2");
        assert_eq!(other.output(sleepers), "2");
        let debugger = shared(NamespaceMode::TARGET, &own.id);
        assert_eq!(debugger.output(sleepers), "2");
        // The end of one ends no other.
        one.stop(0);
        assert_eq!(other.output(sleepers), "1");
        pod.remove();
    });
}

/// Who may look into any process of the pod finds no way from the first one to the guest's own files.
#[test]
fn nothing_is_behind_the_first_process_of_a_shared_pid_namespace() {
    let Some(engine) = Containerd::start() else { return };
    let pod = Pod::run(&engine, KATA);
    let mut config = pod.script("exec sleep 1000");
    let namespaces = NamespaceOption { pid: NamespaceMode::POD.into(), ..Default::default() };
    security(&mut config).namespace_options = Some(namespaces).into();
    let capabilities = security(&mut config).capabilities.mut_or_insert_default();
    capabilities.add_capabilities = vec!["SYS_PTRACE".into()];
    let container = pod.start(config);
    let found = container.output("cd /proc/1/root && echo in $(ls -A .) $(ls -A ..)");
    assert_eq!(found, "in");
    pod.remove();
}

#[test]
fn shared_memory_and_ipc_are_the_pods() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let one = pod.start(pod.script("exec sleep 1000"));
        let other = pod.start(pod.script("exec sleep 1000"));
        one.output("echo shared > /dev/shm/file");
        assert_eq!(other.output("cat /dev/shm/file"), "shared");
        assert_eq!(
            one.output("readlink /proc/self/ns/ipc"),
            other.output("readlink /proc/self/ns/ipc")
        );
        assert_ne!(
            one.output("readlink /proc/self/ns/mnt"),
            other.output("readlink /proc/self/ns/mnt")
        );
        pod.remove();
    });
}

#[test]
fn a_command_has_its_output_its_code_and_its_time() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let container = pod.start(pod.script("exec sleep 1000"));
        let answer = container.exec(&["sh", "-c", "echo out; echo err >&2; exit 5"]);
        assert_eq!((&answer.stdout[..], &answer.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
        assert_eq!(answer.exit_code, 5);
        let large = container.exec(&["sh", "-c", "head -c 3000000 /dev/zero"]);
        assert_eq!(large.stdout.len(), 3_000_000);
        let late = container.try_exec(&["sleep", "100"], Duration::from_secs(1)).unwrap_err();
        assert_eq!(late.code, 4, "{late:?}");
        let missing = container.try_exec(&["nosuch"], Duration::ZERO).unwrap_err();
        // Engines go by the beginning of it.
        let words =
            "OCI runtime exec failed: exec failed: unable to start container process: exec: ";
        assert!(missing.message.contains(words), "{missing:?}");
        assert!(missing.message.contains("executable file not found"), "{missing:?}");
        // Nothing of it is left.
        assert_eq!(container.output("ps -o args | grep -c '^sleep'"), "1");
        pod.remove();
    });
}

#[test]
fn a_command_is_over_when_its_output_is() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let container = pod.start(pod.script("exec sleep 1000"));
        // Longer than the end of a command by itself is waited with.
        assert_eq!(container.output("(sleep 5; echo late) & echo early"), "early\nlate");
        pod.remove();
    });
}

#[test]
fn an_end_has_its_time_its_code_and_its_reason() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let script = "trap 'exit 7' TERM; touch /tmp/ready; while :; do sleep 0.1; done";
        let graceful = pod.start(pod.script(script));
        graceful.output("until [ -e /tmp/ready ]; do sleep 0.05; done");
        graceful.stop(20);
        let end = graceful.status();
        assert_eq!((end.exit_code, end.reason.as_str()), (7, "Error"));
        assert!(end.created_at < end.started_at && end.started_at < end.finished_at, "{end}");
        let sibling = pod.start(pod.script("exec sleep 1000"));
        let mut greedy = pod.script("exec dd if=/dev/zero of=/dev/null bs=64M");
        resources(&mut greedy).memory_limit_in_bytes = 32 << 20;
        let end = pod.start(greedy).ended();
        assert_eq!((end.exit_code, end.reason.as_str()), (137, "OOMKilled"));
        assert_eq!(sibling.status().state, ContainerState::CONTAINER_RUNNING.into());
        assert_eq!(sibling.output("echo still"), "still");
        let good = pod.start(pod.script("true"));
        assert_eq!(good.ended().reason, "Completed");
        pod.remove();
    });
}

#[test]
fn a_process_that_never_ran_has_no_code_and_one_that_ended_no_pid() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let container = pod.start(pod.script("exec sleep 1000"));
        let task = Task::of(engine, &container.id);
        task.add((&container.id, "never"), &["true"], "/dev/null");
        assert_eq!(task.delete(&container.id, "never"), 0);
        let pid = task.begin((&container.id, "once"), &["sh", "-c", "exit 3"], "/dev/null");
        let code = task.wait(&container.id, "once");
        assert_eq!((code, test_kill_process(pid)), (3, Err(Errno::SRCH)));
        task.delete(&container.id, "once");
        pod.remove();
    });
}

#[test]
fn who_a_container_runs_as_and_what_it_may() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let mut config = pod.script("exec sleep 1000");
        let context = security(&mut config);
        context.run_as_user = Some(number(1000)).into();
        context.run_as_group = Some(number(2000)).into();
        context.supplemental_groups = vec![3000, 4000];
        context.readonly_rootfs = true;
        context.no_new_privs = true;
        let plain = pod.start(config);
        assert_eq!(plain.output("id -u; id -g; id -G"), "1000\n2000\n2000 3000 4000");
        assert_eq!(plain.exec(&["touch", "/file"]).exit_code, 1);
        assert_eq!(plain.output("grep NoNewPrivs /proc/self/status"), "NoNewPrivs:\t1");
        let mut config = pod.script("exec sleep 1000");
        let capabilities = &mut security(&mut config).capabilities;
        let capabilities = capabilities.mut_or_insert_default();
        capabilities.add_capabilities = vec!["NET_ADMIN".into()];
        capabilities.drop_capabilities = vec!["CHOWN".into()];
        let capable = pod.start(config);
        capable.output("ip link add name b0 type bridge 2>&1 || ip link set lo mtu 1400");
        assert_eq!(capable.exec(&["chown", "1:1", "/etc"]).exit_code, 1);
        pod.remove();
    });
}

fn number(value: i64) -> kata_engine_tests::containerd::runtime::Int64Value {
    kata_engine_tests::containerd::runtime::Int64Value { value, ..Default::default() }
}

#[test]
fn volumes_names_and_sysctls_are_as_asked() {
    on_both(|engine, handler| {
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("file"), "from the host").unwrap();
        let mut config = config(engine);
        let dns = DNSConfig {
            servers: vec!["10.1.2.3".into()],
            searches: vec!["a.example".into()],
            options: vec!["ndots:8".into()],
            ..Default::default()
        };
        config.dns_config = Some(dns).into();
        let sysctls = HashMap::from([
            ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
            ("net.ipv4.ip_local_port_range".to_owned(), "1024 65000".to_owned()),
        ]);
        config.linux.as_mut().unwrap().sysctls = sysctls;
        let pod = Pod::run_with(engine, handler, config).unwrap();
        let mut container = pod.script("exec sleep 1000");
        let mount = |to: &str, readonly: bool| Mount {
            container_path: to.into(),
            host_path: host.path().display().to_string(),
            readonly,
            ..Default::default()
        };
        container.mounts = vec![mount("/rw", false), mount("/ro", true)];
        let container = pod.start(container);
        assert_eq!(container.output("cat /ro/file"), "from the host");
        container.output("echo back > /rw/back");
        assert_eq!(fs::read_to_string(host.path().join("back")).unwrap(), "back\n");
        assert_eq!(container.exec(&["touch", "/ro/x"]).exit_code, 1);
        let resolv = container.output("cat /etc/resolv.conf");
        assert_eq!(resolv, "search a.example\nnameserver 10.1.2.3\noptions ndots:8");
        assert_eq!(container.output("cat /proc/sys/kernel/shm_rmid_forced"), "1");
        let range = container.output("cat /proc/sys/net/ipv4/ip_local_port_range");
        assert_eq!(range.split_whitespace().collect::<Vec<_>>(), ["1024", "65000"]);
        pod.remove();
    });
}

#[test]
fn stopping_and_removing_again_is_no_error() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let container = pod.start(pod.script("exec sleep 1000"));
        let created = pod.create(pod.script("true")).unwrap();
        assert_eq!(created.status().state, ContainerState::CONTAINER_CREATED.into());
        created.remove();
        container.stop(0);
        container.stop(0);
        container.remove();
        container.remove();
        pod.stop();
        assert_eq!(pod.status().state, PodSandboxState::SANDBOX_NOTREADY.into());
        pod.stop();
        pod.remove();
        pod.remove_again();
    });
}

#[test]
fn usage_is_told_and_limits_are_changed() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let mut config = pod.script("exec sleep 1000");
        resources(&mut config).memory_limit_in_bytes = 64 << 20;
        let container = pod.start(config);
        let stats = container.stats();
        assert!(stats.memory.working_set_bytes.value > 0, "{stats}");
        assert!(stats.cpu.usage_core_nano_seconds.value > 0, "{stats}");
        let pod_sandbox_id = pod.id.clone();
        let request = PodSandboxStatsRequest { pod_sandbox_id, ..Default::default() };
        let all = pod.cri.pod_sandbox_stats(&request).unwrap().stats.linux.clone().unwrap();
        assert!(all.memory.working_set_bytes.value >= stats.memory.working_set_bytes.value / 2);
        assert!(all.cpu.usage_core_nano_seconds.value > 0, "{all}");
        assert_eq!(all.containers.len(), 1, "{all}");
        let limits =
            LinuxContainerResources { memory_limit_in_bytes: 48 << 20, ..Default::default() };
        let request = UpdateContainerResourcesRequest {
            container_id: container.id.clone(),
            linux: Some(limits).into(),
            ..Default::default()
        };
        pod.cri.update_container_resources(&request).unwrap();
        let end =
            container.exec(&["sh", "-c", "x=$(head -c 60000000 /dev/zero | tr '\\0' x); echo $?"]);
        assert_ne!(end.stdout, b"0\n");
        pod.remove();
    });
}

#[test]
fn a_limit_that_was_raised_beyond_the_vm_is_taken_again_at_a_restart() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let with_limit = |mib: i64| {
            let mut config = pod.script("exec sleep 1000");
            resources(&mut config).memory_limit_in_bytes = mib << 20;
            config
        };
        // More than a VM has that nobody has told a sum.
        let more = 700;
        let container = pod.start(with_limit(64));
        if handler == KATA {
            let message = pod.create(with_limit(more)).unwrap().start().unwrap_err().message;
            assert!(message.contains("does not fit into the pod's VM"), "{message}");
        }
        let memory_limit_in_bytes = more << 20;
        let limits = LinuxContainerResources { memory_limit_in_bytes, ..Default::default() };
        let request = UpdateContainerResourcesRequest {
            container_id: container.id.clone(),
            linux: Some(limits).into(),
            ..Default::default()
        };
        pod.cri.update_container_resources(&request).unwrap();
        container.stop(0);
        container.remove();
        let again = pod.start(with_limit(more));
        assert_eq!(again.output("echo on"), "on", "{}", handler.0);
        if handler == KATA {
            let limit = again.output("cat /sys/fs/cgroup/memory.max");
            assert_eq!(limit, memory_limit_in_bytes.to_string());
            let larger = pod.create(with_limit(more + 1)).unwrap().start();
            assert!(larger.is_err(), "more than was ever promised");
        }
        pod.remove();
    });
}

/// A kubelet's cAdvisor goes by such names, and a kubelet believes what cAdvisor reads in a group more than the engine.
#[test]
fn of_a_pods_groups_its_own_alone_is_named_like_a_container() {
    let Some(engine) = Containerd::start() else { return };
    let pod = Pod::run(&engine, KATA);
    let container = pod.start(pod.script("exec sleep 1000"));
    let parent = pod.config.linux.cgroup_parent.clone();
    let groups: Vec<String> =
        cgroups_named(&parent).into_iter().filter(|path| !path.ends_with(&parent)).collect();
    let name = |path: &str| path.rsplit('/').next().unwrap().to_owned();
    let is_an_id = |name: &str| {
        let is_of_id = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        name.split(|c| !is_of_id(c)).any(|run| run.len() >= 64)
    };
    let mut ids: Vec<String> =
        groups.iter().map(|path| name(path)).filter(|n| is_an_id(n)).collect();
    ids.dedup();
    assert_eq!(ids.join(" "), pod.id, "{groups:?}");
    for part in [&container.id[..32], ".kata-vm"] {
        assert!(groups.iter().any(|path| name(path).contains(part)), "no {part} in {groups:?}");
    }
    // All of them go with it.
    let (own, members) = (pod.id.clone(), container.id.clone());
    container.stop(0);
    container.remove();
    assert_eq!(cgroups_named(&members), Vec::<String>::new());
    pod.remove();
    assert_eq!(cgroups_named(&own), Vec::<String>::new());
}

#[test]
fn a_container_that_the_host_grants_no_limit_for_leaves_no_group() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let parent = Path::new("/sys/fs/cgroup/cpu")
            .join(pod.config.linux.cgroup_parent.trim_start_matches('/'));
        if !parent.join("cpu.cfs_quota_us").exists() {
            println!(
                "SKIP: no control groups of version 1 with quotas, of which a child may have no larger one"
            );
            return pod.remove();
        }
        let groups = || {
            let entries = fs::read_dir(&parent).unwrap().map(Result::unwrap);
            let mut names: Vec<_> = entries.filter(|entry| entry.path().is_dir()).collect();
            names.sort_by_key(fs::DirEntry::file_name);
            names.iter().map(fs::DirEntry::file_name).collect::<Vec<_>>()
        };
        let before = groups();
        fs::write(parent.join("cpu.cfs_quota_us"), "50000").unwrap();
        let mut config = pod.script("exec sleep 1000");
        let resources = resources(&mut config);
        (resources.cpu_quota, resources.cpu_period) = (90_000, 100_000);
        let container = pod.create(config).unwrap();
        let refused = container.start().unwrap_err();
        assert!(refused.message.contains("cpu.cfs_quota_us"), "{refused:?}");
        assert_eq!(groups(), before);
        container.remove();
        let other = pod.start(pod.script("exec sleep 1000"));
        assert_eq!(other.output("echo on"), "on");
        pod.remove();
    });
}

#[test]
fn the_container_that_stands_for_a_pod_answers_for_itself() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let member = pod.start(pod.script("exec sleep 1000"));
        let ctr = |words: &[&str]| run(engine.ctr(&[&["-n", "k8s.io"], words].concat()), b"");
        let metrics = ctr(&["task", "metrics", &pod.id]);
        assert_eq!(metrics.code, 0, "{}", metrics.stderr());
        assert!(metrics.stdout().contains("memory.usage"), "{}", metrics.stdout());
        if handler == KATA {
            for words in [
                &["task", "pause", &pod.id][..],
                &["task", "exec", "--exec-id", "e", &pod.id, "true"],
            ] {
                let refused = ctr(words);
                assert_ne!(refused.code, 0, "{words:?}");
                assert!(refused.stderr().contains("stands for its pod"), "{}", refused.stderr());
            }
        }
        assert_eq!(member.output("echo on"), "on");
        pod.remove();
    });
}
