//! The other guest kernel: Debian's own, with its modules in the initrd.
#![allow(clippy::unwrap_used)]

use std::{env, fs, path::PathBuf};

use kata_guest_tests::{Kata, Root, busybox};
use serde_json::json;

/// A directory with a configuration that names Debian's kernel.
fn configuration() -> Option<tempfile::TempDir> {
    let guest = PathBuf::from(env::var_os("KATA_PREFIX")?).join("share/kata/distro");
    if !guest.is_dir() {
        println!("SKIP {} is not there; run cargo xtask test", guest.display());
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| json!(guest.join(name)).to_string();
    let text =
        format!("[kernel]\npath = {}\n[initrd]\npath = {}\n", path("vmlinux"), path("initrd.img"));
    fs::write(directory.path().join("config.toml"), text).unwrap();
    Some(directory)
}

fn assert_done(kata: &Kata, root: &Root, arguments: &[&str]) -> Option<String> {
    let configuration = configuration()?;
    let config = configuration.path().to_str().unwrap();
    let output =
        kata.call(&[&["--config", config, "run", "--rootfs", root.path()], arguments].concat());
    assert_eq!(output.code, 0, "{}", output.stderr());
    Some(output.stdout())
}

#[test]
fn debians_kernel_runs_a_container() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let script = "uname -r; echo made >/made";
    let Some(said) = assert_done(&kata, &root, &["--", "sh", "-ec", script]) else { return };
    assert!(said.contains("+deb") && said.contains("cloud"), "{said}");
    assert_eq!(fs::read_to_string(root.file("/made")).unwrap(), "made\n");
}
