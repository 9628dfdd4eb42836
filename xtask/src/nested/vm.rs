//! The machine: QEMU emulating a processor with SVM, and what comes out of it.
//!
//! Two ports of a virtio console carry what `tests/nested-host` says: the log, and the report (one JSON object a line;
//! one that announces a file is followed by its bytes). QEMU dies with this thread, and its disks are discarded with it.

use std::ffi::CString;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kata_sys::scm::stream_pair;
use kata_sys::spawn::{Child, Spawn};
use kata_sys::tsc::TscReading;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Deserialize;

use super::emulator::Emulator;

/// The processor of an ordinary server, with what TCG can emulate of AMD's virtualisation.
const CPU: &str = "EPYC,+svm,+npt";
const MEMORY_MIB: u32 = 4096;
const PROCESSORS: usize = 2;
/// Longest from the execution of QEMU to the report's first word; 5 s are usual, 31 s were seen on a loaded machine.
const BOOT: Duration = Duration::from_secs(180);
/// Longest between two words of its report; a living host says one every five seconds.
const SILENCE: Duration = Duration::from_secs(90);
/// Of the console of a host that died: a panic from its reason on, with its stack.
const CONSOLE_LINES: usize = 80;
/// Over which the frequency of the time stamp counter is measured.
const MEASURED: Duration = Duration::from_millis(20);

pub struct Machine<'a> {
    pub emulator: &'a Emulator,
    pub kernel: &'a Path,
    pub initrd: &'a Path,
    /// Of the host, and of the job. Neither is changed.
    pub disks: [&'a Path; 2],
}

/// What came of a job.
#[derive(Debug, Default)]
pub struct Outcome {
    /// From the execution of QEMU to the report's first word.
    pub ready: Duration,
    /// What the host has to have and has not, with the reason.
    pub missing: Vec<(String, String)>,
    pub programs: Vec<Ended>,
    /// The end of the host's console, when it went off in the midst of its job.
    pub died: Option<String>,
    /// Files that were handed out: below this directory.
    pub files: PathBuf,
}

/// How one program ended.
#[derive(Debug, Deserialize)]
pub struct Ended {
    pub name: String,
    pub code: i32,
    /// What ended it, when it was not it itself.
    pub cause: String,
    pub seconds: f64,
}

impl Outcome {
    /// Whether a program was run, and failed.
    pub fn failed(&self, name: &str) -> bool {
        self.programs.iter().any(|program| program.name == name && program.code != 0)
    }

    /// Takes what came of programs that were run once more.
    pub fn replace(&mut self, later: Self) {
        self.programs.retain(|old| later.programs.iter().all(|new| new.name != old.name));
        self.programs.extend(later.programs);
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match (self.code, self.cause.as_str()) {
            (0, _) => "passed",
            (_, "") => "FAILED",
            (_, cause) => cause,
        };
        write!(f, "    {}: {how} ({:.1} s)", self.name, self.seconds)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Facility { name: String, missing: Option<String> },
    Program(Ended),
    Failure { why: String },
    File { name: String, length: usize },
    Alive {},
    End {},
}

impl Machine<'_> {
    /// Boots, reads until the machine is off, and leaves nothing running.
    pub fn run(
        &self,
        deadline: Duration,
        directory: &Path,
        on_line: impl FnMut(&str),
    ) -> Result<Outcome> {
        let files = directory.join("out");
        crate::cache::remove(&files)?;
        fs::create_dir_all(&files).with_context(|| format!("make {}", files.display()))?;
        let started = Instant::now();
        let running = self.start(directory)?;
        let mut reading = Reading {
            started,
            lines: Lines { pending: Vec::new(), on_line },
            report: Vec::new(),
            outcome: Outcome { files, ..Outcome::default() },
            failure: None,
            ended: false,
            heard: started,
        };
        reading.follow(&running, started + deadline)?;
        if !reading.ended {
            let console = directory.join("console.log");
            let text = fs::read_to_string(&console).unwrap_or_default();
            let mut tail: Vec<&str> = text.lines().rev().take(CONSOLE_LINES).collect();
            tail.reverse();
            let mut end = tail.join("\n");
            if reading.heard.elapsed() >= SILENCE {
                let seconds = SILENCE.as_secs();
                end += &format!("\nand for {seconds} s one of its processors, or all, did nothing");
            }
            reading.outcome.died = Some(end);
        }
        if let (Some(why), true) = (&reading.failure, reading.outcome.missing.is_empty()) {
            bail!("the nested host could not do its job: {why}");
        }
        Ok(reading.outcome)
    }

    fn start(&self, directory: &Path) -> Result<Running> {
        let (log, far_log) = stream_pair().context("make a socket for the log")?;
        let (report, far_report) = stream_pair().context("make a socket for the report")?;
        let errors = directory.join("qemu.log");
        let errors =
            File::create(&errors).with_context(|| format!("write {}", errors.display()))?;
        let null = File::open("/dev/null").context("open /dev/null")?;
        let words = self.words(&directory.join("console.log"))?;
        let words: Vec<CString> = words
            .into_iter()
            .map(CString::new)
            .collect::<Result<_, _>>()
            .context("a word holds a NUL byte")?;
        let mut spawn = Spawn::new(words[0].clone());
        spawn.arguments = words;
        // Where it puts what the disks are changed to.
        spawn.environment = vec![variable("TMPDIR", directory)?];
        spawn.fds =
            vec![null.as_fd(), errors.as_fd(), errors.as_fd(), far_log.as_fd(), far_report.as_fd()];
        // An interrupt at the terminal is for us; it dies with us.
        spawn.new_session = true;
        let child = spawn.start().context("start QEMU")?;
        Ok(Running { child, log, report })
    }

    fn words(&self, console: &Path) -> Result<Vec<String>> {
        let khz = tsc_khz().context("this machine has no time stamp counter")?;
        // A guest under TCG sees the counter of the machine below, and can't find out its frequency on a busy one. What a
        // kernel does against mistakes of its processor costs a lot there, and does nothing.
        let parameters = format!(
            "console=ttyS0 quiet panic=-1 reboot=t tsc_early_khz={khz} tsc=reliable no_timer_check \
             mitigations=off"
        );
        let mut words = Vec::from(self.emulator.words());
        let fixed = [
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-machine",
            "q35,smm=off,vmport=off,sata=off,smbus=off,i8042=off,hpet=off,usb=off,graphics=off",
            "-accel",
            "tcg,thread=multi,tb-size=512",
            "-cpu",
            CPU,
            "-device",
            "virtio-rng-pci",
            "-device",
            "virtio-serial-pci",
            "-chardev",
            "socket,id=log,fd=3",
            "-device",
            "virtserialport,chardev=log,name=kata.log",
            "-chardev",
            "socket,id=report,fd=4",
            "-device",
            "virtserialport,chardev=report,name=kata.report",
        ];
        words.extend(fixed.map(str::to_owned));
        words.extend(["-m".into(), MEMORY_MIB.to_string(), "-smp".into(), PROCESSORS.to_string()]);
        words.extend(["-serial".into(), format!("file:{}", console.display())]);
        words.extend(["-kernel".into(), self.kernel.display().to_string()]);
        words.extend(["-initrd".into(), self.initrd.display().to_string()]);
        words.extend(["-append".into(), parameters]);
        for disk in self.disks {
            let drive = format!("file={},if=virtio,format=raw,snapshot=on", disk.display());
            words.extend(["-drive".into(), drive]);
        }
        Ok(words)
    }
}

fn variable(name: &str, value: &Path) -> Result<CString> {
    CString::new(format!("{name}={}", value.display())).context("a path holds a NUL byte")
}

fn tsc_khz() -> Option<u32> {
    let first = TscReading::now()?;
    // Not a wait for something to happen: passing time is what is measured.
    std::thread::sleep(MEASURED);
    TscReading::now()?.khz_since(&first)
}

/// A running machine; killed when dropped.
struct Running {
    child: Child,
    log: OwnedFd,
    report: OwnedFd,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("xtask: end the nested host: {error}");
        }
    }
}

struct Reading<F> {
    started: Instant,
    lines: Lines<F>,
    report: Vec<u8>,
    outcome: Outcome,
    failure: Option<String>,
    ended: bool,
    /// When the last word came.
    heard: Instant,
}

impl<F: FnMut(&str)> Reading<F> {
    /// Reads both ports until both have ended, or a deadline is over.
    fn follow(&mut self, running: &Running, deadline: Instant) -> Result<()> {
        let boot = self.started + BOOT;
        let mut open = vec![(&running.log, true), (&running.report, false)];
        let mut buffer = vec![0; 65_536];
        while !open.is_empty() {
            let ready = self.outcome.ready > Duration::ZERO;
            let silent = self.heard + SILENCE;
            let limit = if ready { deadline.min(silent) } else { boot };
            let left = limit.saturating_duration_since(Instant::now());
            match (left.is_zero(), ready) {
                (false, _) => {}
                (true, false) => {
                    bail!("the nested host did not come up within {} s", BOOT.as_secs())
                }
                (true, true) if silent < deadline => break,
                (true, true) => bail!("the job did not end in time"),
            }
            let mut still = Vec::new();
            for ((fd, is_log), readable) in open.iter().zip(readable(&open, left)?) {
                if !readable || self.take(fd, *is_log, &mut buffer)? {
                    still.push((*fd, *is_log));
                }
            }
            open = still;
        }
        self.lines.end();
        Ok(())
    }

    /// Takes what there is to read; false at the end.
    fn take(&mut self, fd: &OwnedFd, is_log: bool, buffer: &mut [u8]) -> Result<bool> {
        let length = match rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut *buffer)) {
            Ok(length) => length,
            // QEMU went with bytes of ours unread.
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(error) => return Err(io::Error::from(error)).context("read from the nested host"),
        };
        match is_log {
            true => self.lines.take(&buffer[..length]),
            false => {
                self.report.extend_from_slice(&buffer[..length]);
                self.understand()?;
            }
        }
        Ok(length > 0)
    }

    /// Takes all whole words from what was reported.
    fn understand(&mut self) -> Result<()> {
        while let Some(end) = self.report.iter().position(|byte| *byte == b'\n') {
            let line = &self.report[..end];
            let word: Word = serde_json::from_slice(line)
                .with_context(|| format!("understand {:?}", String::from_utf8_lossy(line)))?;
            let mut taken = end + 1;
            self.heard = Instant::now();
            if self.outcome.ready.is_zero() {
                self.outcome.ready = self.started.elapsed();
            }
            match word {
                Word::File { name, length } => {
                    let Some(bytes) = self.report.get(taken..taken + length) else { return Ok(()) };
                    self.keep(&name, bytes)?;
                    taken += length;
                }
                Word::Facility { name, missing: Some(why) } => {
                    self.outcome.missing.push((name, why))
                }
                Word::Facility { .. } | Word::Alive {} => {}
                Word::Program(ended) => {
                    (self.lines.on_line)(&ended.to_string());
                    self.outcome.programs.push(ended);
                }
                Word::Failure { why } => self.failure = Some(why),
                Word::End {} => self.ended = true,
            }
            self.report.drain(..taken);
        }
        Ok(())
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            bail!("{name:?} is no name for a file");
        }
        let path = self.outcome.files.join(name);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))
    }
}

/// Which of the ports have something to read, or have ended; waits for one.
fn readable(ports: &[(&OwnedFd, bool)], limit: Duration) -> Result<Vec<bool>> {
    let timeout = Timespec::try_from(limit).context("convert a timeout")?;
    let mut polled: Vec<PollFd<'_>> =
        ports.iter().map(|(fd, _)| PollFd::new(*fd, PollFlags::IN)).collect();
    rustix::io::retry_on_intr(|| poll(&mut polled, Some(&timeout)))
        .context("wait for the nested host")?;
    Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect())
}

/// Lines out of pieces.
struct Lines<F> {
    pending: Vec<u8>,
    on_line: F,
}

impl<F: FnMut(&str)> Lines<F> {
    fn take(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            (self.on_line)(String::from_utf8_lossy(&line).trim_end());
        }
    }

    fn end(&mut self) {
        if !self.pending.is_empty() {
            self.take(b"\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Lines, Outcome, Reading};

    fn reading(lines: &mut Vec<String>) -> Reading<impl FnMut(&str)> {
        Reading {
            started: Instant::now(),
            lines: Lines { pending: Vec::new(), on_line: |line: &str| lines.push(line.to_owned()) },
            report: Vec::new(),
            outcome: Outcome::default(),
            failure: None,
            ended: false,
            heard: Instant::now(),
        }
    }

    #[test]
    fn words_are_understood_however_they_come() {
        let directory = tempfile();
        let report = "{\"facility\":{\"name\":\"KVM\",\"missing\":\"no device\"}}\n\
                      {\"facility\":{\"name\":\"tun\",\"missing\":null}}\n\
                      {\"file\":{\"name\":\"a/b\",\"length\":4}}\n\n{\n\n\
                      {\"program\":{\"name\":\"run\",\"code\":101,\"cause\":\"\",\"seconds\":1.5}}\n\
                      {\"end\":{}}\n";
        let mut none = Vec::new();
        let mut reading = reading(&mut none);
        reading.outcome.files = directory.clone();
        for byte in report.bytes() {
            reading.report.push(byte);
            reading.understand().unwrap();
        }
        assert_eq!(reading.outcome.missing, [("KVM".to_owned(), "no device".to_owned())]);
        assert_eq!(std::fs::read(directory.join("a/b")).unwrap(), b"\n{\n\n");
        assert_eq!(reading.outcome.programs[0].code, 101);
        assert!(reading.ended && reading.outcome.ready > Duration::ZERO);
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_file_stays_in_its_directory() {
        let mut none = Vec::new();
        let reading = reading(&mut none);
        for name in ["../x", "/etc/x", "a//b", "."] {
            assert!(reading.keep(name, b"").is_err(), "{name}");
        }
    }

    #[test]
    fn lines_are_whole() {
        let mut said = Vec::new();
        let mut reading = reading(&mut said);
        for piece in ["one\ntw", "o\n", "three"] {
            reading.lines.take(piece.as_bytes());
        }
        reading.lines.end();
        drop(reading);
        assert_eq!(said, ["one", "two", "three"]);
    }

    fn tempfile() -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("xtask-nested-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }
}
