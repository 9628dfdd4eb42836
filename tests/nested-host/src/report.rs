//! What is told to the outer host, by two ports of a virtio console: `kata.log` has what programs write, as it comes;
//! `kata.report` has one JSON object a line, and after one that announces a file, its bytes.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result, anyhow};
use rustix::fs::OFlags;
use serde_json::{Value, json};

const PORTS: &str = "/sys/class/virtio-ports";

/// The two ports.
#[derive(Clone)]
pub struct Report {
    log: Arc<File>,
    /// Locked for a word, and for a file with its announcement.
    report: Arc<Mutex<File>>,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Code(i32),
    Signal(i32),
    /// It was killed, because it had not ended in time.
    Deadline,
}

impl Report {
    pub fn open() -> Result<Self> {
        let report = Mutex::new(port("kata.report")?);
        Ok(Self { log: Arc::new(port("kata.log")?), report: Arc::new(report) })
    }

    /// Where programs write.
    pub fn log(&self) -> Result<Stdio> {
        Ok(self.log.try_clone().context("duplicate the log's port")?.into())
    }

    pub fn facility(&mut self, name: &str, missing: Option<&String>) -> Result<()> {
        self.say(&json!({ "facility": { "name": name, "missing": missing } }))
    }

    pub fn program(&mut self, name: &str, (end, seconds): (End, f64)) -> Result<()> {
        let (code, cause) = match end {
            End::Code(code) => (code, String::new()),
            End::Signal(signal) => (128 + signal, format!("killed by signal {signal}")),
            End::Deadline => (137, "not ended in time".to_owned()),
        };
        self.say(&json!({
            "program": { "name": name, "code": code, "cause": cause, "seconds": seconds }
        }))
    }

    /// Why there is no result.
    pub fn failure(&mut self, why: &str) -> Result<()> {
        self.say(&json!({ "failure": { "why": why } }))
    }

    pub fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let word = json!({ "file": { "name": name, "length": bytes.len() } });
        self.send(&word, bytes).with_context(|| format!("send {name}"))
    }

    /// Files of a directory, those below it too.
    pub fn files(&mut self, directory: &Path, prefix: &str) -> Result<()> {
        let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
        for entry in entries {
            let entry = entry.context("list the files")?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            match entry.file_type().context("look at a file")? {
                kind if kind.is_dir() => self.files(&entry.path(), &format!("{name}/"))?,
                kind if kind.is_file() => {
                    let bytes = fs::read(entry.path()).with_context(|| format!("read {name}"))?;
                    self.file(&name, &bytes)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What the kernel has said, of all levels.
    pub fn kernel_log(&mut self) -> Result<()> {
        let mut options = OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::custom_flags(
            options.read(true),
            i32::try_from(OFlags::NONBLOCK.bits()).context("convert a flag")?,
        );
        let mut kmsg = options.open("/dev/kmsg").context("open the kernel's log")?;
        let (mut text, mut record) = (Vec::new(), [0; 8192]);
        // One record a read; an error when there are no more, or when one was overwritten meanwhile.
        while let Ok(length) = kmsg.read(&mut record) {
            text.extend_from_slice(&record[..length]);
        }
        self.file("kernel.log", &text)
    }

    /// All processors run.
    pub fn alive(&mut self) -> Result<()> {
        self.say(&json!({ "alive": {} }))
    }

    /// There is nothing more to come.
    pub fn end(&mut self) -> Result<()> {
        self.say(&json!({ "end": {} }))
    }

    fn say(&mut self, word: &Value) -> Result<()> {
        self.send(word, &[]).context("write the report")
    }

    /// A word and what it announces, with nothing of another writer's between them.
    fn send(&self, word: &Value, bytes: &[u8]) -> Result<()> {
        let mut report = self.report.lock().map_err(|_| anyhow!("another writer panicked"))?;
        report.write_all(format!("{word}\n").as_bytes())?;
        Ok(report.write_all(bytes)?)
    }
}

fn port(name: &str) -> Result<File> {
    let entries = fs::read_dir(PORTS).context("list the ports of the console")?;
    for entry in entries {
        let entry = entry.context("list the ports of the console")?;
        let told = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if told.trim() == name {
            let device = Path::new("/dev").join(entry.file_name());
            let opened = OpenOptions::new().read(true).write(true).open(&device);
            return opened.with_context(|| format!("open {}", device.display()));
        }
    }
    anyhow::bail!("there is no port {name}")
}
