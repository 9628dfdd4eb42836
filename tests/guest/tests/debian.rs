//! A Debian system as a root.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::Path};

use kata_guest_tests::{Bundle, Kata, debian, repetitions, run, run_bundle};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Runs a command line on Debian and returns what it prints.
fn say(command: &[&str]) -> Option<String> {
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return None };
    let output = kata.call(&[&["run", "--rootfs", root.path(), "--"], command].concat());
    assert_eq!(output.code, 0, "{}", output.stderr());
    Some(output.stdout())
}

#[test]
fn python_runs() {
    let script =
        "import json, sys; print(json.dumps({'answer': 6 * 7, 'major': sys.version_info[0]}))";
    let Some(said) = say(&["python3", "-c", script]) else { return };
    assert_eq!(said, "{\"answer\": 42, \"major\": 3}\n");
}

/// What was read of a program is forgotten and read again, into memory that had others in it.
#[test]
fn programs_run_in_memory_that_had_others_in_it() {
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return };
    let script = "for round in 1 2 3 4 5; do
        python3 -c 'import json; print(json.dumps([6 * 7]))'
        perl -e 'print 6 * 7, qq(\\n)'
        ls -l /usr/bin >/dev/null || echo ls: $?
        echo 3 >/proc/sys/vm/drop_caches
    done";
    let bundle = Bundle::new(&kata, root, &["bash", "-c", script]);
    let output = run_bundle(&kata, bundle, |config| config["linux"]["readonlyPaths"] = json!([]));
    assert_eq!(output.stdout(), "[42]\n42\n".repeat(5), "{}", output.stderr());
}

#[test]
fn apt_says_its_version() {
    let Some(said) = say(&["apt-get", "--version"]) else { return };
    assert!(said.starts_with("apt "), "{said}");
}

#[test]
fn dpkg_lists_what_is_installed() {
    let Some(said) = say(&["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n"]) else {
        return;
    };
    assert!(said.lines().any(|line| line == "python3 installed"), "{said}");
}

fn input(size: usize) -> Vec<u8> {
    (0..size).map(|i| u8::try_from((i + i / 251 * 7) % 251).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sends bytes through a shell script that says on stderr, by sha256sum, what it got.
fn through(script: &str) {
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return };
    let input = input(repetitions(256) << 20);
    let command = kata.command(&["run", "--rootfs", root.path(), "--", "bash", "-ec", script]);
    let output = run(command, &input);
    assert_eq!(output.code, 0, "{}", output.stderr());
    assert_eq!(output.stdout.len(), input.len());
    assert_eq!(hex(&output.stdout), hex(&input), "what came back");
    let said = output.stderr();
    let in_guest = said.split_whitespace().next().unwrap_or_default();
    assert_eq!(in_guest, hex(&input), "what the guest got");
}

#[test]
fn both_directions_at_once_are_equal_at_both_ends() {
    through("mkfifo /tmp/f; sha256sum </tmp/f >&2 & tee /tmp/f; wait");
}

#[test]
fn writes_of_256_kib_are_equal_at_both_ends() {
    through(
        "mkfifo /tmp/f; sha256sum </tmp/f >&2 & tee /tmp/f | dd bs=256k iflag=fullblock status=none; wait",
    );
}

/// Path and kind of everything below a directory.
fn list(root: &Path, below: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let (path, metadata) = (below.join(entry.file_name()), entry.metadata().unwrap());
        use std::os::unix::fs::MetadataExt;
        let size = if metadata.is_dir() { 0 } else { metadata.len() };
        found.insert(format!(
            "/{} {:x} {} {} {size} {}",
            path.display(),
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.mtime()
        ));
        if metadata.is_dir() {
            list(root, &path, found);
        }
    }
}

#[test]
fn the_tree_is_the_hosts() {
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return };
    let mut host = BTreeSet::new();
    for directory in ["usr", "etc"] {
        list(Path::new(root.path()), Path::new(directory), &mut host);
    }
    // A directory's size is its file system's business.
    let script = "find /usr /etc -mindepth 1 -type d -exec stat -c '%n %f %u %g 0 %Y' {} +
        find /usr /etc -mindepth 1 ! -type d -exec stat -c '%n %f %u %g %s %Y' {} +";
    let output = kata.shell(&root, script);
    assert_eq!(output.code, 0, "{}", output.stderr());
    let guest: BTreeSet<String> = output.stdout().lines().map(str::to_owned).collect();
    assert!(host.len() > 5000);
    let differ: Vec<_> = guest.symmetric_difference(&host).take(10).collect();
    assert!(differ.is_empty(), "{differ:#?}");
}

#[test]
fn contents_read_as_on_the_host() {
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return };
    let output = kata
        .shell(&root, "cd /usr/bin && find . -type f -print0 | sort -z | xargs -0 cat | sha256sum");
    assert_eq!(output.code, 0, "{}", output.stderr());
    let mut names: Vec<_> = fs::read_dir(root.file("/usr/bin"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| entry.path())
        .collect();
    names.sort();
    let mut all = Sha256::new();
    names.iter().for_each(|name| all.update(fs::read(name).unwrap()));
    let expected: String = all.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(output.stdout().split_whitespace().next().unwrap(), expected);
}
