//! Files: of the root, of volumes, and of the guest's own memory, from both sides.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::Path,
};

use kata_guest_tests::{
    Bundle, Container, Kata, Output, Root, Tmpfs, busybox, debian, python, repetitions, run_bundle,
};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, getxattr, mknodat, setxattr};
use serde_json::{Value, json};

/// Runs a shell script on busybox with bind mounts: source, destination, options.
fn with_volumes(script: &str, volumes: &[(&Path, &str, &[&str])]) -> Option<Output> {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return None };
    let bundle = Bundle::new(&kata, root, &["sh", "-ec", script]);
    Some(run_bundle(&kata, bundle, |config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        for (source, destination, options) in volumes {
            mounts.push(json!({
                "type": "bind", "source": source, "destination": destination, "options": options,
            }));
        }
    }))
}

/// Asserts what a Python script on Debian prints.
fn assert_python(script: &str, expected: &str, change: impl FnOnce(&mut Value)) {
    let Some(output) = python(script, change) else { return };
    assert_eq!((output.code, output.stdout().trim()), (0, expected), "{}", output.stderr());
}

/// Asserts that a container ended with code 0.
fn assert_done(output: &Output) {
    assert_eq!(output.code, 0, "{}{}", output.stdout(), output.stderr());
}

#[test]
fn more_files_can_be_made_than_the_host_lets_a_process_open() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let directories = repetitions(60).max(24);
    let bundle = Bundle::new(&kata, root, &["cat"]);
    let container = Container::started(&kata, &bundle, "files");
    // One directory a call, so that no call takes long on a slow machine.
    for directory in 0..directories {
        let script = format!("mkdir /d{directory} && cd /d{directory} && seq 1000 | xargs touch");
        assert_done(&container.exec(&["sh", "-ec", &script], b""));
    }
    let output = container.exec(&["sh", "-c", "find /d* -type f | wc -l"], b"");
    assert_eq!(output.stdout().trim(), (directories * 1000).to_string(), "{}", output.stderr());
    let on_host = fs::read_dir(bundle.root().file("/d1")).unwrap().count();
    assert_eq!(on_host, 1000);
}

#[test]
fn find_goes_over_more_files_than_the_host_lets_a_process_open() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let count = 60_000;
    for directory in 0..count / 1000 {
        let directory = root.file(&format!("/many{directory}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..1000 {
            fs::write(directory.join(file.to_string()), "").unwrap();
        }
    }
    // Sizes are asked for, so that each file is looked up.
    let output = kata.shell(&root, "find /many* -type f -size -1 | wc -l");
    assert_done(&output);
    assert_eq!(output.stdout().trim(), count.to_string(), "{}", output.stderr());
}

#[test]
fn what_the_container_wrote_is_on_the_host_when_run_returns() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let script = "
mkdir -p /made/below
seq 100000 >/made/below/numbers
chown 1000:2000 /made/below/numbers
chmod 640 /made/below/numbers
chmod 1777 /made";
    assert_done(&kata.call(&["run", "--rootfs", root.path(), "--", "sh", "-ec", script]));
    let numbers: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert!(fs::read_to_string(root.file("/made/below/numbers")).unwrap() == numbers);
    let metadata = fs::metadata(root.file("/made/below/numbers")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode()), (1000, 2000, 0o100_640));
    assert_eq!(fs::metadata(root.file("/made")).unwrap().mode(), 0o041_777);
    assert_eq!(fs::metadata(root.file("/made/below")).unwrap().uid(), 0);
}

#[test]
fn a_user_of_the_container_owns_what_it_makes() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let arguments = ["run", "--rootfs", root.path(), "--user", "1234:5678", "--"];
    let script = "cd /tmp && touch file && mkdir directory && ln -s x link && mkfifo fifo";
    assert_done(&kata.call(&[&arguments[..], &["sh", "-ec", script]].concat()));
    for name in ["file", "directory", "link", "fifo"] {
        let metadata = fs::symlink_metadata(root.file("/tmp").join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678), "{name}");
    }
}

#[test]
fn modes_owners_and_contents_of_the_host_are_the_containers() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    fs::write(root.file("/given"), "given").unwrap();
    fs::set_permissions(root.file("/given"), PermissionsExt::from_mode(0o4751)).unwrap();
    std::os::unix::fs::chown(root.file("/given"), Some(77), Some(88)).unwrap();
    // A change of owner clears the bit.
    fs::set_permissions(root.file("/given"), PermissionsExt::from_mode(0o4751)).unwrap();
    let output = kata.shell(&root, "stat -c '%a %u %g %s' /given; cat /given");
    assert_eq!(output.stdout(), "4751 77 88 5\ngiven", "{}", output.stderr());
}

#[test]
fn set_uid_programs_change_the_user() {
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return };
    fs::copy(root.file("/usr/bin/id"), root.file("/id")).unwrap();
    fs::set_permissions(root.file("/id"), PermissionsExt::from_mode(0o4755)).unwrap();
    let bundle = Bundle::new(&kata, root, &["/id", "-u"]);
    let output = run_bundle(&kata, bundle, |config| {
        config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        config["process"]["noNewPrivileges"] = json!(false);
    });
    assert_eq!(output.stdout(), "0\n", "{}", output.stderr());
}

#[test]
fn a_write_by_another_user_clears_the_set_uid_bit() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    fs::write(root.file("/tmp/program"), "").unwrap();
    fs::set_permissions(root.file("/tmp/program"), PermissionsExt::from_mode(0o6777)).unwrap();
    let script = "echo x >>/tmp/program; stat -c %a /tmp/program";
    let arguments = ["run", "--rootfs", root.path(), "--user", "1000:1000", "--"];
    let output = kata.call(&[&arguments[..], &["sh", "-c", script]].concat());
    assert_eq!(output.stdout(), "777\n", "{}", output.stderr());
}

#[test]
fn links_and_fifos_are_real() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    symlink("/made/target", root.file("/absolute")).unwrap();
    let script = "
mkdir /made; cd /made
echo one >target; ln target hard; echo two >>hard
ln -s target soft; mkfifo fifo
cat fifo >copy & cat target >fifo; wait
cat /absolute; cat soft; cat copy; stat -c %h target; test target -ef hard";
    let output = kata.call(&["run", "--rootfs", root.path(), "--", "sh", "-ec", script]);
    assert_done(&output);
    assert_eq!(output.stdout(), "one\ntwo\n".repeat(3) + "2\n");
    assert_eq!(fs::read_link(root.file("/made/soft")).unwrap(), Path::new("target"));
    let inode = |name: &str| fs::metadata(root.file(name)).unwrap().ino();
    assert_eq!(inode("/made/target"), inode("/made/hard"));
    assert!(fs::metadata(root.file("/made/fifo")).unwrap().file_type().is_fifo());
}

#[test]
fn extended_attributes_cross_both_ways() {
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return };
    fs::write(root.file("/given"), "").unwrap();
    setxattr(root.file("/given"), "user.from", b"host", XattrFlags::empty()).unwrap();
    let script = "
import os
print(os.getxattr('/given', 'user.from'))
os.setxattr('/given', 'user.to', b'host')
open('/program', 'w').close()
# CAP_NET_RAW, permitted, in the form of version 2
os.setxattr('/program', 'security.capability', bytes.fromhex('0000000200200000000000000000000000000000'))
print(os.listxattr('/given'))
os.removexattr('/given', 'user.from')
";
    let output = kata.call(&["run", "--rootfs", root.path(), "--", "python3", "-c", script]);
    assert_done(&output);
    assert_eq!(output.stdout(), "b'host'\n['user.from', 'user.to']\n");
    let host = |file: &str, name: &str| {
        let mut value = [0_u8; 64];
        getxattr(root.file(file), name, &mut value[..]).map(|length| value[..length].to_vec())
    };
    assert_eq!(host("/given", "user.to").unwrap(), b"host");
    assert_eq!(host("/given", "user.from").unwrap_err(), rustix::io::Errno::NODATA);
    let capability = host("/program", "security.capability").unwrap();
    assert_eq!(capability[..8], [0, 0, 0, 2, 0, 0x20, 0, 0]);
}

#[test]
fn rename_replaces_and_open_files_outlive_their_names() {
    let script = "
import os
os.makedirs('/scratch/a'); os.makedirs('/scratch/b')
open('/scratch/a/new', 'w').write('new')
old = open('/scratch/b/old', 'w+'); old.write('old'); old.flush()
os.rename('/scratch/a/new', '/scratch/b/old')
old.seek(0)
print(open('/scratch/b/old').read(), old.read(), os.listdir('/scratch/a'), os.fstat(old.fileno()).st_nlink)
gone = open('/scratch/gone', 'w+'); os.unlink('/scratch/gone'); gone.write('x'); gone.flush(); gone.seek(0)
print(gone.read(), os.path.exists('/scratch/gone'))
";
    assert_python(script, "new old [] 0\nx False", |_| ());
}

#[test]
fn locks_hold_between_processes() {
    let script = "
import fcntl, os
def refused(lock):
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            lock(open('/lock', 'r+'))
            os.write(writer, b'granted')
        except BlockingIOError:
            os.write(writer, b'refused')
        os._exit(0)
    return os.read(reader, 7).decode()
open('/lock', 'w').close()
ours = open('/lock', 'r+')
flock = lambda file: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
posix = lambda file: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
flock(ours); print(refused(flock)); fcntl.flock(ours, fcntl.LOCK_UN); print(refused(flock))
posix(ours); print(refused(posix)); fcntl.lockf(ours, fcntl.LOCK_UN); print(refused(posix))
";
    assert_python(script, "refused\ngranted\nrefused\ngranted", |_| ());
}

#[test]
fn shared_mappings_are_shared_and_reach_the_host() {
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return };
    let script = "
import mmap, os
file = open('/mapped', 'w+b'); file.truncate(8192)
ours = mmap.mmap(file.fileno(), 8192)
if os.fork() == 0:
    theirs = mmap.mmap(os.open('/mapped', os.O_RDWR), 8192)
    theirs[4096:4101] = b'child'
    os._exit(0)
os.wait()
print(ours[4096:4101], os.pread(file.fileno(), 5, 4096))
";
    let output = kata.call(&["run", "--rootfs", root.path(), "--", "python3", "-c", script]);
    assert_done(&output);
    assert_eq!(output.stdout(), "b'child' b'child'\n");
    assert_eq!(fs::read(root.file("/mapped")).unwrap()[4096..4101], *b"child");
}

#[test]
fn an_overlay_is_a_root_and_its_lower_layer_stays_as_it_is() {
    let (Some(kata), Some(lower)) = (Kata::installed(), busybox()) else { return };
    fs::write(lower.file("/etc/layer"), "lower").unwrap();
    fs::write(lower.file("/etc/gone"), "lower").unwrap();
    let root = Root::overlay(Path::new(lower.path()));
    let script = "cat /etc/layer; echo upper >/etc/layer; rm /etc/gone; rm -r /home; mkdir /home";
    let output = kata.call(&["run", "--rootfs", root.path(), "--", "sh", "-ec", script]);
    assert_done(&output);
    assert_eq!(output.stdout(), "lower");
    assert_eq!(fs::read_to_string(lower.file("/etc/layer")).unwrap(), "lower");
    assert_eq!(fs::read_to_string(root.file("/etc/layer")).unwrap(), "upper\n");
    assert!(!root.file("/etc/gone").exists() && lower.file("/etc/gone").exists());
}

#[test]
fn a_read_only_root_is() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let script = "touch /x; mkdir /etc/y; echo z >>/etc/passwd; touch /dev/shm/works && echo works";
    let output =
        kata.call(&["run", "--rootfs", root.path(), "--read-only", "--", "sh", "-c", script]);
    assert_eq!(output.stdout(), "works\n");
    assert_eq!(output.stderr().matches("Read-only file system").count(), 3, "{}", output.stderr());
}

#[test]
fn a_directory_is_a_volume_in_both_directions() {
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("given"), "given").unwrap();
    let script = "cat /made/for/it/given; echo taken >/made/for/it/taken";
    let volumes: [(&Path, &str, &[&str]); 1] = [(volume.path(), "/made/for/it", &["rbind", "rw"])];
    let Some(output) = with_volumes(script, &volumes) else { return };
    assert_done(&output);
    assert_eq!(output.stdout(), "given");
    assert_eq!(fs::read_to_string(volume.path().join("taken")).unwrap(), "taken\n");
}

#[test]
fn a_single_file_is_a_volume() {
    let volume = tempfile::tempdir().unwrap();
    let file = volume.path().join("resolv.conf");
    fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
    fs::write(volume.path().join("secret"), "").unwrap();
    let script = "cat /etc/resolv.conf; echo more >>/etc/resolv.conf; ls -d /etc/secret || true";
    let volumes: [(&Path, &str, &[&str]); 1] = [(&file, "/etc/resolv.conf", &["bind", "rw"])];
    let Some(output) = with_volumes(script, &volumes) else { return };
    assert_done(&output);
    assert_eq!(output.stdout(), "nameserver 192.0.2.1\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), "nameserver 192.0.2.1\nmore\n");
}

#[test]
fn a_file_that_the_host_writes_anew_is_read_as_it_is_now() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let volume = tempfile::tempdir().unwrap();
    let file = volume.path().join("hosts");
    // A program that is started takes longer than the guest once kept what it knew.
    let script = "while read -r turn; do while read -r line; do last=$line; done </etc/hosts; echo \"$turn: $last.\"; done";
    let mut bundle = Bundle::new(&kata, root, &["sh", "-c", script]);
    let mount =
        json!({"type": "bind", "source": file, "destination": "/etc/hosts", "options": ["rbind"]});
    bundle.config["mounts"].as_array_mut().unwrap().push(mount);
    bundle.write();
    for runtime in [&Kata::oracle(), &kata] {
        fs::write(&file, "").unwrap();
        let container = Container::started(runtime, &bundle, "hosts");
        let mut lines = String::new();
        for turn in 0..20 {
            lines.push_str(&format!("192.0.2.{turn} host{turn}\n"));
            fs::write(&file, &lines).unwrap();
            container.write(format!("{turn}\n").as_bytes());
            let answered = container.stdout.until("an answer", |text| text.lines().count() > turn);
            let seen = format!("{turn}: 192.0.2.{turn} host{turn}.\n");
            assert!(answered.ends_with(&seen), "{:?}: {answered}", runtime.program());
        }
        container.remove_running();
    }
}

#[test]
fn a_read_only_volume_cannot_be_written() {
    let volume = tempfile::tempdir().unwrap();
    let file = volume.path().join("file");
    fs::write(&file, "given").unwrap();
    let script = "touch /volume/new || true; echo x >>/file || true; cat /file";
    let volumes: [(&Path, &str, &[&str]); 2] =
        [(volume.path(), "/volume", &["rbind", "ro"]), (&file, "/file", &["bind", "ro"])];
    let Some(output) = with_volumes(script, &volumes) else { return };
    assert_eq!(output.stdout(), "given");
    assert_eq!(output.stderr().matches("Read-only file system").count(), 2, "{}", output.stderr());
    assert_eq!(fs::read_dir(volume.path()).unwrap().count(), 1);
}

#[test]
fn a_read_only_volume_cannot_be_made_writable_by_a_remount() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let volume = tempfile::tempdir().unwrap();
    let script = "mount -o remount,bind,rw /volume; touch /volume/new";
    let bundle = Bundle::new(&kata, root, &["sh", "-c", script]);
    let output = run_bundle(&kata, bundle, |config| {
        kata_guest_tests::grant(config, "CAP_SYS_ADMIN");
        config["mounts"].as_array_mut().unwrap().push(json!({
            "type": "bind", "source": volume.path(), "destination": "/volume",
            "options": ["rbind", "ro"],
        }));
    });
    // The host's side is read-only as well.
    assert_ne!(output.code, 0);
    assert_eq!(fs::read_dir(volume.path()).unwrap().count(), 0, "{}", output.stderr());
}

#[test]
fn what_a_container_has_twice_is_one_file_system() {
    let volume = tempfile::tempdir().unwrap();
    let script = "if touch /reader/x; then exit 1; fi; echo one > /writer/file; cat /reader/file; \
        [ $(stat -c %d:%i /reader/file) = $(stat -c %d:%i /writer/file) ]";
    let volumes: [(&Path, &str, &[&str]); 2] =
        [(volume.path(), "/reader", &["rbind", "ro"]), (volume.path(), "/writer", &["rbind"])];
    let Some(output) = with_volumes(script, &volumes) else { return };
    assert_done(&output);
    assert_eq!(output.stdout(), "one\n");
}

#[test]
fn a_mount_below_a_volume_is_seen_with_rbind_and_not_with_bind() {
    let volume = tempfile::tempdir().unwrap();
    let below = volume.path().join("below");
    fs::create_dir(&below).unwrap();
    fs::write(below.join("hidden"), "").unwrap();
    let _mounted = Tmpfs::mount(&below, "");
    fs::write(below.join("inner"), "").unwrap();
    let volumes: [(&Path, &str, &[&str]); 2] =
        [(volume.path(), "/all", &["rbind"]), (volume.path(), "/one", &["bind"])];
    let Some(output) = with_volumes("ls /all/below /one/below", &volumes) else { return };
    assert_done(&output);
    assert_eq!(output.stdout(), "/all/below:\ninner\n\n/one/below:\nhidden\n");
}

#[test]
fn mounts_of_the_host_outlive_a_container_that_had_them_in_a_volume() {
    let volume = tempfile::tempdir().unwrap();
    let _mounted = Tmpfs::shared(volume.path());
    let [below, other] = ["below", "other"].map(|name| volume.path().join(name));
    for directory in [&below, &other] {
        fs::create_dir(directory).unwrap();
    }
    let _below = Tmpfs::shared(&below);
    fs::write(below.join("inner"), "").unwrap();
    for propagation in ["rprivate", "rslave", "rshared"] {
        let options = ["rbind", propagation];
        // The second volume is mounted in the first: that is nothing of the host's either.
        let volumes: [(&Path, &str, &[&str]); 2] =
            [(volume.path(), "/v", &options), (&below, "/v/other", &options)];
        let Some(output) = with_volumes("ls /v/below /v/other", &volumes) else { return };
        assert_eq!(output.stdout(), "/v/below:\ninner\n\n/v/other:\ninner\n", "{propagation}");
        assert!(below.join("inner").exists(), "{propagation}: the host has lost a mount");
        assert!(!other.join("inner").exists(), "{propagation}: the host has got a mount");
    }
}

#[test]
fn what_the_host_mounts_later_is_seen_in_a_volume_that_follows_it() {
    let Some(kata) = Kata::installed() else { return };
    let volume = tempfile::tempdir().unwrap();
    let _mounted = Tmpfs::shared(volume.path());
    let later = volume.path().join("later");
    fs::create_dir(&later).unwrap();
    for kata in [kata, Kata::oracle()] {
        let Some(root) = busybox() else { return };
        let mut bundle = Bundle::new(&kata, root, &["cat"]);
        let volumes =
            [("/rslave", ["rbind", "rslave"].as_slice()), ("/rprivate", &["rbind", "rprivate"])];
        // Read-only is the volume, and not what is mounted below it.
        for (place, options) in volumes.into_iter().chain([("/ro", &["rbind", "rslave", "ro"][..])])
        {
            bundle.config["mounts"].as_array_mut().unwrap().push(json!({
                "type": "bind", "source": volume.path(), "destination": place, "options": options,
            }));
        }
        bundle.write();
        let container = Container::started(&kata, &bundle, "follows");
        let _mounted = Tmpfs::mount(&later, "");
        fs::write(later.join("inner"), "").unwrap();
        let output = container.exec(&["ls", "/rslave/later", "/rprivate/later"], b"");
        assert_eq!(output.stdout(), "/rprivate/later:\n\n/rslave/later:\ninner\n");
        let script = "echo more > /ro/later/inner; touch /ro/file";
        let output = container.exec(&["sh", "-c", script], b"");
        assert_eq!(fs::read_to_string(later.join("inner")).unwrap(), "more\n");
        assert!(output.stderr().contains("Read-only file system"), "{}", output.stderr());
    }
}

#[test]
fn files_of_two_file_systems_in_one_volume_are_told_apart() {
    let volume = tempfile::tempdir().unwrap();
    let below = [volume.path().join("one"), volume.path().join("two")];
    let _mounted = below.each_ref().map(|below| {
        fs::create_dir(below).unwrap();
        Tmpfs::mount(below, "")
    });
    // The first file of each tmpfs has the same inode number.
    below.iter().for_each(|below| fs::write(below.join("file"), below.to_str().unwrap()).unwrap());
    let script = "cat /v/one/file; echo; cat /v/two/file; echo; test /v/one/file -ef /v/two/file || echo differ";
    let volumes: [(&Path, &str, &[&str]); 1] = [(volume.path(), "/v", &["rbind"])];
    let Some(output) = with_volumes(script, &volumes) else { return };
    let [one, two] = below.each_ref().map(|below| below.display().to_string());
    assert_eq!(output.stdout(), format!("{one}\n{two}\ndiffer\n"), "{}", output.stderr());
}

#[test]
fn a_symbolic_link_in_a_volume_does_not_lead_to_the_host() {
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("../kata-test-secret"), "secret").unwrap();
    symlink("/proc/1/root/etc/hostname", volume.path().join("proc")).unwrap();
    symlink("../kata-test-secret", volume.path().join("up")).unwrap();
    let volumes: [(&Path, &str, &[&str]); 1] = [(volume.path(), "/volume", &["rbind"])];
    let output = with_volumes("cat /volume/up || true; cat /volume/proc || true", &volumes);
    fs::remove_file(volume.path().join("../kata-test-secret")).unwrap();
    let Some(output) = output else { return };
    assert_eq!(output.stdout(), "", "{}", output.stderr());
}

#[test]
fn fifos_and_sockets_in_a_volume_do_not_lead_to_the_host() {
    let volume = tempfile::tempdir().unwrap();
    let path = |name: &str| volume.path().join(name);
    mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let _reader = fs::File::options().read(true).write(true).open(path("fifo")).unwrap();
    let _server = UnixListener::bind(path("socket")).unwrap();
    let script = "
import os, socket
def refused(call):
    try: call()
    except OSError as error: return error.strerror
print(refused(lambda: os.open('/v/fifo', os.O_WRONLY | os.O_NONBLOCK)))
print(refused(lambda: socket.socket(socket.AF_UNIX).connect('/v/socket')))";
    assert_python(script, "No such device or address\nConnection refused", |config| {
        let mount = json!({"destination": "/v", "source": volume.path(), "options": ["bind"]});
        config["mounts"].as_array_mut().unwrap().push(mount);
    });
}

#[test]
fn shared_memory_is_the_guests_and_not_the_hosts() {
    let name = format!("kata-test-{}", std::process::id());
    let script = format!(
        "
import mmap, os
file = os.open('/dev/shm/{name}', os.O_RDWR | os.O_CREAT)
os.ftruncate(file, 4096)
if os.fork() == 0:
    mmap.mmap(file, 4096)[:4] = b'here'
    os._exit(0)
os.wait()
print(mmap.mmap(file, 4096)[:4])
"
    );
    let Some(output) = python(&script, |_| ()) else { return };
    assert!(output.stdout().contains("b'here'"), "{}{}", output.stdout(), output.stderr());
    assert!(!Path::new("/dev/shm").join(name).exists());
}
