//! What there is in a network namespace, to be compared.

use std::{io::Write, process::Command, process::Stdio, sync::OnceLock, thread};

/// A program with its arguments, and what it is asked on its input.
const SHOWS: [(&str, &[&str], &str); 4] = [
    (
        "ip",
        &["-4", "-batch", "-"],
        "link show\naddress show scope global\nroute show table all\nrule show\n\
         neighbour show nud permanent\n",
    ),
    // A link-local address gets its entry in the local table when nobody else turns out to have it.
    (
        "ip",
        &["-6", "-batch", "-"],
        "address show scope global\nroute show\nrule show\nneighbour show nud permanent\n",
    ),
    ("tc", &["qdisc", "show"], ""),
    // Without its counters.
    ("nft", &["-s", "list", "ruleset"], ""),
];

/// What comes and goes with a carrier.
const CARRIER: [&str; 7] = [
    "NO-CARRIER,",
    ",LOWER_UP",
    " linkdown",
    " state UP",
    " state DOWN",
    " state UNKNOWN",
    " state LOWERLAYERDOWN",
];

/// What counts packets of the kernel's own, such as those that look for a router.
const COUNTER: &str = " direct_packets_stat ";

/// Everything of a named network namespace, or of this process's own, that does not change by itself.
pub fn snapshot(namespace: Option<&str>) -> Vec<String> {
    // A test host may be without nft; then there are no rules to change either.
    let nft = Command::new("nft").arg("--version").output().is_ok();
    let there = SHOWS.into_iter().filter(|(program, ..)| nft || *program != "nft");
    there.map(|(program, arguments, input)| show(namespace, program, arguments, input)).collect()
}

fn show(namespace: Option<&str>, program: &str, arguments: &[&str], input: &str) -> String {
    let mut command = match namespace {
        Some(name) => {
            let mut enter = Command::new("nsenter");
            enter.arg(format!("--net=/run/netns/{name}")).args(["--", program]);
            enter
        }
        None => Command::new(program),
    };
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.spawn().unwrap();
    // One that reads nothing may have ended.
    running.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    let done = running.wait_with_output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    let said = String::from_utf8(done.stdout).unwrap();
    // The kernel tells of carriers up to a second later.
    let said = CARRIER.iter().fold(said, |said, word| said.replace(word, ""));
    let mut parts = said.split(COUNTER);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |said, part| said + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// Watches over the host's own network, in which nothing may change whatever a test does.
///
/// Whoever starts sandboxes has one: when it is dropped, all is as it was when the first one of the program was made.
#[derive(Debug)]
pub struct HostNetwork(());

impl HostNetwork {
    /// Looks at it.
    pub fn watch() -> Self {
        Self::at_first();
        Self(())
    }

    fn at_first() -> &'static [String] {
        static FIRST: OnceLock<Vec<String>> = OnceLock::new();
        FIRST.get_or_init(|| snapshot(None))
    }
}

impl Drop for HostNetwork {
    fn drop(&mut self) {
        if !thread::panicking() {
            assert_eq!(snapshot(None), Self::at_first(), "the host's own network has changed");
        }
    }
}
