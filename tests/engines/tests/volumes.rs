//! What a pod's containers have of the host's files, together and one after the other. Each claim holds for runc too, unless it
//! says why not.
#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use kata_engine_tests::containerd::{
    Containerd, Handler, KATA, Pod, RUNC, bind, processes, shim_of,
};
use kata_guest_tests::{ceiling, run};

fn on_both(claim: impl Fn(&Containerd, Handler)) {
    let Some(engine) = Containerd::start() else { return };
    for handler in [RUNC, KATA] {
        claim(&engine, handler);
    }
}

/// Waits for what nobody tells of; `why` says what is there instead.
fn until(mut holds: impl FnMut() -> bool, why: impl Fn() -> String) {
    let deadline = Instant::now() + ceiling(Duration::from_secs(30));
    while !holds() {
        assert!(Instant::now() < deadline, "{}", why());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Where the process is that serves a pod's files.
fn proxy_of(pod: &Pod) -> PathBuf {
    let shim = shim_of(&pod.id);
    let all = processes();
    let proxy = all.iter().find(|one| one.parent == Some(shim) && one.name == "kata-proxy");
    Path::new("/proc").join(proxy.unwrap().pid.as_raw_nonzero().to_string())
}

/// Of runc's containers no process holds anything.
#[test]
fn what_was_served_to_a_container_is_let_go_of_with_it() {
    let Some(engine) = Containerd::start() else { return };
    let pod = Pod::run(&engine, KATA);
    let keeper = pod.start(pod.script("exec sleep 1000"));
    keeper.output("true");
    let proxy = proxy_of(&pod);
    let held = || fs::read_dir(proxy.join("fd")).unwrap().count();
    let before = held();
    let volume = tempfile::tempdir().unwrap();
    for number in 0..40 {
        fs::write(volume.path().join(number.to_string()), "x").unwrap();
    }
    for _ in 0..20 {
        let script = "cat /volume/* /single > /all; head -c 8388608 /dev/zero > /large; ls -lR /bin /etc > /names";
        let mut config = pod.script(script);
        config.mounts = vec![
            bind(volume.path(), "/volume", false),
            bind(&volume.path().join("7"), "/single", false),
        ];
        let container = pod.start(config);
        assert_eq!(container.ended().exit_code, 0, "{:?}", container.log_lines());
        container.remove();
    }
    // Less than one for each of the containers.
    until(|| held() < before + 15, || format!("{} files are open, {before} were", held()));
    assert_eq!(keeper.output("echo still"), "still");
    pod.remove();
}

/// An ext2 on a loop device that goes with the last use of it.
struct Disk {
    file: tempfile::NamedTempFile,
    directory: tempfile::TempDir,
}

impl Disk {
    fn mounted() -> Option<Self> {
        let file = tempfile::NamedTempFile::new().unwrap();
        File::options().write(true).open(file.path()).unwrap().set_len(4 << 20).unwrap();
        let disk = Self { file, directory: tempfile::tempdir().unwrap() };
        let mut mkfs = Command::new("mkfs.ext2");
        mkfs.args(["-q", "-F"]).arg(disk.file.path());
        let made = run(mkfs, b"");
        assert_eq!(made.code, 0, "{}", made.stderr());
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).args([disk.file.path(), disk.directory.path()]);
        let mounted = run(mount, b"");
        if mounted.code != 0 {
            println!("SKIP no loop device is to be had: {}", mounted.stderr());
            return None;
        }
        Some(disk)
    }

    fn unmount(&self) {
        let mut umount = Command::new("umount");
        umount.arg(self.directory.path());
        let unmounted = run(umount, b"");
        assert_eq!(unmounted.code, 0, "{}", unmounted.stderr());
    }

    /// The loop device, while anything uses it.
    fn device(&self) -> String {
        let mut losetup = Command::new("losetup");
        losetup.arg("-j").arg(self.file.path());
        run(losetup, b"").stdout().trim().to_owned()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !self.device().is_empty() {
            Command::new("umount").arg("-l").arg(self.directory.path()).status().ok();
        }
    }
}

#[test]
fn a_disk_of_a_removed_container_is_free_while_its_pod_lives() {
    on_both(|engine, handler| {
        let Some(disk) = Disk::mounted() else { return };
        let pod = Pod::run(engine, handler);
        let keeper = pod.start(pod.script("exec sleep 1000"));
        let mut config = pod.script("echo x > /disk/file; exec sleep 1000");
        config.mounts = vec![bind(disk.directory.path(), "/disk", false)];
        let container = pod.start(config);
        container.output("until [ -s /disk/file ]; do sleep 0.05; done");
        container.stop(0);
        container.remove();
        assert_eq!(fs::read_to_string(disk.directory.path().join("file")).unwrap(), "x\n");
        assert!(!disk.device().is_empty());
        disk.unmount();
        until(|| disk.device().is_empty(), || format!("{} is still used", disk.device()));
        assert_eq!(keeper.output("echo still"), "still");
        pod.remove();
    });
}
