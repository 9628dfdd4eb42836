//! What a kubelet passes through for `kubectl exec`, `attach` and `logs`. Each claim holds for runc too, which tests the
//! test.
#![allow(clippy::unwrap_used)]

use std::fs;

use kata_engine_tests::containerd::{
    Channel, Container, Containerd, Handler, KATA, Pod, RUNC, Release, Stream,
    runtime::{AttachRequest, ExecRequest, PortForwardRequest, ReopenContainerLogRequest},
};

fn on_both(claim: impl Fn(&Containerd, Handler)) {
    for release in Release::tried() {
        let Some(engine) = Containerd::start_release(release) else { return };
        for handler in [RUNC, KATA] {
            claim(&engine, handler);
        }
    }
}

/// A command with streams; with input it has a terminal too.
fn exec(engine: &Containerd, container: &Container<'_>, script: &str, tty: bool) -> Stream {
    let request = ExecRequest {
        container_id: container.id.clone(),
        cmd: ["sh", "-c", script].map(str::to_owned).into(),
        tty,
        stdin: tty,
        stdout: true,
        stderr: !tty,
        ..Default::default()
    };
    Stream::open(engine.network(), &container.pod.cri.exec(&request).unwrap().url)
}

#[test]
fn a_command_has_streams_a_terminal_and_a_code() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let container = pod.start(pod.script("exec sleep 1000"));
        let plain = exec(engine, &container, "echo out; echo err >&2; exit 5", false);
        assert_eq!(plain.ended(), 5);
        let said = [Channel::Stdout, Channel::Stderr].map(|channel| plain.text(channel));
        assert_eq!(said, ["out\n", "err\n"]);
        let large = exec(engine, &container, "head -c 2000000 /dev/zero | tr '\\0' x", false);
        assert_eq!((large.ended(), large.text(Channel::Stdout).len()), (0, 2_000_000));
        let mut shell = exec(engine, &container, "exec sh", true);
        shell.until(Channel::Stdout, |text| text.contains("# "));
        shell.send(Channel::Resize, br#"{"Width": 111, "Height": 33}"#);
        shell.send(Channel::Stdin, b"until [ \"$(stty size)\" = '33 111' ]; do :; done\n");
        shell.send(Channel::Stdin, b"echo re''sized; exit 4\n");
        shell.until(Channel::Stdout, |text| text.contains("resized\r\n"));
        assert_eq!(shell.ended(), 4);
        pod.remove();
    });
}

#[test]
fn whoever_attaches_talks_to_the_container_itself() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        for tty in [false, true] {
            let mut config = pod.script("echo early; exec sh");
            (config.stdin, config.tty) = (true, tty);
            let container = pod.start(config);
            let request = AttachRequest {
                container_id: container.id.clone(),
                stdin: true,
                stdout: true,
                stderr: !tty,
                tty,
                ..Default::default()
            };
            let attach = || Stream::open(engine.network(), &pod.cri.attach(&request).unwrap().url);
            let mut first = attach();
            first.send(Channel::Stdin, b"echo hel''lo\n");
            first.until(Channel::Stdout, |text| text.contains("hello"));
            // Its going ends nothing; the next one finds the container as it was.
            drop(first);
            let mut second = attach();
            second.send(Channel::Stdin, b"echo ag''ain\n");
            second.until(Channel::Stdout, |text| text.contains("again"));
            // Not in one go: of a container that ends at once containerd may tell who is attached nothing, runc's too.
            second.send(Channel::Stdin, b"exit 6\n");
            assert_eq!(container.ended().exit_code, 6);
            let log = container.log_lines().join("\n");
            assert!(log.contains("early") && log.contains("again"), "{log}");
        }
        pod.remove();
    });
}

#[test]
fn input_that_is_given_once_ends_with_whoever_gave_it() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let mut config = pod.script("exec cat");
        (config.stdin, config.stdin_once) = (true, true);
        let container = pod.start(config);
        let container_id = container.id.clone();
        let request =
            AttachRequest { container_id, stdin: true, stdout: true, ..Default::default() };
        let mut only = Stream::open(engine.network(), &pod.cri.attach(&request).unwrap().url);
        only.send(Channel::Stdin, b"hello\n");
        only.until(Channel::Stdout, |text| text == "hello\n");
        drop(only);
        assert_eq!(container.ended().exit_code, 0);
        assert_eq!(container.log_lines(), ["stdout F hello"]);
        pod.remove();
    });
}

#[test]
fn a_log_goes_on_in_a_new_file_without_a_gap() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let script = "i=0; while :; do i=$((i+1)); echo $i; echo $i > /tmp/count; sleep 0.02; done";
        let container = pod.start(pod.script(script));
        let counted = |number: usize| {
            container.output(&format!("until [ 0$(cat /tmp/count) -gt {number} ]; do :; done"));
        };
        counted(20);
        let old = container.log.with_extension("log.1");
        fs::rename(&container.log, &old).unwrap();
        let container_id = container.id.clone();
        let request = ReopenContainerLogRequest { container_id, ..Default::default() };
        pod.cri.reopen_container_log(&request).unwrap();
        let rotated = fs::read_to_string(&old).unwrap().lines().count();
        counted(rotated + 20);
        container.stop(0);
        assert_eq!(fs::read_to_string(&old).unwrap().lines().count(), rotated);
        let texts = [&old, &container.log].map(|log| fs::read_to_string(log).unwrap());
        let numbers: Vec<usize> = texts
            .iter()
            .flat_map(|text| text.lines())
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        assert!(numbers.len() > rotated + 20, "{numbers:?}");
        assert!(numbers.iter().copied().eq(1..=numbers.len()), "{numbers:?}");
        pod.remove();
    });
}

#[test]
fn a_port_is_forwarded_to_a_server_on_localhost_of_either_family() {
    // As kubectl port-forward has it.
    let forward = |engine: &Containerd, pod: &Pod, port: u16| {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.id.clone(),
            port: vec![port.into()],
            ..Default::default()
        };
        let url = pod.cri.port_forward(&request).unwrap().url;
        let mut stream = Stream::open(engine.network(), &url);
        stream.send(Channel::Stdin, b"GET /page HTTP/1.0\r\n\r\n");
        stream.until(Channel::Stdin, |text| text.ends_with("-page\n"))
    };
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let serve = "mkdir /tmp/4 /tmp/6; echo four-page > /tmp/4/page; echo six-page > /tmp/6/page; \
                     httpd -p 127.0.0.1:8084 -h /tmp/4; httpd -p '[::1]:8086' -h /tmp/6; \
                     echo up; exec sleep 1000";
        let container = pod.start(pod.script(serve));
        container.output("until netstat -ltn | grep -q 127.0.0.1:8084; do :; done");
        container.output("until netstat -ltn | grep -q ::1:8086; do :; done");
        for _ in 0..3 {
            // With runc it takes a host that knows localhost by its other address too.
            let known = fs::read_to_string("/etc/hosts").unwrap_or_default().contains("::1");
            let families = if handler == KATA || known { 2 } else { 1 };
            for (port, page) in
                [(8084, "four-page\n"), (8086, "six-page\n")].into_iter().take(families)
            {
                let said = forward(engine, &pod, port);
                assert!(said.ends_with(page), "{port}: {said:?}");
            }
        }
        pod.remove();
    });
}
