//! The caller's own terminal: raw while a container has it, and as it was before in every case afterwards.

use std::{os::fd::OwnedFd, panic, sync::Mutex};

use kata_engine_api::handover::TerminalSize;
use rustix::{
    fs::{Mode, OFlags},
    termios::{OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr},
};

use crate::failure::Failure;

/// The terminal and the modes to go back to, while it is raw. For the panic hook: a release build runs no destructors then.
static BEFORE: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// The terminal is raw as long as this lives.
#[derive(Debug)]
pub struct RawTerminal(());

/// The terminal that we were called at: a standard stream, or, when all of them lead elsewhere, what the session has.
fn callers() -> Result<OwnedFd, Failure> {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    if let Some(stream) = streams.into_iter().find(|stream| isatty(stream)) {
        return stream.try_clone_to_owned().map_err(Failure::host("keep hold of the terminal"));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open("/dev/tty", flags, Mode::empty()).map_err(|_| {
        Failure::Usage(
            "a terminal is asked for, but there is none: leave -t out, or use --console-socket"
                .to_owned(),
        )
    })
}

/// Size of the caller's terminal.
pub fn size() -> Result<TerminalSize, Failure> {
    let size =
        tcgetwinsize(callers()?).map_err(Failure::system("ask the terminal for its size"))?;
    Ok(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

impl RawTerminal {
    /// Makes the caller's terminal raw.
    pub fn enter() -> Result<Self, Failure> {
        let terminal = callers()?;
        let before = tcgetattr(&terminal).map_err(Failure::system("read the terminal's modes"))?;
        let mut raw = before.clone();
        raw.make_raw();
        // As runc: what is written here besides the container's output should not run down the screen in steps, and the
        // container's terminal leaves its line feeds bare.
        raw.output_modes.insert(OutputModes::OPOST);
        let ours = terminal.try_clone().map_err(Failure::host("keep hold of the terminal"))?;
        remember(Some((terminal, before)));
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            restore();
            previous(panic);
        }));
        let guard = Self(());
        tcsetattr(&ours, OptionalActions::Drain, &raw)
            .map_err(Failure::system("make the terminal raw"))?;
        Ok(guard)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn remember(modes: Option<(OwnedFd, Termios)>) -> Option<(OwnedFd, Termios)> {
    // Nothing can panic while it is held, but a poisoned lock would still hold the modes.
    let mut before = BEFORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    std::mem::replace(&mut *before, modes)
}

fn restore() {
    if let Some((terminal, modes)) = remember(None) {
        // A terminal that is gone needs no modes.
        tcsetattr(terminal, OptionalActions::Drain, &modes).ok();
    }
}
