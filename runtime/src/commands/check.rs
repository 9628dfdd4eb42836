//! `check`: whether this host can run Kata, why not, and what to do about it.

mod accelerator;
mod docker;

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use kata_config::{Artefact, Loaded};
use serde::Serialize;

use accelerator::Verified;

use super::{Context, print, print_json, repair::Repaired, version};
use crate::{
    args::Check,
    failure::{Failure, one_line},
    id::ContainerId,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Works, but should be known.
    Warning,
    Failed,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<&'static str>,
}

impl Finding {
    fn ok(what: &'static str, detail: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Ok, detail: detail.into(), fix: None }
    }

    fn failed(what: &'static str, detail: impl Into<String>, fix: &'static str) -> Self {
        Self { what, verdict: Verdict::Failed, detail: detail.into(), fix: Some(fix) }
    }

    fn warning(what: &'static str, detail: impl Into<String>, fix: &'static str) -> Self {
        Self { what, verdict: Verdict::Warning, detail: detail.into(), fix: Some(fix) }
    }

    /// A finding whose error says itself what to do.
    fn of<T: ToString>(what: &'static str, found: Result<T, impl ToString>) -> Self {
        match found {
            Ok(detail) => Self::ok(what, detail.to_string()),
            Err(error) => {
                Self { what, verdict: Verdict::Failed, detail: error.to_string(), fix: None }
            }
        }
    }
}

impl Context<'_> {
    pub(super) fn check(&self, typed: &Check) -> Result<u8, Failure> {
        let mut findings = vec![user(), architecture()];
        if typed.repair {
            findings.push(leftovers(&self.repair(&typed.store)));
        }
        match self.loaded() {
            Ok(loaded) => {
                findings.push(Finding::ok("configuration", self.config.display().to_string()));
                findings.extend(self.installation(&loaded));
                let (devices, verified) = self.verify();
                findings.push(devices);
                if let Some(verified) = verified {
                    findings.extend(verified.findings(loaded.config.hypervisor.accelerator));
                    findings.push(memory(loaded.config.vm.memory_mib.into(), &verified));
                }
            }
            Err(failure) => {
                findings.push(Finding::of("configuration", Err::<String, _>(failure.line())))
            }
        }
        findings.extend([namespaces(), tun(), cgroups(), self.state_directory()]);
        if typed.docker {
            findings.extend(docker::findings());
        }
        if findings.iter().all(|finding| finding.verdict != Verdict::Failed) {
            findings.push(self.boot());
        }
        let able = findings.iter().all(|finding| finding.verdict != Verdict::Failed);
        match typed.report.json {
            true => print_json(&serde_json::json!({ "able": able, "findings": findings }))?,
            false => print(&table(&findings, able))?,
        }
        Ok(u8::from(!able))
    }

    fn installation(&self, loaded: &Loaded) -> Vec<Finding> {
        let shown = |path: PathBuf| path.display().to_string();
        let artefact = |artefact| self.prefix.find(artefact).map(shown);
        let config = &loaded.config;
        vec![
            Finding::of("shim", artefact(Artefact::Shim)),
            Finding::of("monitor", artefact(Artefact::Monitor)),
            Finding::of("proxy", artefact(Artefact::Proxy)),
            Finding::of("guest kernel", self.prefix.kernel(config).map(shown)),
            Finding::of("guest initrd", self.prefix.initrd(config).map(shown)),
        ]
    }

    /// Whether KVM runs guests here.
    pub(super) fn has_kvm(&self) -> bool {
        self.verify().1.is_some_and(|verified| verified.runs_on_kvm())
    }

    /// The shim knows what its driver uses, and whether KVM runs guests here.
    fn verify(&self) -> (Finding, Option<Verified>) {
        const WHAT: &str = "QEMU";
        const FIX: &str = "install Debian's qemu-system-x86, 10.0 or later";
        let Ok(shim) = self.prefix.find(Artefact::Shim) else {
            return (Finding::warning(WHAT, "not looked at: there is no shim", FIX), None);
        };
        let mut command = Command::new(shim);
        command.arg("verify").stdin(Stdio::null());
        command.envs(self.shim_environment.iter().filter_map(|pair| pair.split_once('=')));
        let output = match command.output() {
            Ok(output) if output.status.success() => output,
            Ok(output) => return (Finding::failed(WHAT, said(&output.stderr), FIX), None),
            Err(error) => return (Finding::failed(WHAT, error.to_string(), FIX), None),
        };
        match serde_json::from_slice::<Verified>(&output.stdout) {
            Ok(verified) => (Finding::ok(WHAT, verified.to_string()), Some(verified)),
            Err(error) => (Finding::failed(WHAT, error.to_string(), FIX), None),
        }
    }

    fn state_directory(&self) -> Finding {
        const WHAT: &str = "state directory";
        const FIX: &str = "name a writable one with --root";
        let made = ContainerId::random()
            .map_err(Failure::host("make up an id"))
            .and_then(|id| self.root.create(&id));
        match made {
            Ok(dir) => match fs::remove_dir(&dir.path) {
                Ok(()) => Finding::ok(WHAT, self.root.as_path().display().to_string()),
                Err(error) => Finding::failed(WHAT, error.to_string(), FIX),
            },
            Err(failure) => Finding::failed(WHAT, failure.line(), FIX),
        }
    }

    /// The proof: this very program, run in a VM.
    fn boot(&self) -> Finding {
        const WHAT: &str = "a container";
        const FIX: &str = "run it again with --debug, and look at the message";
        let scratch = match Scratch::with_this_program() {
            Ok(scratch) => scratch,
            Err(error) => return Finding::failed(WHAT, error.to_string(), "make /tmp writable"),
        };
        let began = Instant::now();
        let output = Command::new(&scratch.program)
            .arg("--root")
            .arg(self.root.as_path())
            .arg("--config")
            .arg(&self.config)
            .args(["run", "--rootfs"])
            .arg(&scratch.rootfs)
            .args(["--", "/kata-runtime", "version"])
            .stdin(Stdio::null())
            .output();
        let took = began.elapsed().as_secs_f32();
        match output {
            Ok(output) if output.status.success() && output.stdout == version().as_bytes() => {
                Finding::ok(WHAT, format!("booted, ran, ended and was removed in {took:.1} s"))
            }
            Ok(output) => {
                Finding::failed(WHAT, format!("{}: {}", output.status, said(&output.stderr)), FIX)
            }
            Err(error) => Finding::failed(WHAT, error.to_string(), FIX),
        }
    }
}

/// A root directory that is removed when it is dropped.
struct Scratch {
    program: PathBuf,
    rootfs: PathBuf,
}

impl Scratch {
    fn with_this_program() -> io::Result<Self> {
        let program = std::env::current_exe()?;
        let id = ContainerId::random()?;
        let rootfs = std::env::temp_dir().join(id.as_str());
        DirBuilder::new().mode(0o700).create(&rootfs)?;
        let scratch = Self { program, rootfs };
        fs::copy(&scratch.program, scratch.rootfs.join("kata-runtime"))?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover in /tmp is not worth failing a check for.
        fs::remove_dir_all(&self.rootfs).ok();
    }
}

fn leftovers(repaired: &Repaired) -> Finding {
    const WHAT: &str = "leftovers";
    if let Some(problem) = repaired.problems.first() {
        let more = repaired.problems.len() - 1;
        let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
        return Finding::failed(WHAT, format!("{problem}{more}"), "remove it by hand");
    }
    let Repaired { sandboxes, stored, .. } = repaired;
    Finding::ok(
        WHAT,
        format!("cleaned up after {sandboxes} sandboxes, {stored} removed from the store"),
    )
}

fn user() -> Finding {
    match rustix::process::geteuid().is_root() {
        true => Finding::ok("user", "root"),
        false => Finding::failed("user", "not root", "run it as root, with sudo for example"),
    }
}

fn architecture() -> Finding {
    match std::env::consts::ARCH {
        "x86_64" => Finding::ok("processor", "x86_64"),
        other => Finding::failed("processor", other, "only x86_64 is supported yet"),
    }
}

fn memory(guest_mib: u64, verified: &Verified) -> Finding {
    let needed = guest_mib + verified.overhead_mib;
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match available_mib(&text) {
        Some(mib) if mib >= needed => Finding::ok("memory", format!("{mib} MiB available")),
        Some(mib) => Finding::failed(
            "memory",
            format!("{mib} MiB available, a VM needs {needed} MiB"),
            "free some, or lower vm.memory_mib",
        ),
        None => Finding::warning("memory", "/proc/meminfo does not say", "mount /proc"),
    }
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

fn namespaces() -> Finding {
    const WHAT: &str = "namespaces";
    let kinds = ["user", "mnt", "pid", "ipc", "net"];
    let missing = kinds.iter().find(|kind| !Path::new(&format!("/proc/self/ns/{kind}")).exists());
    if let Some(kind) = missing {
        let detail = format!("the kernel has no {kind} namespaces");
        return Finding::failed(WHAT, detail, "boot a kernel with all namespaces");
    }
    let limit = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    match limit.trim() {
        "0" => Finding::failed(
            WHAT,
            "user namespaces are forbidden",
            "sysctl user.max_user_namespaces=10000",
        ),
        _ => Finding::ok(WHAT, "user, mount, pid, ipc, network"),
    }
}

fn tun() -> Finding {
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::ok("network taps", "/dev/net/tun"),
        Err(error) => Finding::warning(
            "network taps",
            format!("/dev/net/tun: {error}; guests will have no network"),
            "modprobe tun",
        ),
    }
}

fn cgroups() -> Finding {
    const WHAT: &str = "control groups";
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let kinds = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?)).filter(|(_, kind)| kind.starts_with("cgroup"))
    });
    let (mut v1, mut v2) = (0, None);
    for (path, kind) in kinds {
        match kind {
            "cgroup2" => v2 = Some(path),
            _ => v1 += 1,
        }
    }
    match (v1, v2) {
        (0, Some(path)) => Finding::ok(WHAT, format!("v2 at {path}")),
        (_, Some(path)) => Finding::ok(WHAT, format!("v1, and v2 at {path}")),
        (0, None) => {
            Finding::failed(WHAT, "none is mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup")
        }
        (_, None) => Finding::ok(WHAT, "v1"),
    }
}

/// What a program has said, on one line.
fn said(output: &[u8]) -> String {
    one_line(&String::from_utf8_lossy(output))
}

fn table(findings: &[Finding], able: bool) -> String {
    let mut text = String::new();
    for Finding { what, verdict, detail, fix } in findings {
        let verdict = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warn",
            Verdict::Failed => "FAIL",
        };
        text.push_str(&format!("{verdict:<6}{what:<18}{detail}\n"));
        if let Some(fix) = fix {
            text.push_str(&format!("{:<24}-> {fix}\n", ""));
        }
    }
    text.push_str(match able {
        true => "\nThis host can run Kata.\n",
        false => "\nThis host cannot run Kata yet.\n",
    });
    text
}

#[cfg(test)]
mod tests {
    use super::{Finding, available_mib, table};

    #[test]
    fn available_memory_is_read_in_mib() {
        assert_eq!(available_mib("MemTotal: 9 kB\nMemAvailable:    2048 kB\n"), Some(2));
        assert_eq!(available_mib("MemTotal: 9 kB\n"), None);
    }

    #[test]
    fn a_failure_comes_with_its_fix() {
        let findings = [Finding::ok("user", "root"), Finding::failed("x", "is wrong", "mend it")];
        assert_eq!(
            table(&findings, false),
            "ok    user              root\n\
             FAIL  x                 is wrong\n                        -> mend it\n\
             \nThis host cannot run Kata yet.\n"
        );
    }
}
