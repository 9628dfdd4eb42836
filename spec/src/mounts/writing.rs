//! `rw` of a volume that is mounted `ro` on the host. As for runc since 1.2, what is read-only is that mount, and the volume is
//! another one. To runc any flag says as much, `nosuid` too; here the word itself does.

use std::path::Path;

use kata_sys::mount_table;

use super::{Class, Mount};
use crate::{
    checked::{Origin, VolumeSource},
    document::Document,
};

impl Mount {
    /// Names what a person may not expect to be written to.
    pub(super) fn tell_of_writing(&self, document: &mut Document, class: &Class) {
        let Class::Volume(VolumeSource {
            origin: Origin::Path(path), read_only_below: false, ..
        }) = class
        else {
            return;
        };
        if is_lifted(self.options.iter().map(String::as_str), path) {
            let path = path.display();
            let why = format!("rw: written to, though {path} is mounted ro on the host");
            document.translate(self.field("options"), why);
        }
    }
}

/// Whether a volume with these options is written to although the mount of its source is not.
pub(crate) fn is_lifted<'a>(options: impl Iterator<Item = &'a str>, source: &Path) -> bool {
    // What can't be looked at stays as it is.
    asks(options) && mount_table::is_read_only(source).unwrap_or(false)
}

/// The last word counts, as for mount(8).
fn asks<'a>(options: impl Iterator<Item = &'a str>) -> bool {
    options.filter(|word| matches!(*word, "ro" | "rw")).last() == Some("rw")
}

#[cfg(test)]
mod tests {
    use super::{asks, is_lifted};

    #[test]
    fn only_a_volume_that_is_to_be_written_to_asks_for_that() {
        for (options, asked) in [
            (&["rbind", "rw"][..], true),
            (&["rbind", "ro", "rw"], true),
            (&["rbind", "rw", "ro"], false),
            (&["rbind", "rprivate"], false),
            (&["rbind", "nosuid"], false),
        ] {
            assert_eq!(asks(options.iter().copied()), asked, "{options:?}");
        }
    }

    #[test]
    fn what_is_mounted_to_be_written_to_has_nothing_lifted() {
        let source = tempfile::tempdir().unwrap();
        assert!(!is_lifted(["rw"].into_iter(), source.path()));
        assert!(!is_lifted(["rw"].into_iter(), &source.path().join("none")));
    }
}
