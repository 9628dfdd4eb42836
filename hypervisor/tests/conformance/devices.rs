//! Devices in a jailed QEMU, looked at from within the guest.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
};

use kata_hypervisor::{
    Access, Disk, Hypervisor, MacAddress, Nic, Share, VmConfig, Vsock, qemu::Qemu,
};
use kata_sys::{
    scm::{packet_pair, receive},
    spawn::Spawn,
    tap,
};

use crate::{guest::Guest, qemu::QemuRig, suite::console_says};

/// Unlike any that an engine makes.
const TAP: &str = "kata-test%d";

pub async fn work(rig: &QemuRig) {
    let mut image = tempfile::tempfile().unwrap();
    image.write_all(b"on the disk\0").unwrap();
    image.set_len(1 << 20).unwrap();
    let taps = tap::make(TAP, 2).unwrap().queues;
    let nic = Nic { taps, mac: MacAddress([2, 0, 0, 0, 0xab, 1]), vhosts: Vec::new() };
    let disk = Disk { file: read_only(&image), access: Access::ReadOnly, serial: "layer".into() };
    let config = VmConfig { nics: vec![nic], disks: vec![disk], ..rig.config(Guest::Probe) };
    let vm = Qemu::new(rig.settings(), config).unwrap();
    vm.boot().await.unwrap();
    console_says(&vm, "PROBED").await;
    let console = vm.console_tail();
    for found in
        ["mac=02:00:00:00:ab:01", "mtu=1500", "serial=layer", "read-only=1", "disk=on the disk"]
    {
        assert!(console.contains(found), "{found}: {console}");
    }
    vm.stop().await.unwrap();
}

/// The same file, opened anew: a read-only disk comes with a descriptor that can't write.
fn read_only(file: &File) -> OwnedFd {
    use std::os::fd::AsRawFd;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap().into()
}

pub async fn work_over_vhost_user(rig: &QemuRig, proxy: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let shared = directory.path().join("shared");
    for half in ["roots", "volumes"] {
        fs::create_dir_all(shared.join(half)).unwrap();
    }
    fs::write(shared.join("roots/probe"), "from the share").unwrap();
    let connected = |name: &str| {
        let path = directory.path().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        (listener, OwnedFd::from(UnixStream::connect(&path).unwrap()))
    };
    let (vsock_listener, vsock) = connected("vsock");
    let (roots_listener, roots) = connected("roots");
    let (volumes_listener, volumes) = connected("volumes");
    let (control, proxy_control) = packet_pair().unwrap();
    let null = File::open("/dev/null").unwrap();
    let tree = File::open(&shared).unwrap();
    let program = CString::new(proxy.as_os_str().as_bytes()).unwrap();
    let errors = rustix::stdio::stderr();
    let child = Spawn {
        arguments: vec![program.clone()],
        fds: vec![
            null.as_fd(),
            null.as_fd(),
            errors,
            proxy_control.as_fd(),
            vsock_listener.as_fd(),
            roots_listener.as_fd(),
            volumes_listener.as_fd(),
            tree.as_fd(),
        ],
        ..Spawn::new(program)
    }
    .start()
    .unwrap();
    drop((vsock_listener, roots_listener, volumes_listener, proxy_control));
    let config = VmConfig {
        vsock: Some(Vsock { socket: vsock }),
        shares: vec![
            Share { tag: "roots".into(), socket: roots },
            Share { tag: "volumes".into(), socket: volumes },
        ],
        ..rig.config(Guest::Probe)
    };
    let vm = Qemu::new(rig.settings(), config).unwrap();
    vm.boot().await.unwrap();
    console_says(&vm, "PROBED").await;
    let console = vm.console_tail();
    assert!(console.contains("share=from the share"), "{console}");
    let said = tokio::task::spawn_blocking(move || connection(&control)).await.unwrap();
    assert_eq!(said, "over vsock");
    vm.stop().await.unwrap();
    child.wait().unwrap();
}

/// What the guest says on the first connection that the proxy hands over.
fn connection(control: &OwnedFd) -> String {
    loop {
        let mut packet = receive(control).unwrap();
        assert!(!packet.is_end(), "the proxy has ended");
        if let Some(fd) = packet.fds.pop() {
            let mut said = [0; 10];
            File::from(fd).read_exact(&mut said).unwrap();
            return String::from_utf8_lossy(&said).into_owned();
        }
    }
}
