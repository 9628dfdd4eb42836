//! k3s and RKE2, which write their containerd's configuration anew at each start: from a template, or importing drop-ins.

use std::path::Path;

use super::{
    block,
    change::{Change, read, unusable},
    containerd,
};
use crate::failure::Failure;

const DROP_IN: &str = "50-kata.toml";
/// A template that has nothing of its own.
const FRESH: &str = "{{ template \"base\" . }}\n\n";

/// Templates, by the version of what is made of them.
const TEMPLATES: [(i64, &str); 2] = [(2, "config.toml.tmpl"), (3, "config-v3.toml.tmpl")];
const DROP_INS: [&str; 2] = ["config.toml.d", "config-v3.toml.d"];

/// What is looked at of a configuration that was made.
#[derive(serde::Deserialize)]
struct Made {
    #[serde(default)]
    version: i64,
    #[serde(default)]
    imports: Vec<String>,
}

/// What is to change for a distribution (`k3s`, `rke2`) to know Kata.
pub(super) fn install(home: &Path, name: &str, shim: &Path) -> Result<Vec<Change>, Failure> {
    let directory = home.join(name).join("agent/etc/containerd");
    let path = directory.join("config.toml");
    let Some(text) = read(&path)? else {
        let why = format!("{name} has never been started here: there is no {}", path.display());
        return Err(Failure::Usage(why));
    };
    let made: Made = toml::from_str(&text).map_err(|e| unusable(&path, e.message()))?;
    let imported = |place: &&str| {
        let place = directory.join(place);
        made.imports.iter().any(|p| containerd::covering(&path, p).is_some_and(|d| d == place))
    };
    if let Some(place) = DROP_INS.into_iter().find(imported) {
        let lines = containerd::runtime(made.version, shim);
        let text = format!(
            "# Written by kata-runtime install, removed by the same with --uninstall.\nversion = {}\n\n{lines}",
            made.version
        );
        return Ok(vec![Change::write(directory.join(place).join(DROP_IN), text)]);
    }
    let (version, template) = TEMPLATES[usize::from(made.version >= 3)];
    let path = directory.join(template);
    let text = read(&path)?.unwrap_or_else(|| FRESH.to_owned());
    if block::without(&text).contains(".runtimes.kata]") {
        return Err(unusable(&path, "it has a runtime of this name that is not ours"));
    }
    Ok(vec![Change::write(path, block::with(&text, &containerd::runtime(version, shim)))])
}

/// What is to change for it not to know Kata.
pub(super) fn uninstall(home: &Path, name: &str) -> Result<Vec<Change>, Failure> {
    let directory = home.join(name).join("agent/etc/containerd");
    let mut changes = Vec::new();
    for (_, template) in TEMPLATES {
        let path = directory.join(template);
        if let Some(text) = read(&path)?.filter(|text| block::is_in(text)) {
            let rest = Some(block::without(&text)).filter(|rest| rest != FRESH);
            changes.push(Change::to(path, rest));
        }
    }
    for place in DROP_INS {
        let path = directory.join(place).join(DROP_IN);
        if read(&path)?.is_some() {
            changes.push(Change::remove(path));
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{FRESH, install, uninstall};

    const SHIM: &str = "/opt/kata/current/bin/containerd-shim-kata-v2";

    /// What stands in the directory after installing, and that all of it goes again.
    fn installed(files: &[(&str, &str)]) -> Vec<(String, String)> {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("k3s/agent/etc/containerd");
        fs::create_dir_all(&directory).unwrap();
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
        let before = tree(&directory);
        for _ in 0..2 {
            for change in install(home.path(), "k3s", Path::new(SHIM)).unwrap() {
                change.settle(false).unwrap();
            }
        }
        let after = tree(&directory);
        for change in uninstall(home.path(), "k3s").unwrap() {
            change.settle(false).unwrap();
        }
        assert_eq!(tree(&directory), before);
        assert!(uninstall(home.path(), "k3s").unwrap().is_empty());
        after.into_iter().filter(|file| !before.contains(file)).collect()
    }

    fn tree(directory: &Path) -> Vec<(String, String)> {
        let mut files = Vec::new();
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            match entry.file_type().unwrap().is_dir() {
                true => files.extend(
                    tree(&entry.path()).into_iter().map(|(f, t)| (format!("{name}/{f}"), t)),
                ),
                false => files.push((name, fs::read_to_string(entry.path()).unwrap())),
            }
        }
        files.sort();
        files
    }

    #[test]
    fn a_template_is_made_in_the_version_of_the_containerd_that_is_there() {
        let files = installed(&[("config.toml", "version = 2\n")]);
        assert_eq!(files[0].0, "config.toml.tmpl");
        assert!(files[0].1.starts_with(FRESH) && files[0].1.contains("grpc.v1.cri"), "{files:?}");
        let files = installed(&[("config.toml", "version = 3\n")]);
        assert_eq!(files[0].0, "config-v3.toml.tmpl");
        assert!(files[0].1.contains("io.containerd.cri.v1.runtime") && files[0].1.contains(SHIM));
    }

    #[test]
    fn a_template_of_somebody_else_is_added_to() {
        let theirs = ("config.toml.tmpl", "{{ template \"base\" . }}\n# mine");
        let files = installed(&[("config.toml", "version = 2\n"), theirs]);
        assert!(files[0].1.starts_with(theirs.1), "{files:?}");
    }

    #[test]
    fn a_drop_in_is_preferred_where_drop_ins_are_read() {
        let made = "version = 3\nimports = [\"config-v3.toml.d/*.toml\"]\n";
        let files = installed(&[("config.toml", made)]);
        assert_eq!(files.len(), 1, "{files:?}");
        assert_eq!(files[0].0, "config-v3.toml.d/50-kata.toml");
        assert!(files[0].1.contains("version = 3\n"), "{files:?}");
    }

    #[test]
    fn what_was_never_started_is_refused_and_so_is_a_taken_name() {
        let home = tempfile::tempdir().unwrap();
        let error = install(home.path(), "rke2", Path::new(SHIM)).unwrap_err().line();
        assert!(error.contains("rke2 has never been started here"), "{error}");
        let directory = home.path().join("k3s/agent/etc/containerd");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("config.toml"), "version = 2\n").unwrap();
        let theirs = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\n";
        fs::write(directory.join("config.toml.tmpl"), theirs).unwrap();
        let error = install(home.path(), "k3s", Path::new(SHIM)).unwrap_err().line();
        assert!(error.contains("is not ours"), "{error}");
    }
}
