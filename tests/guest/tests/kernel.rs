//! What the guest kernel promises to containers, asked from inside one.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;

use kata_guest_tests::{Bundle, Kata, Output, busybox, debian, grant, map_ids, python, run_bundle};
use serde_json::{Value, json};

/// What a script prints in a container on busybox.
fn say(script: &str) -> Option<String> {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return None };
    let output = kata.shell(&root, script);
    assert_eq!(output.code, 0, "{script}: {}", output.stderr());
    Some(output.stdout())
}

/// Asserts that each word is one of those that `script` prints.
fn assert_words(script: &str, words: &[&str]) {
    let Some(said) = say(script) else { return };
    let missing: Vec<_> =
        words.iter().filter(|word| !said.split_whitespace().any(|said| said == **word)).collect();
    assert!(missing.is_empty(), "{script}: no {missing:?} in {said}");
}

/// Asserts what a Python script prints.
fn assert_python(script: &str, expected: &str, change: impl FnOnce(&mut Value)) {
    let Some(output) = python(script, change) else { return };
    assert_eq!((output.code, output.stdout().trim()), (0, expected), "{}", output.stderr());
}

/// Runs a shell script on Debian with capabilities, and asserts that it succeeds.
fn assert_debian(script: &str, capabilities: &[&str]) {
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return };
    let bundle = Bundle::new(&kata, root, &["sh", "-ec", script]);
    let output = run_bundle(&kata, bundle, |config| {
        capabilities.iter().for_each(|capability| grant(config, capability));
        allow_device(config, "/dev/net/tun", 10, 200);
    });
    assert_eq!(output.code, 0, "{}{}", output.stdout(), output.stderr());
}

fn allow_device(config: &mut Value, path: &str, major: u32, minor: u32) {
    config["linux"]["devices"] =
        json!([{"path": path, "type": "c", "major": major, "minor": minor}]);
    let rule = json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"});
    config["linux"]["resources"]["devices"].as_array_mut().unwrap().push(rule);
}

#[test]
fn file_systems_are_built_in() {
    let expected = [
        "overlay", "erofs", "ext4", "tmpfs", "virtiofs", "fuse", "mqueue", "cgroup2", "proc",
        "sysfs", "devpts", "bpf",
    ];
    assert_words("cat /proc/filesystems", &expected);
}

#[test]
fn control_groups_have_every_controller() {
    let expected = ["cpu", "memory", "pids", "io", "cpuset", "hugetlb"];
    assert_words("cat /sys/fs/cgroup/cgroup.controllers", &expected);
}

#[test]
fn a_seccomp_filter_of_the_spec_answers_its_calls() {
    let script = "
import os
try:
    os.mkdir('/x')
except OSError as error:
    print(error.errno, [l for l in open('/proc/self/status') if l.startswith('Seccomp:')][0].split()[1])
";
    // 95 (EOPNOTSUPP) is nothing that mkdir says by itself; 2 is the mode with a filter.
    assert_python(script, "95 2", |config| {
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
            ],
        });
    });
}

#[test]
fn namespaces_of_every_kind_can_be_made() {
    // CLONE_NEW…: time, mount, cgroup, uts, ipc, user, pid, net.
    let script = "
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
before = {kind: os.readlink('/proc/self/ns/' + kind) for kind in os.listdir('/proc/self/ns')}
made = []
for kind, flag in [('time_for_children', 0x80), ('mnt', 0x20000), ('cgroup', 0x2000000), ('uts', 0x4000000),
        ('ipc', 0x8000000), ('net', 0x40000000), ('pid_for_children', 0x20000000), ('user', 0x10000000)]:
    if libc.unshare(flag) != 0:
        print(kind, os.strerror(ctypes.get_errno()))
    elif kind == 'pid_for_children':
        made.append(kind)
    elif os.readlink('/proc/self/ns/' + kind) != before[kind]:
        made.append(kind)
print(len(made))
";
    assert_python(script, "8", |config| grant(config, "CAP_SYS_ADMIN"));
}

#[test]
fn system_v_ipc_works() {
    let script = "
import ctypes
libc = ctypes.CDLL(None)
print(*[number >= 0 for number in (libc.shmget(0, 4096, 0o1600), libc.semget(0, 1, 0o1600), libc.msgget(0, 0o1600))])
";
    assert_python(script, "True True True", |_| ());
}

#[test]
fn posix_message_queues_carry_messages() {
    let script = "
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
queue = libc.mq_open(b'/q', os.O_CREAT | os.O_RDWR | os.O_NONBLOCK, 0o600, None)
libc.mq_send(queue, b'hello', 5, 0)
message = ctypes.create_string_buffer(65536)
length = libc.mq_receive(queue, message, 65536, None)
print(queue >= 0, message.raw[:max(length, 0)], os.listdir('/dev/mqueue'))
";
    assert_python(script, "True b'hello' ['q']", |_| ());
}

/// Where the code of [`program_for_i386`] is.
const I386_CODE: u32 = 0x0804_8000 + 52 + 32;

/// An ELF program of nothing but this machine code.
fn program_for_i386(code: &[u8]) -> Vec<u8> {
    let headers = 52 + 32;
    let base = I386_CODE - headers;
    let size = headers + u32::try_from(code.len()).unwrap();
    let mut elf = vec![0x7f, b'E', b'L', b'F', 1, 1, 1];
    elf.resize(16, 0);
    let halves = |elf: &mut Vec<u8>, halves: &[u16]| {
        halves.iter().for_each(|half| elf.extend(half.to_le_bytes()));
    };
    let words = |elf: &mut Vec<u8>, words: &[u32]| {
        words.iter().for_each(|word| elf.extend(word.to_le_bytes()));
    };
    halves(&mut elf, &[2, 3]); // executable, i386
    words(&mut elf, &[1, I386_CODE, 52, 0, 0]);
    halves(&mut elf, &[52, 32, 1, 0, 0, 0]);
    words(&mut elf, &[1, 0, base, base, size, size, 5, 4096]);
    elf.extend(code);
    elf
}

/// Runs machine code for i386 in a container.
fn run_i386(code: &[u8]) -> Option<Output> {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return None };
    std::fs::write(root.file("/program"), program_for_i386(code)).unwrap();
    std::fs::set_permissions(root.file("/program"), PermissionsExt::from_mode(0o755)).unwrap();
    Some(kata.call(&["run", "--rootfs", root.path(), "--", "/program"]))
}

#[test]
fn programs_for_32_bits_run() {
    let mut code = vec![
        0xb8, 4, 0, 0, 0, // mov eax, write
        0xbb, 1, 0, 0, 0, // mov ebx, stdout
        0xb9, 0, 0, 0, 0, // mov ecx, text: its address is put in below
        0xba, 8, 0, 0, 0, // mov edx, length
        0xcd, 0x80, // int 0x80
        0xb8, 1, 0, 0, 0, // mov eax, exit
        0x31, 0xdb, // xor ebx, ebx
        0xcd, 0x80, // int 0x80
    ];
    let text = I386_CODE + u32::try_from(code.len()).unwrap();
    code[11..15].copy_from_slice(&text.to_le_bytes());
    code.extend(b"32 bits\n");
    let Some(output) = run_i386(&code) else { return };
    assert_eq!((output.code, output.stdout().as_str()), (0, "32 bits\n"), "{}", output.stderr());
}

#[test]
fn io_uring_can_be_set_up() {
    let script = "
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
ring = libc.syscall(425, 4, ctypes.create_string_buffer(120))
print(ring >= 0 or ctypes.get_errno())
";
    assert_python(script, "True", |_| ());
}

#[test]
fn pressure_is_told_of_the_guest_and_of_the_container() {
    let script = "cd /proc/pressure && ls && cat cpu memory io &&
        cat /sys/fs/cgroup/cpu.pressure /sys/fs/cgroup/memory.pressure /sys/fs/cgroup/io.pressure";
    assert_words(script, &["cpu", "memory", "io", "some", "full", "avg10=0.00"]);
}

#[test]
fn links_of_every_kind_can_be_made() {
    let script = "
ip link add bridge0 type bridge
ip link add left0 type veth peer name right0
ip link set left0 master bridge0
ip link add dummy0 type dummy
ip link add link dummy0 name vlan0 type vlan id 5
ip link add link dummy0 name macvlan0 type macvlan
ip link add link dummy0 name ipvlan0 type ipvlan || ip link add dummy1 type dummy
ip link add vxlan0 type vxlan id 5 dstport 4789
ip tuntap add tap0 mode tap
ip tuntap add tun0 mode tun
test $(ls /sys/class/net | wc -l) -ge 10";
    assert_debian(script, &["CAP_NET_ADMIN"]);
}

#[test]
fn nftables_take_a_table() {
    // A batch of three messages: begin, a new table `t` of the inet family, end.
    let script = "
import socket, struct
def message(kind, flags, family, subsystem, body=b''):
    body = struct.pack('BBH', family, 0, socket.htons(subsystem)) + body
    return struct.pack('IHHII', 16 + len(body), kind, flags, 1, 0) + body
name = struct.pack('HH', 6, 1) + b't\\0' + b'\\0\\0'
batch = message(16, 1, 0, 10) + message(10 << 8, 0x405, 1, 0, name) + message(17, 1, 0, 10)
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
s.send(batch)
print(struct.unpack('i', s.recv(4096)[16:20])[0])
";
    assert_python(script, "0", |config| grant(config, "CAP_NET_ADMIN"));
}

#[test]
fn overlays_can_be_mounted_inside() {
    let script = "
mount -t tmpfs tmpfs /mnt
mkdir /mnt/lower /mnt/upper /mnt/work /mnt/merged
echo below >/mnt/lower/file
mount -t overlay -o lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/merged
echo above >/mnt/merged/file
test $(cat /mnt/lower/file /mnt/upper/file | tr -d '\\n') = belowabove";
    assert_debian(script, &["CAP_SYS_ADMIN"]);
}

#[test]
fn a_change_of_generation_can_be_told() {
    assert_words("ls /sys/bus/platform/drivers", &["vmgenid"]);
}

#[test]
fn the_paravirtual_clock_of_kvm_is_built_in() {
    // Under emulation there is no such device; its driver is there all the same.
    assert_words("grep -o 'ptp_kvm_gettime' /proc/kallsyms", &["ptp_kvm_gettime"]);
}

#[test]
fn drivers_of_every_virtio_kind_are_there() {
    let expected = [
        "virtio_balloon",
        "virtio_blk",
        "virtio_console",
        "virtio_mem",
        "virtio_net",
        "virtio_rng",
        "virtio_scsi",
        "virtiofs",
        "vmw_vsock_virtio_transport",
    ];
    assert_words("ls /sys/bus/virtio/drivers", &expected);
}

/// Makes a node for the kernel's log, which the default rules don't name, and opens it.
const OPEN_KERNEL_LOG: &str = "
import os, stat
os.mknod('/dev/log', 0o600 | stat.S_IFCHR, os.makedev(1, 11))
try:
    os.close(os.open('/dev/log', os.O_RDWR))
    print('opened')
except OSError as error:
    print(error.errno)
";

#[test]
fn a_device_that_no_rule_allows_cannot_be_opened() {
    assert_python(OPEN_KERNEL_LOG, "1", |config| {
        // Of the rules of every engine: any node may be made.
        let rule = json!({"allow": true, "type": "c", "access": "m"});
        config["linux"]["resources"]["devices"].as_array_mut().unwrap().push(rule);
    });
}

#[test]
fn a_device_that_a_rule_allows_can_be_opened() {
    assert_python(OPEN_KERNEL_LOG, "opened", |config| {
        let rule = json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rwm"});
        config["linux"]["resources"]["devices"].as_array_mut().unwrap().push(rule);
        grant(config, "CAP_SYSLOG");
    });
}

#[test]
fn modules_do_not_exist() {
    assert_words("test -e /proc/modules || echo none", &["none"]);
}

#[test]
fn containers_have_no_vsock() {
    // 97 is EAFNOSUPPORT.
    let script = "
import socket
for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET:
    try:
        socket.socket(40, kind)
        print('made')
    except OSError as error:
        print(error.errno, end=' ')
";
    assert_python(script, "97 97 97", |_| ());
}

#[test]
fn containers_have_no_vsock_by_calls_for_32_bits() {
    let code = [
        0xb8, 0x67, 1, 0, 0, // mov eax, socket
        0xbb, 40, 0, 0, 0, // mov ebx, AF_VSOCK
        0xb9, 1, 0, 0, 0, // mov ecx, SOCK_STREAM
        0x31, 0xd2, // xor edx, edx
        0xcd, 0x80, // int 0x80
        0x89, 0xc3, // mov ebx, eax
        0xf7, 0xdb, // neg ebx
        0xb8, 1, 0, 0, 0, // mov eax, exit
        0xcd, 0x80, // int 0x80
    ];
    let Some(output) = run_i386(&code) else { return };
    // EAFNOSUPPORT
    assert_eq!(output.code, 97, "{}", output.stderr());
}

#[test]
fn no_vsock_leads_back_into_the_guest() {
    let script = "grep -c vsock_loopback /proc/kallsyms; grep -c virtio_vsock_probe /proc/kallsyms";
    let Some(said) = say(&format!("{script}; true")) else { return };
    assert_eq!(said, "0\n1\n");
}

#[test]
fn the_boot_nonce_cannot_be_read() {
    let Some(said) = say("cat /proc/cmdline; dmesg; cat /proc/kmsg; true") else { return };
    assert!(said.contains("console="), "{said}");
    assert!(!said.contains("nonce"), "{said}");
}

/// It is one file for all containers of a pod, so nobody's to write to.
#[test]
fn the_command_line_cannot_be_forged() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let script = "echo forged >/proc/cmdline; mount -o remount,bind,rw /proc/cmdline; echo forged >/proc/cmdline; \
        mount -o remount,rw /proc/cmdline; echo forged >/proc/cmdline; cat /proc/cmdline";
    let bundle = Bundle::new(&kata, root, &["sh", "-c", script]);
    let output = run_bundle(&kata, bundle, |config| grant(config, "CAP_SYS_ADMIN"));
    assert_eq!(output.code, 0, "{}", output.stderr());
    let said = output.stdout();
    assert!(said.contains("console=") && !said.contains("forged"), "{said}");
}

#[test]
fn two_fifos_in_a_user_namespace_are_not_one() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let script = "test -p /dev/a && test -p /dev/b && stat -c %i /dev/a /dev/b | sort -u | wc -l";
    let bundle = Bundle::new(&kata, root, &["sh", "-c", script]);
    let output = run_bundle(&kata, bundle, |config| {
        map_ids(config);
        let fifo = |path: &str| json!({"path": path, "type": "p", "fileMode": 0o600});
        config["linux"]["devices"] = json!([fifo("/dev/a"), fifo("/dev/b")]);
    });
    assert_eq!((output.code, &*output.stdout()), (0, "2\n"), "{}", output.stderr());
}

#[test]
fn devices_in_a_user_namespace_are_its_roots() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let script = "stat -c '%a %u %t:%T' /dev/null /dev/tty; echo x >/dev/null; chmod 0 /dev/null";
    let bundle = Bundle::new(&kata, root, &["sh", "-c", script]);
    let output = run_bundle(&kata, bundle, map_ids);
    let said = (output.code, output.stdout());
    assert_eq!(said, (0, "666 0 1:3\n666 0 5:0\n".to_owned()), "{}", output.stderr());
}

#[test]
fn a_proc_of_processes_alone_is_one() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle =
        Bundle::new(&kata, root, &["sh", "-c", "cat /proc/self/comm; test -e /proc/cmdline"]);
    let output = run_bundle(&kata, bundle, |config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        let proc = mounts.iter_mut().find(|mount| mount["destination"] == "/proc").unwrap();
        proc["options"] = json!(["nosuid", "noexec", "nodev", "subset=pid"]);
    });
    assert_eq!((output.code, &*output.stdout()), (1, "cat\n"), "{}", output.stderr());
}
