//! The one way in which xtask starts other programs: it says what it runs, and a failure shows how the output ended.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Lines of output that a failure shows; enough for a compiler's error with its notes.
const TAIL_LINES: usize = 40;

/// A command line that is about to run.
#[derive(Debug)]
pub struct Run {
    command: Command,
    quiet: bool,
}

impl Run {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        Self { command, quiet: false }
    }

    pub fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.command.args(args);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn cwd(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Runs without announcing it: for questions, not for work.
    pub fn quietly(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Runs with the terminal of ours, for programs whose own output is the point (cargo, tests).
    pub fn attached(mut self) -> Result<()> {
        self.announce();
        let status = self.command.status().with_context(|| format!("start {}", self.line()))?;
        if !status.success() {
            bail!("{} ended with {status}", self.line());
        }
        Ok(())
    }

    /// Runs and gives what it wrote to stdout; what it wrote to stderr is shown only when it fails.
    pub fn output(self) -> Result<String> {
        let line = self.line();
        String::from_utf8(self.bytes()?)
            .with_context(|| format!("{line} wrote something that is not UTF-8"))
    }

    /// As [`Run::output`], for what is not text.
    pub fn bytes(mut self) -> Result<Vec<u8>> {
        self.announce();
        let output = self.command.output().with_context(|| format!("start {}", self.line()))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("{} ended with {}\n{}", self.line(), output.status, tail(&text));
        }
        Ok(output.stdout)
    }

    /// Runs with all output in the file `log`; a failure shows the end of it.
    pub fn logged(self, log: &Path) -> Result<()> {
        self.streamed(log, |_| {})
    }

    /// As [`Run::logged`], and gives each line to `on_line` when it is written.
    pub fn streamed(mut self, log: &Path, mut on_line: impl FnMut(&str)) -> Result<()> {
        self.announce();
        if let Some(directory) = log.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("make the directory {}", directory.display()))?;
        }
        let mut file = File::create(log).with_context(|| format!("write {}", log.display()))?;
        let (reader, writer) = std::io::pipe().context("make a pipe")?;
        let again = writer.try_clone().context("make a pipe")?;
        self.command.stdout(writer).stderr(again);
        let line = self.line();
        let mut child = self.command.spawn().with_context(|| format!("start {line}"))?;
        // The command keeps the writing ends; they must close for the reader to see the end.
        drop(self);
        for output in BufReader::new(reader).split(b'\n') {
            let output = output.with_context(|| format!("read what {line} writes"))?;
            file.write_all(&output)
                .and_then(|()| file.write_all(b"\n"))
                .with_context(|| format!("write {}", log.display()))?;
            on_line(&String::from_utf8_lossy(&output));
        }
        let status = child.wait().with_context(|| format!("wait for {line}"))?;
        if status.success() {
            return Ok(());
        }
        let text = fs::read(log).unwrap_or_default();
        let end = tail(&String::from_utf8_lossy(&text));
        bail!("{line} ended with {status}; {} ends with:\n{end}", log.display())
    }

    fn announce(&self) {
        if !self.quiet {
            println!("  $ {}", self.line());
        }
    }

    fn line(&self) -> String {
        let mut words = vec![self.command.get_program().to_owned()];
        words.extend(self.command.get_args().map(OsString::from));
        words.join(OsStr::new(" ")).to_string_lossy().into_owned()
    }
}

/// Whether a program of that name is in `PATH`.
pub fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_end_of_stderr() {
        let failure = Run::new("sh").args(["-c", "echo why >&2; exit 3"]).quietly().output();
        let text = format!("{:#}", failure.unwrap_err());
        assert!(text.contains("exit status: 3") && text.ends_with("why"), "{text}");
    }

    #[test]
    fn a_log_holds_both_streams_and_a_failure_shows_its_end() {
        let log = std::env::temp_dir().join(format!("xtask-log-{}", std::process::id()));
        let mut lines = Vec::new();
        let failure = Run::new("sh")
            .args(["-c", "echo out; echo err >&2; exit 1"])
            .quietly()
            .streamed(&log, |line| lines.push(line.to_owned()));
        let text = format!("{:#}", failure.unwrap_err());
        let logged = fs::read_to_string(&log).unwrap();
        fs::remove_file(&log).unwrap();
        assert_eq!(lines, ["out", "err"]);
        assert_eq!(logged, "out\nerr\n");
        assert!(text.ends_with("out\nerr"), "{text}");
    }

    #[test]
    fn the_tail_is_the_last_lines_in_order() {
        let text: String = (0..100).map(|n| format!("{n}\n")).collect();
        let tail = tail(&text);
        assert!(tail.starts_with("60\n") && tail.ends_with("\n99"), "{tail}");
    }
}
