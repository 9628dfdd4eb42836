//! What the command line says of itself: completion for shells, pages for man.

use std::{fs, io, path::Path};

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};
use clap_mangen::Man;

use super::print;
use crate::{args::Cli, failure::Failure};

const NAME: &str = "kata-runtime";

/// Prints the completion for a shell.
pub(super) fn completion(shell: Shell) -> Result<(), Failure> {
    print(&String::from_utf8_lossy(&script(shell)))
}

/// Prints what `--help` prints, of one verb or of the whole.
pub(super) fn help(verb: Option<&str>) -> Result<(), Failure> {
    let mut command = Cli::command();
    // Names the verbs in full.
    command.build();
    let asked = match verb {
        None => &mut command,
        Some(verb) => command
            .find_subcommand_mut(verb)
            .ok_or_else(|| Failure::Usage(format!("No help topic for '{verb}'")))?,
    };
    print(&asked.render_help().to_string())
}

/// Writes all of it below a `share` directory, each where its reader looks for it.
pub(super) fn write(share: &Path) -> Result<(), Failure> {
    let mut command = Cli::command();
    // Names the verbs in full.
    command.build();
    page(&command, share)?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        page(verb, share)?;
    }
    for (shell, file) in [
        (Shell::Bash, "bash-completion/completions/kata-runtime"),
        (Shell::Zsh, "zsh/site-functions/_kata-runtime"),
        (Shell::Fish, "fish/vendor_completions.d/kata-runtime.fish"),
    ] {
        put(&share.join(file), &script(shell))?;
    }
    Ok(())
}

fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), NAME, &mut script);
    script
}

fn page(command: &Command, share: &Path) -> Result<(), Failure> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let path = share.join("man/man8").join(format!("{name}.8"));
    let mut page = Vec::new();
    let written = Man::new(command.clone()).section("8").manual("Kata").render(&mut page);
    written.map_err(Failure::host(format!("write {}", path.display())))?;
    put(&path, &page)
}

fn put(path: &Path, text: &[u8]) -> Result<(), Failure> {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    let written: io::Result<()> = made.and_then(|()| fs::write(path, text));
    written.map_err(Failure::host(format!("write {}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap_complete::Shell;

    use super::{script, write};

    #[test]
    fn every_verb_that_help_shows_is_completed_and_has_a_page() {
        let share = tempfile::tempdir().unwrap();
        write(share.path()).unwrap();
        let read = |file: &str| fs::read_to_string(share.path().join(file)).unwrap();
        let main = read("man/man8/kata-runtime.8");
        let scripts = [Shell::Bash, Shell::Zsh, Shell::Fish].map(script);
        for verb in ["run", "create", "exec", "kill", "delete", "explain", "completion"] {
            let page = read(&format!("man/man8/kata-runtime-{verb}.8"));
            assert!(page.contains(".SH SYNOPSIS") && main.contains(&format!("\\-{verb}(8)")));
            for script in &scripts {
                assert!(String::from_utf8_lossy(script).contains(verb), "{verb}");
            }
        }
        assert!(!share.path().join("man/man8/kata-runtime-checkpoint.8").exists());
        assert_eq!(read("zsh/site-functions/_kata-runtime").as_bytes(), scripts[1]);
    }
}
