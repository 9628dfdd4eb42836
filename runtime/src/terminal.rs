//! The caller's own terminal: raw while a container has it, and as it was before in every case afterwards.

use std::{panic, sync::Mutex};

use kata_engine_api::handover::TerminalSize;
use rustix::termios::{
    OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr,
};

use crate::failure::Failure;

/// Modes to go back to, while the terminal is raw. For the panic hook: a release build runs no destructors then.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal is raw as long as this lives.
#[derive(Debug)]
pub struct RawTerminal(());

/// Size of the terminal that is our standard input.
pub fn size() -> Result<TerminalSize, Failure> {
    let stdin = rustix::stdio::stdin();
    if !isatty(stdin) {
        return Err(Failure::Usage(
            "a terminal is asked for, but the standard input is none: leave -t out, or use --console-socket".to_owned(),
        ));
    }
    let size = tcgetwinsize(stdin).map_err(Failure::system("ask the terminal for its size"))?;
    Ok(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

impl RawTerminal {
    /// Makes the terminal that is our standard input raw.
    pub fn enter() -> Result<Self, Failure> {
        let stdin = rustix::stdio::stdin();
        let before = tcgetattr(stdin).map_err(Failure::system("read the terminal's modes"))?;
        let mut raw = before.clone();
        raw.make_raw();
        // As runc: what is written here besides the container's output should not run down the screen in steps, and the
        // container's terminal leaves its line feeds bare.
        raw.output_modes.insert(OutputModes::OPOST);
        remember(Some(before));
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            restore();
            previous(panic);
        }));
        let guard = Self(());
        tcsetattr(stdin, OptionalActions::Drain, &raw)
            .map_err(Failure::system("make the terminal raw"))?;
        Ok(guard)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn remember(modes: Option<Termios>) -> Option<Termios> {
    // Nothing can panic while it is held, but a poisoned lock would still hold the modes.
    let mut before = BEFORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    std::mem::replace(&mut *before, modes)
}

fn restore() {
    if let Some(modes) = remember(None) {
        // A terminal that is gone needs no modes.
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &modes).ok();
    }
}
