//! The cache outside the tree: kernels and test images, each under a hash of everything that it is made from.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Where the cache is: `KATA_CACHE`, else `~/.cache/kata`.
pub fn root() -> Result<PathBuf> {
    if let Some(cache) = std::env::var_os("KATA_CACHE") {
        return Ok(PathBuf::from(cache));
    }
    let home = std::env::home_dir().context("neither KATA_CACHE nor HOME is set")?;
    Ok(home.join(".cache/kata"))
}

/// The identity of something that is made: a hash over named parts.
#[derive(Debug)]
pub struct Recipe(Sha256);

impl Recipe {
    pub fn new(kind: &str) -> Self {
        Self(Sha256::new()).part("kind", kind)
    }

    /// Adds a part; lengths are hashed too, so that no two lists of parts run together.
    pub fn part(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        for piece in [name.as_bytes(), value.as_ref()] {
            self.0.update((piece.len() as u64).to_le_bytes());
            self.0.update(piece);
        }
        self
    }

    /// The first 16 hexadecimal digits: unique enough for a cache, short enough for a path.
    pub fn hash(self) -> String {
        self.0.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Makes the directory `entry` by filling a new one beside it and renaming, so that it is whole or absent; what somebody else makes at
/// the same time is waited for, and taken.
pub fn fill(entry: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let _only_one = lock(entry)?;
    if entry.is_dir() {
        return Ok(());
    }
    let draft = entry.with_extension("draft");
    remove(&draft)?;
    fs::create_dir_all(&draft).with_context(|| format!("make {}", draft.display()))?;
    make(&draft)?;
    fs::rename(&draft, entry).with_context(|| format!("put {} into its place", entry.display()))
}

/// Keeps others off what is made for `entry` as long as the answer lives.
pub fn lock(entry: &Path) -> Result<File> {
    // Behind the whole name: what is made on the way to an entry may have a lock of its own.
    let mut path = entry.as_os_str().to_owned();
    path.push(".lock");
    let path = Path::new(&path);
    let context = || format!("lock {}", path.display());
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).with_context(context)?;
    let file = File::create(path).with_context(context)?;
    if file.try_lock().is_err() {
        println!("    wait for somebody else who makes {}", entry.display());
        file.lock().with_context(context)?;
    }
    Ok(file)
}

/// Removes a directory that may not be there.
pub fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_else_has_made_meanwhile_is_taken() {
        let scratch = tempfile::tempdir().unwrap();
        let entry = scratch.path().join("shelf/entry");
        let held = lock(&entry).unwrap();
        let late = std::thread::spawn({
            let entry = entry.clone();
            move || fill(&entry, |_| anyhow::bail!("made twice"))
        });
        fs::create_dir(&entry).unwrap();
        drop(held);
        late.join().unwrap().unwrap();
        let work = lock(&scratch.path().join("shelf/other.work")).unwrap();
        let failed = fill(&scratch.path().join("shelf/other"), |_| anyhow::bail!("no"));
        drop(work);
        assert_eq!(failed.unwrap_err().to_string(), "no");
        assert!(!scratch.path().join("shelf/other").exists());
    }

    #[test]
    fn parts_do_not_run_together() {
        let one = Recipe::new("k").part("ab", "c").hash();
        let other = Recipe::new("k").part("a", "bc").hash();
        assert_ne!(one, other);
    }

    #[test]
    fn equal_parts_give_the_same_hash() {
        let hash = || Recipe::new("k").part("name", "value").hash();
        assert_eq!(hash(), hash());
        assert_eq!(hash().len(), 16);
    }
}
