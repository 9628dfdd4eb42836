//! Where a key's value lives, and what it may be.

use std::{fmt, path::PathBuf, time::Duration};

use crate::{
    nearest,
    settings::{
        Accelerator, Config, LogLevel, Machine, NetworkModel, Pages, UnknownAnnotations, Word,
    },
};

/// A place in [`Config`] with its type and bounds.
#[derive(Clone, Copy)]
pub enum Field {
    /// An absolute path.
    Path(fn(&mut Config) -> &mut Option<PathBuf>),
    /// A whole number from the first to the second bound.
    Number(u32, u32, fn(&mut Config) -> &mut u32),
    /// Whole seconds, at most the bound.
    Seconds(u32, fn(&mut Config) -> &mut Duration),
    /// Whole milliseconds, at most the bound.
    Milliseconds(u32, fn(&mut Config) -> &mut Duration),
    /// A word of [`Accelerator`].
    Accelerator(fn(&mut Config) -> &mut Accelerator),
    /// A word of [`Machine`].
    Machine(fn(&mut Config) -> &mut Machine),
    /// A word of [`Pages`].
    Pages(fn(&mut Config) -> &mut Pages),
    /// A word of [`NetworkModel`].
    NetworkModel(fn(&mut Config) -> &mut NetworkModel),
    /// A word of [`LogLevel`].
    LogLevel(fn(&mut Config) -> &mut LogLevel),
    /// A word of [`UnknownAnnotations`].
    UnknownAnnotations(fn(&mut Config) -> &mut UnknownAnnotations),
}

/// A value as it stood in a file or an annotation, before it was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Given {
    Text(String),
    Number(i64),
    /// Anything that no key takes; holds TOML's name for it.
    Other(&'static str),
}

impl Given {
    /// An annotation is text whatever its key wants; a number is recognised by its look.
    pub(crate) fn from_annotation(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Text(text.to_owned()), Self::Number)
    }
}

impl fmt::Display for Given {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(out, "{text:?}"),
            Self::Number(number) => write!(out, "{number}"),
            Self::Other(kind) => write!(out, "a {kind}"),
        }
    }
}

impl Field {
    /// What may stand there, for a person.
    pub fn accepts(&self) -> String {
        match self {
            Self::Path(_) => "an absolute path".into(),
            Self::Number(least, most, _) => format!("a whole number from {least} to {most}"),
            Self::Seconds(most, _) => format!("whole seconds from 1 to {most}"),
            Self::Milliseconds(most, _) => format!("whole milliseconds from 0 to {most}"),
            Self::Accelerator(_) => list::<Accelerator>(),
            Self::Machine(_) => list::<Machine>(),
            Self::Pages(_) => list::<Pages>(),
            Self::NetworkModel(_) => list::<NetworkModel>(),
            Self::LogLevel(_) => list::<LogLevel>(),
            Self::UnknownAnnotations(_) => list::<UnknownAnnotations>(),
        }
    }

    /// Puts the value in its place, or hands back what is wrong with it.
    pub(crate) fn store(&self, config: &mut Config, given: &Given) -> Result<(), String> {
        self.try_store(config, given).map_err(|hint| {
            let hint = hint.map(|word| format!(", did you mean {word:?}?")).unwrap_or_default();
            format!("{given} is not {}{hint}", self.accepts())
        })
    }

    fn try_store(&self, config: &mut Config, given: &Given) -> Result<(), Option<&'static str>> {
        match self {
            Self::Path(place) => *place(config) = Some(path(given).ok_or(None)?),
            Self::Number(least, most, place) => {
                *place(config) = number(given, *least, *most).ok_or(None)?;
            }
            Self::Seconds(most, place) => {
                let seconds = number(given, 1, *most).ok_or(None)?;
                *place(config) = Duration::from_secs(seconds.into());
            }
            Self::Milliseconds(most, place) => {
                let milliseconds = number(given, 0, *most).ok_or(None)?;
                *place(config) = Duration::from_millis(milliseconds.into());
            }
            Self::Accelerator(place) => *place(config) = word(given)?,
            Self::Machine(place) => *place(config) = word(given)?,
            Self::Pages(place) => *place(config) = word(given)?,
            Self::NetworkModel(place) => *place(config) = word(given)?,
            Self::LogLevel(place) => *place(config) = word(given)?,
            Self::UnknownAnnotations(place) => *place(config) = word(given)?,
        }
        Ok(())
    }

    /// The value as a file would have it; none when the path is left to the installation.
    pub fn show(&self, config: &Config) -> Option<String> {
        let mut config = config.clone();
        let config = &mut config;
        Some(match self {
            Self::Path(place) => place(config).as_ref()?.display().to_string(),
            Self::Number(_, _, place) => place(config).to_string(),
            Self::Seconds(_, place) => place(config).as_secs().to_string(),
            Self::Milliseconds(_, place) => place(config).as_millis().to_string(),
            Self::Accelerator(place) => place(config).name().into(),
            Self::Machine(place) => place(config).name().into(),
            Self::Pages(place) => place(config).name().into(),
            Self::NetworkModel(place) => place(config).name().into(),
            Self::LogLevel(place) => place(config).name().into(),
            Self::UnknownAnnotations(place) => place(config).name().into(),
        })
    }
}

fn path(given: &Given) -> Option<PathBuf> {
    match given {
        Given::Text(text) if text.starts_with('/') && !text.contains('\0') => Some(text.into()),
        _ => None,
    }
}

fn number(given: &Given, least: u32, most: u32) -> Option<u32> {
    match given {
        Given::Number(number) => {
            u32::try_from(*number).ok().filter(|number| (least..=most).contains(number))
        }
        _ => None,
    }
}

fn word<W: Word>(given: &Given) -> Result<W, Option<&'static str>> {
    let Given::Text(text) = given else { return Err(None) };
    W::parse(text).ok_or_else(|| nearest(text, W::WORDS.iter().map(|(name, _)| *name)))
}

fn list<W: Word>() -> String {
    let words: Vec<String> = W::WORDS.iter().map(|(name, _)| format!("{name:?}")).collect();
    format!("one of {}", words.join(", "))
}
