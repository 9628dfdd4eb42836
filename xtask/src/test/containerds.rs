//! The releases of containerd that are newer than this Debian's: from later suites of Debian, unpacked into the cache.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::later;
use crate::cache::{self, Recipe};
use crate::process::Run;
use crate::progress::Step;

/// Change it when the steps below change what comes out.
const RECIPE_VERSION: &str = "1";

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
    let root = later::unpack(suite, &["containerd"], &scratch)?;
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
