//! Reading, in order, and who said what.

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
};

use crate::{
    field::Given,
    file::{Malformed, entries},
    keys::{KEYS, Key, PREFIX, UPSTREAM},
    nearest,
    settings::{Config, UnknownAnnotations},
};

/// Where configuration is read from unless the command line says otherwise.
pub const DEFAULT_DIRECTORY: &str = "/etc/kata";

/// Variable that names another directory, or one file; `kata-runtime --config` sets it for the shim, and so do an
/// engine's options.
pub const DIRECTORY_VARIABLE: &str = "KATA_CONFIG_DIR";

/// Where configuration is read from in this environment.
pub fn directory() -> PathBuf {
    env::var_os(DIRECTORY_VARIABLE)
        .filter(|directory| !directory.is_empty())
        .map_or_else(|| DEFAULT_DIRECTORY.into(), PathBuf::from)
}

/// A configuration file is a page or two; a longer one is a mistake (`/dev/zero`, a disk image).
const MAX_BYTES: u64 = 1 << 20;

/// Why the configuration can't be used. Each is one line that names the place.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or directory that exists, or that was named.
    #[error("cannot read configuration {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not TOML.
    #[error("{}:{line}: {message}", path.display())]
    Malformed {
        /// File.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The TOML reader's words.
        message: String,
    },
    /// No such key.
    #[error("{place}: unknown key {name:?}{}", hint(nearest.as_deref()))]
    UnknownKey {
        /// File and line.
        place: String,
        /// As it stood there.
        name: String,
        /// What was probably meant.
        nearest: Option<String>,
    },
    /// No such annotation, or one that only a file may set.
    #[error("annotation {name:?}: {reason}")]
    Annotation {
        /// As it stood in the spec.
        name: String,
        /// What to use instead.
        reason: String,
    },
    /// A value that the key does not take.
    #[error("{place}: {name}: {reason}")]
    Value {
        /// File and line, or annotation.
        place: String,
        /// The key.
        name: String,
        /// What is wrong and what would be right.
        reason: String,
    },
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map_or_else(
        || ", all keys are listed by \"kata-runtime env\"".to_owned(),
        |name| format!(", did you mean {name:?}?"),
    )
}

/// Who set a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody.
    Default,
    /// A file.
    File {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// An annotation of the container's spec.
    Annotation(String),
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => out.write_str("default"),
            Self::File { path, line } => write!(out, "{}:{line}", path.display()),
            Self::Annotation(name) => write!(out, "annotation {name}"),
        }
    }
}

/// Configuration with the source of each key.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// As long as [`KEYS`], in its order.
    sources: Vec<Source>,
}

impl Default for Loaded {
    fn default() -> Self {
        Self { config: Config::default(), sources: vec![Source::Default; KEYS.len()] }
    }
}

impl Loaded {
    /// Reads `config.toml` and `config.d/*.toml` of a directory; absent ones are no error. A file is read alone. Only
    /// [`DEFAULT_DIRECTORY`] need not be there itself: another place was named by somebody.
    ///
    /// # Errors
    /// The first thing that is wrong, in reading order.
    pub fn read(directory: &Path) -> Result<Self, ConfigError> {
        let mut loaded = Self::default();
        match fs::metadata(directory) {
            Ok(metadata) if metadata.is_file() => {
                loaded.read_file(directory)?;
                return Ok(loaded);
            }
            Ok(_) => {}
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && directory == Path::new(DEFAULT_DIRECTORY) => {}
            Err(source) => return Err(ConfigError::Read { path: directory.to_owned(), source }),
        }
        for path in files(directory)? {
            loaded.read_file(&path)?;
        }
        Ok(loaded)
    }

    /// Applies a spec's annotations; those without our prefix are not ours. Hands back warnings, which there are only
    /// where the configuration asks for them instead of errors.
    ///
    /// # Errors
    /// An annotation under our prefix that is not known, may not be set so, or has a wrong value.
    pub fn annotate<'a>(
        &mut self,
        annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Vec<String>, ConfigError> {
        let mut warnings = Vec::new();
        for (name, value) in annotations {
            let Some(ours) = name.strip_prefix(PREFIX) else { continue };
            match KEYS.iter().position(|key| key.annotation && key.name == ours) {
                Some(index) => {
                    let source = Source::Annotation(name.to_owned());
                    self.set(index, &Given::from_annotation(value), source)?;
                }
                None => {
                    let error = unknown_annotation(name, ours);
                    match self.config.runtime.unknown_annotations {
                        UnknownAnnotations::Error => return Err(error),
                        UnknownAnnotations::Warn => warnings.push(error.to_string()),
                    }
                }
            }
        }
        Ok(warnings)
    }

    /// Whether somebody has set a key, in a file or an annotation.
    pub fn is_set(&self, name: &str) -> bool {
        let mut known = self.provenance();
        known.any(|(key, _, source)| key.name == name && *source != Source::Default)
    }

    /// Every key with its value (none: left to the installation) and source.
    pub fn provenance(&self) -> impl Iterator<Item = (&'static Key, Option<String>, &Source)> {
        KEYS.iter().zip(&self.sources).map(|(key, source)| {
            let value = key.field.show(&self.config);
            (key, value, source)
        })
    }

    fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let Some(text) = text_of(path)? else { return Ok(()) };
        let entries = entries(&text).map_err(|Malformed { line, message }| {
            ConfigError::Malformed { path: path.to_owned(), line, message }
        })?;
        for entry in entries {
            let source = Source::File { path: path.to_owned(), line: entry.line };
            let index = KEYS.iter().position(|key| key.name == entry.name).ok_or_else(|| {
                let nearest = nearest(&entry.name, KEYS.iter().map(|key| key.name));
                ConfigError::UnknownKey {
                    place: source.to_string(),
                    nearest: nearest.map(str::to_owned),
                    name: entry.name.clone(),
                }
            })?;
            self.set(index, &entry.value, source)?;
        }
        Ok(())
    }

    fn set(&mut self, index: usize, given: &Given, source: Source) -> Result<(), ConfigError> {
        let key = &KEYS[index];
        key.field.store(&mut self.config, given).map_err(|reason| ConfigError::Value {
            place: source.to_string(),
            name: key.name.to_owned(),
            reason,
        })?;
        self.sources[index] = source;
        Ok(())
    }
}

fn unknown_annotation(name: &str, ours: &str) -> ConfigError {
    let upstream = UPSTREAM.iter().find(|(theirs, _)| *theirs == name).map(|(_, key)| *key);
    let wanted = upstream.unwrap_or(ours);
    let exact = KEYS.iter().find(|key| key.name == wanted);
    let reason = match exact {
        Some(key) if key.annotation => {
            format!("upstream Kata's name, here it is \"{PREFIX}{}\"", key.name)
        }
        Some(key) => format!("only a configuration file may set {:?}", key.name),
        None => {
            let known = KEYS.iter().filter(|key| key.annotation).map(|key| key.name);
            match nearest(ours, known) {
                Some(key) => format!("unknown, did you mean \"{PREFIX}{key}\"?"),
                None => "unknown, docs/config.md lists all".to_owned(),
            }
        }
    };
    ConfigError::Annotation { name: name.to_owned(), reason }
}

/// `config.toml`, then the drop-ins by name.
fn files(directory: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let drop_ins = directory.join("config.d");
    let failed = |source| ConfigError::Read { path: drop_ins.clone(), source };
    let mut found = Vec::new();
    match fs::read_dir(&drop_ins) {
        Ok(entries) => {
            for entry in entries {
                let path = entry.map_err(failed)?.path();
                if path.extension().is_some_and(|extension| extension == "toml") {
                    found.push(path);
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    found.sort();
    found.insert(0, directory.join("config.toml"));
    Ok(found)
}

fn text_of(path: &Path) -> Result<Option<String>, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    let read = io::Read::read_to_string(&mut io::Read::take(file, MAX_BYTES + 1), &mut text);
    if read.map_err(failed)? as u64 > MAX_BYTES {
        return Err(failed(io::Error::other("longer than 1 MiB")));
    }
    Ok(Some(text))
}
