//! docker 26, of a later Debian, with Kata as a runtime by path.
#![allow(clippy::unwrap_used)]

use std::{env, fs};

use kata_engine_tests::{Runtime, claims, claims_of, docker_26};

claims_of! {
    docker_26:
    a_server_lives_as_with_runc
    codes_of_failure_are_those_of_the_engine
    every_option_that_is_shown_has_a_row
    networks_come_and_go_while_it_runs
}

/// Where 20.10 is, its options are tried in every run, and most are the same.
#[test]
fn options_do_what_they_do_with_runc() {
    let tried = fs::exists("/usr/sbin/dockerd").unwrap();
    if tried && env::var_os("KATA_TEST_FULL").is_none() {
        return;
    }
    let Some(docker) = docker_26() else { return };
    claims::options_do_what_they_do_with_runc(&docker);
}

/// Two services; one asks the other by its name, and ends with it.
const SERVICES: &str = "
services:
  server:
    image: busybox
    runtime: RUNTIME
    stop_grace_period: 0s
    command: sh -c 'mkdir /www && echo page >/www/index.html && exec httpd -f -h /www'
  client:
    image: busybox
    runtime: RUNTIME
    depends_on: [server]
    command: sh -c 'until wget -qO /page http://server/; do sleep 0.1; done; cat /page; exit 7'
";

#[test]
fn services_of_compose_find_each_other_by_name() {
    let Some(docker) = docker_26() else { return };
    for runtime in ["runc", "kata"] {
        let file = docker.scratch().join(format!("{runtime}.yaml"));
        fs::write(&file, SERVICES.replace("RUNTIME", runtime)).unwrap();
        let compose = ["compose", "-p", runtime, "-f", file.to_str().unwrap()];
        let up = ["up", "--no-color", "--exit-code-from", "client"];
        let output = docker.call(&[&compose[..], &up].concat());
        let said = output.stdout();
        assert_eq!(output.code, 7, "{runtime}: {said}{}", output.stderr());
        assert!(said.contains("client-1  | page\n"), "{runtime}: {said}");
        docker.ok(&[&compose[..], &["down"]].concat());
    }
}

#[test]
fn containers_go_on_when_dockerd_is_killed_and_started_again() {
    let Some(mut docker) = docker_26() else { return };
    claims::containers_go_on_when_dockerd_is_killed(&mut docker);
}

/// Docker looks into the container's network namespace on the host for whether it has IPv6 at all.
#[test]
fn a_container_without_ipv6_is_none_with_it_for_docker() {
    let Some(docker) = docker_26() else { return };
    for (name, number) in [("six", 1), ("seven", 2)] {
        let (four, six) = (format!("10.95.{number}.0/24"), format!("fd00:95:{number}::/64"));
        docker.ok(&["network", "create", "--subnet", &four, "--ipv6", "--subnet", &six, name]);
    }
    let live = |runtime: Runtime, disabled: &str| {
        let container = format!("without-{}-{disabled}", runtime.name());
        let sysctl = format!("net.ipv6.conf.all.disable_ipv6={disabled}");
        let words = ["-d", "--name", &container, "--sysctl", &sysctl, "--network", "six"];
        let output = docker.run(runtime, &[&words[..], &["busybox", "sleep", "600"]].concat());
        assert_eq!(output.code, 0, "{container}: {}", output.stderr());
        docker.ok(&["network", "connect", "seven", &container]);
        let ask =
            |script: &str| docker.ok(&["exec", &container, "timeout", "60", "sh", "-c", script]);
        // The guest follows the namespace of the host; that is not the engine's to wait for.
        ask("until ip address show eth1 | grep -q 'inet6 fd00:95:2'; do sleep 0.1; done");
        let count = "ip -6 -o address | grep -c -e ' fd00:' -e ' ::1/'; \
                     grep -c -e '^fd00:' -e '^::1' /etc/hosts; \
                     cat /proc/sys/net/ipv6/conf/eth[01]/disable_ipv6; true";
        let global = "{{range .NetworkSettings.Networks}}{{not .GlobalIPv6Address}} {{end}}";
        let seen = (ask(count), docker.ok(&["inspect", "-f", global, &container]));
        docker.ok(&["rm", "-f", &container]);
        seen
    };
    for disabled in ["1", "0"] {
        let [runc, kata] = [Runtime::Runc, Runtime::Kata].map(|runtime| live(runtime, disabled));
        assert_eq!(kata, runc, "disable_ipv6={disabled}: Kata on the left, runc on the right");
        // Docker gives it to a link that comes later, and to it alone.
        let mut of_first = runc.0.lines().skip(2);
        assert_eq!(of_first.next(), Some(disabled), "the test itself: {}", runc.0);
    }
}
