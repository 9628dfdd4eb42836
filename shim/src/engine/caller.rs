//! Which engine has typed `start`, what it said on stdin, and how it is answered.
//!
//! | caller | stdin | answer that it reads |
//! |---|---|---|
//! | containerd 1.6, CRI-O | an `Any` with options, or nothing | the address |
//! | containerd 1.7 to 2.2 | the same | the address, or JSON; nothing tells them apart from the former |
//! | containerd 2.3 and later | `BootstrapParams` | `BootstrapResult` too |
//!
//! So everybody gets the address, but who shows that it knows the last form. An `Any` can be read as `BootstrapParams`:
//! those count only with the id and the namespace of the command line.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use kata_engine_api::containerd::{
    any::Any,
    bootstrap::{BootstrapParams, BootstrapResult},
    empty::Empty,
    runtimeoptions::Options,
};
use protobuf::Message;

use super::flags::Flags;

/// Type of the options that we have; before the last slash may be a prefix.
const OPTIONS: &str = "runtimeoptions.v1.Options";

/// Those of runc's shim. containerd 2 takes them to say where the shim of a sandbox is, which we know.
const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";

/// In [`RUNC_OPTIONS`], what wishes nothing of a VM, or what it has anyhow: no pivot_root, no keyring, owners of the streams
/// (they are the user's), systemd's names of groups (a spec shows by itself whether it has one), and the paths of CRIU, for
/// what is refused by itself; and address and version of the Task service.
const NOTHING: [u32; 10] = [1, 2, 4, 5, 8, 9, 10, 11, 12, 13];

/// With this version an engine starts the program for each container of a pod, and to clean up after each; what is
/// served does not depend on it.
const VERSION: i32 = 2;

/// Name of a configuration that came as text, in the sandbox's directory.
const OPTIONS_FILE: &str = "options.toml";

/// A configuration of the engine's choice, instead of the machine's.
#[derive(Debug, PartialEq, Eq)]
pub enum Configuration {
    /// A file, or a directory like `/etc/kata`.
    Path(PathBuf),
    /// TOML.
    Text(Vec<u8>),
}

impl Configuration {
    /// Where it can be read from; a text is put into `directory`.
    pub fn file(&self, directory: &Path) -> anyhow::Result<PathBuf> {
        match self {
            Self::Path(path) => Ok(path.clone()),
            Self::Text(text) => {
                let path = directory.join(OPTIONS_FILE);
                fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
                Ok(path)
            }
        }
    }
}

/// Who asked.
#[derive(Debug, PartialEq, Eq)]
pub struct Caller {
    /// It knows `BootstrapResult`.
    bootstraps: bool,
    configuration: Option<Configuration>,
}

impl Caller {
    /// By what it said.
    pub fn of(stdin: &[u8], flags: &Flags) -> anyhow::Result<Self> {
        let params = BootstrapParams::parse_from_bytes(stdin)
            .ok()
            .filter(|params| params.instance_id == flags.id && params.namespace == flags.namespace);
        let (bootstraps, options) = match params {
            Some(params) => {
                let values =
                    params.extensions.into_iter().filter_map(|one| one.value.into_option());
                // Those for other readers are passed over, as the protocol has it.
                (true, values.filter(is_ours).last())
            }
            None if stdin.is_empty() => (false, None),
            None => (false, Some(Any::parse_from_bytes(stdin).context("read the options")?)),
        };
        let configuration = options.map(|any| configuration(&any)).transpose()?.flatten();
        Ok(Self { bootstraps, configuration })
    }

    /// What it wants to be configured with.
    pub fn configuration(&self) -> Option<&Configuration> {
        self.configuration.as_ref()
    }

    /// The one thing that is printed.
    pub fn answer(&self, address: &str) -> anyhow::Result<Vec<u8>> {
        if !self.bootstraps {
            return Ok(address.into());
        }
        let result = BootstrapResult {
            version: VERSION,
            address: address.into(),
            protocol: "ttrpc".into(),
            ..Default::default()
        };
        result.write_to_bytes().context("encode the answer")
    }
}

fn is_ours(any: &Any) -> bool {
    any.type_url.rsplit('/').next() == Some(OPTIONS)
}

/// Refuses what would be dropped of runc's options.
fn check_of_runc(options: &[u8]) -> anyhow::Result<()> {
    // None of the fields is known to this type, so all are listed.
    let options = Empty::parse_from_bytes(options).context("read the options of runc")?;
    let mut fields = options.special_fields.unknown_fields().iter();
    match fields.find(|(number, _)| !NOTHING.contains(number)).map(|(number, _)| number) {
        None => Ok(()),
        Some(number) => {
            let name = match number {
                3 => "ShimCgroup",
                6 => "BinaryName",
                7 => "Root",
                _ => "one of a later version",
            };
            bail!(
                "{RUNC_OPTIONS:?} has field {number} ({name}), which means nothing here: take it out"
            )
        }
    }
}

fn configuration(any: &Any) -> anyhow::Result<Option<Configuration>> {
    if !is_ours(any) {
        if any.type_url.rsplit('/').next() == Some(RUNC_OPTIONS) {
            return check_of_runc(&any.value).map(|()| None);
        }
        // Of another runtime: none of its wishes would be met.
        if any.value.is_empty() {
            return Ok(None);
        }
        bail!("options of the type {:?} are not known here, but {OPTIONS:?} are", any.type_url);
    }
    let options = Options::parse_from_bytes(&any.value).context("read the options")?;
    if !options.config_path.is_empty() {
        let path = PathBuf::from(options.config_path);
        if !path.is_absolute() {
            bail!("ConfigPath {} is not absolute", path.display());
        }
        fs::metadata(&path).with_context(|| format!("find ConfigPath {}", path.display()))?;
        return Ok(Some(Configuration::Path(path)));
    }
    let text = options.config_body;
    Ok((!text.is_empty()).then_some(Configuration::Text(text)))
}

#[cfg(test)]
mod tests {
    use kata_engine_api::containerd::{
        any::Any,
        bootstrap::{BootstrapParams, Extension},
        runtimeoptions::Options,
    };
    use protobuf::Message;

    use super::{Caller, Configuration, OPTIONS};
    use crate::engine::flags::Flags;

    const ADDRESS: &str = "unix:///run/s";

    fn flags() -> Flags {
        Flags { namespace: "k8s.io".into(), id: "a1".into(), ..Flags::default() }
    }

    fn any(type_url: &str, message: &impl Message) -> Any {
        let value = message.write_to_bytes().unwrap();
        Any { type_url: type_url.into(), value, ..Any::default() }
    }

    fn text(body: &str) -> Options {
        Options { config_body: body.into(), ..Options::default() }
    }

    #[test]
    fn each_caller_gets_the_form_that_it_reads() {
        let plain = Caller::of(b"", &flags()).unwrap();
        assert_eq!(plain.answer(ADDRESS).unwrap(), include_bytes!("../../golden/address"));
        let params = BootstrapParams {
            instance_id: "a1".into(),
            namespace: "k8s.io".into(),
            ..BootstrapParams::default()
        };
        let caller = Caller::of(&params.write_to_bytes().unwrap(), &flags()).unwrap();
        assert_eq!(caller.answer(ADDRESS).unwrap(), include_bytes!("../../golden/bootstrap"));
    }

    #[test]
    fn params_of_another_container_are_options_that_look_like_them() {
        let options = any("a1", &Options::default());
        let caller = Caller::of(&options.write_to_bytes().unwrap(), &flags()).unwrap();
        assert!(!caller.bootstraps);
    }

    #[test]
    fn a_configuration_comes_as_a_path_or_as_text() {
        let of = |options: &Options| {
            let stdin = any(OPTIONS, options).write_to_bytes().unwrap();
            Caller::of(&stdin, &flags()).map(|caller| caller.configuration)
        };
        let path = |path: &str| Options { config_path: path.into(), ..Options::default() };
        assert_eq!(of(&path("/")).unwrap(), Some(Configuration::Path("/".into())));
        assert!(of(&path("/no/such")).is_err());
        assert!(of(&path("here")).is_err());
        assert_eq!(of(&text("a = 1")).unwrap(), Some(Configuration::Text("a = 1".into())));
        assert_eq!(of(&Options::default()).unwrap(), None);
        let extension =
            |value: Any| Extension { value: Some(value).into(), ..Extension::default() };
        let params = BootstrapParams {
            instance_id: "a1".into(),
            namespace: "k8s.io".into(),
            extensions: vec![
                extension(any("containerd.io/nri.v1.PluginConfig", &text("x"))),
                extension(any(&format!("types.containerd.io/{OPTIONS}"), &text("b = 2"))),
            ],
            ..BootstrapParams::default()
        };
        let caller = Caller::of(&params.write_to_bytes().unwrap(), &flags()).unwrap();
        assert_eq!(caller.configuration(), Some(&Configuration::Text("b = 2".into())));
    }

    #[test]
    fn wishes_for_another_runtime_are_refused() {
        let stdin = |any: Any| any.write_to_bytes().unwrap();
        let runc = any("containerd.runc.v1.Options", &text("x"));
        assert!(Caller::of(&stdin(runc), &flags()).is_err());
        let none = any("containerd.runc.v1.Options", &Options::default());
        // Field 12 is a string, fields 4 and 13 are numbers.
        let value = vec![12 << 3 | 2, 1, b'x', 13 << 3, 2, 4 << 3, 100];
        let place = Any { value, ..none.clone() };
        assert!(Caller::of(&stdin(place), &flags()).is_ok());
        assert!(Caller::of(&stdin(none), &flags()).is_ok());
    }
}
