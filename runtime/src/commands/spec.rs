//! `spec`: a config.json to start from.

use std::{fs::OpenOptions, io::Write};

use super::Context;
use crate::{args::Spec, failure::Failure, made_spec::template};

impl Context<'_> {
    pub(super) fn spec(&self, typed: &Spec) -> Result<(), Failure> {
        if self.rootless {
            let refusal = "--rootless is not supported: making a VM takes root";
            return Err(Failure::Usage(refusal.to_owned()));
        }
        let path = typed.bundle.join("config.json");
        let failed = || Failure::host(format!("write {}", path.display()));
        let mut file =
            OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed())?;
        file.write_all(format!("{:#}\n", template()).as_bytes()).map_err(failed())
    }
}
