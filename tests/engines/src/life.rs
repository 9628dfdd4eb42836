//! What everybody does with a container, the same with each engine and runtime. The transcript is what is compared.

use kata_guest_tests::{Running, Terminal, run};

use crate::{Engine, Kind, Runtime, normal};

/// A container's life, written down: what was asked, what came back.
pub struct Life<'a> {
    engine: &'a Engine,
    runtime: Runtime,
    name: String,
    transcript: String,
}

/// Serves a page, says so, ends with 3 when it is asked to.
const SERVER: &str = "trap 'echo stopping; exit 3' TERM; mkdir -p /www; echo page >/www/index.html; \
                      httpd -h /www; echo ready; echo warned >&2; while :; do sleep 0.1; done";

impl<'a> Life<'a> {
    /// Of a container with this name.
    pub fn new(engine: &'a Engine, runtime: Runtime, name: &str) -> Self {
        let name = format!("{name}-{}", runtime.name());
        Self { engine, runtime, name, transcript: String::new() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What was asked and answered so far.
    pub fn transcript(self) -> String {
        self.transcript
    }

    fn note(&mut self, what: &str, code: i32, text: &str) {
        let text = normal(text).replace(&self.name, "NAME");
        self.transcript += &format!("{what}: {code}\n{text}\n");
    }

    /// Asks the engine about the container, and writes the answer down.
    pub fn ask(&mut self, command: &[&str], rest: &[&str]) -> String {
        let arguments = [command, &[&self.name], rest].concat();
        let output = run(self.engine.with(self.runtime, arguments[0], &arguments[1..]), b"");
        let text = output.stdout();
        self.note(&format!("{command:?} {rest:?}"), output.code, &text);
        text
    }

    /// Starts the server, and waits until it says that it is ready.
    pub fn serve(&mut self, options: &[&str]) -> Running {
        let name = self.name.clone();
        let words =
            [&["-d", "--name", &name][..], options, &["busybox", "sh", "-c", SERVER]].concat();
        let output = self.engine.run(self.runtime, &words);
        self.note("serve", output.code, &output.stdout());
        let follow = self.engine.start(self.runtime, "logs", &["-f", &self.name]);
        follow.stdout.until_has("ready");
        follow
    }

    /// Its field of `inspect`.
    pub fn field(&self, template: &str) -> String {
        self.engine.ok(&["inspect", "-f", &format!("{{{{{template}}}}}"), &self.name])
    }

    /// The page that it serves, fetched from outside.
    pub fn fetch(&mut self, url: &str) {
        let mut wget = self.engine.beside("wget");
        wget.args(["-qO-", "--timeout=20", url]);
        let output = run(wget, b"");
        self.note("fetch", output.code, &output.stdout());
    }

    /// A terminal at a command of the engine.
    pub fn at_terminal(&self, command: &str, arguments: &[&str]) -> Terminal {
        let mut terminal = Terminal::open();
        // The terminal's own program is `setsid`; the engine's environment goes by env(1).
        let wanted = self.engine.with(self.runtime, command, arguments);
        let mut at = std::process::Command::new("env");
        at.arg("-C").arg(self.engine.scratch());
        for (name, value) in wanted.get_envs() {
            let value = value.unwrap_or_default().to_string_lossy();
            at.arg(format!("{}={value}", name.to_string_lossy()));
        }
        at.arg(wanted.get_program()).args(wanted.get_args());
        terminal.start(&at);
        terminal
    }

    /// Which engine it lives in.
    pub fn kind(&self) -> Kind {
        self.engine.kind()
    }
}
