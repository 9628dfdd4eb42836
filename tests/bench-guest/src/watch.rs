//! An agent that is watched: what process 1 of a guest takes can be seen from its own pid namespace alone, which no
//! container is in. So this program is started in the agent's place, leaves a child behind that looks, and becomes it.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::{
        fs::{FileExt, PermissionsExt},
        process::CommandExt,
    },
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rustix::mount::{MountFlags, mount};

/// Where the benchmark's initrd has the agent: the format has a place for modules only.
const BROUGHT: &str = "/modules/agent.ko";
const AGENT: &str = "/agent";
const INTERVAL: Duration = Duration::from_millis(100);

/// Whether this program is the init of an initrd that brings an agent along.
pub fn has_agent() -> bool {
    fs::exists(BROUGHT).unwrap_or(false)
}

/// Becomes the agent; returns only when that fails.
pub fn become_agent() -> io::Result<()> {
    fs::rename(BROUGHT, AGENT)?;
    // What is left would be an order to load modules.
    fs::remove_dir_all("/modules")?;
    fs::set_permissions(AGENT, fs::Permissions::from_mode(0o755))?;
    let mut watcher = Command::new("/init").arg("watch").stdout(Stdio::piped()).spawn()?;
    let mut word = [0];
    watcher.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?.read_exact(&mut word)?;
    Err(Command::new(AGENT).exec())
}

/// Tells the console what process 1 has resident, again and again, for as long as there is one.
pub fn watch() -> io::Result<()> {
    mount("proc", "/proc", "proc", MountFlags::empty(), None)?;
    // Held: the agent moves to a root of its own, and takes the mounts along.
    let status = File::open("/proc/1/status")?;
    // The one who waits for it may become the agent now.
    writeln!(io::stdout(), "watching")?;
    let mut text = [0; 4096];
    loop {
        let length = status.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(&text[..length]);
        let resident = text.lines().find(|line| line.starts_with("VmRSS:"));
        writeln!(io::stderr(), "{}", resident.unwrap_or("VmRSS: unknown"))?;
        thread::sleep(INTERVAL);
    }
}
