//! A bare VM: QEMU as Kata starts it, a proxy of its own, and the benchmark's program as process 1. No shim, no agent,
//! no jail around QEMU.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use kata_sys::scm;
use kata_sys::spawn::{Child, Spawn};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;

use super::patience;
use super::stand::Stand;
use super::vmm_line::VmmLine;

/// Of QEMU; each VM's replaces the one before.
const LOG: &str = "qemu.log";

/// A proxy that serves, and the VMM's ends of its sockets.
#[derive(Debug)]
struct Proxy {
    child: Child,
    control: OwnedFd,
    /// vsock, roots, volumes.
    ends: [OwnedFd; 3],
    _tree: Tree,
}

/// A tmpfs with the two halves of a shared tree; gone when dropped.
#[derive(Debug)]
struct Tree(PathBuf);

impl Tree {
    fn mount(stand: &Stand) -> Result<Self> {
        let place = stand.place("shared");
        fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
        mount("tmpfs", &place, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)
            .with_context(|| format!("mount {}", place.display()))?;
        let tree = Self(place);
        for half in ["roots", "volumes"] {
            fs::create_dir(tree.0.join(half)).context("make the shared tree")?;
        }
        Ok(tree)
    }

    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&self.0, flags, Mode::empty())?)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("xtask: unmount {}: {error}", self.0.display());
        }
    }
}

impl Proxy {
    /// Starts a proxy and waits until it serves.
    fn start(stand: &Stand) -> Result<Self> {
        let tree = Tree::mount(stand)?;
        let root = tree.open().context("open the shared tree")?;
        let (control, far_control) = scm::packet_pair().context("make the control socket")?;
        let (vsock, far_vsock) = connected(stand, "vsock")?;
        let (roots, far_roots) = connected(stand, "roots")?;
        let (volumes, far_volumes) = connected(stand, "volumes")?;
        let null = device("/dev/null")?;
        let stderr = io::stderr();
        let mut spawn = program(&[stand.prefix().program("kata-proxy").display().to_string()])?;
        spawn.fds = vec![
            null.as_fd(),
            null.as_fd(),
            stderr.as_fd(),
            far_control.as_fd(),
            vsock.as_fd(),
            roots.as_fd(),
            volumes.as_fd(),
            root.as_fd(),
        ];
        let child = spawn.start().context("start kata-proxy")?;
        let ends = [far_vsock, far_roots, far_volumes];
        let proxy = Self { child, control, ends, _tree: tree };
        patience::await_readable(&proxy.control, "the proxy's word that it serves")?;
        let (word, _) = proxy.receive()?;
        if word.get("ready").is_none() {
            bail!("the proxy's first word is {word}");
        }
        Ok(proxy)
    }

    fn receive(&self) -> Result<(Value, Vec<OwnedFd>)> {
        patience::await_readable(&self.control, "a word of the proxy")?;
        let packet = scm::receive(&self.control).context("receive from the proxy")?;
        let word = serde_json::from_slice(&packet.bytes).context("understand the proxy")?;
        Ok((word, packet.fds))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        end(&self.child);
    }
}

/// A bare VM that has all but its QEMU.
#[derive(Debug)]
pub struct Prepared<'a> {
    line: &'a VmmLine,
    proxy: Proxy,
}

impl<'a> Prepared<'a> {
    pub fn new(stand: &Stand, line: &'a VmmLine) -> Result<Self> {
        Ok(Self { line, proxy: Proxy::start(stand)? })
    }

    /// Executes QEMU.
    pub fn boot(self, stand: &Stand) -> Result<BareVm> {
        self.boot_with(stand, None)
    }

    /// Executes QEMU, with the far end of its card if it has one.
    pub fn boot_with(self, stand: &Stand, tap: Option<&OwnedFd>) -> Result<BareVm> {
        let (qmp, far_qmp) = scm::stream_pair().context("make a socket for QMP")?;
        let (console, far_console) = scm::stream_pair().context("make a socket for the console")?;
        let null = device("/dev/null")?;
        let log = File::create(stand.place(LOG)).context("make a log for QEMU")?;
        let numbers = self.line.numbers;
        let [vsock, roots, volumes] = &self.proxy.ends;
        let vhost = numbers.vhost.map(|_| device("/dev/vhost-net")).transpose()?;
        let mut placed = vec![
            (2, log.as_fd()),
            (numbers.qmp, far_qmp.as_fd()),
            (numbers.console, far_console.as_fd()),
            (numbers.vsock, vsock.as_fd()),
            (numbers.shares[0], roots.as_fd()),
            (numbers.shares[1], volumes.as_fd()),
        ];
        placed.extend(numbers.tap.zip(tap).map(|(number, tap)| (number, tap.as_fd())));
        placed.extend(numbers.vhost.zip(vhost.as_ref()).map(|(number, fd)| (number, fd.as_fd())));
        let mut spawn = program(self.line.words())?;
        let count = placed.iter().map(|(number, _)| number + 1).max().unwrap_or_default();
        spawn.fds = vec![null.as_fd(); count];
        for (number, fd) in placed {
            spawn.fds[number] = fd;
        }
        let started = Instant::now();
        let child = spawn.start().context("start QEMU")?;
        Ok(BareVm { child, _qmp: qmp, console, proxy: self.proxy, started })
    }
}

/// A bare VM; killed when dropped.
#[derive(Debug)]
pub struct BareVm {
    child: Child,
    _qmp: OwnedFd,
    pub console: OwnedFd,
    proxy: Proxy,
    /// Right before QEMU was executed.
    pub started: Instant,
}

impl BareVm {
    /// QEMU and the proxy.
    pub fn pids(&self) -> [u32; 2] {
        [&self.child, &self.proxy.child]
            .map(|child| child.pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// What QEMU had to say.
    pub fn log(&self, stand: &Stand) -> String {
        fs::read_to_string(stand.place(LOG)).unwrap_or_default()
    }

    /// The connection that the guest dials.
    pub fn connection(&self) -> Result<File> {
        let (word, mut fds) = self.proxy.receive()?;
        match (word.get("connection"), fds.pop()) {
            (Some(_), Some(fd)) => Ok(File::from(fd)),
            _ => bail!("the proxy says {word} where a connection should be"),
        }
    }
}

impl Drop for BareVm {
    fn drop(&mut self) {
        end(&self.child);
    }
}

fn end(child: &Child) {
    if let Err(error) = child.kill().and_then(|()| child.wait()) {
        eprintln!("xtask: end process {}: {error}", child.pid.as_raw_nonzero());
    }
}

/// A listener, and the one connection to it.
fn connected(stand: &Stand, name: &str) -> Result<(UnixListener, OwnedFd)> {
    let path = stand.place(name);
    let context = || format!("make the socket {}", path.display());
    let listener = UnixListener::bind(&path).with_context(context)?;
    let stream = UnixStream::connect(&path).with_context(context);
    fs::remove_file(&path).with_context(context)?;
    Ok((listener, stream?.into()))
}

fn device(path: &str) -> Result<File> {
    let opened = File::options().read(true).write(true).open(path);
    opened.with_context(|| format!("open {path}"))
}

fn program<'fd>(words: &[String]) -> Result<Spawn<'fd>> {
    let words: Vec<CString> = words
        .iter()
        .map(|word| CString::new(word.as_str()))
        .collect::<Result<_, _>>()
        .context("a word holds a NUL byte")?;
    let first = words.first().context("no program to start")?.clone();
    Ok(Spawn { arguments: words, ..Spawn::<'fd>::new(first) })
}
