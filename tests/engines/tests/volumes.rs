//! What a pod's containers have of the host's files, together and one after the other. Each claim holds for runc too, unless it
//! says why not.
#![allow(clippy::unwrap_used)]

use std::{
    env,
    fs::{self, File},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use kata_engine_tests::containerd::{
    Container, Containerd, Handler, KATA, Pod, RUNC, bind, nothing_left, processes,
    runtime::{KeyValue, Mount, MountPropagation},
    shim_of,
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

/// Holds a lock, serves a socket and a mapped page, and makes a file of each word that it is told.
const SERVER: &str = r"
import fcntl, mmap, os, socket
os.chdir('/mnt')
lock = open('lock', 'w')
fcntl.flock(lock, fcntl.LOCK_EX)
page = open('page', 'w+b')
page.truncate(4096)
memory = mmap.mmap(page.fileno(), 4096)
server = socket.socket(socket.AF_UNIX)
server.bind('socket')
server.listen()
open('ready', 'w').close()
while True:
    peer = server.accept()[0]
    word = peer.recv(16)
    memory[:len(word)] = word
    open(word.decode(), 'w').close()
    peer.close()
";

/// Says what it sees of the server by the lock, the page and inotify.
const CLIENT: &str = r"
import ctypes, fcntl, mmap, os, select, socket, struct, time
os.chdir('/mnt')
while not os.path.exists('ready'):
    time.sleep(0.05)
libc = ctypes.CDLL(None)
events = libc.inotify_init()
libc.inotify_add_watch(events, b'.', 0x100)
page = open('page', 'rb')
memory = mmap.mmap(page.fileno(), 4096, access=mmap.ACCESS_READ)
before = memory[:len(os.environ['WORD'])]
try:
    fcntl.flock(open('lock'), fcntl.LOCK_EX | fcntl.LOCK_NB)
    print('lock is free')
except BlockingIOError:
    print('lock is held')
client = socket.socket(socket.AF_UNIX)
client.connect('socket')
client.sendall(os.environ['WORD'].encode())
client.recv(1)
print('page has', memory[:len(before)].decode())
if select.select([events], [], [], 20)[0]:
    print('made', os.read(events, 4096)[16:].rstrip(bytes(1)).decode())
else:
    print('nothing was made')
";

/// A container that runs a program in Debian's root, with this mount below it.
fn in_debian<'a>(
    pod: &'a Pod,
    (debian, mount): (&Path, Mount),
    (program, word): (&str, &str),
) -> Container<'a> {
    let mut config = pod.script("exec chroot /debian python3 -c \"$PROGRAM\"");
    let variable = |key: &str, value: &str| KeyValue {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    };
    config.envs = vec![variable("PROGRAM", program), variable("WORD", word)];
    config.mounts = vec![bind(debian, "/debian", true), mount];
    pod.start(config)
}

#[test]
fn containers_of_a_pod_meet_in_their_volumes() {
    let Some(debian) = env::var_os("KATA_TEST_ROOT_DEBIAN").map(PathBuf::from) else {
        println!("SKIP KATA_TEST_ROOT_DEBIAN is not set; run cargo xtask test");
        return;
    };
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let volume = tempfile::tempdir().unwrap();
        let start = |program: (&str, &str), readonly: bool| {
            in_debian(&pod, (&debian, bind(volume.path(), "/debian/mnt", readonly)), program)
        };
        let hears = |client: &Container<'_>, word: &str| {
            client.ended();
            let expected = ["lock is held", &format!("page has {word}"), &format!("made {word}")];
            assert_eq!(client.log_lines(), expected.map(|line| format!("stdout F {line}")));
            client.remove();
        };
        // It is there before anybody who may write.
        let early = start((CLIENT, "early"), true);
        let server = start((SERVER, ""), false);
        hears(&early, "early");
        for (word, readonly) in [("reader", true), ("writer", false), ("last", true)] {
            hears(&start((CLIENT, word), readonly), word);
        }
        let mut reader = pod.script("exec sleep 1000");
        reader.mounts = vec![bind(volume.path(), "/volume", true)];
        let reader = pod.start(reader);
        assert_ne!(reader.exec(&["touch", "/volume/of-a-reader"]).exit_code, 0);
        server.stop(0);
        pod.remove();
    });
}

#[test]
fn a_volume_that_can_not_be_opened_for_writing_fails_only_who_would_write() {
    let Some(mut engine) = Containerd::start() else { return };
    engine.restart_with(&[("KATA_FAULT", "OpenVolume=fail")]);
    let pod = Pod::run(&engine, KATA);
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("file"), "x").unwrap();
    let reader = with_mounts(&pod, vec![bind(volume.path(), "/volume", true)]);
    for _ in 0..2 {
        let mut config = pod.script("exec sleep 1000");
        config.mounts = vec![bind(volume.path(), "/volume", false)];
        let writer = pod.create(config).unwrap();
        let refused = writer.start().unwrap_err().message;
        assert!(refused.contains("KATA_FAULT"), "{refused}");
        writer.remove();
    }
    let other = with_mounts(&pod, vec![bind(volume.path(), "/volume", true)]);
    assert_eq!([&reader, &other].map(|one| one.output("cat /volume/file")), ["x", "x"]);
    pod.remove();
    nothing_left(&pod.id);
}

/// What a container has twice is one file system, too, and what another has below the same path another.
#[test]
fn a_volume_is_known_by_what_it_shows() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(one.path().join("sub")).unwrap();
        let path = one.path().join("sub");
        let start = |mounts: Vec<Mount>| {
            let mut config = pod.script("exec sleep 1000");
            config.mounts = mounts;
            pod.start(config)
        };
        let first = start(vec![
            bind(one.path(), "/a", false),
            bind(one.path(), "/b", true),
            bind(&path, "/c", false),
        ]);
        first.output("echo x > /a/file; echo y > /c/file");
        assert_eq!(first.output("cat /b/file /b/sub/file"), "x\ny");
        assert_eq!(
            first.output("[ $(stat -c %d:%i /a/file) = $(stat -c %d:%i /b/file) ] && echo same"),
            "same"
        );
        assert_ne!(first.exec(&["touch", "/b/other"]).exit_code, 0);
        // The path leads elsewhere now.
        fs::rename(&path, one.path().join("old")).unwrap();
        fs::rename(other.path(), &path).unwrap();
        let second = start(vec![bind(&path, "/c", false)]);
        second.output("[ ! -e /c/file ] && echo z > /c/new");
        assert_eq!(first.output("cat /c/file; ls /c"), "y\nfile");
        assert_eq!(fs::read_to_string(path.join("new")).unwrap(), "z\n");
        pod.remove();
    });
}

/// An `emptyDir` with `medium: Memory` and a size limit of 8 MiB, as a kubelet makes one for a pod with `fsGroup: 2000`.
struct InMemory {
    pod: tempfile::TempDir,
    mounted: Vec<PathBuf>,
}

impl InMemory {
    fn new() -> Self {
        let mut directory = Self { pod: tempfile::tempdir().unwrap(), mounted: Vec::new() };
        let path = directory.path();
        directory.mount(&["-t", "tmpfs", "-o", "size=8m", "tmpfs"], path.clone());
        chown(&path, None, Some(2000)).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o2777)).unwrap();
        directory
    }

    fn path(&self) -> PathBuf {
        self.pod.path().join("volumes/kubernetes.io~empty-dir/data")
    }

    /// One directory in it, as a `subPath`.
    fn sub_path(&mut self, below: &str) -> PathBuf {
        let directory = self.path().join(below);
        if !directory.exists() {
            fs::create_dir(&directory).unwrap();
            fs::set_permissions(&directory, PermissionsExt::from_mode(0o2750)).unwrap();
        }
        let place = self.pod.path().join(format!("volume-subpaths/data/c/{}", self.mounted.len()));
        self.mount(&["--bind", directory.to_str().unwrap()], place.clone());
        place
    }

    fn mount(&mut self, options: &[&str], place: PathBuf) {
        fs::create_dir_all(&place).unwrap();
        Self::must_mount(options, &place);
        self.mounted.push(place);
    }

    fn must_mount(options: &[&str], place: &Path) {
        let mut mount = Command::new("mount");
        mount.args(options).arg(place);
        let mounted = run(mount, b"");
        assert_eq!(mounted.code, 0, "{}", mounted.stderr());
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        for place in self.mounted.iter().rev() {
            Command::new("umount").arg("-l").arg(place).status().ok();
        }
    }
}

fn with_mounts<'a>(pod: &'a Pod, mounts: Vec<Mount>) -> Container<'a> {
    let mut config = pod.script("exec sleep 1000");
    config.mounts = mounts;
    pod.start(config)
}

#[test]
fn a_directory_in_memory_is_a_tmpfs_of_the_pod() {
    on_both(|engine, handler| {
        let mut memory = InMemory::new();
        let pod = Pod::run(engine, handler);
        let whole = |readonly| bind(&memory.path(), "/memory", readonly);
        let one = with_mounts(&pod, vec![whole(false)]);
        assert_eq!(one.output("stat -f -c %T /memory"), "tmpfs");
        assert_eq!(one.output("stat -c '%a %u %g' /memory"), "2777 0 2000");
        assert_eq!(one.output("df -k /memory | awk 'NR==2 {print $2}'"), "8192");
        one.output("echo kept > /memory/file");
        assert_eq!(one.output("stat -c %g /memory/file"), "2000");
        let full = one.exec(&["dd", "if=/dev/zero", "of=/memory/full", "bs=1M", "count=9"]);
        assert!(String::from_utf8_lossy(&full.stderr).contains("No space left"), "{full}");
        one.output("rm /memory/full; cp /bin/busybox /memory/sh");
        // Made by the kubelet only now.
        let sub = memory.sub_path("sub");
        let whole = |readonly| bind(&memory.path(), "/memory", readonly);
        let reader = with_mounts(&pod, vec![whole(true), bind(&sub, "/sub", false)]);
        assert_eq!(reader.output("cat /memory/file; stat -f -c %T /sub"), "kept\ntmpfs");
        assert_eq!(reader.output("stat -c '%a %u %g' /sub"), "2750 0 2000");
        assert_ne!(reader.exec(&["touch", "/memory/other"]).exit_code, 0);
        reader.output("echo below > /sub/file");
        assert_eq!(one.output("cat /memory/sub/file"), "below");
        for container in [one, reader] {
            container.stop(0);
            container.remove();
        }
        let mut again = pod.script("exec sleep 1000");
        again.mounts = vec![whole(false), bind(&sub, "/sub", true)];
        // A program that another container has put there.
        again.command[0] = "/memory/sh".into();
        let again = pod.start(again);
        assert_eq!(
            again.output("cat /memory/file /sub/file /memory/sub/file"),
            "kept\nbelow\nbelow"
        );
        pod.remove();
    });
}

#[test]
fn a_sub_path_may_be_the_first_that_is_used_of_a_directory_in_memory() {
    on_both(|engine, handler| {
        let mut memory = InMemory::new();
        let sub = memory.sub_path("sub");
        let pod = Pod::run(engine, handler);
        let first = with_mounts(&pod, vec![bind(&sub, "/sub", false)]);
        first.output("echo below > /sub/file");
        let other = with_mounts(&pod, vec![bind(&memory.path(), "/memory", false)]);
        assert_eq!(other.output("stat -f -c %T /memory; cat /memory/sub/file"), "tmpfs\nbelow");
        pod.remove();
    });
}

/// Where it is shared memory for a program, and also for one that wants to see what the host mounts in it.
#[test]
fn a_directory_in_memory_is_one_wherever_and_however_containers_have_it() {
    on_both(|engine, handler| {
        let memory = InMemory::new();
        InMemory::must_mount(&["--make-shared"], &memory.path());
        let pod = Pod::run(engine, handler);
        let at_shm = with_mounts(&pod, vec![bind(&memory.path(), "/dev/shm", false)]);
        assert_eq!(at_shm.output("stat -c '%a %u %g' /dev/shm"), "2777 0 2000");
        assert_eq!(at_shm.output("df -k /dev/shm | awk 'NR==2 {print $2}'"), "8192");
        at_shm.output("echo kept > /dev/shm/file");
        let plain = bind(&memory.path(), "/memory", false);
        let propagation = MountPropagation::PROPAGATION_HOST_TO_CONTAINER.into();
        let following = Mount { propagation, ..bind(&memory.path(), "/following", false) };
        let other = with_mounts(&pod, vec![plain, following]);
        assert_eq!(other.output("cat /memory/file /following/file"), "kept\nkept");
        at_shm.stop(0);
        at_shm.remove();
        let again = with_mounts(&pod, vec![bind(&memory.path(), "/dev/shm", true)]);
        assert_eq!(again.output("cat /dev/shm/file; stat -f -c %T /dev/shm"), "kept\ntmpfs");
        pod.remove();
    });
}

/// Only a kubelet's path leads to it in the guest, and the host, which runc's container has it from, has nothing of it.
#[test]
fn what_a_pod_has_in_memory_is_never_taken_for_an_empty_directory_of_the_host() {
    on_both(|engine, handler| {
        let mut memory = InMemory::new();
        let volume = memory.path();
        let elsewhere = memory.pod.path().join("elsewhere");
        memory.mount(&["--bind", volume.to_str().unwrap()], elsewhere.clone());
        let pod = Pod::run(engine, handler);
        let one = with_mounts(&pod, vec![bind(&volume, "/memory", false)]);
        one.output("echo kept > /memory/file");
        let mut config = pod.script("exec sleep 1000");
        config.mounts = vec![bind(&elsewhere, "/memory", false)];
        let other = pod.create(config).unwrap();
        match other.start() {
            Ok(()) => assert_eq!(other.output("cat /memory/file"), "kept", "{}", handler.0),
            Err(refused) => {
                assert!(handler == KATA, "{refused:?}");
                assert!(refused.message.contains("in the guest's memory"), "{}", refused.message);
            }
        }
        assert_eq!(one.output("cat /memory/file"), "kept");
        pod.remove();
    });
}

/// What is there by the time of the first container is the host's, and so is all that comes.
#[test]
fn a_directory_in_memory_with_something_in_it_is_the_hosts() {
    on_both(|engine, handler| {
        let memory = InMemory::new();
        fs::write(memory.path().join("file"), "of the host").unwrap();
        let pod = Pod::run(engine, handler);
        let whole = || vec![bind(&memory.path(), "/memory", false)];
        let one = with_mounts(&pod, whole());
        assert_eq!(one.output("cat /memory/file"), "of the host");
        one.output("rm /memory/file; echo x > /memory/other");
        let other = with_mounts(&pod, whole());
        assert_eq!(other.output("ls /memory"), "other");
        assert_eq!(fs::read_to_string(memory.path().join("other")).unwrap(), "x\n");
        pod.remove();
    });
}
