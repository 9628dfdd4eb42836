//! The reference, written from the table.

use std::fmt::Write;

use crate::{keys::KEYS, settings::Config};

/// Text of `docs/config.md`.
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration\n\n\
         No file is needed. `/etc/kata/config.toml` is read first, then `/etc/kata/config.d/*.toml` by name; what is\n\
         read later wins. Then come a container's annotations, where the table below has one. `kata-runtime env`\n\
         shows every key with its value and where that came from. An unknown key or annotation is an error.\n\
         `--config` or `KATA_CONFIG_DIR` names another directory, or one file, that is read instead and must be there.\n\n\
         This page is written from the code (`cargo test -p kata-config` compares them).\n",
    );
    let defaults = Config::default();
    for key in KEYS {
        let default =
            key.field.show(&defaults).map_or("not given".into(), |text| format!("`{text}`"));
        let annotation = key.annotation_name().map_or("none".into(), |name| format!("`{name}`"));
        // A String takes everything that is written to it.
        let _written = write!(
            text,
            "\n## `{}`\n\n{}\n\n- Takes: {}\n- Default: {default}\n- Annotation: {annotation}\n",
            key.name,
            key.doc,
            key.field.accepts(),
        );
    }
    text
}
