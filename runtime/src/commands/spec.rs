//! `spec`: a config.json to start from.

use std::{fs::OpenOptions, io::Write, path::Path};

use crate::{failure::Failure, made_spec::template};

pub(super) fn write(bundle: &Path) -> Result<(), Failure> {
    let path = bundle.join("config.json");
    let failed = || Failure::host(format!("write {}", path.display()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed())?;
    file.write_all(format!("{:#}\n", template()).as_bytes()).map_err(failed())
}
