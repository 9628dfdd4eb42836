//! Command line of the monitor; only `kata-runtime` and the shim write it.

use std::{ffi::OsString, os::fd::RawFd, path::PathBuf};

/// Why the command line was not understood.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    #[error("unknown argument {0:?}; this program is started by kata-runtime, not by hand")]
    Unknown(OsString),
    #[error("{option} needs a value")]
    Missing { option: &'static str },
    #[error("{option} {value:?} is not a number")]
    Number { option: &'static str, value: OsString },
    #[error("--container is missing")]
    NoContainer,
    #[error("--new-network and --network-fd exclude each other")]
    TwoNetworks,
}

/// Network namespace that the monitor stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// The caller's.
    #[default]
    Inherited,
    /// One of its own.
    New,
    /// The one behind this descriptor.
    Join(RawFd),
}

/// What the monitor is to stand for, and how.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// Container id.
    pub container: OsString,
    /// Process id within the container; none for the container itself.
    pub exec: Option<OsString>,
    /// The standard streams are the caller's own terminal.
    pub terminal: bool,
    /// Connected console socket: the terminal is to be made, and its master sent there.
    pub console_socket: Option<RawFd>,
    /// Network namespace.
    pub network: Network,
    /// Trees of the container, each with its place in it, the root first.
    pub trees: Vec<(RawFd, PathBuf)>,
}

impl Args {
    /// Parses what follows the program's name.
    pub fn parse(words: impl Iterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut args = Self::default();
        let mut words = words;
        while let Some(word) = words.next() {
            match word.to_str() {
                Some("--container") => args.container = value(&mut words, "--container")?,
                Some("--exec") => args.exec = Some(value(&mut words, "--exec")?),
                Some("--terminal") => args.terminal = true,
                Some("--console-socket-fd") => {
                    args.console_socket = Some(number(&mut words, "--console-socket-fd")?);
                }
                Some("--new-network") => args.join(Network::New)?,
                Some("--network-fd") => {
                    let fd = number(&mut words, "--network-fd")?;
                    args.join(Network::Join(fd))?;
                }
                Some("--tree") => {
                    let fd = number(&mut words, "--tree")?;
                    args.trees.push((fd, value(&mut words, "--tree")?.into()));
                }
                _ => return Err(ArgsError::Unknown(word)),
            }
        }
        if args.container.is_empty() {
            return Err(ArgsError::NoContainer);
        }
        Ok(args)
    }

    fn join(&mut self, network: Network) -> Result<(), ArgsError> {
        if self.network != Network::Inherited {
            return Err(ArgsError::TwoNetworks);
        }
        self.network = network;
        Ok(())
    }
}

fn value(
    words: &mut impl Iterator<Item = OsString>,
    option: &'static str,
) -> Result<OsString, ArgsError> {
    words.next().ok_or(ArgsError::Missing { option })
}

fn number<T: std::str::FromStr>(
    words: &mut impl Iterator<Item = OsString>,
    option: &'static str,
) -> Result<T, ArgsError> {
    let word = value(words, option)?;
    let number = word.to_str().and_then(|digits| digits.parse().ok());
    number.ok_or(ArgsError::Number { option, value: word })
}

#[cfg(test)]
mod tests {
    use super::{Args, Network};

    fn parse(line: &str) -> Result<Args, String> {
        Args::parse(line.split_whitespace().map(Into::into)).map_err(|error| error.to_string())
    }

    #[test]
    fn every_option_is_understood() {
        let line = "--container c --exec e --terminal --console-socket-fd 7 --network-fd 6";
        let args = parse(&format!("{line} --tree 8 / --tree 9 /data")).unwrap();
        assert_eq!(args.trees, [(8, "/".into()), (9, "/data".into())]);
        assert_eq!(args.network, Network::Join(6));
        assert_eq!(args.console_socket, Some(7));
        assert!(args.terminal && args.exec.is_some());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, word) in [
            ("", "--container"),
            ("--container", "needs a value"),
            ("--container c --network-fd x", "not a number"),
            ("--container c --new-network --network-fd 6", "exclude"),
            ("--container c --tree 7", "needs a value"),
            ("--container c --bogus", "--bogus"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
