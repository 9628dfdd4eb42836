//! `delete`: what an engine runs after an end that the shim may not have seen through.

use std::{
    fs, io,
    io::Write,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use kata_engine_api::{
    containerd::{
        task::{DeleteRequest, DeleteResponse, KillRequest, WaitRequest},
        task_ttrpc::TaskClient,
        timestamp::Timestamp,
    },
    record::Ended,
};
use kata_sandbox::step::Steps;
use protobuf::Message;
use rustix::mount::{UnmountFlags, unmount};
use serde_json::Value;
use ttrpc::asynchronous::{Client, transport::Socket};

use super::{
    flags::Flags,
    hooks,
    place::{CONTAINERS, Place},
    pod,
};
use crate::{
    offline,
    process::{LOST, SIGKILL},
};

/// An engine gives five seconds for everything.
const PATIENCE: Duration = Duration::from_secs(3);

/// Takes away what is left of a container, and prints how it ended.
pub fn delete(flags: &Flags) -> anyhow::Result<()> {
    flags.check()?;
    let bundle = flags.bundle()?;
    let config = fs::read(bundle.join("config.json")).ok();
    let config = config.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let sandbox = config.map_or(flags.id.clone(), |value| pod::sandbox_id(&value, &flags.id));
    let place = Place::of(&flags.address, &flags.namespace, &sandbox);
    let ended = if place.is_served() {
        ask(&place, &flags.id)?
    } else {
        clean(&place, &flags.id, flags.id == sandbox)?
    };
    let (code, at) = ended.map_or((LOST, SystemTime::now()), |ended| (ended.code, ended.at()));
    unmount_rootfs(&bundle);
    Place::tidy_up();
    let answer = DeleteResponse {
        exit_status: code.into(),
        exited_at: Some(Timestamp::from(at)).into(),
        ..Default::default()
    };
    let bytes = answer.write_to_bytes().context("encode the answer")?;
    io::stdout().write_all(&bytes).context("print the answer")
}

/// Of a shim that lives: it kills and deletes the container, if it still has it.
fn ask(place: &Place, id: &str) -> anyhow::Result<Option<Ended>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = std::os::unix::net::UnixStream::connect(place.socket())?;
        let client = TaskClient::new(Client::new(Socket::try_from(stream)?));
        let patience = || ttrpc::context::with_duration(PATIENCE);
        let id = id.to_owned();
        let kill = KillRequest {
            id: id.clone(),
            signal: SIGKILL,
            all: true,
            for_delete: true,
            ..Default::default()
        };
        // It may have ended by itself, or not be known; what matters is what the next two say.
        client.kill(patience(), &kill).await.ok();
        let wait = WaitRequest { id: id.clone(), ..Default::default() };
        client.wait(patience(), &wait).await.ok();
        let delete = DeleteRequest { id, ..Default::default() };
        let Ok(answer) = client.delete(patience(), &delete).await else { return Ok(None) };
        let code = u8::try_from(answer.exit_status).unwrap_or(LOST);
        Ok(Some(Ended::new(code, kata_engine_api::record::Cause::Unknown, None)))
    })
}

/// Without a shim: everything that its ledger names goes, which ends all containers of the sandbox; of them, each is taken
/// away when it is asked for, and with the last the directory.
fn clean(place: &Place, id: &str, sandbox: bool) -> anyhow::Result<Option<Ended>> {
    kata_sandbox::ledger::replay(place.path(), &Steps::default())
        .with_context(|| format!("clean up after {}", place.path().display()))?;
    let own = place.container(id);
    let ended = offline::settled(&own)?.and_then(|record| record.ended);
    let owed = hooks::read(&own);
    remove(&own)?;
    if let Some(owed) = owed {
        hooks::poststop(&owed);
    }
    let others =
        fs::read_dir(place.path().join(CONTAINERS)).is_ok_and(|mut all| all.next().is_some());
    if sandbox || !others {
        remove(place.path())?;
    }
    Ok(ended)
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// We mount nothing there; an engine may have.
fn unmount_rootfs(bundle: &Path) {
    // Not mounted, or not there: as it should be.
    unmount(bundle.join("rootfs"), UnmountFlags::DETACH).ok();
}
