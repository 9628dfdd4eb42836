//! Signals by number or name.

use std::{fmt, str::FromStr};

/// A signal by its number: 0 only asks whether there is somebody, beyond 64 there is none, and whoever is to send it says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(u32);

/// Names without `SIG`, at the index of their number; the numbers of x86 and arm, which the guest shares with the host.
const NAMES: [&str; 32] = [
    "0", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

const ALIASES: [(&str, u32); 4] = [("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];

/// First and last realtime signal as programs see them; the C library keeps 32 and 33.
const REALTIME: (u32, u32) = (34, 64);

impl Signal {
    /// The one that nobody can ignore.
    pub const KILL: Self = Self(9);

    /// As the kernel counts.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// Not a signal.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown signal {0:?}{hint}", hint = hint(.0))]
pub struct UnknownSignal(String);

fn hint(word: &str) -> String {
    let bare = bare(word);
    kata_config::nearest(&bare, NAMES)
        .map(|name| format!(", did you mean {name}?"))
        .unwrap_or_default()
}

fn bare(word: &str) -> String {
    let upper = word.to_ascii_uppercase();
    upper.strip_prefix("SIG").unwrap_or(&upper).to_owned()
}

impl FromStr for Signal {
    type Err = UnknownSignal;

    fn from_str(word: &str) -> Result<Self, UnknownSignal> {
        let unknown = || UnknownSignal(word.to_owned());
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.parse().map(Self).map_err(|_| unknown());
        }
        let bare = bare(word);
        let alias = || ALIASES.iter().find(|(name, _)| *name == bare).map(|(_, number)| *number);
        let standard =
            || (1..).zip(&NAMES[1..]).find(|(_, n)| **n == bare).map(|(number, _)| number);
        standard().or_else(alias).or_else(|| realtime(&bare)).map(Self).ok_or_else(unknown)
    }
}

/// `RTMIN`, `RTMIN+3`, `RTMAX-1`.
fn realtime(bare: &str) -> Option<u32> {
    let (least, most) = REALTIME;
    let number = match (bare.strip_prefix("RTMIN"), bare.strip_prefix("RTMAX")) {
        (Some(""), _) => least,
        (_, Some("")) => most,
        (Some(offset), _) => least.checked_add(offset.strip_prefix('+')?.parse().ok()?)?,
        (_, Some(offset)) => most.checked_sub(offset.strip_prefix('-')?.parse().ok()?)?,
        _ => return None,
    };
    (least..=most).contains(&number).then_some(number)
}

impl fmt::Display for Signal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(self.0 as usize) {
            Some(name) if self.0 > 0 => write!(out, "SIG{name}"),
            _ => write!(out, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Signal;

    fn number(word: &str) -> Option<u32> {
        word.parse::<Signal>().ok().map(Signal::number)
    }

    #[test]
    fn names_and_numbers_of_engines() {
        for (word, wanted) in [
            ("15", 15),
            ("9", 9),
            ("0", 0),
            ("64", 64),
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigkill", 9),
            ("Hup", 1),
            ("SIGWINCH", 28),
            ("SIGSYS", 31),
            ("USR2", 12),
            ("IOT", 6),
            ("CLD", 17),
            ("POLL", 29),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX", 64),
            ("SIGRTMAX-14", 50),
        ] {
            assert_eq!(number(word), Some(wanted), "{word}");
        }
    }

    #[test]
    fn what_is_no_signal() {
        for word in [
            "",
            "-1",
            "SIG",
            "TERMS!",
            "SIGSIGTERM",
            "RTMIN+31",
            "RTMAX-99",
            "RTMIN3",
            "1x",
            "4294967297",
        ] {
            assert_eq!(number(word), None, "{word}");
        }
        let error = "SIGTERMM".parse::<Signal>().unwrap_err().to_string();
        assert_eq!(error, "unknown signal \"SIGTERMM\", did you mean TERM?");
    }
}
