//! Pods on containerd 2, made by its own controller of sandboxes and by the shim's service: the same script passes with each,
//! and with runc, which tests the test.
#![allow(clippy::unwrap_used)]

use kata_engine_tests::containerd::{
    BUSYBOX, Containerd, Handler, KATA, KATA_SANDBOXER, Pod, RUNC, Release, Sandbox, config,
    nothing_left,
    runtime::{
        ContainerState, DNSConfig, ImageSpec, Mount, NamespaceMode, NamespaceOption,
        PodSandboxState,
    },
    security, shim_of,
};
use rustix::process::{Signal, kill_process};

#[test]
fn a_pod_is_the_same_whoever_makes_its_sandbox() {
    for release in Release::later().into_iter().filter(Release::is_second) {
        let Some(mut engine) = Containerd::start_release(release) else { return };
        for handler in [RUNC, KATA, KATA_SANDBOXER] {
            script(&mut engine, handler);
        }
    }
}

fn script(engine: &mut Containerd, handler: Handler) {
    let mut config = config(engine);
    let dns = DNSConfig {
        servers: vec!["10.9.8.7".into()],
        searches: vec!["pods.test".into()],
        options: vec!["ndots:5".into()],
        ..Default::default()
    };
    config.dns_config = Some(dns).into();
    let pod = Pod::run_with(engine, handler, config).unwrap();
    let status = pod.status();
    assert_eq!(status.state, PodSandboxState::SANDBOX_READY.into());
    assert!(!status.network.ip.is_empty());
    let server = pod.start(pod.script("while :; do echo hello | nc -l -p 80; done"));
    let mut second = pod.script("exec sleep 1000");
    let options = NamespaceOption { pid: NamespaceMode::POD.into(), ..Default::default() };
    security(&mut second).namespace_options = Some(options).into();
    security(&mut second).readonly_rootfs = true;
    let image = ImageSpec { image: BUSYBOX.into(), ..Default::default() };
    second.mounts = vec![Mount {
        container_path: "/image".into(),
        image: Some(image).into(),
        readonly: true,
        ..Default::default()
    }];
    let second = pod.start(second);
    // A volume that is another image.
    second.output("cmp /bin/busybox /image/bin/busybox");
    assert!(second.output("touch /image/x 2>&1 || true").contains("Read-only file system"));
    assert_eq!(second.output("until nc 127.0.0.1 80; do :; done"), "hello");
    assert_eq!(
        second.output("hostname; cat /etc/hostname"),
        format!("{0}\n{0}", pod.config.hostname)
    );
    let resolver = second.output("sort /etc/resolv.conf");
    assert_eq!(resolver, "nameserver 10.9.8.7\noptions ndots:5\nsearch pods.test");
    // Who must not write to its root must not write to the pod's files either, and who may does not fill the host's memory.
    let write = "(echo more >> /etc/hosts) 2>&1 || true";
    assert!(second.output(write).contains("Read-only file system"));
    assert_eq!(server.output(write), "");
    if handler == KATA_SANDBOXER {
        let flood = "dd if=/dev/zero of=/etc/hosts bs=1M count=8 conv=fsync 2>&1 || true";
        assert!(server.output(flood).contains("No space left on device"));
    }
    server.output("echo shared > /dev/shm/file");
    assert_eq!(second.output("cat /dev/shm/file"), "shared");
    assert!(second.output("df -k /dev/shm | tail -1").contains("65536"));
    assert!(server.stats().memory.working_set_bytes.value > 0);
    if handler != RUNC {
        its_shim_tells_the_same(engine, &pod);
    }
    // One goes and another comes, and an engine that was killed finds both as they were.
    server.stop(0);
    assert_eq!(server.ended().exit_code, 137);
    server.remove();
    engine.restart();
    assert_eq!(second.status().state, ContainerState::CONTAINER_RUNNING.into());
    assert_eq!(pod.status().state, PodSandboxState::SANDBOX_READY.into());
    let third = pod.start(pod.script("exit 3"));
    assert_eq!(third.ended().exit_code, 3);
    pod.stop();
    assert_eq!(pod.status().state, PodSandboxState::SANDBOX_NOTREADY.into());
    assert_eq!(second.ended().exit_code, 137);
    pod.remove();
    pod.remove_again();
}

/// What no engine asks for on this system, of the shim itself.
fn its_shim_tells_the_same(engine: &Containerd, pod: &Pod) {
    let sandbox = Sandbox::of(engine, &pod.id);
    sandbox.ping(&pod.id).unwrap();
    let Err(ttrpc::Error::RpcStatus(stranger)) = sandbox.ping("stranger") else {
        panic!("it is there")
    };
    assert_eq!(stranger.code(), ttrpc::Code::NOT_FOUND, "{stranger}");
    let platform = sandbox.platform();
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    assert_eq!((platform.os.as_str(), platform.architecture.as_str()), ("linux", architecture));
    let status = sandbox.status();
    assert_eq!((status.sandbox_id.as_str(), status.state.as_str()), (&*pod.id, "SANDBOX_READY"));
    assert!(status.pid > 0 && status.created_at.seconds > 0, "{status}");
    let record: serde_json::Value = serde_json::from_str(&status.info["info"]).unwrap();
    assert!(record["vmm_pid"].as_u64().unwrap() > 0, "{record}");
    let before = sandbox.usage();
    let greedy = pod.start(pod.script("exec sleep 1000"));
    greedy.output("head -c 32000000 /dev/zero > /dev/shm/taken");
    let after = sandbox.usage();
    // Of all containers together; meanwhile the guest may have let go of files that others had.
    assert!(after.memory >= before.memory + 16_000_000, "{before:?} {after:?}");
    assert!(after.cpu > before.cpu, "{before:?} {after:?}");
    greedy.output("rm /dev/shm/taken");
    greedy.stop(0);
    greedy.remove();
}

#[test]
fn a_killed_shim_is_an_end_and_leaves_nothing_whoever_made_the_sandbox() {
    for release in Release::later().into_iter().filter(Release::is_second) {
        let Some(engine) = Containerd::start_release(release) else { return };
        for handler in [KATA, KATA_SANDBOXER] {
            let pod = Pod::run(&engine, handler);
            let container = pod.start(pod.script("exec sleep 1000"));
            kill_process(shim_of(&pod.id), Signal::KILL).unwrap();
            assert_ne!(container.ended().exit_code, 0);
            pod.remove();
            nothing_left(&pod.id);
            nothing_left(&container.id);
        }
    }
}
