//! `delete`: what an engine runs after an end that the shim may not have seen through.

use std::{
    fs,
    io::{self, Write},
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
    record::{Cause, Ended},
};
use kata_sandbox::step::Steps;
use kata_spec::read_config;
use protobuf::Message;
use rustix::mount::{UnmountFlags, unmount};
use serde_json::Value;
use ttrpc::{
    asynchronous::{Client, transport::Socket},
    context::Context as Metadata,
};

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
const PATIENCE: Duration = Duration::from_secs(4);

/// Takes away what is left of a container, and prints how it ended.
pub fn delete(flags: &Flags) -> anyhow::Result<()> {
    flags.check()?;
    let bundle = flags.bundle()?;
    let config = read_config(&bundle.join("config.json")).ok();
    let config = config.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let sandbox = config.map_or(flags.id.clone(), |value| pod::sandbox_id(&value, &flags.id));
    let place = Place::of(&flags.address, &flags.namespace, &sandbox);
    let ended = match ask(&place, &flags.id)? {
        Asked::Lives(ended) => ended,
        Asked::Gone => clean(&place, &flags.id, flags.id == sandbox)?,
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

/// What came of asking a shim.
enum Asked {
    /// It lives; how the container ended, if it still had it.
    Lives(Option<Ended>),
    /// There is none, or it died over the question: one that was killed may be connected to until it is dead.
    Gone,
}

/// Has a shim that lives kill and delete the container.
fn ask(place: &Place, id: &str) -> anyhow::Result<Asked> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let shim = place.connect().context("find out whether there is a shim")?;
        let Some(stream) = shim else { return Ok(Asked::Gone) };
        let client = TaskClient::new(Client::new(Socket::try_from(stream)?));
        Ok(match tokio::time::timeout(PATIENCE, kill_and_delete(&client, id)).await {
            Ok(Ok(answer)) => {
                let code = u8::try_from(answer.exit_status).unwrap_or(LOST);
                Asked::Lives(Some(Ended::new(code, Cause::Unknown, None)))
            }
            // It takes longer than an engine waits, or refuses.
            Err(_) | Ok(Err(ttrpc::Error::RpcStatus(_))) => Asked::Lives(None),
            Ok(Err(_)) => Asked::Gone,
        })
    })
}

/// Without deadlines of its own, whose errors cannot be told from those of a connection that broke.
async fn kill_and_delete(client: &TaskClient, id: &str) -> ttrpc::Result<DeleteResponse> {
    let id = id.to_owned();
    let kill = KillRequest {
        id: id.clone(),
        signal: SIGKILL,
        all: true,
        for_delete: true,
        ..Default::default()
    };
    // It may have ended by itself, or not be known; what matters is what the last one says.
    client.kill(Metadata::default(), &kill).await.ok();
    let wait = WaitRequest { id: id.clone(), ..Default::default() };
    client.wait(Metadata::default(), &wait).await.ok();
    client.delete(Metadata::default(), &DeleteRequest { id, ..Default::default() }).await
}

/// Without a shim: everything that its ledger names goes, which ends all containers of the sandbox; of them, each is taken
/// away when it is asked for, and with the last the directory.
fn clean(place: &Place, id: &str, sandbox: bool) -> anyhow::Result<Option<Ended>> {
    kata_sandbox::ledger::replay(place.path(), &Steps::default())
        .with_context(|| format!("clean up after {}", place.path().display()))?;
    let own = place.container(id);
    let ended = offline::settled(&own).unwrap_or_else(|error| {
        // How it ended is lost. What is left of it must go all the same.
        eprintln!("containerd-shim-kata-v2: {error:#}");
        None
    });
    let ended = ended.and_then(|record| record.ended);
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
    offline::remove(path).with_context(|| format!("remove {}", path.display()))
}

/// We mount nothing there; an engine may have.
fn unmount_rootfs(bundle: &Path) {
    // Not mounted, or not there: as it should be.
    unmount(bundle.join("rootfs"), UnmountFlags::DETACH).ok();
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kata_engine_api::record::RECORD_FILE;

    use super::{Place, clean};

    #[test]
    fn a_record_that_cannot_be_read_is_taken_away_like_any() {
        let scratch = tempfile::tempdir().unwrap();
        let place = Place::at(scratch.path().join("place"));
        let own = place.container("c");
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join(RECORD_FILE), "{").unwrap();
        assert_eq!(clean(&place, "c", false).unwrap(), None);
        assert!(!place.path().exists());
    }
}
