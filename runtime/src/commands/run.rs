//! `run`: create, start, wait, delete.

use std::{fs::File, path::Path, time::Duration};

use kata_store::find_user;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    Context,
    create::{detached_console, refuse},
};
use crate::{
    args::{Creating, Run},
    create::{Console, Created, Creation, Source, Told, create},
    failure::Failure,
    foreground::{Foreground, Signals},
    hooks,
    id::ContainerId,
    image::{self, ImageRoot},
    made_spec::{Program, alone, made},
    shim_client::{ShimClient, block_on},
    terminal::{self, RawTerminal},
};

/// An interrupt and the answer to start may cross: so long the answer is waited for.
const CROSSING: Duration = Duration::from_millis(100);

/// So long the shim may take to hear of an end after us.
const HEARING: Duration = Duration::from_secs(1);

impl Context<'_> {
    pub(super) fn run_container(&self, typed: Run) -> Result<u8, Failure> {
        refuse(typed.creating.preserve_fds)?;
        let id = id_of(&typed)?;
        let made_up = match (&typed.rootfs, &typed.image) {
            (Some(rootfs), _) => Some((spec_for_rootfs(&typed, rootfs, &id)?, None)),
            (None, Some(reference)) => {
                let image = ImageRoot::open(reference, &typed.of_image.store, self.journal)?;
                let program = image.program(&typed)?;
                Some((alone(made(image::ROOT, &program, id.as_str(), &typed.made_up)), Some(image)))
            }
            (None, None) => None,
        };
        let (source, terminal) = match &made_up {
            Some((spec, Some(image))) => (Source::Image(spec, image), typed.made_up.terminal),
            Some((spec, None)) => (Source::Spec(spec), typed.made_up.terminal),
            None => {
                let bundle = self.load_bundle(&typed.creating.bundle)?;
                let terminal = bundle.spec.process.terminal;
                (Source::Bundle(Box::new(bundle)), terminal)
            }
        };
        let creation = Creation {
            root: &self.root,
            prefix: &self.prefix,
            id: &id,
            console: console(&typed, terminal)?,
            told: Told::of(&typed.creating),
            shim_environment: &self.shim_environment,
            journal: self.journal,
        };
        if typed.detach {
            let created = create(&creation, source)?;
            let started = block_on(async { shim(&created, &id)?.start().await });
            self.or_remove(started, &created, &id)?;
            let hooks = self.after_start(&created.dir, &id);
            return self.or_remove(hooks, &created, &id).map(|()| 0);
        }
        let signals = Signals::take()?;
        let created = create(&creation, source)?;
        let ended = self.in_foreground(&creation, &created, signals);
        let code = self.or_remove(ended, &created, &id)?;
        if typed.keep {
            return Ok(code);
        }
        if let Err(failure) = self.remove(&created.dir, &id, false) {
            self.journal.warn(&format!("run: {}", failure.line()));
        }
        Ok(code)
    }

    fn in_foreground(
        &self,
        creation: &Creation<'_>,
        created: &Created,
        signals: Signals,
    ) -> Result<u8, Failure> {
        let _raw = match creation.console {
            Console::Callers(_) => Some(RawTerminal::enter()?),
            Console::None | Console::Socket(_) => None,
        };
        block_on(async {
            let shim = shim(created, creation.id)?;
            let monitor = Foreground::new(&created.monitor, signals)?;
            let code = match monitor.until_started(CROSSING, shim.start()).await? {
                Some(started) => {
                    started?;
                    self.until_end(created, &monitor).await?
                }
                None => monitor.until_end().await?,
            };
            // The shim hears of it a moment later than we do; delete would find it running.
            timeout(HEARING, shim.wait()).await.ok();
            Ok(code)
        })
    }

    /// From the start on: the hooks that follow it, while signals are forwarded and the end is awaited.
    async fn until_end(&self, created: &Created, monitor: &Foreground<'_>) -> Result<u8, Failure> {
        let Some(owed) = hooks::read(&created.dir)? else { return monitor.until_end().await };
        let pid = created.pid();
        let hooks = tokio::task::spawn_blocking(move || owed.poststart(pid));
        let (code, errors) = tokio::join!(monitor.until_end(), hooks);
        // Hooks do not panic.
        hooks::warn(self.journal, errors.unwrap_or_default());
        code
    }

    /// Hands on a success; after a failure nothing stays behind.
    fn or_remove<T>(
        &self,
        done: Result<T, Failure>,
        created: &Created,
        id: &ContainerId,
    ) -> Result<T, Failure> {
        if done.is_err()
            && let Err(failure) = self.remove(&created.dir, id, true)
        {
            self.journal.warn(&format!("run: cannot clean up: {}", failure.line()));
        }
        done
    }
}

fn shim(created: &Created, id: &ContainerId) -> Result<ShimClient, Failure> {
    let shim = ShimClient::connect(&created.dir, id)?;
    shim.ok_or_else(|| Failure::ShimLost(created.dir.last_words()))
}

fn id_of(typed: &Run) -> Result<ContainerId, Failure> {
    match typed.id.as_ref().or(typed.name.as_ref()) {
        Some(id) => Ok(id.clone()),
        None if typed.rootfs.is_some() || typed.image.is_some() => {
            ContainerId::random().map_err(Failure::host("make up an id"))
        }
        None => Err(Failure::Usage(
            "no container id: give one for the bundle, or --rootfs DIR -- COMMAND, or --image IMAGE"
                .to_owned(),
        )),
    }
}

fn spec_for_rootfs(typed: &Run, rootfs: &Path, id: &ContainerId) -> Result<Value, Failure> {
    if typed.command.is_empty() {
        return Err(Failure::Usage(
            "no command: put one after --, as in -- sh -c 'uname -a'".to_owned(),
        ));
    }
    let failed = || Failure::host(format!("use the root directory {}", rootfs.display()));
    let absolute = rootfs.canonicalize().map_err(failed())?;
    let path = absolute.to_str().ok_or_else(|| {
        Failure::Usage(format!("{}: not UTF-8, as a spec must be", absolute.display()))
    })?;
    let root = File::open(&absolute).map_err(failed())?;
    let program = Program {
        args: typed.command.clone(),
        cwd: typed.made_up.cwd.clone().unwrap_or_else(|| "/".to_owned()),
        user: find_user(&root, typed.made_up.user.as_deref().unwrap_or_default())?,
        ..Program::default()
    };
    Ok(alone(made(path, &program, id.as_str(), &typed.made_up)))
}

fn console(typed: &Run, terminal: bool) -> Result<Console, Failure> {
    let Creating { console_socket, .. } = &typed.creating;
    match (terminal, console_socket.is_some() || typed.detach) {
        (true, false) => terminal::size().map(Console::Callers),
        _ => detached_console(&typed.creating, terminal),
    }
}
