//! What `kata-runtime install --containerd` writes, read by a real containerd.
#![allow(clippy::unwrap_used)]

use std::{
    env, fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use kata_engine_tests::containerd::{Containerd, KATA, Pod, config};

/// Runs `install` of an installation for an engine, with its versions in `home`.
fn install(engine: &Containerd, prefix: &Path, words: &[&str]) -> String {
    let mut command = Command::new(prefix.join("bin/kata-runtime"));
    command.args(["install", "--containerd", "--etc"]).arg(engine.file("etc"));
    let done = command.arg("--to").arg(engine.file("home")).args(words).output().unwrap();
    let told = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
    assert!(done.status.success(), "{told}");
    told
}

/// Whether the shim of an installation runs: the same file, for by its own mounts its path is another.
fn runs(prefix: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let shim = identity(&prefix.join("bin/containerd-shim-kata-v2")).unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.into_iter().any(|entry| identity(&entry.path().join("exe")) == Some(shim))
}

/// Takes the runtime out of the configuration that tests usually have.
fn forget_kata(engine: &Containerd) -> String {
    let path = engine.file("config.toml");
    let text = fs::read_to_string(&path).unwrap();
    let mut inside = false;
    let kept = text.lines().filter(|line| {
        if line.starts_with('[') {
            inside = line.ends_with(".runtimes.kata]");
        }
        !inside
    });
    let kept = kept.map(|line| format!("{line}\n")).collect::<String>();
    let text = kept.replace("default_runtime_name = \"kata\"", "default_runtime_name = \"runc\"");
    fs::write(&path, &text).unwrap();
    fs::create_dir(engine.file("etc")).unwrap();
    symlink("..", engine.file("etc/containerd")).unwrap();
    text
}

/// The same Kata, with another content.
fn next_version(engine: &Containerd, prefix: &Path) -> PathBuf {
    let next = engine.file("next");
    for name in ["bin", "libexec/kata", "share/kata"] {
        fs::create_dir_all(next.join(name)).unwrap();
        for entry in fs::read_dir(prefix.join(name)).unwrap().flatten() {
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), next.join(name).join(entry.file_name())).unwrap();
            }
        }
    }
    // What follows the last section of a program is nobody's.
    let monitor = next.join("libexec/kata/kata-monitor");
    let program = fs::read(&monitor).unwrap();
    fs::write(&monitor, [&program[..], b"next"].concat()).unwrap();
    next
}

#[test]
fn an_upgrade_leaves_the_pods_that_run_alone() {
    let Some(mut engine) = Containerd::start() else { return };
    let prefix = PathBuf::from(env::var_os("KATA_PREFIX").unwrap());
    let before = forget_kata(&engine);
    engine.restart();
    let refused = Pod::run_with(&engine, KATA, config(&engine)).err().unwrap();
    assert!(refused.message.contains("kata"), "{refused:?}");

    install(&engine, &prefix, &[]);
    engine.restart();
    let old = fs::canonicalize(engine.file("home/current")).unwrap();
    let pod = Pod::run(&engine, KATA);
    let container = pod.start(pod.script("exec sleep 1000"));
    assert!(runs(&old));

    let told = install(&engine, &next_version(&engine, &prefix), &[]);
    assert!(told.contains("copied: ") && told.contains("as it should be: "), "{told}");
    let new = fs::canonicalize(engine.file("home/current")).unwrap();
    assert_ne!(old, new);
    assert_eq!(container.output("echo alive"), "alive");
    let other = Pod::run(&engine, KATA);
    assert!(runs(&new));
    let told = install(&engine, &engine.file("next"), &[]);
    assert!(told.contains(&format!("kept: {}", old.display())), "{told}");
    pod.remove();
    other.remove();

    install(&engine, &prefix, &["--uninstall"]);
    assert_eq!(fs::read_to_string(engine.file("config.toml")).unwrap(), before);
    assert!(!engine.file("home").exists());
}
