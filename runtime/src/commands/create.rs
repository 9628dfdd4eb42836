//! `create`: everything but the program's first instruction.

use std::path::Path;

use super::Context;
use crate::{
    args::{Create, Creating},
    bundle::Bundle,
    create::{Console, Creation, Source, Told, create},
    failure::Failure,
};

impl Context<'_> {
    pub(super) fn create(&self, typed: &Create) -> Result<(), Failure> {
        refuse(typed.creating.preserve_fds)?;
        let bundle = self.load_bundle(&typed.creating.bundle)?;
        let console = detached_console(&typed.creating, bundle.spec.process.terminal)?;
        let creation = Creation {
            root: &self.root,
            prefix: &self.prefix,
            id: &typed.id,
            console,
            told: Told::of(&typed.creating),
            shim_environment: &self.shim_environment,
            journal: self.journal,
        };
        create(&creation, Source::Bundle(Box::new(bundle)))?.confirm();
        Ok(())
    }
}

impl Context<'_> {
    /// Reads and checks a bundle, and passes on what is odd but no failure.
    pub(super) fn load_bundle(&self, directory: &Path) -> Result<Bundle, Failure> {
        let bundle = Bundle::load(directory)?;
        bundle.spec.warnings.iter().for_each(|warning| self.journal.warn(warning));
        Ok(bundle)
    }
}

/// Descriptors that would have to be ignored are refused.
pub(super) fn refuse(preserve_fds: u32) -> Result<(), Failure> {
    const WHY: &str = "descriptors beyond stderr can't enter a VM";
    if preserve_fds > 0 {
        return Err(Failure::Usage(format!(
            "--preserve-fds {preserve_fds} is not supported: {WHY}"
        )));
    }
    // sd_listen_fds(3): they are for the process that the variable names, and nobody else.
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let ours = number("LISTEN_PID") == Some(std::process::id());
    match number("LISTEN_FDS").filter(|_| ours) {
        None | Some(0) => Ok(()),
        Some(count) => Err(Failure::Usage(format!("LISTEN_FDS={count} is not supported: {WHY}"))),
    }
}

/// The console of a container that nobody waits for: a terminal needs a socket to go to, and a socket a terminal.
pub(super) fn detached_console(creating: &Creating, terminal: bool) -> Result<Console, Failure> {
    match (&creating.console_socket, terminal) {
        (Some(path), true) => Console::connect(path),
        (None, false) => Ok(Console::None),
        (None, true) => Err(Failure::Usage(
            "cannot allocate tty if kata-runtime will detach without setting console socket: process.terminal is true, \
             so give --console-socket"
                .to_owned(),
        )),
        (Some(_), false) => Err(Failure::Usage(
            "cannot use console socket if kata-runtime will not detach or allocate tty: process.terminal is false"
                .to_owned(),
        )),
    }
}
