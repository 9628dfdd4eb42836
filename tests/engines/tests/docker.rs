//! docker, as people use it, with Kata as a runtime by path.
#![allow(clippy::unwrap_used)]

use std::{
    net::UdpSocket,
    thread::{self, JoinHandle},
};

use kata_engine_tests::{Engine, Runtime, claims, claims_of, docker};

claims_of! {
    docker:
    a_server_lives_as_with_runc
    files_are_copied_while_it_runs
    a_terminal_is_one
    keys_detach
    codes_of_failure_are_those_of_the_engine
    the_network_of_another_container_is_left_alone
    networks_come_and_go_while_it_runs
    neighbours_find_each_other
    verbs_say_what_they_say_with_runc
    restart_policies_are_kept
}

#[test]
fn each_run_of_a_classic_build_is_in_a_vm() {
    let Some(mut docker) = docker() else { return };
    // The builder asks for no runtime: it takes the default one.
    docker.stop_daemon();
    docker.start_daemon(&["--default-runtime", "kata"]);
    claims::three_stages_are_built(&docker, |docker, context| {
        let mut build = docker.command(&["build", "-q", "-t", "built", context]);
        build.env("DOCKER_BUILDKIT", "0");
        build
    });
}

#[test]
fn containers_go_on_when_dockerd_is_killed_and_started_again() {
    let Some(mut docker) = docker() else { return };
    claims::containers_go_on_when_dockerd_is_killed(&mut docker);
}

/// A question for the address of `server`, as DNS has it on a connection, for the shell's printf.
const QUESTION: &str = "\\000\\030\\022\\064\\001\\000\\000\\001\\000\\000\\000\\000\\000\\000\
                        \\006server\\000\\000\\001\\000\\001";

/// A name server beside the containers that has one address for every name.
struct Outside(JoinHandle<()>);

impl Outside {
    fn serve(docker: &Engine, address: &str) -> Self {
        let at = format!("{address}:53");
        let bound = docker.network().beside(move || UdpSocket::bind(at).unwrap());
        let socket = bound.join().unwrap();
        Self(thread::spawn(move || {
            let mut question = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut question).unwrap();
                // Type and class are its last words.
                let Some(kind) = question[..length].last_chunk::<4>() else { return };
                let mut answer = question[..length].to_vec();
                answer[2..4].copy_from_slice(&[0x81, 0x80]);
                if *kind == [0, 1, 0, 1] {
                    answer[6..8].copy_from_slice(&[0, 1]);
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 53]);
                }
                socket.send_to(&answer, from).unwrap();
            }
        }))
    }

    /// Nothing is no question.
    fn end(self, docker: &Engine, address: &str) {
        let at = format!("{address}:53");
        let send = || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&[], at).unwrap();
        docker.network().beside(send).join().unwrap();
        self.0.join().unwrap();
    }
}

/// Docker's resolver answers at 127.0.0.11 of the network namespace, and its containers ask there.
#[test]
fn containers_of_a_network_find_each_other_by_name() {
    let Some(docker) = docker() else { return };
    for runtime in [Runtime::Runc, Runtime::Kata] {
        let name = runtime.name();
        let [network, server, client, late] =
            ["network", "server", "client", "late"].map(|what| format!("{what}-{name}"));
        docker.ok(&["network", "create", &network]);
        let gateway = docker.ok(&[
            "network",
            "inspect",
            "-f",
            "{{(index .IPAM.Config 0).Gateway}}",
            &network,
        ]);
        let outside = Outside::serve(&docker, &gateway);
        let start = |container: &str, more: &[&str]| {
            let common = ["-d", "--name", container, "--dns", &gateway];
            let words = [&common[..], more, &["busybox", "sleep", "600"]];
            let output = docker.run(runtime, &words.concat());
            assert_eq!(output.code, 0, "{}", output.stderr());
        };
        start(&server, &["--network", &network, "--network-alias", "server"]);
        start(&client, &["--network", &network]);
        start(&late, &[]);
        docker.ok(&["network", "connect", &network, &late]);
        let address = |container: &str| {
            let format = format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}");
            docker.ok(&["inspect", "-f", &format, container])
        };
        let (server_address, client_address) = (address(&server), address(&client));
        let ask =
            |container: &str, script: &str| docker.ok(&["exec", container, "sh", "-c", script]);
        let lookup = |of: &str| format!("nslookup {of} 2>&1; ping -c 1 -W 5 {of} | head -n 1");
        for (container, of, wanted) in [
            (&client, "server", &server_address),
            (&server, client.as_str(), &client_address),
            // Its resolv.conf has changed while it ran, and so have its links.
            (&late, "server", &server_address),
        ] {
            let said = ask(container, &lookup(of));
            assert!(
                said.contains(&format!("({wanted})")) && said.contains("127.0.0.11"),
                "{container}: {said}"
            );
        }
        let over_tcp =
            format!("printf '{QUESTION}' | nc 127.0.0.11 53 | hexdump -v -e '1/1 \"%d.\"'");
        let said = ask(&client, &over_tcp);
        // Its id, and at its end the address.
        assert!(said.contains(".18.52."), "{name}: {said}");
        assert!(said.ends_with(&format!("{server_address}.")), "{name}: {said}");
        // Docker's resolver asks others from within the container's namespace.
        let said = ask(&client, "nslookup outside.example 2>&1");
        assert!(said.contains("192.0.2.53"), "{name}: {said}");
        outside.end(&docker, &gateway);
        // Port 53 is free for a container that is a server of names itself, and so for any.
        docker.ok(&["exec", "-d", &client, "sh", "-c", "echo served | nc -l -p 53"]);
        let fetch = format!(
            "n=0; until nc -w 1 {client_address} 53 </dev/null; do n=$((n + 1)); [ $n -lt 1000 ] || exit 1; done"
        );
        assert_eq!(ask(&server, &fetch), "served", "{name}");
        assert!(ask(&client, &lookup("server")).contains(&format!("({server_address})")));
    }
}
