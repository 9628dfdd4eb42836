//! From a bundle to a checked configuration.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
};
use serde_json::Value;

use crate::{
    checked::Checked,
    document::Document,
    error::SpecError,
    rules,
    table::{self, Explained},
};

/// Name of the configuration in a bundle.
const CONFIG: &str = "config.json";

/// Longest configuration that is read. The longest that an engine writes have some 100 KiB; the answer to a larger one
/// is an error, not a host without memory.
const LONGEST: u64 = 16 * 1024 * 1024;

/// Says which guest path stands for a namespace (its kind, and the path that a spec names) of another container of the
/// same sandbox; `None` when no container of the sandbox is in it.
pub type Neighbours<'a> = dyn Fn(&str, &Path) -> Option<String> + 'a;

/// Checks a configuration as if it were `config.json` of `bundle`, which need not exist, for a sandbox without other
/// containers.
///
/// # Errors
/// One line that names the field and what is wrong with it.
pub fn check(config: &Value, bundle: &Path) -> Result<Checked, SpecError> {
    check_beside(config, bundle, &|_, _| None)
}

/// The same for a sandbox that has `neighbours`, whose namespaces it may share.
///
/// # Errors
/// As [`check`].
pub fn check_beside(
    config: &Value,
    bundle: &Path,
    neighbours: &Neighbours<'_>,
) -> Result<Checked, SpecError> {
    let bundle = absolute(bundle)?;
    let mut document = Document::new(CONFIG.to_owned());
    let guest = document.object(table::CONFIG, config, "")?;
    rules::check(document, config, guest, bundle, neighbours)
}

/// What becomes of every field that a bundle sets.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// One answer a field, sorted by its path.
    pub answers: Vec<Explained>,
}

impl Explanation {
    /// True when a container can be made of the bundle, as far as its configuration goes.
    pub fn runs(&self) -> bool {
        !self.answers.iter().any(Explained::is_fatal)
    }
}

/// Says of every field of a bundle's `config.json` what becomes of it, the refused and the wrong ones included.
///
/// # Errors
/// When there is no JSON object to speak of.
pub fn explain(bundle: &Path) -> Result<Explanation, SpecError> {
    let bundle = absolute(bundle)?;
    let path = bundle.join(CONFIG);
    let json =
        read_config(&path).map_err(|source| SpecError::Read { path: path.clone(), source })?;
    let mut document = Document::for_survey(path.display().to_string());
    let config = document.parse(&json)?;
    let checked = document.object(table::CONFIG, &config, "");
    document.settle(checked)?;
    rules::survey(&mut document, &config, &bundle)?;
    let told = document.explained;
    let specific = |line: &Explained| {
        line.treatment != "applied" || !told.iter().any(|it| it.field == line.field && it != line)
    };
    Ok(Explanation { answers: told.iter().filter(|line| specific(line)).cloned().collect() })
}

fn absolute(bundle: &Path) -> Result<PathBuf, SpecError> {
    std::path::absolute(bundle)
        .map_err(|source| SpecError::Read { path: bundle.to_owned(), source })
}

/// Reads the `config.json` at `path`: a file of at most 16 MiB, and nothing that could be waited for.
///
/// # Errors
/// What the system said, or what else it is.
pub fn read_config(path: &Path) -> io::Result<Vec<u8>> {
    // Without a writer, a fifo would not open.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(Errno::ISDIR.into());
    }
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut json = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut json)?;
    if json.len() as u64 > LONGEST {
        let message = format!("longer than {} MiB", LONGEST / (1024 * 1024));
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(json)
}
