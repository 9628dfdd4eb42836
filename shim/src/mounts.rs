//! The sandbox's mount namespace begins as a copy of the host's, and a copy pins what it holds: a file system that an engine
//! unmounts would stay busy for as long as this sandbox lives. So all mounts that the sandbox has no use for are let go.

use std::{
    io,
    path::{Path, PathBuf},
};

use kata_sys::mount_table;
use rustix::mount::{UnmountFlags, unmount};

/// Kernel interfaces, and where the host keeps programs and their configuration.
const KEPT_TREES: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Ways that must stay passable.
const KEPT_PATHS: [&str; 6] = ["/usr/bin", "/usr/share", "/usr/lib", "/lib", "/lib64", "/etc/kata"];

/// Detaches every mount of this namespace that is neither below `own`, nor on the way to a `needed` path, nor a kernel
/// interface.
///
/// # Errors
/// When the mounts can't be listed. A mount that does not let itself be detached is passed over.
pub fn keep_only(own: &Path, needed: &[PathBuf]) -> io::Result<()> {
    let points = mount_table::points()?;
    // Those that were mounted last come first: they lie on top.
    for point in points.iter().rev().filter(|point| is_useless(point, own, needed)) {
        if let Err(error) = unmount(point.as_path(), UnmountFlags::DETACH) {
            tracing::debug!(%error, point = %point.display(), "let go of a mount");
        }
    }
    Ok(())
}

fn is_useless(point: &Path, own: &Path, needed: &[PathBuf]) -> bool {
    let on_the_way = |path: &Path| path.starts_with(point);
    !KEPT_TREES.iter().any(|tree| point.starts_with(tree))
        && !KEPT_PATHS.iter().any(|path| on_the_way(Path::new(path)))
        && !point.starts_with(own)
        && !on_the_way(own)
        && !needed.iter().any(|path| on_the_way(path))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::is_useless;

    #[test]
    fn an_engines_mounts_go_and_the_way_to_the_sandbox_stays() {
        let own = Path::new("/run/kata/c1");
        let needed = [PathBuf::from("/run/netns/ours")];
        let shared = "/run/kata/c1/shared/roots/c1";
        for kept in ["/", "/run", "/run/kata", shared, "/usr", "/sys/fs/cgroup", "/run/netns/ours"]
        {
            assert!(!is_useless(Path::new(kept), own, &needed), "{kept}");
        }
        for useless in ["/var/lib/containers/storage/overlay/x/merged", "/run/netns/other", "/home"]
        {
            assert!(is_useless(Path::new(useless), own, &needed), "{useless}");
        }
    }
}
