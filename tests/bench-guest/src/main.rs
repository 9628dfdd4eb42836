//! What the benchmarks run in a guest: one program, the same in a container and as process 1 of a bare VM.
//!
//! In a container the task is its arguments. As process 1 it is the variable `bench`, with commas between the words,
//! which the kernel makes of `bench=…` on its command line; streams are then connections to the host by vsock, which is
//! what containers are compared with.

mod card;
mod files;
mod stream;
mod traffic;
mod watch;

use std::{
    env,
    io::{self, Read, Write},
    process::ExitCode,
    time::Duration,
};

fn main() -> ExitCode {
    let bare = rustix::process::getpid().is_init() && env::var_os("bench").is_some();
    let words: Vec<String> = match env::var("bench") {
        Ok(task) if bare => task.split(',').map(str::to_owned).collect(),
        _ => env::args().skip(1).collect(),
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        [] if watch::has_agent() => watch::become_agent(),
        _ => perform(&words, bare),
    };
    if let Err(error) = &done {
        eprintln!("kata-bench-guest: {words:?}: {error}");
    }
    if bare {
        // The host has what it wants, or reads what went wrong; it ends the VM.
        wait_for_the_end().ok();
    }
    if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn perform(words: &[&str], bare: bool) -> io::Result<()> {
    let number = |text: &str| text.parse::<u64>().map_err(io::Error::other);
    match words {
        ["nothing"] => Ok(()),
        ["byte"] => {
            io::stdout().write_all(b"!\n")?;
            wait_for_the_end()
        }
        ["files", directory] => files::measure(directory.as_ref(), bare),
        ["send", port, length] if bare => {
            let stream = stream::connect(number(port)?)?;
            stream::send(stream, number(length)?)
        }
        ["send", length] => stream::send(stream::stdout()?, number(length)?),
        ["echo", port] if bare => stream::echo(stream::connect(number(port)?)?),
        ["receive", port, length] if bare => {
            let stream = stream::connect(number(port)?)?;
            stream::receive(&stream, &stream, number(length)?)
        }
        ["receive", length] => {
            stream::receive(io::stdin().lock(), io::stdout().lock(), number(length)?)
        }
        ["serve", addresses @ ..] => {
            if bare {
                let addresses: Result<Vec<_>, _> = addresses.iter().map(|it| it.parse()).collect();
                card::set_up(&addresses.map_err(io::Error::other)?)?;
            }
            traffic::serve()
        }
        ["ask", address, kind, streams, milliseconds] => {
            let streams = usize::try_from(number(streams)?).map_err(io::Error::other)?;
            traffic::ask(address, kind, streams, Duration::from_millis(number(milliseconds)?))
        }
        ["watch"] => watch::watch(),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "no such task")),
    }
}

/// Until standard input ends; a console never does.
fn wait_for_the_end() -> io::Result<()> {
    io::copy(&mut io::stdin().lock().by_ref(), &mut io::sink()).map(drop)
}
