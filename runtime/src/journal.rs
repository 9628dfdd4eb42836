//! Where failures are told: a line on stderr for a person, and one in `--log` for an engine.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::SystemTime,
};

use kata_engine_api::timestamp::rfc3339;

use crate::failure::Failure;

/// How lines of `--log` look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    // No help of their own: with it every verb's --help takes the long form.
    #[default]
    Text,
    Json,
}

/// Severity of a line, in the words of engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Debug,
    Warning,
    Error,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// The log of one invocation.
#[derive(Debug, Default)]
pub struct Journal {
    file: Option<File>,
    format: Format,
    debug: bool,
}

impl Journal {
    /// One on stderr alone.
    pub fn on_stderr(format: Format) -> Self {
        Self { format, ..Self::default() }
    }

    /// Opens the log file, if one is asked for.
    pub fn open(path: Option<&Path>, format: Format, debug: bool) -> Result<Self, Failure> {
        let open = |path: &Path| {
            OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o644)
                .open(path)
                .map_err(Failure::host(format!("open the log {}", path.display())))
        };
        Ok(Self { file: path.map(open).transpose()?, format, debug })
    }

    /// Tells of a step, where `--debug` asks for it.
    pub fn debug(&self, message: &str) {
        if self.debug {
            self.write(Level::Debug, message);
        }
    }

    /// Tells of something odd that stops nothing.
    pub fn warn(&self, message: &str) {
        self.write(Level::Warning, message);
    }

    /// Tells of the failure that ends the command: stderr has it in every case, in the form that is asked for where it
    /// is the log.
    pub fn error(&self, message: &str) {
        self.write(Level::Error, message);
        if self.file.is_some() {
            say(message);
        }
    }

    fn write(&self, level: Level, message: &str) {
        let line = || line(self.format, level, message, SystemTime::now());
        match &self.file {
            Some(file) => {
                let mut file: &File = file;
                // There is nowhere else to tell that the log is full.
                file.write_all(line().as_bytes()).ok();
            }
            // Whoever asks for the steps wants to know when they were, and whoever asks for JSON reads lines of it.
            None if level == Level::Debug || self.format == Format::Json => put(&line()),
            None => say(message),
        }
    }
}

fn say(message: &str) {
    put(&format!("kata-runtime: {message}\n"));
}

fn put(line: &str) {
    // Nobody may be reading stderr any more.
    std::io::stderr().write_all(line.as_bytes()).ok();
}

fn line(format: Format, level: Level, message: &str, time: SystemTime) -> String {
    let (level, time) = (level.word(), rfc3339(time));
    match format {
        Format::Json => {
            format!("{}\n", serde_json::json!({ "level": level, "msg": message, "time": time }))
        }
        Format::Text => format!("time={time:?} level={level} msg={message:?}\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::{Format, Journal, Level, line};

    #[test]
    fn json_lines_are_what_go_runc_parses() {
        let text = line(Format::Json, Level::Error, "exec: \"x\": not found", UNIX_EPOCH);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["level"], "error");
        assert_eq!(json["msg"], "exec: \"x\": not found");
        assert_eq!(json["time"], "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text.matches('\n').count(), 1);
    }

    #[test]
    fn the_log_is_appended_to() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("log.json");
        for word in ["one", "two"] {
            Journal::open(Some(&path), Format::Json, false).unwrap().warn(word);
        }
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.lines().last().unwrap().contains("\"two\""));
    }
}
