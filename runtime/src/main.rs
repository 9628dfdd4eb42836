//! `kata-runtime`: the OCI command line, and the person's tool.
//!
//! ```text
//! args ─► commands/VERB ─┬─ create, exec: programs + handover (descriptors)
//!                        ├─ start, kill, …: shim_client (Task service)
//!                        └─ no shim: offline (the shim binary's one-shot commands)
//! ```
//!
//! It is short-lived, keeps nothing in memory that matters, and talks only to the shim of the container that it was
//! called for. Failures are told once, here: a line on stderr, one in `--log`, and the exit code.

mod args;
mod bundle;
mod commands;
mod counters;
mod create;
mod exec_process;
mod failure;
mod foreground;
mod handover;
mod hooks;
mod id;
mod image;
mod journal;
mod made_spec;
mod offline;
mod pid_file;
mod programs;
mod sandbox_dir;
mod shim_client;
mod signal;
mod terminal;
mod words;

use std::{ffi::OsStr, path::Path, process::ExitCode};

use clap::{Parser, ValueEnum, error::ErrorKind};

use crate::{
    args::{Cli, Line},
    commands::Context,
    failure::one_line,
    journal::{Format, Journal},
};

/// What runc's `exec` ends with when there is no process that could have ended.
const EXEC_FAILED: u8 = 255;

fn main() -> ExitCode {
    let line = args::read(std::env::args_os());
    let cli = match Cli::try_parse_from(&line.words) {
        Ok(cli) => cli,
        Err(error) => return answer(&error, &line),
    };
    let journal =
        match Journal::open(cli.global.log.as_deref(), cli.global.log_format, cli.global.debug) {
            Ok(journal) => journal,
            Err(failure) => {
                Journal::on_stderr(cli.global.log_format).error(&failure.line());
                return ExitCode::from(failure.exit_code());
            }
        };
    let verb = cli.command.verb();
    journal.debug(&format!("{verb}: kata-runtime {}", env!("CARGO_PKG_VERSION")));
    let done = Context::new(cli.global, &journal).and_then(|context| context.run(cli.command));
    match done {
        Ok(code) => {
            journal.debug(&format!("{verb}: exit code {code}"));
            ExitCode::from(code)
        }
        Err(failure) => {
            // Codes up to 254 are those of programs.
            let (what, code) = match verb {
                "exec" => ("exec failed", EXEC_FAILED),
                verb => (verb, failure.exit_code()),
            };
            journal.error(&format!("{what}: {}", failure.line()));
            ExitCode::from(code)
        }
    }
}

/// What the parser has to say: help and the version as they are, a mistake on one line.
fn answer(error: &clap::Error, line: &Line) -> ExitCode {
    let several_lines = [
        ErrorKind::DisplayHelp,
        ErrorKind::DisplayVersion,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
    ];
    if several_lines.contains(&error.kind()) {
        // Nobody may be reading.
        error.print().ok();
    } else {
        journal_of(line).error(&mistake(&error.to_string()));
    }
    if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Where engines look for what is wrong, as far as the line tells.
fn journal_of(line: &Line) -> Journal {
    let format = line.log_format.as_deref().and_then(OsStr::to_str);
    let format = format.and_then(|word| Format::from_str(word, false).ok()).unwrap_or_default();
    // What can't be opened is the lesser mistake.
    Journal::open(line.log.as_deref().map(Path::new), format, false)
        .unwrap_or_else(|_| Journal::on_stderr(format))
}

/// The parser's message without its usage.
fn mistake(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let end =
        ["\n\nUsage:", "\n\nFor more information"].iter().filter_map(|word| text.find(word)).min();
    let said = one_line(text.get(..end.unwrap_or(text.len())).unwrap_or(text));
    let words: Vec<String> = said.split(' ').map(abbreviated).collect();
    format!("{} (--help shows what is possible)", words.join(" "))
}

/// What was typed is repeated, but a word that nobody reads to its end is cut.
fn abbreviated(word: &str) -> String {
    const LONGEST: usize = 128;
    if word.len() <= LONGEST {
        return word.to_owned();
    }
    let (begin, end): (String, Vec<char>) =
        (word.chars().take(LONGEST / 2).collect(), word.chars().rev().take(8).collect());
    format!("{begin}...{}", end.into_iter().rev().collect::<String>())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Cli, mistake};
    use crate::args::{Command, read};

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(read(line.split_whitespace().map(Into::into)).words)
    }

    fn said(line: &str) -> String {
        mistake(&parsed(line).unwrap_err().to_string())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_version_is_told_as_other_runtimes_tell_it() {
        let error = Cli::try_parse_from(["kata-runtime", "-v"]).unwrap_err();
        let (own, spec) = (env!("CARGO_PKG_VERSION"), kata_spec::VERSION);
        assert_eq!(error.to_string(), format!("kata-runtime version {own}\nspec: {spec}\n"));
    }

    /// Those of runc 1.3, and what each takes.
    #[test]
    fn every_option_of_runc_is_known() {
        for line in [
            "--debug --log l --log-format json --root r --criu c --systemd-cgroup --rootless auto state c1",
            "create -b b --console-socket s --pidfd-socket s --pid-file p --no-pivot --no-new-keyring --preserve-fds 1 c1",
            "run -b b --console-socket s --pidfd-socket s --pid-file p -d --keep --no-subreaper --no-pivot --no-new-keyring --preserve-fds 1 c1",
            "exec --console-socket s --pidfd-socket s --cwd / -e A=1 -t -u 1:2 -g 3 -p f -d --pid-file p --process-label l --apparmor a \
             --no-new-privs -c CAP_KILL --preserve-fds 1 --cgroup c --ignore-paused --no-subreaper c1 true",
            "update -r f --blkio-weight 10 --cpu-period 1 --cpu-quota -1 --cpu-burst 1 --cpu-share 1 --cpu-rt-period 1 --cpu-rt-runtime 1 \
             --cpuset-cpus 0 --cpuset-mems 0 --kernel-memory 1 --kernel-memory-tcp 1 --memory 1 --memory-reservation 1 --memory-swap -1 \
             --pids-limit -1 --l3-cache-schema s --mem-bw-schema s --cpu-idle 1 c1",
            "delete -f c1",
            "events --interval 5s --stats c1",
            "kill -a c1 KILL",
            "list -f json -q",
            "ps -f json c1 -ef",
            "spec -b b --rootless",
            "features",
            "help run",
        ] {
            if let Err(error) = parsed(&format!("kata-runtime {line}")) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn the_help_of_what_can_not_be_done_is_no_success() {
        for line in ["kata-runtime checkpoint --help", "kata-runtime restore --bundle b -d c1"] {
            let parsed = parsed(line).unwrap();
            assert!(matches!(parsed.command, Command::Checkpoint(_) | Command::Restore(_)));
        }
    }

    #[test]
    fn a_long_word_is_cut() {
        let said = said(&format!("kata-runtime state {}", "x".repeat(2000)));
        assert!(said.len() < 300 && said.contains("2000 characters"), "{said}");
    }

    #[test]
    fn mistakes_are_one_line() {
        assert_eq!(
            said("kata-runtime ps --format xml c1"),
            "invalid value 'xml' for '--format <FORMAT>': invalid format option \"xml\", table and json are known \
             (--help shows what is possible)"
        );
        for line in [
            "kata-runtime create a/b",
            "kata-runtime create",
            "kata-runtime strat c1",
            "kata-runtime --rot x",
        ] {
            let said = said(line);
            assert!(!said.contains('\n') && !said.contains("Usage"), "{said}");
        }
        assert!(said("kata-runtime strat c1").contains("'start'"));
    }
}
