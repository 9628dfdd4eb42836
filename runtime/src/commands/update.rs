//! `update`: other limits for a container, from options, a file, or stdin.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use kata_engine_api::record::Record;
use kata_spec::check_resources;
use serde_json::{Value, json};

use super::Context;
use crate::{args::Update, failure::Failure};

/// Longest document that is read; what engines write has a few hundred bytes.
const LONGEST: u64 = 1024 * 1024;

/// What the shim has to say about memory that the VM does not have.
const MEMORY_NOTE: &str = "memoryNote";

impl Context<'_> {
    pub(super) fn update(&self, typed: &Update) -> Result<(), Failure> {
        refuse_cache(typed)?;
        let resources = match &typed.resources {
            Some(path) => read(path)?,
            None => from_options(typed).to_string().into_bytes(),
        };
        // Here, so that an error is the caller's own whatever becomes of the container.
        check_resources(&resources)?;
        let dir = self.root.open(&typed.id)?;
        let refused = "cannot update a stopped container";
        self.with_shim(&typed.id, refused, async |shim| shim.update(resources.clone()).await)?;
        let noted = |record: &Record| record.sandbox.get(MEMORY_NOTE).cloned();
        if let Some(note) = dir.record()?.as_ref().and_then(noted) {
            self.journal.warn(&note);
        }
        Ok(())
    }
}

/// What a spec's `linux.intelRdt` is refused for.
fn refuse_cache(typed: &Update) -> Result<(), Failure> {
    let options =
        [("--l3-cache-schema", &typed.l3_cache_schema), ("--mem-bw-schema", &typed.mem_bw_schema)];
    match options.iter().find(|(_, value)| value.as_ref().is_some_and(|schema| !schema.is_empty()))
    {
        None => Ok(()),
        Some((option, _)) => Err(Failure::Usage(format!(
            "{option} is not supported: cache and bandwidth of the host can't be given to a VM yet"
        ))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    let name = if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() };
    let source: io::Result<Box<dyn Read>> = if path == Path::new("-") {
        Ok(Box::new(io::stdin()))
    } else {
        File::open(path).map(|file| Box::new(file) as Box<dyn Read>)
    };
    source
        .and_then(|source| source.take(LONGEST + 1).read_to_end(&mut text))
        .map_err(Failure::host(format!("read the resources from {name}")))?;
    if text.len() as u64 > LONGEST {
        return Err(Failure::Usage(format!("resources in {name} are longer than 1 MiB")));
    }
    Ok(text)
}

fn from_options(typed: &Update) -> Value {
    let mut resources = json!({});
    let mut set = |object: &str, field: &str, value: Value| {
        if !value.is_null() {
            resources[object][field] = value;
        }
    };
    let bytes = |value: Option<crate::words::Limit>| json!(value.map(|limit| limit.0));
    set("memory", "limit", bytes(typed.memory));
    set("memory", "reservation", bytes(typed.memory_reservation));
    set("memory", "swap", bytes(typed.memory_swap));
    set("memory", "kernel", bytes(typed.kernel_memory));
    set("memory", "kernelTCP", bytes(typed.kernel_memory_tcp));
    set("cpu", "shares", json!(typed.cpu_share));
    set("cpu", "quota", json!(typed.cpu_quota));
    set("cpu", "period", json!(typed.cpu_period));
    set("cpu", "burst", json!(typed.cpu_burst));
    set("cpu", "idle", json!(typed.cpu_idle));
    set("cpu", "realtimePeriod", json!(typed.cpu_rt_period));
    set("cpu", "realtimeRuntime", json!(typed.cpu_rt_runtime));
    set("cpu", "cpus", json!(typed.cpuset_cpus));
    set("cpu", "mems", json!(typed.cpuset_mems));
    set("pids", "limit", json!(typed.pids_limit));
    set("blockIO", "weight", json!(typed.blkio_weight));
    resources
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::from_options;
    use crate::args::{Cli, Command};

    fn typed(options: &[&str]) -> serde_json::Value {
        let words = ["kata-runtime", "update"].iter().chain(options).chain(&["c1"]);
        let Command::Update(update) = Cli::parse_from(words).command else { panic!("no update") };
        from_options(&update)
    }

    #[test]
    fn only_what_was_typed_is_asked_for() {
        assert_eq!(typed(&[]), json!({}));
        let memory = typed(&["--memory", "512M", "--memory-swap", "-1", "--pids-limit", "-1"]);
        let expected = json!({"memory": {"limit": 512 << 20, "swap": -1}, "pids": {"limit": -1}});
        assert_eq!(memory, expected);
        let cpu = typed(&["--cpu-quota=-1", "--cpu-share", "5", "--cpuset-cpus", "0-1"]);
        assert_eq!(cpu, json!({"cpu": {"quota": -1, "shares": 5, "cpus": "0-1"}}));
    }
}
