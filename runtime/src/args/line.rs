//! A line as runc reads it, which is as Go's `flag` does, brought into a form that clap reads.
//!
//! Engines put an option twice, first an administrator's, then their own: the last one counts. A flag may have a value, as in
//! `--debug=false`, and an option of several letters one dash.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
};

use clap::{Arg, ArgAction, Command, CommandFactory, Id};

use super::Cli;

/// Options of runc for which an empty word is as good as none: engines and scripts fill them in from what they have.
const MAY_BE_EMPTY: [&str; 30] = [
    "log",
    "log_format",
    "criu",
    "rootless",
    "bundle",
    "console_socket",
    "pid_file",
    "pidfd_socket",
    "process",
    "cwd",
    "user",
    "apparmor",
    "process_label",
    "resources",
    "memory",
    "memory_reservation",
    "memory_swap",
    "kernel_memory",
    "kernel_memory_tcp",
    "cpu_share",
    "cpu_quota",
    "cpu_period",
    "cpu_burst",
    "cpu_idle",
    "cpu_rt_period",
    "cpu_rt_runtime",
    "cpuset_cpus",
    "cpuset_mems",
    "l3_cache_schema",
    "mem_bw_schema",
];

/// A line that was read.
#[derive(Debug, Default)]
pub struct Line {
    /// What clap is to parse; the first word is the program's name.
    pub words: Vec<OsString>,
    /// `--log` as it was typed, whatever else is wrong with the line.
    pub log: Option<OsString>,
    /// The same of `--log-format`.
    pub log_format: Option<OsString>,
}

/// Reads a line; the first word is the program's name.
pub fn read(words: impl IntoIterator<Item = OsString>) -> Line {
    let mut cli = Cli::command();
    // Hands the options that hold for every command down to each.
    cli.build();
    let mut reader = Reader { command: &cli, values: HashMap::new(), words: Vec::new() };
    let mut rest = words.into_iter();
    rest.next().into_iter().for_each(|program| reader.push(program));
    while let Some(word) = rest.next() {
        reader.take(word, &mut rest);
    }
    Line {
        log: reader.values.remove("log"),
        log_format: reader.values.remove("log_format"),
        words: reader.words.into_iter().map(|(_, word)| word).collect(),
    }
}

/// What is read so far.
struct Reader<'a> {
    /// Whose options come next.
    command: &'a Command,
    /// The last of each option.
    values: HashMap<Id, OsString>,
    /// Each with the option that it is.
    words: Vec<(Option<Id>, OsString)>,
}

impl<'a> Reader<'a> {
    fn take(&mut self, word: OsString, rest: &mut impl Iterator<Item = OsString>) {
        match word.as_bytes() {
            b"--" => {
                self.push(word);
                rest.for_each(|word| self.push(word));
            }
            [b'-', _, ..] => self.take_option(word, rest),
            _ => self.take_positional(word, rest),
        }
    }

    fn take_positional(&mut self, word: OsString, rest: &mut impl Iterator<Item = OsString>) {
        let verb = word.to_str().and_then(|verb| self.command.find_subcommand(verb));
        let has_tail = self.command.get_positionals().any(Arg::is_trailing_var_arg_set);
        self.push(word);
        if let Some(verb) = verb {
            self.command = verb;
        } else if has_tail {
            // What follows is another program's, whatever it looks like.
            let mut tail = rest.peekable();
            if tail.peek().is_some_and(|word| word != "--") {
                self.push("--".into());
            }
            tail.for_each(|word| self.push(word));
        }
    }

    fn take_option(&mut self, word: OsString, rest: &mut impl Iterator<Item = OsString>) {
        let Some((option, value)) = self.option(&word) else {
            return self.take_letters(word, rest);
        };
        let value = value.map(OsStr::to_owned);
        match option.get_action() {
            ArgAction::SetTrue => match value.as_deref().map_or(Some(true), truth) {
                // The parser says what is wrong with it.
                None => self.push(word),
                Some(is_set) => {
                    let id = option.get_id();
                    self.words.retain(|(other, _)| other.as_ref() != Some(id));
                    self.words.extend(is_set.then(|| (Some(id.clone()), spelled(option))));
                }
            },
            ArgAction::Set | ArgAction::Append if self.takes_next(option) => {
                let value = value.or_else(|| rest.next());
                self.take_value(option, value);
            }
            _ => self.push(word),
        }
    }

    fn take_value(&mut self, option: &Arg, value: Option<OsString>) {
        let id = option.get_id();
        let mut spelled = spelled(option);
        // The parser says what is wrong where there is none.
        if let Some(value) = value {
            if value.is_empty() && MAY_BE_EMPTY.contains(&id.as_str()) {
                self.values.remove(id);
                return self.words.retain(|(other, _)| other.as_ref() != Some(id));
            }
            // In one word, whatever the value begins with.
            spelled.push("=");
            spelled.push(&value);
            self.values.insert(id.clone(), value);
        }
        self.words.push((Some(id.clone()), spelled));
    }

    /// Flags of one letter each, of which the last may be an option; or what nobody knows.
    fn take_letters(&mut self, word: OsString, rest: &mut impl Iterator<Item = OsString>) {
        let letters = word.to_str().and_then(|word| word.strip_prefix('-')).unwrap_or_default();
        let option = letters.char_indices().find_map(|(at, letter)| {
            let option = self.find(|option| option.get_short() == Some(letter))?;
            self.takes_next(option).then_some(at + letter.len_utf8())
        });
        let takes_next = option == Some(letters.len());
        self.push(word);
        if takes_next {
            rest.next().into_iter().for_each(|value| self.push(value));
        }
    }

    /// The option that a word is, and the value in it.
    fn option<'w>(&self, word: &'w OsStr) -> Option<(&'a Arg, Option<&'w OsStr>)> {
        let word = word.as_bytes();
        let end = word.iter().position(|byte| *byte == b'=');
        let value = end.map(|end| OsStr::from_bytes(&word[end + 1..]));
        let name = std::str::from_utf8(&word[..end.unwrap_or(word.len())]).ok()?;
        let has_name = |option: &Arg, name| {
            option.get_long() == Some(name)
                || option.get_all_aliases().is_some_and(|others| others.contains(&name))
        };
        let is_meant = |option: &Arg| match name.strip_prefix("--") {
            Some(name) => has_name(option, name),
            None => {
                let name = name.strip_prefix('-').unwrap_or_default();
                let mut letters = name.chars();
                let letter = letters.next().filter(|_| letters.as_str().is_empty());
                letter.map_or_else(|| has_name(option, name), |_| option.get_short() == letter)
            }
        };
        self.find(is_meant).map(|option| (option, value))
    }

    fn find(&self, is_meant: impl Fn(&Arg) -> bool) -> Option<&'a Arg> {
        let command: &'a Command = self.command;
        command.get_arguments().find(|option| !option.is_positional() && is_meant(option))
    }

    /// Whether the word after an option belongs to it. `spec --rootless` alone may stand for itself.
    fn takes_next(&self, option: &Arg) -> bool {
        let least = option.get_num_args().map_or(1, |values| values.min_values());
        option.get_action().takes_values() && (least > 0 || self.command.has_subcommands())
    }

    fn push(&mut self, word: OsString) {
        self.words.push((None, word));
    }
}

fn spelled(option: &Arg) -> OsString {
    match (option.get_long(), option.get_short()) {
        (Some(name), _) => format!("--{name}").into(),
        (None, letter) => letter.map(|letter| format!("-{letter}")).unwrap_or_default().into(),
    }
}

/// What Go takes for a truth value.
fn truth(word: &OsStr) -> Option<bool> {
    match word.as_bytes() {
        b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True" => Some(true),
        b"0" | b"f" | b"F" | b"false" | b"FALSE" | b"False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::{CommandFactory, Parser};

    use super::{
        super::{Cli, Command},
        Line,
    };

    fn read(line: &str) -> Line {
        let words = std::iter::once("kata-runtime").chain(line.split(' '));
        super::read(words.map(OsString::from))
    }

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(read(line).words)
    }

    #[test]
    fn of_an_option_that_is_there_twice_the_last_counts() {
        let cli = parsed(
            "--root a --log l --log-format text --systemd-cgroup --debug --root b --log m --log-format json --systemd-cgroup \
             delete --force -f c1",
        );
        let cli = cli.unwrap();
        assert_eq!(cli.global.root.to_str(), Some("b"));
        assert_eq!(cli.global.log.unwrap().to_str(), Some("m"));
        assert_eq!(cli.global.log_format, crate::journal::Format::Json);
        assert!(cli.global.systemd_cgroup && cli.global.debug);
        let Command::Create(create) =
            parsed("create -b a --bundle=b --pid-file x --pid-file y c1").unwrap().command
        else {
            panic!("no create")
        };
        assert_eq!(create.creating.bundle.to_str(), Some("b"));
        assert_eq!(create.creating.pid_file.unwrap().to_str(), Some("y"));
    }

    #[test]
    fn lists_collect() {
        let line = "exec -e A=1 --env B=2 -g 1 -g 2 -c A --cap B --cgroup x --cgroup y -te C=3 c1 ls -t --debug=x";
        let Command::Exec(exec) = parsed(line).unwrap().command else { panic!("no exec") };
        assert_eq!(exec.env, ["A=1", "B=2", "C=3"]);
        assert_eq!(exec.additional_gids, [1, 2]);
        assert_eq!((exec.cap.len(), exec.cgroup.len(), exec.tty), (2, 2, true));
        assert_eq!(exec.command, ["ls", "-t", "--debug=x"]);
        let line = "run --rootfs r -v /a:/a -v /b:/b -e A=1 -e B=2 -- ls";
        let Command::Run(run) = parsed(line).unwrap().command else { panic!("no run") };
        assert_eq!((run.made_up.volume.len(), run.made_up.env.len()), (2, 2));
    }

    #[test]
    fn a_flag_may_have_a_value() {
        for (line, set) in [
            ("--debug=true list", true),
            ("--debug=false list", false),
            ("--debug --debug=0 list", false),
            ("--debug=F --debug=T list", true),
            ("-debug list", true),
            ("list --debug=1", true),
            ("--debug list --debug=false", false),
        ] {
            assert_eq!(parsed(line).unwrap().global.debug, set, "{line}");
        }
        let Command::Delete(delete) = parsed("delete -f --force=false c1").unwrap().command else {
            panic!("no delete")
        };
        assert!(!delete.force);
        let Command::Kill(kill) = parsed("kill -a=true c1 KILL").unwrap().command else {
            panic!("no kill")
        };
        assert!(kill.all);
        assert!(parsed("--debug=maybe list").is_err());
        assert!(parsed("list --quiet=").is_err());
    }

    #[test]
    fn what_follows_the_id_is_the_program_s() {
        for (line, words) in [
            ("ps c1 -f", &["-f"][..]),
            (
                "ps -f json c1 --format x --root y -- -ef",
                &["--format", "x", "--root", "y", "--", "-ef"],
            ),
            ("ps c1", &[]),
            ("ps c1 -- -ef", &["-ef"]),
        ] {
            let Command::Ps(ps) = parsed(line).unwrap().command else { panic!("no ps") };
            assert_eq!(
                (ps.id.as_str(), ps.ps_options),
                ("c1", words.iter().map(Into::into).collect()),
                "{line}"
            );
        }
        for (line, words) in [
            ("exec c1 -t", &["-t"][..]),
            ("exec -t c1 ls -t -- --debug", &["ls", "-t", "--", "--debug"]),
            ("exec c1 -- ls -- x", &["ls", "--", "x"]),
            ("exec -- c1 ls", &["ls"]),
        ] {
            let Command::Exec(exec) = parsed(line).unwrap().command else { panic!("no exec") };
            assert_eq!((exec.id.as_str(), exec.tty), ("c1", line.contains("-t c1")), "{line}");
            assert_eq!(exec.command, words, "{line}");
        }
    }

    #[test]
    fn a_value_may_begin_with_a_dash() {
        let line = "exec -e -A=1 --env -B=2 --cwd -x c1 env";
        let Command::Exec(exec) = parsed(line).unwrap().command else { panic!("no exec") };
        assert_eq!(exec.env, ["-A=1", "-B=2"]);
        assert_eq!(exec.cwd.unwrap(), "-x");
    }

    #[test]
    fn what_follows_two_dashes_is_as_it_is() {
        let line = "run --rootfs --debug=1 -- ls --debug=1 -rm=false";
        let Command::Run(run) = parsed(line).unwrap().command else { panic!("no run") };
        assert_eq!(run.rootfs.unwrap().to_str(), Some("--debug=1"));
        assert_eq!(run.command, ["ls", "--debug=1", "-rm=false"]);
    }

    #[test]
    fn the_log_is_known_whatever_else_is_wrong() {
        for line in [
            "--log F --log-format json state a/b",
            "--nosuch --log=F --log-format=json state",
            "--log x --log F --log-format json strat c1",
            "-log F -log-format json",
            "state a/b --log F --log-format json",
        ] {
            let read = read(line);
            assert_eq!(
                (read.log, read.log_format),
                (Some("F".into()), Some("json".into())),
                "{line}"
            );
        }
        assert_eq!(read("exec c1 x --log F").log, None);
        assert_eq!(read("--root --log F").log, None);
    }

    #[test]
    fn an_empty_word_is_as_good_as_none() {
        let line = "--log= --log-format= --criu= --log x --log= update --memory= --cpu-period= --cpu-quota= --cpuset-cpus= -r= c1";
        let cli = parsed(line).unwrap();
        assert_eq!((cli.global.log, cli.global.log_format), (None, crate::journal::Format::Text));
        let Command::Update(update) = cli.command else { panic!("no update") };
        assert!(
            update.memory.is_none() && update.cpu_period.is_none() && update.cpu_quota.is_none()
        );
        assert!(update.cpuset_cpus.is_none() && update.resources.is_none());
        let words =
            ["x", "exec", "--user", "1", "--user", "", "--cwd", "", "-e", "", "-p", "", "c1", ""];
        let read = super::read(words.map(OsString::from));
        let Command::Exec(exec) = Cli::try_parse_from(read.words).unwrap().command else {
            panic!("no exec")
        };
        assert!(exec.user.is_none() && exec.cwd.is_none() && exec.process.is_none());
        assert_eq!((exec.env, exec.command), (vec![String::new()], vec![String::new()]));
        let Command::Create(create) =
            parsed("create -b a --bundle= --pid-file= c1").unwrap().command
        else {
            panic!("no create")
        };
        assert_eq!((create.creating.bundle.to_str(), create.creating.pid_file), (Some("."), None));
        for line in
            ["list --format=", "events --interval= c1", "update --pids-limit= c1", "--root= list"]
        {
            assert!(parsed(line).is_err(), "{line}");
        }
    }

    #[test]
    fn what_may_be_empty_is_an_option_of_somebody() {
        let mut cli = Cli::command();
        cli.build();
        for name in super::MAY_BE_EMPTY {
            let has = |command: &clap::Command| {
                command.get_arguments().any(|option| option.get_id() == name)
            };
            assert!(has(&cli) || cli.get_subcommands().any(has), "{name}");
        }
    }

    #[test]
    fn rootless_may_stand_alone_for_spec_only() {
        assert_eq!(parsed("--rootless auto state c1").unwrap().global.rootless.unwrap(), "auto");
        for line in ["spec --rootless", "spec --rootless=true", "spec --rootless -b b"] {
            assert_eq!(parsed(line).unwrap().global.rootless.unwrap(), "true", "{line}");
        }
    }
}
