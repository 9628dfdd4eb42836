//! Pods by CRI: what a kubelet relies on.
#![allow(clippy::unwrap_used)]

use kata_engine_tests::containerd::{Containerd, Handler, KATA, Pod, RUNC};

/// The same on runc, which tests the test.
fn on_both(claim: impl Fn(&Containerd, Handler)) {
    let Some(engine) = Containerd::start() else { return };
    for runtime in [RUNC, KATA] {
        claim(&engine, runtime);
    }
}

#[test]
fn containers_of_a_pod_see_each_other_and_go_one_by_one() {
    on_both(|engine, runtime| {
        let pod = Pod::run(engine, runtime);
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
