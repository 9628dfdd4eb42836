//! `start`: the address of the shim that serves a container's sandbox, which is started if there is none.

use std::{
    env,
    ffi::{CString, OsStr},
    fs::{self, File},
    io::{self, Read, Write},
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use anyhow::Context;
use kata_config::DIRECTORY_VARIABLE;
use kata_engine_api::dial::{HANDOVER_SOCKET, SHIM_SOCKET, bind_packet, bind_stream};
use kata_spec::read_config;
use kata_sys::{
    replacement::replace,
    spawn::{Lifetime, Spawn},
};
use rustix::{
    fs::{CWD, Mode, OFlags},
    process::getppid,
};
use serde_json::Value;

use super::{
    caller::{Caller, Configuration},
    flags::Flags,
    place::Place,
    pod,
};

/// Highest score of the OOM killer.
const HIGHEST_SCORE: i16 = 1000;

/// Longest message on stdin: an engine's options.
const MAX_STDIN: u64 = 1024 * 1024;

/// Variables that the serving process needs: where events go, where QEMU is searched for, how much is logged.
const PASSED_ON: [&str; 5] =
    ["TTRPC_ADDRESS", "PATH", "KATA_LOG", "KATA_FAULT", DIRECTORY_VARIABLE];

/// Prints the address, and nothing else.
pub fn start(flags: &Flags) -> anyhow::Result<()> {
    flags.check()?;
    let caller = Caller::of(&read_stdin()?, flags)?;
    let bundle = flags.bundle()?;
    let config = bundle.join("config.json");
    let sandbox = match read_config(&config) {
        Ok(text) => {
            let value: Value = serde_json::from_slice(&text)
                .with_context(|| format!("read {}", config.display()))?;
            pod::sandbox_id(&value, &flags.id)
        }
        // An engine that makes sandboxes by the Sandbox API has no configuration for them.
        Err(error) if error.kind() == io::ErrorKind::NotFound => flags.id.clone(),
        Err(error) => return Err(error).with_context(|| format!("read {}", config.display())),
    };
    let place = Place::of(&flags.address, &flags.namespace, &sandbox);
    // Before there is a shim that nobody would hear of if this fails.
    let address = place.address();
    keep_address(&bundle, &address)?;
    // A host that does not let us change it leaves the shim as it leaves the engine.
    go_before_engine().ok();
    if let Some(_locked) = vacant(&place)? {
        serve(flags, (&place, &bundle), caller.configuration())?;
    }
    io::stdout().write_all(&caller.answer(&address)?).context("print the address")
}

/// What the engine has to say.
pub fn read_stdin() -> anyhow::Result<Vec<u8>> {
    let mut stdin = Vec::new();
    io::stdin().take(MAX_STDIN).read_to_end(&mut stdin).context("read the engine's options")?;
    Ok(stdin)
}

/// Ranks this process, and the shim that it makes, one before the engine for the OOM killer, as containerd ranks its own shims:
/// who is left has to be the one that can clean up.
fn go_before_engine() -> anyhow::Result<()> {
    let engine = getppid().context("there is no engine")?.as_raw_nonzero();
    let score: i16 = fs::read_to_string(format!("/proc/{engine}/oom_score_adj"))?.trim().parse()?;
    Ok(fs::write("/proc/self/oom_score_adj", (score + 1).min(HIGHEST_SCORE).to_string())?)
}

/// Leaves the address in the bundle, where an engine that restarts looks for it; written whole, then named.
fn keep_address(bundle: &Path, address: &str) -> anyhow::Result<()> {
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    replace(CWD, &bundle.join("address"), mode, address.as_bytes())
        .with_context(|| format!("write {}/address", bundle.display()))
}

/// Locks a place that no shim serves, with nothing in it; none when one does. Another `start` for the same sandbox waits until
/// the lock is closed.
fn vacant(place: &Place) -> anyhow::Result<Option<File>> {
    loop {
        let path = place.path().display();
        let locked = place.lock().with_context(|| format!("make and lock {path}"))?;
        let shim = place.connect();
        if shim.with_context(|| format!("find out whether a shim serves {path}"))?.is_some() {
            return Ok(None);
        }
        let mut inside = fs::read_dir(place.path()).with_context(|| format!("read {path}"))?;
        if inside.next().is_none() {
            return Ok(Some(locked));
        }
        // What a sandbox of the same name has left, whose shim was killed.
        crate::offline::delete(place.path())?;
    }
}

/// Starts a process that serves the sandbox.
fn serve(
    flags: &Flags,
    (place, bundle): (&Place, &Path),
    configuration: Option<&Configuration>,
) -> anyhow::Result<()> {
    // Opened anew: the shim keeps it, and is not to keep the lock.
    let directory =
        File::open(place.path()).with_context(|| format!("open {}", place.path().display()))?;
    let started = configuration
        .map(|configuration| configuration.file(place.path()))
        .transpose()
        .and_then(|file| spawn(flags, (&directory, bundle), file));
    if started.is_err() {
        // The failure that led here is the one to tell.
        fs::remove_dir_all(place.path()).ok();
        Place::tidy_up();
    }
    started
}

fn spawn(
    flags: &Flags,
    (directory, bundle): (&File, &Path),
    configuration: Option<PathBuf>,
) -> anyhow::Result<()> {
    let shim = bind_stream(directory.as_fd(), SHIM_SOCKET).context("make the shim's socket")?;
    let handover =
        bind_packet(directory.as_fd(), HANDOVER_SOCKET).context("make the handover socket")?;
    let null = File::options().read(true).write(true).open("/dev/null").context("/dev/null")?;
    let log = open_log(bundle, &null)?;
    let program = env::current_exe().context("find this program")?;
    let mut spawn = Spawn::new(c_string(program.as_os_str())?);
    spawn.arguments = ["containerd-shim-kata-v2", "serve-engine", &flags.namespace, &flags.id]
        .into_iter()
        .map(|word| c_string(OsStr::new(word)))
        .collect::<anyhow::Result<_>>()?;
    for name in PASSED_ON {
        let named = configuration.as_ref().filter(|_| name == DIRECTORY_VARIABLE);
        if let Some(value) = named.map(|path| path.as_os_str().into()).or_else(|| env::var_os(name))
        {
            let pair = [name.as_bytes(), b"=", value.as_bytes()].concat();
            spawn.environment.push(CString::new(pair).context("pass the environment on")?);
        }
    }
    if flags.debug && env::var_os("KATA_LOG").is_none() {
        spawn.environment.push(c"KATA_LOG=debug".into());
    }
    let nothing = null.as_fd();
    spawn.fds = vec![nothing, nothing, nothing, shim.as_fd(), handover.as_fd()];
    spawn.fds.extend([directory.as_fd(), log.as_fd()]);
    spawn.new_session = true;
    spawn.lifetime = Lifetime::Own;
    spawn.start().context("start the shim")?;
    Ok(())
}

/// The fifo from which containerd copies into its own log. Opened for reading too: it has a reader while containerd
/// restarts. CRI-O makes none.
fn open_log(bundle: &Path, null: &File) -> anyhow::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(bundle.join("log"), flags, Mode::empty()) {
        Ok(log) => Ok(log),
        Err(rustix::io::Errno::NOENT) => Ok(null.try_clone().context("/dev/null")?.into()),
        Err(error) => Err(error).with_context(|| format!("open {}/log", bundle.display())),
    }
}

fn c_string(word: &OsStr) -> anyhow::Result<CString> {
    CString::new(word.as_bytes()).with_context(|| format!("{} has a zero byte", word.display()))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener, thread};

    use rustix::fs::{FlockOperation, flock};

    use super::{Place, vacant};

    #[test]
    fn one_of_several_finds_a_place_vacant() {
        let scratch = tempfile::tempdir().unwrap();
        let place = Place::at(scratch.path().join("kata/place"));
        fs::create_dir_all(place.path()).unwrap();
        fs::write(place.path().join("left"), "").unwrap();
        let first = vacant(&place).unwrap().unwrap();
        assert!(fs::read_dir(place.path()).unwrap().next().is_none());
        let again = fs::File::open(place.path()).unwrap();
        flock(&again, FlockOperation::NonBlockingLockExclusive).unwrap_err();
        thread::scope(|scope| {
            let second = scope.spawn(|| vacant(&place).unwrap());
            let shim = UnixListener::bind(place.socket()).unwrap();
            drop(first);
            assert!(second.join().unwrap().is_none());
            drop(shim);
        });
    }

    #[test]
    fn what_cannot_be_asked_is_not_taken_away() {
        let scratch = tempfile::tempdir().unwrap();
        let place = Place::at(scratch.path().join("place"));
        fs::create_dir(place.path()).unwrap();
        // A loop of links is no word about a shim.
        std::os::unix::fs::symlink(place.socket(), place.socket()).unwrap();
        vacant(&place).unwrap_err();
        assert!(place.path().exists());
    }
}
