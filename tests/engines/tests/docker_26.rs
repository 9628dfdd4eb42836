//! docker 26, of a later Debian, with Kata as a runtime by path.
#![allow(clippy::unwrap_used)]

use std::{env, fs};

use kata_engine_tests::{claims, claims_of, docker_26};

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
