//! The QEMU that is the nested host, of a later Debian than this machine's, unpacked and not installed.
//!
//! Before version 10.2 QEMU changes the word of a processor's pending interrupts without a lock when a guest is entered
//! (`helper_vmrun`; told on qemu-devel on 29 August 2025), so that an interrupt which comes at that moment is lost: the
//! timer's for one, and with it a guest that waits for it. Kata, in that host, has the QEMU that it has elsewhere.
//!
//! One function of it is made to do nothing. Whenever a processor loads x87 state (XRSTOR, so at each switch of tasks),
//! `cpu_clear_ignne` reads, changes and writes a word of the *first* processor, from the thread of another one and without
//! a lock. What the first one changed meanwhile is undone: that it left a guest (`HF2_NPT_MASK`) or allows no interrupts
//! (`HF2_GIF_MASK`). Its host then runs on nested page tables, exits a second time, and the registers of the host are
//! written over those of the guest. The function is for operating systems that leave errors of the x87 to an interrupt.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use object::{Object, ObjectSection, ObjectSymbol};

use super::debian::Debian;
use crate::cache::{self, Recipe};
use crate::progress::Step;

const RECIPE_VERSION: &str = "2";
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
const PROGRAM: &str = "usr/bin/qemu-system-x86_64";
/// The function that must do nothing; QEMU exports it to its modules.
const RACE: &[u8] = b"cpu_clear_ignne";
/// The instruction that returns from a function.
const RET: u8 = 0xc3;

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
            at(PROGRAM),
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
    let tree = draft.join("tree");
    debian.make(draft, &tree, |_| {})?;
    let program = tree.join(PROGRAM);
    disarm(&program).with_context(|| format!("change {}", program.display()))
}

/// Makes the function that is [`RACE`] return at once.
fn disarm(program: &Path) -> Result<()> {
    let mut bytes = fs::read(program)?;
    let place = place_of(RACE, &bytes)?;
    *bytes.get_mut(place).context("a function beyond the end of the file")? = RET;
    fs::write(program, bytes)?;
    Ok(())
}

/// Where the code of an exported function begins in an ELF file.
fn place_of(function: &[u8], elf: &[u8]) -> Result<usize> {
    let file = object::File::parse(elf)?;
    let symbol = file
        .dynamic_symbols()
        .find(|symbol| symbol.is_definition() && symbol.name_bytes() == Ok(function))
        .with_context(|| format!("no function {}", String::from_utf8_lossy(function)))?;
    let index = symbol.section_index().context("a function in no section")?;
    let section = file.section_by_index(index)?;
    let (begin, _) = section.file_range().context("a section that is not in the file")?;
    let within = symbol.address().checked_sub(section.address());
    let within = within.context("a function before its section")?;
    Ok(usize::try_from(begin + within)?)
}
