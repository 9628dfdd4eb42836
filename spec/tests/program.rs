//! Where the program is, as the container will see it.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use kata_spec::{Program, ProgramError, check, default_for, resolve_program};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Tree(TempDir);

impl Tree {
    /// `bin/tool` is executable, `bin/data` is not, `usr/bin` exists, and some links lead about.
    fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for directory in ["rootfs/bin", "rootfs/usr/bin", "rootfs/run", "rootfs/var", "volume/bin"]
        {
            fs::create_dir_all(tree.path(directory)).unwrap();
        }
        tree.file("rootfs/bin/tool", 0o755);
        tree.file("rootfs/bin/data", 0o644);
        tree.file("volume/bin/mine", 0o755);
        for (target, link) in [
            ("/bin/tool", "usr/bin/absolute"),
            ("../../bin/tool", "usr/bin/relative"),
            ("../../../../../../bin/tool", "usr/bin/climbing"),
            ("loop", "usr/bin/loop"),
            ("/nowhere", "usr/bin/dangling"),
            ("/run", "var/run"),
        ] {
            symlink(target, tree.path("rootfs").join(link)).unwrap();
        }
        tree
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, mode: u32) {
        fs::write(self.path(name), "").unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn resolve(&self, program: &str, changes: &[(&str, Value)]) -> Result<Program, ProgramError> {
        let mut config = default_for("rootfs", &[program.to_owned()], false);
        for (pointer, value) in changes {
            *config.pointer_mut(pointer).unwrap() = value.clone();
        }
        resolve_program(&check(&config, self.0.path()).unwrap())
    }

    fn found(&self, program: &str, changes: &[(&str, Value)]) -> String {
        match self.resolve(program, changes).unwrap() {
            Program::Found(path) => path.display().to_string(),
            Program::InGuest(path) => format!("guest {}", path.display()),
        }
    }

    fn complaint(&self, program: &str, changes: &[(&str, Value)]) -> (String, u8) {
        let error = self.resolve(program, changes).unwrap_err();
        (error.to_string(), error.exit_code())
    }
}

fn said(message: &str, code: u8) -> (String, u8) {
    (message.to_owned(), code)
}

#[test]
fn names_paths_and_links_are_followed_inside_the_root() {
    let tree = Tree::new();
    for program in
        ["tool", "/bin/tool", "absolute", "relative", "climbing", "/usr/bin/../../bin/tool"]
    {
        assert_eq!(tree.found(program, &[]), "/bin/tool", "{program}");
    }
    assert_eq!(tree.found("./tool", &[("/process/cwd", json!("/bin"))]), "/bin/tool");
}

#[test]
fn errors_are_worded_as_runc_words_them() {
    let tree = Tree::new();
    let not_in_path = r#"exec: "foo": executable file not found in $PATH"#;
    assert_eq!(tree.complaint("foo", &[]), said(not_in_path, 127));
    assert_eq!(tree.complaint("foo", &[("/process/env", json!([]))]), said(not_in_path, 127));
    let message = r#"exec: "/bin/foo": stat /bin/foo: no such file or directory"#;
    assert_eq!(tree.complaint("/bin/foo", &[]), said(message, 127));
    let message = r#"exec: "/usr/bin/dangling": stat /usr/bin/dangling: no such file or directory"#;
    assert_eq!(tree.complaint("/usr/bin/dangling", &[]), said(message, 127));
    let message = r#"exec: "/bin/data": permission denied"#;
    assert_eq!(tree.complaint("/bin/data", &[]), said(message, 126));
    assert_eq!(tree.complaint("/bin", &[]).1, 126);
    // A file in PATH that can't be executed is passed over.
    let message = r#"exec: "data": executable file not found in $PATH"#;
    assert_eq!(tree.complaint("data", &[]), said(message, 127));
    assert_eq!(tree.complaint("/usr/bin/loop", &[]).1, 126);
    assert_eq!(tree.complaint("", &[]).1, 127);
    for path in ["PATH=", "PATH=:", "PATH=.", "PATH=bin:/usr/bin"] {
        let changes = [("/process/env", json!([path])), ("/process/cwd", json!("/bin"))];
        let message = r#"exec: "tool": executable file not found in $PATH"#;
        assert_eq!(tree.complaint("tool", &changes), said(message, 127), "{path}");
    }
}

#[test]
fn a_host_file_outside_the_root_is_never_seen() {
    let tree = Tree::new();
    symlink("/../../../../../../bin/sh", tree.path("rootfs/usr/bin/escape")).unwrap();
    assert!(Path::new("/bin/sh").exists());
    assert_eq!(tree.complaint("/usr/bin/escape", &[]).1, 127);
}

#[test]
fn bind_mounts_are_looked_through() {
    let tree = Tree::new();
    let mounts = |destination: &str, source: &str| {
        let mount = json!({"destination": destination, "type": "bind", "source": source, "options": ["bind"]});
        [("/mounts", json!([mount]))]
    };
    assert_eq!(tree.found("/opt/bin/mine", &mounts("/opt", "volume")), "/opt/bin/mine");
    // The destination is a link.
    assert_eq!(tree.found("/run/bin/mine", &mounts("/var/run", "volume")), "/run/bin/mine");
    // One file over another.
    assert_eq!(tree.found("data", &mounts("/bin/data", "volume/bin/mine")), "/bin/data");
    // What a mount covers is not there.
    assert_eq!(tree.complaint("/bin/tool", &mounts("/bin", "volume")).1, 127);
    // A link of the volume leads through the container's root, not the volume's.
    symlink("/bin/tool", tree.path("volume/link")).unwrap();
    assert_eq!(tree.found("/opt/link", &mounts("/opt", "volume")), "/bin/tool");
}

#[test]
fn what_only_the_guest_will_have_is_left_to_it() {
    let tree = Tree::new();
    let tmpfs = [("/mounts", json!([{"destination": "/usr", "type": "tmpfs", "source": "tmpfs"}]))];
    assert_eq!(tree.found("/usr/bin/x", &tmpfs), "guest /usr/bin/x");
    assert_eq!(tree.found("/proc/self/exe", &[]), "guest /proc/self/exe");
    // PATH has /usr/bin before /bin: the guest may find another tool there.
    assert_eq!(tree.found("tool", &tmpfs), "guest /usr/local/sbin/tool");
}
