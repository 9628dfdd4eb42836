//! QEMU, jailed or not, and what is true of it alone.

use std::{
    fs, io,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use kata_hypervisor::{
    Hypervisor, HypervisorError, MachineType, TscClock, VmConfig, VmEnd,
    qemu::{JailSettings, Qemu, QemuSettings, verify},
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    LAUNCHER, QEMU,
    guest::{Guest, IMAGE, Image, MARKER},
    suite::{Rig, console_says},
};

/// Nobody else's id.
const USER: u32 = 64_123;

pub struct QemuRig {
    pub machine: MachineType,
    pub jailed: bool,
}

fn image() -> &'static Image {
    IMAGE.as_ref().unwrap()
}

impl QemuRig {
    pub fn settings(&self) -> QemuSettings {
        let own = std::env::current_exe().unwrap().display().to_string();
        let jail = JailSettings { launcher: vec![own, LAUNCHER.into()], user: USER };
        QemuSettings {
            binary: QEMU.into(),
            jail: self.jailed.then_some(jail),
            cgroup_procs: Vec::new(),
        }
    }

    pub fn config(&self, guest: Guest) -> VmConfig {
        VmConfig {
            machine: self.machine,
            command_line: guest.parameter().into(),
            tsc_khz: TscClock::start().khz(),
            ..VmConfig::new(image().kernel.clone(), image().initrd.clone())
        }
    }

    fn qemu(&self, guest: Guest) -> Qemu {
        Qemu::new(self.settings(), self.config(guest)).unwrap()
    }
}

#[async_trait]
impl Rig for QemuRig {
    fn vm(&self, guest: Guest) -> Box<dyn Hypervisor> {
        Box::new(self.qemu(guest))
    }

    fn vm_without_kernel(&self) -> Result<Box<dyn Hypervisor>, HypervisorError> {
        let config = VmConfig { kernel: "/etc/hostname".into(), ..self.config(Guest::Ticks) };
        Ok(Box::new(Qemu::new(self.settings(), config)?))
    }

    async fn vm_and_killer(&self, guest: Guest) -> (Box<dyn Hypervisor>, Box<dyn FnOnce() + Send>) {
        let vm = self.qemu(guest);
        vm.boot().await.unwrap();
        let pid = vm.pid().unwrap();
        (Box::new(vm), Box::new(move || kill_process(pid, Signal::KILL).unwrap()))
    }
}

fn proc_file(pid: Pid, name: &str) -> String {
    fs::read_to_string(format!("/proc/{}/{name}", pid.as_raw_nonzero())).unwrap()
}

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

fn walk(directory: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), files);
        } else {
            files.push(entry.path().display().to_string());
        }
    }
}

pub async fn the_jail_holds_nothing_but_qemu(rig: &QemuRig) {
    let vm = rig.qemu(Guest::Ticks);
    vm.boot().await.unwrap();
    console_says(&vm, MARKER).await;
    let pid = vm.pid().unwrap();
    let status = proc_file(pid, "status");
    let ids = [USER; 4].map(|id| id.to_string()).join(" ");
    assert_eq!((field(&status, "Uid"), field(&status, "Gid")), (ids.clone(), ids));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!(field(&status, "Groups"), "");
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    assert_eq!(
        (field(&status, "Seccomp"), field(&status, "Seccomp_filters")),
        ("2".into(), "2".into())
    );
    assert!(field(&status, "NSpid").ends_with(" 1"));
    for namespace in ["mnt", "pid", "ipc", "net"] {
        let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(link("self"), link(&pid.as_raw_nonzero().to_string()), "{namespace}");
    }
    let root = format!("/proc/{}/root", pid.as_raw_nonzero());
    let mut files = Vec::new();
    walk(Path::new(&root), &mut files);
    let strange = |file: &&String| {
        let file = file.strip_prefix(&root).unwrap();
        let known = ["/guest/kernel", "/guest/initrd", "/etc/ld.so.cache", QEMU];
        !(known.contains(&file) || file.starts_with("/firmware/") || file.contains("/lib"))
    };
    assert_eq!(files.iter().find(strange), None);
    let firmware = files.iter().filter(|file| file.contains("/firmware/")).count();
    assert_eq!(firmware, if rig.machine == MachineType::Microvm { 2 } else { 3 });
    let written = fs::write(format!("{root}/x"), "x").unwrap_err();
    assert_eq!(written.kind(), io::ErrorKind::ReadOnlyFilesystem);
    let mounts = proc_file(pid, "mounts");
    let writable = mounts.lines().find(|line| !line.split(' ').nth(3).unwrap().starts_with("ro,"));
    assert_eq!(writable, None);
    for entry in fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap().display().to_string();
        let known = ["socket:", "pipe:", "anon_inode:", "/dev/null", "/memfd:memory"];
        assert!(known.iter().any(|kind| target.starts_with(kind)), "{target}");
    }
    vm.stop().await.unwrap();
}

pub async fn qemus_own_words_are_told(rig: &QemuRig) {
    // A program, not a kernel: QEMU itself finds that out.
    let config = VmConfig { kernel: "/bin/true".into(), ..rig.config(Guest::Ticks) };
    let vm = Qemu::new(rig.settings(), config).unwrap();
    let error = vm.boot().await.unwrap_err();
    let HypervisorError::Boot(VmEnd::VmmExited { code: 1, stderr }) = &error else {
        panic!("{error:?}")
    };
    assert!(stderr.contains("kernel"), "{stderr}");
    assert_eq!(vm.pid(), None);
}

pub async fn a_launcher_that_fails_says_why(rig: &QemuRig) {
    let mut settings = rig.settings();
    settings.cgroup_procs = vec!["/no/such/cgroup.procs".into()];
    let vm = Qemu::new(settings, rig.config(Guest::Ticks)).unwrap();
    let error = vm.boot().await.unwrap_err().to_string();
    assert!(error.contains("cannot join the group /no/such/cgroup.procs"), "{error}");
}

pub async fn a_terminated_vmm_is_a_killed_one(rig: &QemuRig) {
    let vm = rig.qemu(Guest::Ticks);
    vm.boot().await.unwrap();
    kill_process(vm.pid().unwrap(), Signal::TERM).unwrap();
    assert_eq!(vm.wait().await, VmEnd::VmmKilled { signal: 15 });
}

pub async fn a_dropped_vm_leaves_no_process(rig: &QemuRig) {
    let vm = rig.qemu(Guest::Ticks);
    vm.boot().await.unwrap();
    let pidfd =
        rustix::process::pidfd_open(vm.pid().unwrap(), rustix::process::PidfdFlags::empty());
    let pidfd = kata_sys::watch::watch(pidfd.unwrap(), tokio::io::Interest::READABLE).unwrap();
    drop(vm);
    drop(pidfd.readable().await.unwrap());
}

/// `panic=0`: the kernel loops for ever after its last words.
pub async fn a_panicked_guest_that_stays_is_ended(rig: &QemuRig) {
    let mut config = rig.config(Guest::Panic);
    config.command_line.push_str(" panic=0");
    let vm = Qemu::new(rig.settings(), config).unwrap();
    vm.boot().await.unwrap();
    console_says(&vm, "Kernel panic").await;
    let end = tokio::time::timeout(Duration::from_secs(2), vm.wait()).await.unwrap();
    assert!(matches!(end, VmEnd::GuestPanic(_)), "{end:?}");
}

/// The process that owned the VM is killed: no code of ours runs any more.
pub async fn a_vmm_ends_with_its_owner(rig: &QemuRig) {
    let machine = if rig.machine == MachineType::Microvm { "microvm" } else { "q35" };
    let own = std::env::current_exe().unwrap();
    let mut owner = Command::new(own)
        .args([crate::OWNER, machine])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = io::BufReader::new(owner.stdout.take().unwrap());
    io::BufRead::read_line(&mut output, &mut line).unwrap();
    let pid = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    let pidfd = kata_sys::watch::watch(pidfd, tokio::io::Interest::READABLE).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(2), pidfd.readable()).await;
    drop(ended.expect("the VMM follows its owner").unwrap());
}

/// The owner of the test above: boots, tells the VMM's pid, and waits to be killed.
pub async fn own(rig: &QemuRig) {
    let vm = rig.qemu(Guest::Ticks);
    vm.boot().await.unwrap();
    crate::say(&vm.pid().unwrap().as_raw_nonzero().to_string());
    vm.wait().await;
}

pub async fn this_qemu_has_all_that_is_used() {
    let verified = verify(Path::new(QEMU)).await.unwrap();
    assert!(verified.tcg);
}

/// Not a claim: time to the guest's first program, beside a QEMU that is started by hand on the same machine with the
/// same memory and kernel, in turns.
pub async fn timings(machine: MachineType) {
    const ROUNDS: usize = 7;
    let (mut bare, mut plain, mut jailed) = (Vec::new(), Vec::new(), Vec::new());
    let khz = TscClock::start().khz().unwrap();
    for _ in 0..ROUNDS {
        bare.push(by_hand(machine, khz));
        for (is_jailed, samples) in [(false, &mut plain), (true, &mut jailed)] {
            let rig = QemuRig { machine, jailed: is_jailed };
            let config = VmConfig { tsc_khz: Some(khz), ..rig.config(Guest::Ticks) };
            let start = Instant::now();
            let vm = Qemu::new(rig.settings(), config).unwrap();
            let prepared = start.elapsed();
            vm.boot().await.unwrap();
            let answered = start.elapsed();
            console_says(&vm, MARKER).await;
            samples.push([prepared, answered, start.elapsed()]);
            vm.stop().await.unwrap();
        }
    }
    let median = |samples: &mut Vec<[Duration; 3]>, column: usize| {
        samples.sort_by_key(|sample| sample[column]);
        samples[ROUNDS / 2][column]
    };
    bare.sort();
    crate::say(&format!(
        "     {machine:?}, n={ROUNDS}, medians: by hand {} ms",
        bare[ROUNDS / 2].as_millis()
    ));
    for (name, mut samples) in [("plain ", plain), ("jailed", jailed)] {
        let [prepared, answered, up] = [0, 1, 2].map(|column| median(&mut samples, column));
        crate::say(&format!(
            "     {name}: prepared {prepared:.1?}, QMP answers {answered:.0?}, guest up {} ms",
            up.as_millis()
        ));
    }
}

fn by_hand(machine: MachineType, khz: u32) -> Duration {
    let machine = match machine {
        MachineType::Microvm => "microvm,acpi=off,rtc=on,memory-backend=m",
        MachineType::Q35 => "q35,memory-backend=m",
    };
    let line = format!(
        "console=ttyS0 loglevel=3 panic=-1 reboot=t swiotlb=noforce end=never tsc_early_khz={khz}"
    );
    let start = Instant::now();
    let mut qemu = Command::new(QEMU)
        .args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-serial",
            "stdio",
        ])
        .args(["-machine", machine, "-accel", "tcg", "-cpu", "max", "-m", "128M", "-append", &line])
        .args(["-object", "memory-backend-memfd,id=m,size=128M,share=on", "-kernel"])
        .arg(&image().kernel)
        .arg("-initrd")
        .arg(&image().initrd)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = io::BufReader::new(qemu.stdout.take().unwrap());
    io::BufRead::lines(output)
        .find(|line| line.as_ref().unwrap().contains(MARKER))
        .unwrap()
        .unwrap();
    let up = start.elapsed();
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    up
}
