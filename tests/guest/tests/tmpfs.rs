//! File systems in memory: those that the guest makes, and one of the host as a volume.
#![allow(clippy::unwrap_used)]

use std::{fs, os::unix::fs::PermissionsExt};

use kata_guest_tests::{Bundle, Kata, Tmpfs, busybox, debian, run_bundle};
use rustix::mount::{MountFlags, mount_remount};
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

#[test]
fn a_volume_without_flags_has_those_of_what_is_bound() {
    let volume = tempfile::tempdir().unwrap();
    let _mounted = Tmpfs::mount(volume.path(), "");
    let flags = MountFlags::BIND | MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::RDONLY;
    mount_remount(volume.path(), flags, c"").unwrap();
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let Some(root) = busybox() else { return };
        let script = "grep -E ' /(kept|told) ' /proc/self/mounts | cut -d ' ' -f 2,4";
        let bundle = Bundle::new(&kata, root, &["sh", "-ec", script]);
        let output = run_bundle(runtime, bundle, |config| {
            for (place, options) in [("/kept", &["bind"][..]), ("/told", &["bind", "ro"])] {
                let mount = json!({
                    "type": "bind", "source": volume.path(), "destination": place, "options": options,
                });
                config["mounts"].as_array_mut().unwrap().push(mount);
            }
        });
        assert_eq!(output.code, 0, "{}{}", output.stdout(), output.stderr());
        let told = output.stdout();
        let has = |place: &str, flag: &str| {
            let line = told.lines().find(|line| line.starts_with(place)).unwrap();
            line.split([' ', ',']).any(|word| word == flag)
        };
        for flag in ["ro", "noexec", "nosuid"] {
            assert!(has("/kept", flag), "{flag}: {told}");
        }
        assert!(has("/told", "ro") && !has("/told", "noexec"), "{told}");
    }
}

/// runc of today's ways, where it is installed, and Kata.
fn recent(kata: Kata) -> impl Iterator<Item = Kata> {
    let oracle = Some(Kata::oracle()).filter(|oracle| oracle.version() >= (1, 2));
    oracle.into_iter().chain([kata])
}

/// In the mount's options, too, as with runc since 1.1.8.
#[test]
fn a_tmpfs_without_a_mode_has_that_of_what_it_covers() {
    let Some(kata) = Kata::installed() else { return };
    for runtime in recent(kata) {
        let Some(root) = busybox() else { return };
        fs::create_dir(root.file("/covered")).unwrap();
        fs::set_permissions(root.file("/covered"), PermissionsExt::from_mode(0o710)).unwrap();
        let script =
            "grep ' /covered ' /proc/self/mounts | grep -o 'mode=[0-9]*'; stat -c %a /covered";
        let bundle = Bundle::new(&runtime, root, &["sh", "-c", script]);
        let output = run_bundle(&runtime, bundle, |config| {
            let mount = json!({"destination": "/covered", "type": "tmpfs", "source": "tmpfs"});
            config["mounts"].as_array_mut().unwrap().push(mount);
        });
        assert_eq!(output.stdout(), "mode=710\n710\n", "{}", output.stderr());
    }
}

/// As runc has it since 1.2. What has no flags at all stays as it is on the host.
#[test]
fn a_volume_that_asks_to_be_written_to_is_so_whatever_it_is_on_the_host() {
    let Some(kata) = Kata::installed() else { return };
    recent(kata).for_each(|runtime| written_though_read_only(&runtime));
}

fn written_though_read_only(runtime: &Kata) {
    let Some(root) = busybox() else { return };
    let volume = tempfile::tempdir().unwrap();
    let _mounted = Tmpfs::mount(volume.path(), "");
    mount_remount(volume.path(), MountFlags::BIND | MountFlags::RDONLY, c"").unwrap();
    let script = "for place in asked kept; do touch /$place/$place 2>&1 && echo $place; done; true";
    let mut bundle = Bundle::new(runtime, root, &["sh", "-c", script]);
    for (place, options) in [("/asked", &["rbind", "rw"][..]), ("/kept", &["rbind"])] {
        let mount = json!({
            "type": "bind", "source": volume.path(), "destination": place, "options": options,
        });
        bundle.config["mounts"].as_array_mut().unwrap().push(mount);
    }
    bundle.write();
    if !runtime.is_oracle() {
        let explained = runtime.call(&["explain", bundle.path()]).stdout();
        let told = format!(
            "rw: written to, unless locked, though {} is mounted ro",
            volume.path().display()
        );
        assert_eq!(explained.matches(&told).count(), 1, "{explained}");
    }
    let output = run_bundle(runtime, bundle, |_| ());
    let told = output.stdout();
    assert!(told.starts_with("asked\n") && told.contains("Read-only"), "{told}{}", output.stderr());
    assert!(volume.path().join("asked").exists() && !volume.path().join("kept").exists());
    assert!(fs::write(volume.path().join("host"), "").is_err());
}
