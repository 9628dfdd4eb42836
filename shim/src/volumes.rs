//! How a container's volumes come into the guest: by the shared tree, together with other containers
//! (docs/design/0017-volumes-of-a-pod.md), as copies, or in its memory.

use std::{io, os::fd::OwnedFd, sync::Arc};

use kata_protocol::{COPIES, VOLUMES, agent::MemoryVolume};
use kata_sandbox::{
    lifecycle::Sandbox,
    share::{Shown, VolumeKind, is_writable},
};
use kata_spec::{Checked, Origin, Trees, VolumeSource};

use crate::{
    container::Role,
    copies::{Copies, Copy},
    failure::Refusal,
    memory::{InGuest, Memories},
};

/// The volumes of a sandbox.
#[derive(Default)]
pub struct Volumes {
    copies: Arc<Copies>,
    memories: Memories,
}

/// The volumes of a container.
#[derive(Default)]
pub struct Placed {
    /// Where the guest finds each, in the order of the spec's.
    pub sources: Vec<String>,
    /// Those that it has copies of.
    pub copies: Vec<Arc<Copy>>,
    /// What it is to make in its memory.
    pub memory: Vec<MemoryVolume>,
}

impl Volumes {
    /// Brings a container's volumes to where the guest sees them, or will. What was attached for one that fails is detached with the
    /// container.
    pub async fn place(
        &self,
        sandbox: &Arc<Sandbox>,
        trees: Option<&Trees>,
        (id, role, spec): (&str, Role, &Checked),
    ) -> Result<Placed, Refusal> {
        let mut placed = Placed::default();
        let trees = trees.into_iter().flat_map(|trees| &trees.volumes);
        for (volume, tree) in spec.volumes.iter().zip(trees) {
            let own = match role {
                Role::Member => self.of_guest(sandbox, (volume, tree)),
                // It enters the guest with its boot, and is no pod's.
                Role::Alone | Role::Pod => Ok(None),
            };
            match own.map_err(|e| Refusal::internal(&e))? {
                Some(OfGuest::Copy(copy)) => {
                    placed.sources.push(format!("{COPIES}/{}", copy.number()));
                    placed.copies.push(copy);
                }
                Some(OfGuest::Memory(InGuest { source, volume })) => {
                    placed.sources.push(source);
                    placed.memory.push(volume);
                }
                None => {
                    let number = attach(sandbox, id, (volume, tree)).await?;
                    placed.sources.push(format!("{}/{number}", VOLUMES.1));
                }
            }
        }
        Ok(placed)
    }

    /// What the guest has in the place of a volume, if it is one of a kubelet's that it can have.
    fn of_guest(
        &self,
        sandbox: &Arc<Sandbox>,
        (volume, tree): (&VolumeSource, &OwnedFd),
    ) -> io::Result<Option<OfGuest>> {
        if let Some(copy) = self.copies.copy(volume, (tree, sandbox))? {
            return Ok(Some(OfGuest::Copy(copy)));
        }
        let placed = self.memories.place(volume, tree, || sandbox.tree().number())?;
        Ok(placed.map(OfGuest::Memory))
    }
}

/// Of the guest's own.
enum OfGuest {
    Copy(Arc<Copy>),
    Memory(InGuest),
}

/// Attaches a volume, or finds it attached; returns its number.
async fn attach(
    sandbox: &Sandbox,
    id: &str,
    (volume, tree): (&VolumeSource, &OwnedFd),
) -> Result<usize, Refusal> {
    let kind = if volume.directory { VolumeKind::Directory } else { VolumeKind::File };
    let shown = shown(volume, tree).map_err(|e| Refusal::internal(&e))?;
    let place = sandbox.tree().attach_volume(id, (kind, shown), tree, sandbox.steps());
    let place = place.map_err(|e| Refusal::internal(&e))?;
    if place.closed {
        sandbox.open_volume(place.number).await?;
    }
    Ok(place.number)
}

/// What a volume shows, if other containers may have the same one: not where something is mounted below, which may be another thing
/// the next time; nor where the host alone keeps the container from writing, since it can't once another may.
fn shown(volume: &VolumeSource, tree: &OwnedFd) -> io::Result<Option<Shown>> {
    let plain = matches!(volume.origin, Origin::Path(_)) && volume.undivided;
    let guarded = !volume.read_only && !is_writable(tree)?;
    if !plain || guarded {
        return Ok(None);
    }
    Shown::by(tree, volume.id_map.clone()).map(Some)
}
