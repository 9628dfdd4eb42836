//! `exec`: another process in a running container.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use kata_engine_api::handover::{Exec as ExecRequest, Request, TerminalSize};
use kata_sys::watch::watch;
use serde_json::Value;
use tokio::io::Interest;

use super::{Context, create::refuse, has_stopped, state::being_created};
use crate::{
    args::Exec,
    create::{Console, Told},
    exec_process::{build, wants_terminal},
    failure::Failure,
    foreground::{Foreground, Signals},
    handover::{answer, sealed, send},
    id::ContainerId,
    programs::{Monitor, MonitorNetwork, MonitorPlan, start_monitor},
    sandbox_dir::SandboxDir,
    shim_client::{PATIENCE, ShimClient, block_on},
    terminal::{self, RawTerminal},
};

/// An interrupt and the answer may cross, and a process that nobody keeps waiting is there by then.
const CROSSING: Duration = Duration::from_secs(3);

impl Context<'_> {
    pub(super) fn exec(&self, typed: &Exec) -> Result<u8, Failure> {
        refuse(typed.preserve_fds)?;
        if let Some(group) = typed.cgroup.first() {
            return Err(Failure::Usage(format!(
                "--cgroup {group} is not supported: the process is in the control group of its container"
            )));
        }
        let dir = self.root.open(&typed.id)?;
        let found = block_on(ShimClient::find(&dir, &typed.id, PATIENCE))?;
        // A shim whose container has ended may go at any moment.
        if found.is_none() || has_stopped(&dir) {
            return Err(self.ended(&dir, &typed.id, "cannot exec in a stopped container"));
        }
        drop(found);
        let process = build(typed, bundle_of(&dir, &typed.id)?.as_ref())?;
        if let Ok(checked) = kata_spec::parse_process(process.to_string().as_bytes(), "process") {
            checked.warnings.iter().for_each(|warning| self.journal.warn(warning));
        }
        let console = console(typed, wants_terminal(&process))?;
        let signals = if typed.detach { None } else { Some(Signals::take()?) };
        let exec_id = ContainerId::random().map_err(Failure::host("make up an id"))?;
        let plan = MonitorPlan {
            container: &typed.id,
            exec: Some(exec_id.as_str()),
            terminal: console.terminal(),
            network: MonitorNetwork::Callers,
            view: None,
        };
        let (monitor, pipe) = start_monitor(&self.prefix, &dir, &plan)?;
        let request = Request::Exec(ExecRequest {
            container_id: typed.id.to_string(),
            exec_id: exec_id.to_string(),
            monitor_pid: monitor.pid(),
            terminal_size: console.size().or_else(|| size_in(&process)),
            callers_terminal: matches!(console, Console::Callers(_)),
            ignore_paused: typed.ignore_paused,
        });
        let raw = match console {
            Console::Callers(_) => Some(RawTerminal::enter()?),
            Console::None | Console::Socket(_) => None,
        };
        let Exec { pid_file, pidfd_socket, .. } = typed;
        let told = Told { pid_file: pid_file.as_deref(), pidfd_socket: pidfd_socket.as_deref() };
        let ended = pipe
            .wait()
            .map_err(Failure::from)
            .and_then(|()| sealed("process.json", process.to_string().as_bytes()))
            .and_then(|json| send(&dir, &request, &[monitor.control.as_fd(), json.as_fd()]))
            .and_then(|socket| self.see_through(&dir, socket, (&monitor, told), signals));
        if ended.is_err() {
            abandon(&monitor);
        }
        drop(raw);
        ended
    }

    /// Waits until the process runs, which a paused container may put off, and in the foreground until it has ended.
    fn see_through(
        &self,
        dir: &SandboxDir,
        socket: OwnedFd,
        (monitor, told): (&Monitor, Told<'_>),
        signals: Option<Signals>,
    ) -> Result<u8, Failure> {
        let answered = |socket: &OwnedFd| {
            answer(dir, socket)?;
            self.journal.debug(&format!("monitor {} stands for the process", monitor.pid()));
            told.tell(monitor, "setns")
        };
        let Some(signals) = signals else { return answered(&socket).map(|()| 0) };
        let failed = || Failure::host("wait until the process runs");
        block_on(async {
            let foreground = Foreground::new(&monitor.child, signals)?;
            let socket = watch(socket, Interest::READABLE).map_err(failed())?;
            match foreground.until_started(CROSSING, socket.readable()).await? {
                Some(ready) => drop(ready.map_err(failed())?),
                None => return foreground.until_end().await,
            }
            answered(socket.get_ref())?;
            foreground.until_end().await
        })
    }
}

/// Ends a monitor whose process never came to be, or can't be told of.
fn abandon(monitor: &Monitor) {
    // It holds nothing but its own descriptors; the failure that led here is the one to tell.
    if monitor.child.kill().is_ok() {
        monitor.child.wait().ok();
    }
}

fn bundle_of(dir: &SandboxDir, id: &ContainerId) -> Result<String, Failure> {
    Ok(dir.record()?.ok_or_else(|| being_created(id))?.bundle)
}

/// The size that a process file gives to a terminal that nobody sees yet.
fn size_in(process: &Value) -> Option<TerminalSize> {
    let side = |name: &str| u16::try_from(process["consoleSize"][name].as_u64()?).ok();
    Some(TerminalSize { rows: side("height")?, columns: side("width")? })
}

fn console(typed: &Exec, terminal: bool) -> Result<Console, Failure> {
    match (&typed.console_socket, terminal) {
        (Some(path), true) => Console::connect(path),
        (Some(_), false) => Err(Failure::Usage(
            "cannot use console socket if kata-runtime will not detach or allocate tty".to_owned(),
        )),
        (None, true) if typed.detach => Err(Failure::Usage(
            "cannot allocate tty if kata-runtime will detach without setting console socket"
                .to_owned(),
        )),
        (None, true) => terminal::size().map(Console::Callers),
        (None, false) => Ok(Console::None),
    }
}
