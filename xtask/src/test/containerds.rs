//! The releases of containerd that are newer than this Debian's: from later suites of Debian, unpacked into the cache.
//!
//! apt fetches and checks them, with sources, lists and caches of its own: what this machine installs is not touched.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::{self, Recipe};
use crate::process::Run;
use crate::progress::Step;

/// Change it when the steps below change what comes out.
const RECIPE_VERSION: &str = "1";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR: &str = "http://deb.debian.org/debian";

/// The suites, and the releases that are expected of them. What a suite has is taken, whatever its last digits are; it
/// stays what it is until the cache is removed.
const SUITES: [(&str, &str); 2] = [("trixie", "1.7"), ("forky", "2.1")];

/// What tests run of it.
const PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "ctr"];

/// A directory with one of programs a release, each named by it.
pub fn later() -> Result<PathBuf> {
    let recipe = SUITES.iter().fold(
        Recipe::new("containerds").part("recipe", RECIPE_VERSION),
        |recipe, (suite, release)| recipe.part(suite, release),
    );
    let all = cache::root()?.join("engines").join(format!("containerd-{}", recipe.hash()));
    if !all.is_dir() {
        let step = Step::begin("fetch later releases of containerd from Debian");
        cache::fill(&all, |draft| {
            for (suite, release) in SUITES {
                take(suite, release, draft)?;
            }
            Ok(())
        })?;
        step.end(all.display().to_string());
    }
    Ok(all)
}

fn take(suite: &str, release: &str, to: &Path) -> Result<()> {
    let scratch = to.join(format!("{suite}.apt"));
    let apt = Apt::prepare(&scratch, suite)?;
    apt.run(&["update", "-q"], &scratch)?;
    apt.run(&["download", "-q", "containerd"], &scratch)?;
    let archive = archive_in(&scratch)?;
    let root = scratch.join("root");
    Run::new("dpkg-deb")
        .args(["-x".as_ref(), archive.as_os_str(), root.as_os_str()])
        .quietly()
        .output()?;
    let programs = to.join(release);
    fs::create_dir(&programs).with_context(|| format!("make {}", programs.display()))?;
    for program in PROGRAMS {
        let from = root.join("usr/bin").join(program);
        fs::rename(&from, programs.join(program))
            .with_context(|| format!("take {}", from.display()))?;
    }
    // Those of a later Debian may need a later C library.
    let version = Run::new(programs.join("containerd")).args(["--version"]).quietly().output()?;
    println!("    {suite} has {}", version.trim());
    cache::remove(&scratch)
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

fn archive_in(directory: &Path) -> Result<PathBuf> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt left no package in {}", directory.display()))
}
