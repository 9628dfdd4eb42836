//! A bundle that was read once and checked once.

use std::{
    io,
    path::{Path, PathBuf},
};

use kata_hooks::Hooks;
use kata_spec::{Checked, ProgramError, SpecError, check, read_config, resolve_program};
use serde::Deserialize;
use serde_json::Value;

/// Why a bundle can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("cannot use the bundle {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not JSON of the OCI runtime spec", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("bundle {}", path.display())]
    Spec { path: PathBuf, source: SpecError },
    #[error("bundle {}: hooks", path.display())]
    Hooks { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Program(#[from] ProgramError),
}

impl BundleError {
    /// The code of a shell, where the error is about the program.
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Program(error) => Some(error.exit_code()),
            _ => None,
        }
    }
}

/// A bundle whose spec can be run.
#[derive(Debug)]
pub struct Bundle {
    /// What was checked.
    pub spec: Checked,
    /// The same as JSON, for the shim.
    pub config: Vec<u8>,
    /// Those of its hooks that run on the host, and the others.
    pub hooks: Hooks,
}

impl Bundle {
    /// Reads and checks the bundle in a directory.
    pub fn load(directory: &Path) -> Result<Self, BundleError> {
        let path = directory
            .canonicalize()
            .map_err(|source| BundleError::Directory { path: directory.to_owned(), source })?;
        let file = path.join("config.json");
        let config = read_config(&file)
            .map_err(|source| BundleError::Read { path: file.clone(), source })?;
        let value = serde_json::from_slice(&config)
            .map_err(|source| BundleError::Parse { path: file, source })?;
        Self::of(&value, config, &path)
    }

    /// The bundle of a spec that was just made, and is kept in `directory`.
    pub fn made(spec: &Value, directory: &Path) -> Result<Self, BundleError> {
        Self::of(spec, spec.to_string().into_bytes(), directory)
    }

    fn of(value: &Value, config: Vec<u8>, path: &Path) -> Result<Self, BundleError> {
        let spec = check(value, path)
            .map_err(|source| BundleError::Spec { path: path.to_owned(), source })?;
        let hooks = Option::deserialize(&spec.hooks)
            .map_err(|source| BundleError::Hooks { path: path.to_owned(), source })?;
        Ok(Self { spec, config, hooks: hooks.unwrap_or_default() })
    }

    /// Fails in runc's words when the program is not there or may not be executed: engines take exit codes 127 and 126
    /// only from a create that failed.
    ///
    /// It is looked for in `root` where that is not the spec's.
    pub fn find_program(&self, root: Option<&Path>) -> Result<(), BundleError> {
        match root {
            Some(root) => {
                let mut spec = self.spec.clone();
                spec.rootfs = root.to_owned();
                resolve_program(&spec).map(drop)?;
            }
            None => resolve_program(&self.spec).map(drop)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Bundle, BundleError};
    use crate::failure::Failure;

    fn error(config: Option<&str>) -> String {
        let scratch = tempfile::tempdir().unwrap();
        if let Some(config) = config {
            fs::write(scratch.path().join("config.json"), config).unwrap();
        }
        let failure = Failure::from(Bundle::load(scratch.path()).unwrap_err());
        assert_eq!(failure.exit_code(), 1);
        let line = failure.line();
        assert!(line.contains(scratch.path().to_str().unwrap()), "{line}");
        line
    }

    #[test]
    fn what_is_wrong_names_the_bundle() {
        assert!(error(None).contains("config.json: No such file or directory"));
        assert!(error(Some("{")).contains("EOF while parsing"));
        assert!(error(Some("{}")).contains("config.json: "));
        assert!(error(Some("[]")).contains("config.json"));
    }

    #[test]
    fn a_configuration_that_never_ends_is_not_read() {
        let scratch = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/zero", scratch.path().join("config.json")).unwrap();
        let line = Failure::from(Bundle::load(scratch.path()).unwrap_err()).line();
        assert!(line.ends_with("config.json: not a regular file"), "{line}");
    }

    #[test]
    fn a_missing_program_has_the_code_and_the_words_of_runc() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("rootfs")).unwrap();
        fs::write(scratch.path().join("rootfs/file"), "").unwrap();
        let rootfs = scratch.path().join("rootfs");
        let find = |program: &str| {
            let args = [program.to_owned()];
            let spec = kata_spec::default_for(rootfs.to_str().unwrap(), &args, false);
            let bundle = Bundle::made(&spec, scratch.path()).unwrap();
            let error: BundleError = bundle.find_program(None).unwrap_err();
            (error.exit_code(), Failure::from(error).line())
        };
        let (code, line) = find("nope");
        assert_eq!(
            (code, line.as_str()),
            (Some(127), "exec: \"nope\": executable file not found in $PATH")
        );
        let (code, line) = find("/file");
        assert_eq!(code, Some(126));
        assert!(line.contains("permission denied"), "{line}");
    }
}
