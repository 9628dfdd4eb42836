//! What this program does about the VMM besides running it: becoming it, and looking it over.

use std::io;

use anyhow::Context;
use kata_config::{Loaded, find_vmm};
use kata_hypervisor::{jail, qemu};
use serde_json::json;

/// Enters the jail that the driver describes, and becomes the VMM.
pub fn enter_jail() -> anyhow::Result<()> {
    match jail::enter_and_exec() {
        Ok(never) => match never {},
        Err(error) => Err(error).context("enter the VMM's jail"),
    }
}

/// Prints, as JSON, whether the VMM has what the driver needs.
pub fn verify() -> anyhow::Result<()> {
    let config = Loaded::read(&kata_config::directory())?.config;
    let vmm = find_vmm(&config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let verified = runtime.block_on(qemu::verify(&vmm))?;
    let report = json!({"path": vmm, "version": verified.version.to_string()});
    serde_json::to_writer(io::stdout(), &report).context("print the report")?;
    Ok(())
}
