//! What an engine types: Go's flags, then a verb.

use std::path::PathBuf;

use anyhow::{Context, bail};

/// The command line of an engine.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `-namespace`.
    pub namespace: String,
    /// `-id`: of the container.
    pub id: String,
    /// `-address`: of the engine's own socket; CRI-O has none.
    pub address: String,
    /// `-bundle`; the working directory when it is not given.
    pub bundle: Option<PathBuf>,
    /// `-debug`.
    pub debug: bool,
    /// What is to be done.
    pub verb: Verb,
}

/// What an engine wants.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Nothing was said.
    #[default]
    None,
    /// Start a shim, or find the one that serves the container's sandbox.
    Start,
    /// Clean up.
    Delete,
    /// Say what this program is, as protobuf.
    Info,
    /// Say what this program is, as text.
    Version,
}

impl Flags {
    /// Parses what follows the program's name. Go takes one dash or two, and a value behind `=` or as the next word.
    pub fn parse(words: &[String]) -> anyhow::Result<Self> {
        let mut flags = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                flags.verb = match word.as_str() {
                    "start" => Verb::Start,
                    "delete" => Verb::Delete,
                    other => bail!("unknown command {other:?}"),
                };
                continue;
            };
            let (name, given) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            let mut value = || {
                let next = given.clone().or_else(|| words.next().cloned());
                next.with_context(|| format!("-{name} needs a value"))
            };
            match name {
                "namespace" => flags.namespace = value()?,
                "id" => flags.id = value()?,
                "address" => flags.address = value()?,
                "bundle" => flags.bundle = Some(value()?.into()),
                "publish-binary" | "socket" => drop(value()?),
                "debug" => flags.debug = given.as_deref() != Some("false"),
                "info" => flags.verb = Verb::Info,
                "v" | "version" => flags.verb = Verb::Version,
                _ => bail!("unknown flag -{name}"),
            }
        }
        Ok(flags)
    }

    /// Where the container's bundle is.
    pub fn bundle(&self) -> anyhow::Result<PathBuf> {
        match &self.bundle {
            Some(bundle) if !bundle.as_os_str().is_empty() => Ok(bundle.clone()),
            _ => std::env::current_dir().context("find the bundle, which is the working directory"),
        }
    }

    /// Fails unless namespace and id are names that may be part of a path.
    pub fn check(&self) -> anyhow::Result<()> {
        for (flag, name) in [("namespace", &self.namespace), ("id", &self.id)] {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
            if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
                bail!("-{flag} {name:?} is no identifier");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Flags, Verb};

    fn parse(line: &str) -> anyhow::Result<Flags> {
        Flags::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn containerds_own_line_is_understood() {
        let line = "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id a1 -debug start";
        let flags = parse(line).unwrap();
        assert_eq!((flags.namespace.as_str(), flags.id.as_str()), ("k8s.io", "a1"));
        assert_eq!((flags.address.as_str(), flags.debug), ("/run/c.sock", true));
        assert_eq!(flags.verb, Verb::Start);
        let flags = parse("--id=b --bundle=/b -namespace n delete").unwrap();
        assert_eq!((flags.verb, flags.bundle), (Verb::Delete, Some("/b".into())));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(parse("-id").is_err());
        assert!(parse("-frobnicate start").is_err());
        assert!(parse("-id a begin").is_err());
        assert!(parse("-id ../a -namespace n start").unwrap().check().is_err());
    }
}
