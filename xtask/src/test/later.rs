//! Packages of a later suite of Debian, unpacked and not installed.
//!
//! apt fetches and checks them, with sources, lists and caches of its own: what this machine installs is not touched.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::Run;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR: &str = "http://deb.debian.org/debian";

/// Fetches packages into `scratch`, and unpacks them all into a directory there, whose path is returned.
pub fn unpack(suite: &str, packages: &[&str], scratch: &Path) -> Result<PathBuf> {
    let apt = Apt::prepare(scratch, suite)?;
    apt.run(&["update", "-q"], scratch)?;
    apt.run(&[&["download", "-q"], packages].concat(), scratch)?;
    let root = scratch.join("root");
    let entries = fs::read_dir(scratch).with_context(|| format!("list {}", scratch.display()))?;
    for archive in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if archive.extension() == Some(OsStr::new("deb")) {
            let words = ["-x".as_ref(), archive.as_os_str(), root.as_os_str()];
            Run::new("dpkg-deb").args(words).quietly().output()?;
        }
    }
    Ok(root)
}

/// apt with everything that it reads and writes in one directory.
struct Apt {
    configuration: PathBuf,
}

impl Apt {
    fn prepare(scratch: &Path, suite: &str) -> Result<Self> {
        let at = |name: &str| scratch.join(name);
        for name in ["lists/partial", "cache/archives/partial", "parts"] {
            let directory = at(name);
            fs::create_dir_all(&directory)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        let sources = format!("deb [signed-by={KEYRING}] {MIRROR} {suite} main\n");
        let options = [
            ("Dir::Etc::SourceList", at("sources.list")),
            ("Dir::Etc::SourceParts", at("parts")),
            ("Dir::Etc::PreferencesParts", at("parts")),
            ("Dir::State", at("")),
            ("Dir::State::Lists", at("lists")),
            ("Dir::State::Status", PathBuf::from("/dev/null")),
            ("Dir::Cache", at("cache")),
        ];
        let lines: String = options
            .iter()
            .map(|(name, path)| format!("{name} \"{}\";\n", path.display()))
            .collect();
        // The user that apt fetches as has no way into a home directory.
        let rest = "APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n";
        let configuration = at("apt.conf");
        for (path, text) in
            [(at("sources.list"), sources), (configuration.clone(), format!("{lines}{rest}"))]
        {
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(Self { configuration })
    }

    fn run(&self, words: &[&str], directory: &Path) -> Result<()> {
        let run = Run::new("apt-get").args(words).cwd(directory);
        run.env("APT_CONFIG", &self.configuration).output().map(drop)
    }
}
