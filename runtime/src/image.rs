//! A container image: from its reference to what a container needs of it.

use std::{
    collections::BTreeMap,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use kata_engine_api::handover;
use kata_store::{ImageConfig, Layers, Reference, Store, find_user};

use crate::{args::Run, failure::Failure, id::ContainerId, journal::Journal, made_spec::Program};

/// Name of a root that is made of layers, in the sandbox's directory.
pub const ROOT: &str = "rootfs";

/// What configures Kata is the caller's to say, and no image's.
const OURS: &str = "io.katacontainers.";

/// The layers of an image, and how it wants to be run.
pub struct ImageRoot {
    config: ImageConfig,
    layers: Layers,
    /// Of this run alone.
    writable: PathBuf,
}

impl ImageRoot {
    /// Finds an image, and unpacks what the store has not got yet.
    pub fn open(reference: &Reference, store: &Path, journal: &Journal) -> Result<Self, Failure> {
        let failed = |source| Failure::Image { reference: reference.to_string(), source };
        let store = Store::open(store).map_err(failed)?;
        if let Err(error) = store.sweep() {
            journal.warn(&format!("run: {}", failed(error).line()));
        }
        let image = store.find(reference).map_err(failed)?;
        let layers = store.unpack(&image).map_err(failed)?;
        // Containers of several roots may have the same id.
        let name = ContainerId::random().map_err(Failure::host("make up a name"))?;
        Ok(Self { config: image.config, layers, writable: store.run(name.as_str()) })
    }

    /// All layers as one tree, read-only, as long as this lives.
    pub fn view(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.layers.view.as_raw_fd()).into()
    }

    /// What the shim is told of it.
    pub fn layers(&self) -> Result<handover::Layers, Failure> {
        let text = |path: &PathBuf| {
            let text = path.to_str().map(str::to_owned);
            text.ok_or_else(|| Failure::Usage(format!("{}: not UTF-8", path.display())))
        };
        let lower = self.layers.paths.iter().map(text).collect::<Result<_, _>>()?;
        Ok(handover::Layers { lower, writable: text(&self.writable)? })
    }

    /// What is to be run: the image's word where nothing was typed.
    pub fn program(&self, typed: &Run) -> Result<Program, Failure> {
        let user = typed.made_up.user.as_deref().unwrap_or(&self.config.user);
        let cwd = typed.made_up.cwd.as_deref().unwrap_or(&self.config.working_dir);
        Ok(Program {
            args: arguments(&self.config, typed.of_image.entrypoint.as_deref(), &typed.command)?,
            env: self.config.env.clone(),
            cwd: absolute(cwd),
            user: find_user(&self.layers.view, user)?,
            annotations: annotations(&self.config),
            may_gain_privileges: true,
        })
    }
}

/// Docker's rules: a command takes the place of the image's, an entrypoint that of both.
fn arguments(
    config: &ImageConfig,
    entrypoint: Option<&str>,
    command: &[String],
) -> Result<Vec<String>, Failure> {
    let first = match entrypoint {
        Some("") => Vec::new(),
        Some(program) => vec![program.to_owned()],
        None => config.entrypoint.clone(),
    };
    let rest = match entrypoint {
        _ if !command.is_empty() => command,
        Some(_) => &[],
        None => &config.cmd,
    };
    let arguments = [&first, rest].concat();
    if arguments.is_empty() {
        return Err(Failure::Usage(
            "no command: the image has none, so put one after --".to_owned(),
        ));
    }
    Ok(arguments)
}

/// An image may leave it empty, or forget the slash.
fn absolute(directory: &str) -> String {
    if directory.starts_with('/') { directory.to_owned() } else { format!("/{directory}") }
}

/// As OCI converts an image's configuration to a runtime's.
fn annotations(config: &ImageConfig) -> BTreeMap<String, String> {
    let is_taken = |name: &str| !name.is_empty() && !name.starts_with(OURS);
    let labels = config.labels.iter().filter(|(name, _)| is_taken(name));
    let mut annotations: BTreeMap<String, String> =
        labels.map(|(name, value)| (name.clone(), value.clone())).collect();
    if !config.stop_signal.is_empty() {
        let name = "org.opencontainers.image.stopSignal".to_owned();
        annotations.insert(name, config.stop_signal.clone());
    }
    annotations
}

#[cfg(test)]
mod tests {
    use kata_store::ImageConfig;

    use super::{absolute, annotations, arguments};

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn entrypoint_and_command_follow_docker() {
        let both = ImageConfig {
            entrypoint: words(&["entry"]),
            cmd: words(&["cmd"]),
            ..ImageConfig::default()
        };
        for (entrypoint, command, expected) in [
            (None, &[][..], &["entry", "cmd"][..]),
            (None, &["typed"], &["entry", "typed"]),
            (Some("other"), &[], &["other"]),
            (Some("other"), &["typed"], &["other", "typed"]),
            (Some(""), &["typed"], &["typed"]),
        ] {
            let arguments = arguments(&both, entrypoint, &words(command)).unwrap();
            assert_eq!(arguments, words(expected));
        }
        assert!(arguments(&both, Some(""), &[]).is_err());
        assert!(arguments(&ImageConfig::default(), None, &[]).is_err());
    }

    #[test]
    fn labels_do_not_configure_kata() {
        let mut config = ImageConfig { stop_signal: "SIGQUIT".into(), ..ImageConfig::default() };
        for name in ["a", "io.katacontainers.config.hypervisor.path", ""] {
            config.labels.insert(name.into(), "1".into());
        }
        let annotations = annotations(&config);
        let names: Vec<&str> = annotations.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "org.opencontainers.image.stopSignal"]);
    }

    #[test]
    fn a_directory_without_a_slash_is_below_the_root() {
        assert_eq!(
            (absolute(""), absolute("a"), absolute("/b")),
            ("/".into(), "/a".into(), "/b".into())
        );
    }
}
