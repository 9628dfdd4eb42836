use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{install, uninstall};

const SHIM: &str = "/opt/kata/current/bin/containerd-shim-kata-v2";

/// A host whose containerd has these files; installing twice and uninstalling twice leaves what was there.
fn installed(files: &[(&str, &str)]) -> Result<Vec<(PathBuf, String)>, String> {
    let etc = tempfile::tempdir().unwrap();
    let home = etc.path().join("containerd");
    for (name, text) in files {
        let path = home.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let before = tree(&home);
    for _ in 0..2 {
        let changes = install(etc.path(), Path::new(SHIM)).map_err(|e| e.line())?;
        for change in changes {
            change.settle(false).unwrap();
        }
    }
    let after = tree(&home);
    for _ in 0..2 {
        for change in uninstall(etc.path()).unwrap() {
            change.settle(false).unwrap();
        }
    }
    assert_eq!(tree(&home), before);
    Ok(after
        .into_iter()
        .filter(|file| !before.contains(file))
        .map(|(path, text)| (path.strip_prefix(&home).unwrap().to_owned(), text))
        .collect())
}

fn tree(directory: &Path) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(tree(&entry.path())),
            false => files.push((entry.path(), fs::read_to_string(entry.path()).unwrap())),
        }
    }
    files.sort();
    files
}

fn one(files: &[(&str, &str)], name: &str) -> String {
    let changed = installed(files).unwrap();
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert_eq!(changed[0].0, Path::new(name));
    let _: toml::Table = toml::from_str(&changed[0].1).unwrap();
    changed[0].1.clone()
}

#[test]
fn without_a_configuration_one_is_made_that_all_versions_read() {
    let text = one(&[], "config.toml");
    assert!(text.starts_with("version = 2\n") && text.contains(SHIM), "{text}");
}

#[test]
fn version_2_gets_a_block_as_an_import_would_replace_the_section() {
    let theirs = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"x\"\n";
    let text = one(&[("config.toml", theirs)], "config.toml");
    assert!(text.starts_with(theirs), "{text}");
    assert!(text.contains("\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata"), "{text}");
}

#[test]
fn the_block_is_in_the_file_whose_section_counts() {
    let main = "version = 2\nimports = [\"conf.d/*.toml\"]\n";
    let section = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"x\"";
    let files = [("config.toml", main), ("conf.d/10.toml", section), ("conf.d/20.toml", "")];
    let text = one(&files, "conf.d/10.toml");
    assert!(text.starts_with(section), "{text}");
}

#[test]
fn version_3_gets_a_drop_in_and_imports_it() {
    for head in ["", "imports = []\n", "imports = [\n  \"other.toml\",\n]\n"] {
        let main = format!("version = 3\n{head}\n[grpc]\naddress = \"/x\"\n");
        let changed = installed(&[("config.toml", &main)]).unwrap();
        let files: Vec<_> = changed.iter().map(|(path, _)| path.to_str().unwrap()).collect();
        assert_eq!(files, ["conf.d/50-kata.toml", "config.toml"]);
        let table: toml::Table = toml::from_str(&changed[1].1).unwrap();
        let imports = table["imports"].as_array().unwrap();
        assert!(imports[0].as_str().unwrap().ends_with("/containerd/conf.d/50-kata.toml"));
        assert!(changed[0].1.contains("io.containerd.cri.v1.runtime"), "{changed:?}");
    }
}

#[test]
fn a_pattern_that_covers_the_drop_in_is_enough() {
    let main = "version = 4\nimports = [\"extra/*.toml\"]\n";
    let text = one(&[("config.toml", main)], "extra/50-kata.toml");
    assert!(text.contains("version = 3\n"), "a drop-in may not be newer than the rest: {text}");
}

#[test]
fn what_would_not_work_is_refused_before_anything_is_done() {
    let taken = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\n";
    let inline = "version = 2\n[plugins]\n\"io.containerd.grpc.v1.cri\" = { containerd = {} }\n";
    for (text, why) in [
        ("", "its version is 1"),
        ("version = 1\n", "its version is 1"),
        ("disabled_plugins = [\"cri\"]\n", "disabled_plugins has \"cri\""),
        (taken, "not ours"),
        (inline, "is left as it is"),
        ("version = 2\n[", "is left as it is"),
    ] {
        let error = installed(&[("config.toml", text)]).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn an_import_goes_with_the_drop_in_wherever_somebody_has_put_it() {
    for (imports, rest) in [
        ("[\"/x.toml\", OURS]", "[\"/x.toml\"]"),
        ("[\n  \"/x.toml\",\n  OURS,\n]", "[\n  \"/x.toml\",\n]"),
        ("[ OURS , \"/x.toml\"]", "[ \"/x.toml\"]"),
        ("[OURS,]", "[]"),
        ("['conf.d/50-kata.toml']", "[]"),
    ] {
        let etc = tempfile::tempdir().unwrap();
        let home = etc.path().join("containerd");
        let drop_in = home.join("conf.d/50-kata.toml");
        fs::create_dir_all(home.join("conf.d")).unwrap();
        fs::write(&drop_in, "version = 3\n").unwrap();
        let ours = format!("{:?}", drop_in.to_str().unwrap());
        let text = |imports: &str| format!("version = 3\nimports = {imports}\n[grpc]\n");
        fs::write(home.join("config.toml"), text(&imports.replace("OURS", &ours))).unwrap();
        for change in uninstall(etc.path()).unwrap() {
            change.settle(false).unwrap();
        }
        assert_eq!(fs::read_to_string(home.join("config.toml")).unwrap(), text(rest));
        assert!(!drop_in.exists());
    }
}
