//! File systems in memory, which the guest makes.
#![allow(clippy::unwrap_used)]

use std::fs;

use kata_guest_tests::{Bundle, Kata, busybox, debian, run_bundle};
use serde_json::json;

#[test]
fn tmpfs_has_the_size_and_mode_that_the_spec_gives() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let script = "df -k /scratch /dev/shm | awk '/^/{print $2, $6}'; stat -c %a /scratch /dev/shm;
        dd if=/dev/zero of=/scratch/big bs=64k count=100 2>/dev/null || stat -c %s /scratch/big";
    let bundle = Bundle::new(&kata, root, &["sh", "-c", script]);
    let output = run_bundle(&kata, bundle, |config| {
        config["mounts"].as_array_mut().unwrap().push(json!({
            "type": "tmpfs", "source": "tmpfs", "destination": "/scratch",
            "options": ["size=1m", "mode=750", "nosuid"],
        }));
    });
    assert_eq!(
        output.stdout(),
        "1K-blocks Mounted\n1024 /scratch\n65536 /dev/shm\n750\n1777\n1048576\n",
        "{}",
        output.stderr()
    );
}

#[test]
fn a_volume_in_a_tmpfs_may_be_reached_by_a_link() {
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return };
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("word"), "here\n").unwrap();
    let words = ["cat", "/var/run/app/word", "/run/app/word", "/run/lock/word"];
    let bundle = Bundle::new(&kata, root, &words);
    let output = run_bundle(&kata, bundle, |config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({ "type": "tmpfs", "source": "tmpfs", "destination": "/run" }));
        // Debian's links to `/run` and to `/run/lock`, which is not there yet.
        for destination in ["/var/run/app", "/var/lock"] {
            mounts.push(json!({
                "type": "bind", "source": volume.path(), "destination": destination,
                "options": ["rbind"],
            }));
        }
    });
    assert_eq!(output.stdout(), "here\nhere\nhere\n", "{}", output.stderr());
}
