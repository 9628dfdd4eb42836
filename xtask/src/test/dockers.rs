//! The release of docker that is newer than this Debian's, with compose: from a later suite of Debian, unpacked into the
//! cache.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::later;
use crate::cache::{self, Recipe};
use crate::process::Run;
use crate::progress::Step;

/// Change it when the steps below change what comes out.
const RECIPE_VERSION: &str = "2";
const SUITE: &str = "trixie";
/// What is expected of the suite.
const RELEASE: &str = "26";
const PACKAGES: [&str; 5] = ["containerd", "docker-cli", "docker-compose", "docker.io", "tini"];

/// What tests run of them, below `usr/`.
const PROGRAMS: [&str; 7] = [
    "bin/containerd",
    "bin/containerd-shim-runc-v2",
    "bin/docker",
    // What `--init` starts.
    "bin/tini-static",
    "libexec/docker/cli-plugins/docker-compose",
    "sbin/docker-proxy",
    "sbin/dockerd",
];

/// A directory with the programs.
pub fn later() -> Result<PathBuf> {
    let recipe = Recipe::new("docker").part("recipe", RECIPE_VERSION).part(SUITE, RELEASE);
    let programs = cache::root()?.join("engines").join(format!("docker-{}", recipe.hash()));
    if !programs.is_dir() {
        let step = Step::begin(format!("fetch docker {RELEASE} from Debian"));
        cache::fill(&programs, |draft| {
            let scratch = draft.join("apt");
            let root = later::unpack(SUITE, &PACKAGES, &scratch)?.join("usr");
            for program in PROGRAMS.map(|program| root.join(program)) {
                let name = program.file_name().context("a program has a name")?;
                fs::rename(&program, draft.join(name))
                    .with_context(|| format!("take {}", program.display()))?;
            }
            // Those of a later Debian may need a later C library.
            let version = Run::new(draft.join("dockerd")).args(["--version"]).quietly().output()?;
            println!("    {SUITE} has {}", version.trim());
            cache::remove(&scratch)
        })?;
        step.end(programs.display().to_string());
    }
    Ok(programs)
}
