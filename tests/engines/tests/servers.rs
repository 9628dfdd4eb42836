//! Servers that people run, in a pod, asked from the pod network. Each claim holds for runc too, which tests the test.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
};

use kata_engine_tests::containerd::{Container, Containerd, KATA, Pod, RUNC, bind};
use kata_guest_tests::{debian, repetitions};

/// Where a container has the root with servers.
const ROOT: &str = "/debian";

/// Of their configuration and all that they write, in that root.
const FILES: &str = "srv";

const PAGE: &str = "a page of some length\n";

const NGINX: &str = "daemon off; user root; pid /srv/pid; error_log stderr; events {}
http {
    access_log off;
    client_body_temp_path /srv/body;
    keepalive_requests 1000000;
    server { listen 80; root /srv; }
}
";

/// Runs a server in a pod of each runtime; the claim gets the pod's address and the root with the clients.
fn on_both(server: &str, claim: impl Fn(&Containerd, &str, &Path)) {
    let Some(engine) = Containerd::start() else { return };
    let Some(root) = debian() else { return };
    let root = Path::new(root.path());
    fs::write(root.join(FILES).join("nginx.conf"), NGINX).unwrap();
    fs::write(root.join(FILES).join("page"), PAGE).unwrap();
    for handler in [RUNC, KATA] {
        let pod = Pod::run(&engine, handler);
        let container = started(&pod, root, server);
        let address = pod.status().network.ip.clone();
        container.output("until netstat -ltn | grep -Eq ':(80|6379) '; do sleep 0.1; done");
        claim(&engine, &address, root);
        pod.remove();
    }
}

fn started<'a>(pod: &'a Pod, root: &Path, server: &str) -> Container<'a> {
    let mut config = pod.script(&format!("exec chroot {ROOT} {server}"));
    config.mounts = vec![bind(root, ROOT, false)];
    pod.start(config)
}

#[test]
fn nginx_answers_every_request() {
    const CONNECTIONS: usize = 10;
    let requests = repetitions(10_000) / CONNECTIONS;
    on_both("/usr/sbin/nginx -c /srv/nginx.conf", |engine, address, _| {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let address = (address.to_owned(), 80);
                engine.network().beside(move || ask(&address, requests))
            })
            .collect();
        let answered: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
        assert_eq!(answered, requests * CONNECTIONS);
    });
}

/// Asks for the page so many times, over one connection.
fn ask(address: &(String, u16), requests: usize) -> usize {
    let mut socket = TcpStream::connect(address).unwrap();
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    let answers = |_: &usize| {
        socket.write_all(b"GET /page HTTP/1.1\r\nHost: pod\r\n\r\n").unwrap();
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "HTTP/1.1 200 OK\r\n");
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
        }
        let mut page = vec![0; PAGE.len()];
        reader.read_exact(&mut page).unwrap();
        page == PAGE.as_bytes()
    };
    (0..requests).filter(answers).count()
}

#[test]
fn redis_passes_all_of_its_benchmark() {
    // PING to MSET, with lists, sets and hashes between.
    const TESTS: usize = 20;
    let requests = repetitions(2000).to_string();
    let server = "redis-server --dir /srv --save '' --protected-mode no";
    on_both(server, |engine, address, root| {
        let mut benchmark = engine.inside("chroot");
        benchmark.arg(root).args(["redis-benchmark", "-q", "-h", address, "-n", &requests]);
        let done = benchmark.output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout).replace('\r', "\n");
        assert!(done.status.success() && done.stderr.is_empty(), "{said}{done:?}");
        let passed = said.lines().filter(|line| line.contains(" requests per second")).count();
        assert!(passed >= TESTS, "{said}");
    });
}
