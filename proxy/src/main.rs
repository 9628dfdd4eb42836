//! `kata-proxy`: serves the devices of one sandbox. Started by the shim, never by hand; docs/design/0001 says
//! with which descriptors.

use std::process::ExitCode;

use anyhow::{Context, bail};
use kata_proxy::{
    control::Control,
    jail,
    serve::{End, Sockets, serve},
};
use kata_sys::inherit::{close_rest, take};

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // These would go to stderr, too, and end the process when nobody reads it any more.
        .log_internal_errors(false)
        // The shim, who reads it, has a clock.
        .without_time()
        .with_max_level(tracing::Level::INFO)
        .init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            tracing::error!("{cause:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    if let Some(argument) = std::env::args().nth(1) {
        bail!("there is nothing to be told, and so no argument {argument:?}");
    }
    let inherited = |number, what: &str| take(number).with_context(|| format!("no {what}"));
    let sockets = Sockets {
        control: Control::new(inherited(3, "control socket")?)?,
        vsock: inherited(4, "listener of the vsock device")?,
        roots: inherited(5, "listener of the roots share")?,
        volumes: inherited(6, "listener of the volumes share")?,
    };
    let tree = inherited(7, "shared tree")?;
    close_rest()?;
    kata_sys::heap::share_one_arena();
    let tree = jail::enter(tree, &sockets.control).context("cannot enter the jail")?;
    match serve(sockets, tree)? {
        End::Vmm => Ok(()),
        // Of which nobody hears, unless it lives and has let go of this process.
        End::Shim => bail!("the shim is gone"),
        End::Device(cause) => bail!("device failed: {cause}"),
    }
}
