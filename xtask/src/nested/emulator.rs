//! The QEMU that is the nested host, of a later Debian than this machine's, unpacked and not installed.
//!
//! Before version 10.2 QEMU changes the word of a processor's pending interrupts without a lock when a guest is entered
//! (`helper_vmrun`; told on qemu-devel on 29 August 2025), so that an interrupt which comes at that moment is lost: the
//! timer's for one, and with it a guest that waits for it. Kata, in that host, has the QEMU that it has elsewhere.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::debian::Debian;
use crate::cache::{self, Recipe};
use crate::progress::Step;

const RECIPE_VERSION: &str = "1";
const RELEASE: &str = "trixie";
const SOURCES: &str = "\
deb http://deb.debian.org/debian trixie main
deb http://deb.debian.org/debian trixie-backports main
";
const PREFERENCES: &str = "\
Package: src:qemu seabios
Pin: release n=trixie-backports
Pin-Priority: 900
";
const PACKAGE: &str = "qemu-system-x86";

/// A tree with the program, its libraries and its firmware.
pub struct Emulator(PathBuf);

impl Emulator {
    /// From the cache, else unpacked.
    pub fn make() -> Result<Self> {
        let hash = Recipe::new("emulator of the nested host")
            .part("recipe", RECIPE_VERSION)
            .part("sources", SOURCES)
            .part("preferences", PREFERENCES)
            .part("package", PACKAGE)
            .hash();
        let entry = cache::root()?.join("emulator").join(hash);
        if !entry.is_dir() {
            let step = Step::begin("unpack the QEMU that is the nested host");
            cache::fill(&entry, fill)?;
            step.end(entry.display().to_string());
        }
        Ok(Self(entry.join("tree")))
    }

    /// The program and its first words: it is run by its own C library, and looks for firmware beside itself alone.
    pub fn words(&self) -> [String; 8] {
        let at = |path: &str| self.0.join(path).display().to_string();
        [
            at("usr/lib64/ld-linux-x86-64.so.2"),
            "--library-path".to_owned(),
            at("usr/lib/x86_64-linux-gnu"),
            at("usr/bin/qemu-system-x86_64"),
            "-L".to_owned(),
            at("usr/share/qemu"),
            "-L".to_owned(),
            at("usr/share/seabios"),
        ]
    }
}

fn fill(draft: &Path) -> Result<()> {
    let debian = Debian {
        variant: "extract",
        release: RELEASE,
        sources: SOURCES,
        preferences: PREFERENCES,
        packages: PACKAGE,
        log: "emulator.log",
    };
    debian.make(draft, &draft.join("tree"), |_| {})
}
