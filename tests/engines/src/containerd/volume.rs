//! Volumes as a kubelet writes them.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::runtime::Mount;

/// A ConfigMap, Secret, projected or downward volume: all of it changes at once, by the renaming of a link.
#[derive(Debug)]
pub struct Volume {
    path: PathBuf,
    generation: u32,
    _directory: tempfile::TempDir,
}

impl Volume {
    /// An empty one of a kind as in `kubernetes.io~KIND`.
    pub fn new(kind: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(format!("pods/uid/volumes/kubernetes.io~{kind}/volume"));
        fs::create_dir_all(&path).unwrap();
        Self { path, generation: 0, _directory: directory }
    }

    /// Writes all of it.
    pub fn write(&mut self, files: &[(&str, &str)]) {
        self.generation += 1;
        let before = fs::read_link(self.path.join("..data")).ok();
        let name = format!("..generation_{}", self.generation);
        let content = self.path.join(&name);
        for (path, text) in files {
            fs::create_dir_all(content.join(path).parent().unwrap()).unwrap();
            fs::write(content.join(path), text).unwrap();
        }
        symlink(&name, self.path.join("..data_tmp")).unwrap();
        fs::rename(self.path.join("..data_tmp"), self.path.join("..data")).unwrap();
        let first = |path: &str| path.split('/').next().unwrap().to_owned();
        for name in files.iter().map(|(path, _)| first(path)) {
            if !self.path.join(&name).is_symlink() {
                symlink(Path::new("..data").join(&name), self.path.join(&name)).unwrap();
            }
        }
        for entry in fs::read_dir(&self.path).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let stays = name.starts_with("..") || files.iter().any(|(path, _)| first(path) == name);
            // What else is there is where other volumes are mounted.
            if !stays && entry.path().is_symlink() {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        if let Some(before) = before {
            fs::remove_dir_all(self.path.join(before)).unwrap();
        }
    }

    /// Where it is on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The mount of it that a kubelet asks for.
    pub fn mount(&self, to: &str) -> Mount {
        bind(&self.path, to, true)
    }
}

/// A mount of something on the host.
pub fn bind(from: &Path, to: &str, readonly: bool) -> Mount {
    Mount {
        container_path: to.into(),
        host_path: from.display().to_string(),
        readonly,
        ..Default::default()
    }
}
