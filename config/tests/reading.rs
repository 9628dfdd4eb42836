//! Files, drop-ins and annotations, as people write them.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use kata_config::{Accelerator, DEFAULT_DIRECTORY, Loaded, Machine, Source, reference};

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("config.d")).unwrap();
    for (name, text) in files {
        fs::write(root.path().join(name), text).unwrap();
    }
    root
}

fn error(text: &str) -> String {
    let root = directory(&[("config.toml", text)]);
    let error = Loaded::read(root.path()).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error.replace(&format!("{}/", root.path().display()), "")
}

fn source(loaded: &Loaded, name: &str) -> Source {
    loaded.provenance().find(|(key, ..)| key.name == name).unwrap().2.clone()
}

#[test]
fn a_directory_without_files_means_defaults() {
    let root = tempfile::tempdir().unwrap();
    let loaded = Loaded::read(root.path()).unwrap();
    assert_eq!(loaded.config, kata_config::Config::default());
    assert!(loaded.provenance().all(|(_, _, source)| *source == Source::Default));
}

#[test]
fn a_place_that_was_named_must_be_there() {
    if !Path::new(DEFAULT_DIRECTORY).exists() {
        assert_eq!(
            Loaded::read(Path::new(DEFAULT_DIRECTORY)).unwrap().config,
            Loaded::default().config
        );
    }
    for place in ["/nonexistent/kata", "/nonexistent.toml"] {
        let error = Loaded::read(Path::new(place)).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot read configuration {place}"));
    }
}

#[test]
fn drop_ins_win_over_the_file_and_later_names_over_earlier_ones() {
    let root = directory(&[
        ("config.toml", "[vm]\nmemory_mib = 512\nvcpus = 2\n[hypervisor]\naccelerator = 'tcg'"),
        ("config.d/10-a.toml", "vm.memory_mib = 1024"),
        ("config.d/20-b.toml", "vm.memory_mib = 2048"),
        ("config.d/99.toml.bak", "this is not read"),
    ]);
    let loaded = Loaded::read(root.path()).unwrap();
    assert_eq!((loaded.config.vm.memory_mib, loaded.config.vm.vcpus), (2048, 2));
    assert_eq!(loaded.config.hypervisor.accelerator, Accelerator::Tcg);
    let drop_in = root.path().join("config.d/20-b.toml");
    assert_eq!(source(&loaded, "vm.memory_mib"), Source::File { path: drop_in, line: 1 });
    assert_eq!(source(&loaded, "hypervisor.machine"), Source::Default);
}

#[test]
fn an_unknown_key_names_the_nearest() {
    assert_eq!(
        error("[vm]\nmemory_mb = 512"),
        "config.toml:2: unknown key \"vm.memory_mb\", did you mean \"vm.memory_mib\"?"
    );
    assert!(error("vm.deep.er = 1").contains("unknown key \"vm.deep.er\""));
    assert!(error("entirely = \"unrelated\"").contains("all keys are listed by"));
}

#[test]
fn a_wrong_value_says_what_would_be_right() {
    assert_eq!(
        error("vm.vcpus = 0"),
        "config.toml:1: vm.vcpus: 0 is not a whole number from 1 to 255"
    );
    assert_eq!(
        error("hypervisor.machine = \"microvn\""),
        "config.toml:1: hypervisor.machine: \"microvn\" is not one of \"auto\", \"microvm\", \"q35\", did you \
         mean \"microvm\"?"
    );
    assert!(error("kernel.path = \"vmlinux\"").ends_with("is not an absolute path"));
    assert!(error("vm.memory_mib = \"512\"").contains("\"512\" is not a whole number"));
    assert!(error("vm.memory_mib = true").contains("a boolean is not"));
    assert!(error("vm.memory_mib = -1").contains("-1 is not"));
}

#[test]
fn broken_toml_and_broken_files_are_one_line() {
    assert!(error("[vm\n").starts_with("config.toml:1: "));
    assert!(error("vm.vcpus = 1\nvm.vcpus = 2").starts_with("config.toml:2: "));
    let root = directory(&[]);
    fs::create_dir(root.path().join("config.toml")).unwrap();
    assert!(Loaded::read(root.path()).unwrap_err().to_string().starts_with("cannot read"));
}

#[test]
fn annotations_set_what_they_may() {
    let mut loaded = Loaded::default();
    let given = [
        ("io.katacontainers.vm.memory_mib", "512"),
        ("io.katacontainers.hypervisor.machine", "q35"),
        ("org.example.other", "is not ours"),
    ];
    assert_eq!(loaded.annotate(given).unwrap(), Vec::<String>::new());
    assert_eq!(loaded.config.vm.memory_mib, 512);
    assert_eq!(loaded.config.hypervisor.machine, Machine::Q35);
    assert!(matches!(source(&loaded, "vm.memory_mib"), Source::Annotation(_)));
}

#[test]
fn annotations_are_refused_by_name() {
    let refusal = |name: &str, value: &str| {
        Loaded::default().annotate([(name, value)]).unwrap_err().to_string()
    };
    assert!(refusal("io.katacontainers.vm.memory", "1").contains("did you mean"));
    assert!(
        refusal("io.katacontainers.hypervisor.path", "/bin/sh")
            .contains("only a configuration file may set")
    );
    assert_eq!(
        refusal("io.katacontainers.config.hypervisor.default_memory", "512"),
        "annotation \"io.katacontainers.config.hypervisor.default_memory\": upstream Kata's name, here it is \
         \"io.katacontainers.vm.memory_mib\""
    );
    assert!(refusal("io.katacontainers.vm.vcpus", "many").contains("\"many\" is not"));
}

#[test]
fn unknown_annotations_are_warnings_where_the_administrator_says_so() {
    let root = directory(&[("config.toml", "runtime.unknown_annotations = \"warn\"")]);
    let mut loaded = Loaded::read(root.path()).unwrap();
    let warnings = loaded.annotate([("io.katacontainers.config.agent.trace", "1")]).unwrap();
    assert_eq!(warnings.len(), 1);
    assert!(loaded.annotate([("io.katacontainers.vm.vcpus", "0")]).is_err());
}

#[test]
fn the_reference_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config.md");
    if std::env::var_os("KATA_WRITE_REFERENCE").is_some() {
        fs::write(&path, reference()).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(written, reference(), "run this test with KATA_WRITE_REFERENCE=1");
}
