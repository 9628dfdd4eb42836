//! `install`: makes an engine know Kata, and takes it back.
//!
//! ```text
//! asked for ─► changes: file, what it is to hold (or nothing) ─► --dry-run: told │ else: made, by a rename each
//! ```
//!
//! Who has a directory for drop-ins gets a drop-in. In a file that is everybody's one key or one marked block is set; what stood
//! there before comes back with `--uninstall`, byte for byte if nobody has changed it since. Doing it twice changes nothing.

mod block;
mod change;
mod containerd;
mod docker;
mod rancher;
mod versions;

use std::path::Path;

use kata_config::{Artefact, Prefix};
use serde_json::json;

use self::{
    change::{Change, read},
    versions::Versions,
};
use super::{Context, print};
use crate::{args::Install, failure::Failure};

/// Name of the runtime in engines.
const NAME: &str = "kata";
const PODMAN: &str = "containers/containers.conf.d/50-kata.conf";
const CRIO: &str = "crio/crio.conf.d/50-kata.conf";
const ACCELERATOR: &str = "kata/config.d/50-install.toml";

/// Who can be made to know Kata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Podman,
    Docker,
    Containerd,
    Crio,
    K3s,
    Rke2,
}

impl Engine {
    const ALL: [Self; 6] =
        [Self::Podman, Self::Docker, Self::Containerd, Self::Crio, Self::K3s, Self::Rke2];

    fn is_asked_for(self, typed: &Install) -> bool {
        match self {
            Self::Podman => typed.podman,
            Self::Docker => typed.docker,
            Self::Containerd => typed.containerd,
            Self::Crio => typed.crio,
            Self::K3s => typed.k3s,
            Self::Rke2 => typed.rke2,
        }
    }

    fn changes(self, typed: &Install, prefix: &Prefix) -> Result<Vec<Change>, Failure> {
        let (etc, home) = (&typed.etc, &typed.rancher);
        let (runtime, shim) = (prefix.path(Artefact::Runtime), prefix.path(Artefact::Shim));
        match (self, typed.uninstall) {
            (Self::Podman, false) => Ok(vec![podman(etc, &runtime)]),
            (Self::Podman, true) => Ok(vec![Change::remove(etc.join(PODMAN))]),
            (Self::Docker, uninstall) => docker::docker(etc, &runtime, uninstall),
            (Self::Containerd, false) => containerd::install(etc, &shim),
            (Self::Containerd, true) => containerd::uninstall(etc),
            (Self::Crio, false) => Ok(vec![crio(etc, &shim)]),
            (Self::Crio, true) => Ok(vec![Change::remove(etc.join(CRIO))]),
            (Self::K3s, false) => rancher::install(home, "k3s", &shim),
            (Self::K3s, true) => rancher::uninstall(home, "k3s"),
            (Self::Rke2, false) => rancher::install(home, "rke2", &shim),
            (Self::Rke2, true) => rancher::uninstall(home, "rke2"),
        }
    }

    fn is_installed(self, typed: &Install) -> Result<bool, Failure> {
        match self {
            Self::Podman => Ok(read(&typed.etc.join(PODMAN))?.is_some()),
            Self::Docker => docker::is_installed(&typed.etc),
            Self::Containerd => containerd::is_installed(&typed.etc),
            Self::Crio => Ok(read(&typed.etc.join(CRIO))?.is_some()),
            Self::K3s => Ok(!rancher::uninstall(&typed.rancher, "k3s")?.is_empty()),
            Self::Rke2 => Ok(!rancher::uninstall(&typed.rancher, "rke2")?.is_empty()),
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Podman => "podman --runtime kata run …",
            Self::Docker => {
                "systemctl reload docker (or SIGHUP to dockerd), then docker run --runtime kata …"
            }
            Self::Containerd => {
                "systemctl restart containerd, then a RuntimeClass with the handler kata"
            }
            Self::Crio => "systemctl restart crio, then a RuntimeClass with the handler kata",
            Self::K3s => {
                "systemctl restart k3s (or k3s-agent), then a RuntimeClass with the handler kata"
            }
            Self::Rke2 => {
                "systemctl restart rke2-server (or rke2-agent), then a RuntimeClass with the handler kata"
            }
        }
    }
}

impl Context<'_> {
    pub(super) fn install(&self, typed: &Install) -> Result<(), Failure> {
        let engines: Vec<_> =
            Engine::ALL.into_iter().filter(|engine| engine.is_asked_for(typed)).collect();
        if engines.is_empty() && typed.to.is_none() {
            let message = "install needs an engine (--podman, --docker, --containerd, --crio, --k3s, --rke2), or --to";
            return Err(Failure::Usage(message.to_owned()));
        }
        let versions =
            typed.to.as_deref().map(|to| Versions::open(to, typed.dry_run)).transpose()?;
        let prefix = match &versions {
            Some(versions) => versions.prefix(),
            None => Prefix::at(self.prefix.as_path()),
        };
        // Everything that can be refused is, before anything is done.
        self.prefix.find(Artefact::Runtime)?;
        let mut changes = Vec::new();
        for engine in &engines {
            changes.extend(engine.changes(typed, &prefix)?);
        }
        changes.extend(match typed.uninstall {
            true if others(typed) => None,
            true => no_accelerator(&typed.etc)?,
            false => self.has_kvm().then(|| accelerator(&typed.etc)),
        });
        let mut report = String::new();
        if let Some(versions) = versions.as_ref().filter(|_| !typed.uninstall) {
            report += &versions.add(&self.prefix, typed.dry_run)?;
        }
        for change in &changes {
            report += &change.settle(typed.dry_run)?;
        }
        if let Some(versions) = versions.filter(|_| typed.uninstall) {
            report += &versions.remove(typed.dry_run)?;
        }
        if !typed.uninstall {
            for engine in engines {
                report += &format!("then: {}\n", engine.advice());
            }
        }
        print(&report)
    }
}

fn podman(etc: &Path, runtime: &Path) -> Change {
    let program = json!(runtime.to_string_lossy());
    let text = format!(
        "# Written by kata-runtime install --podman, removed by the same with --uninstall.\n\
         [engine.runtimes]\n{NAME} = [{program}]\n"
    );
    Change::write(etc.join(PODMAN), text)
}

fn crio(etc: &Path, shim: &Path) -> Change {
    let program = json!(shim.to_string_lossy());
    let text = format!(
        "# Written by kata-runtime install --crio, removed by the same with --uninstall.\n\
         [crio.runtime.runtimes.{NAME}]\n\
         runtime_path = {program}\n\
         runtime_type = \"vm\"\n\
         runtime_root = \"/run/kata-crio\"\n\
         privileged_without_host_devices = true\n"
    );
    Change::write(etc.join(CRIO), text)
}

/// Whether an engine that was not named may still know Kata: what can't be told of its files is no reason to fail for another's.
fn others(typed: &Install) -> bool {
    let mut others = Engine::ALL.into_iter().filter(|engine| !engine.is_asked_for(typed));
    others.any(|engine| engine.is_installed(typed).unwrap_or(true))
}

/// With KVM there, losing it is to be an error, and no silent loss of isolation.
fn accelerator(etc: &Path) -> Change {
    let text = "# Written by kata-runtime install: this host has KVM, and guests are to run under nothing else.\n\
                [hypervisor]\naccelerator = \"kvm\"\n";
    Change::write(etc.join(ACCELERATOR), text.to_owned())
}

fn no_accelerator(etc: &Path) -> Result<Option<Change>, Failure> {
    let path = etc.join(ACCELERATOR);
    Ok(read(&path)?.map(|_| Change::remove(path)))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{crio, podman};

    const RUNTIME: &str = "/opt/bin/kata-runtime";

    #[test]
    fn a_dry_run_tells_and_does_nothing() {
        let etc = tempfile::tempdir().unwrap();
        let change = podman(etc.path(), Path::new(RUNTIME));
        let told = change.settle(true).unwrap();
        assert!(
            told.contains("would write") && told.contains("kata = [\"/opt/bin/kata-runtime\"]")
        );
        assert_eq!(fs::read_dir(etc.path()).unwrap().count(), 0);
    }

    #[test]
    fn crio_is_told_in_its_own_words() {
        let text = crio(Path::new("/etc"), Path::new("/opt/kata/bin/containerd-shim-kata-v2"));
        let told = text.settle(true).unwrap();
        assert!(told.contains("/etc/crio/crio.conf.d/50-kata.conf"), "{told}");
        assert!(
            told.contains("runtime_type = \"vm\"") && told.contains("shim-kata-v2\""),
            "{told}"
        );
    }
}
