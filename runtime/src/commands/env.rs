//! `env`: what this installation consists of, and what is configured by whom.

use std::fmt::Write;

use kata_config::{Artefact, ArtefactError, find_vmm};
use serde_json::{Map, Value, json};

use super::{Context, print, print_json};
use crate::{args::Report, failure::Failure};

impl Context<'_> {
    pub(super) fn env(&self, typed: &Report) -> Result<(), Failure> {
        let loaded = self.loaded()?;
        let mut paths: Vec<(&str, Result<String, ArtefactError>)> = vec![
            ("shim", self.prefix.find(Artefact::Shim).map(|path| path.display().to_string())),
            ("monitor", self.prefix.find(Artefact::Monitor).map(|path| path.display().to_string())),
            ("proxy", self.prefix.find(Artefact::Proxy).map(|path| path.display().to_string())),
        ];
        let config = &loaded.config;
        paths.push(("kernel", self.prefix.kernel(config).map(|path| path.display().to_string())));
        paths.push(("initrd", self.prefix.initrd(config).map(|path| path.display().to_string())));
        paths.push(("qemu", find_vmm(config).map(|path| path.display().to_string())));
        let settings: Vec<(&str, String, String)> = loaded
            .provenance()
            .map(|(key, value, source)| {
                let value = value.unwrap_or_else(|| "(the installed one)".to_owned());
                (key.name, value, source.to_string())
            })
            .collect();
        if typed.json {
            let paths: Map<String, Value> = paths.iter().map(|(n, p)| path_json(n, p)).collect();
            let settings: Map<String, Value> = settings
                .iter()
                .map(|(name, value, source)| {
                    ((*name).to_owned(), json!({ "value": value, "source": source }))
                })
                .collect();
            return print_json(&json!({
                "version": env!("CARGO_PKG_VERSION"),
                "ociVersion": kata_spec::VERSION,
                "prefix": self.prefix.as_path(),
                "configDirectory": self.config,
                "paths": paths,
                "config": settings,
            }));
        }
        print(&self.text(&paths, &settings))
    }

    fn text(
        &self,
        paths: &[(&str, Result<String, ArtefactError>)],
        settings: &[(&str, String, String)],
    ) -> String {
        let mut text = super::version();
        // A String takes everything that is written to it.
        let mut line = |name: &str, value: &str| writeln!(text, "{name:<32}{value}").ok();
        line("prefix:", &self.prefix.as_path().display().to_string());
        for (name, path) in paths {
            match path {
                Ok(path) => line(&format!("{name}:"), path),
                Err(error) => line(&format!("{name}:"), &format!("MISSING: {error}")),
            };
        }
        line("configuration:", &self.config.display().to_string());
        for (name, value, source) in settings {
            line(&format!("  {name} "), &format!("{value:<20} {source}"));
        }
        text
    }
}

fn path_json(name: &str, path: &Result<String, ArtefactError>) -> (String, Value) {
    let value = match path {
        Ok(path) => json!({ "path": path }),
        Err(error) => json!({ "error": error.to_string() }),
    };
    (name.to_owned(), value)
}
