//! `rw` of a volume that is mounted `ro` on the host. As for runc since 1.2, what is read-only is that mount, and the volume is
//! another one. To runc any flag says as much, `nosuid` too; here the word itself does.

use std::path::Path;

use kata_sys::mount_table::MountTable;
use rustix::fs::{StatVfsMountFlags, statvfs};

use super::{Class, Mount};
use crate::{
    checked::{Origin, VolumeSource},
    document::Document,
};

impl Mount<'_> {
    /// Names what a person may not expect to be written to.
    pub(super) fn tell_of_writing(&self, document: &mut Document, class: &Class) {
        let Class::Volume(VolumeSource {
            origin: Origin::Path(path), read_only_below: false, ..
        }) = class
        else {
            return;
        };
        if is_worth_telling(self.options.iter().map(String::as_str), path, self.table) {
            let path = path.display();
            let why =
                format!("rw: written to, unless locked, though {path} is mounted ro on the host");
            document.translate(self.field("options"), why);
        }
    }
}

/// To a file system that is read-only nobody writes.
fn is_worth_telling<'a>(
    options: impl Iterator<Item = &'a str>,
    source: &Path,
    table: &MountTable,
) -> bool {
    is_lifted(options, source) && table.is_read_only_alone(source).unwrap_or(false)
}

/// Whether the mount of a volume with these options is to be writable although its source can't be written to.
pub(crate) fn is_lifted<'a>(options: impl Iterator<Item = &'a str>, source: &Path) -> bool {
    // What can't be looked at stays as it is.
    let read_only = || statvfs(source).map(|it| it.f_flag.contains(StatVfsMountFlags::RDONLY));
    asks(options) && read_only().unwrap_or(false)
}

/// The last word counts, as for mount(8).
fn asks<'a>(options: impl Iterator<Item = &'a str>) -> bool {
    options.filter(|word| matches!(*word, "ro" | "rw")).last() == Some("rw")
}

#[cfg(test)]
mod tests {
    use kata_sys::{jail::leave_namespaces, mount_table::MountTable};
    use rustix::{
        mount::{MountFlags, mount, mount_bind, mount_remount},
        thread::UnshareFlags,
    };

    use super::{asks, is_lifted, is_worth_telling};

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

    #[test]
    fn what_stays_read_only_is_not_told() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("SKIP not root");
        }
        let scratch = tempfile::tempdir().unwrap();
        let source = scratch.path();
        let inside = || {
            leave_namespaces(UnshareFlags::NEWNS).unwrap();
            mount("tmpfs", source, "tmpfs", MountFlags::empty(), None).unwrap();
            mount_bind(source, source).unwrap();
            mount_remount(source, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
            let rw = || ["rw"].into_iter();
            let is_told = || is_worth_telling(rw(), source, &MountTable::default());
            assert!(is_lifted(rw(), source) && is_told());
            assert!(!is_lifted(["rprivate"].into_iter(), source));
            mount_remount(source, MountFlags::RDONLY, "").unwrap();
            assert!(is_lifted(rw(), source) && !is_told());
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap());
    }
}
