//! `kata-proxy CONFIG`: serves the devices of one sandbox. Started by the shim, never by hand; docs/design/0001 says
//! with which descriptors.

use std::process::ExitCode;

use anyhow::{Context, bail};
use kata_proxy::{
    config::Config,
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
    let mut arguments = std::env::args().skip(1);
    let (Some(json), None) = (arguments.next(), arguments.next()) else {
        bail!("expected one argument: the configuration as JSON");
    };
    let config = Config::parse(&json)?;
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
    match serve(&config, sockets, tree)? {
        End::Vmm => Ok(()),
        // Of which nobody hears, unless it lives and has let go of this process.
        End::Shim => bail!("the shim is gone"),
        End::Device(cause) => bail!("device failed: {cause}"),
    }
}
