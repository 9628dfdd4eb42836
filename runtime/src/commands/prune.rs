//! `prune`: what the store of layers keeps for runs to come.

use std::path::Path;

use kata_store::Store;

use crate::failure::Failure;

/// Removes what no container uses, and says how much that was.
pub(super) fn prune(store: &Path) -> Result<String, Failure> {
    let store = Store::existing(store).map_err(Failure::Store)?;
    let removed = match &store {
        Some(store) => {
            store.sweep().map_err(Failure::Store)?;
            store.prune().map_err(Failure::Store)?
        }
        None => 0,
    };
    Ok(format!("{removed} layers removed\n"))
}
