//! Where installed files are looked for, and what is said when they are not there.

use std::{fs, os::unix::fs::PermissionsExt};

use kata_config::{Artefact, Config, Prefix, find_vmm};

#[test]
fn the_prefix_holds_everything_and_says_what_is_missing() {
    let root = tempfile::tempdir().unwrap();
    let prefix = Prefix::at(root.path());
    for artefact in Artefact::ALL {
        let missing = prefix.find(artefact).unwrap_err().to_string();
        let path = prefix.path(artefact);
        assert!(missing.contains(path.to_str().unwrap()) && missing.contains("; "), "{missing}");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(prefix.find(artefact).unwrap(), path);
    }
    fs::set_permissions(prefix.path(Artefact::Proxy), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(prefix.find(Artefact::Proxy).unwrap_err().to_string().contains("not executable"));
}

#[test]
fn a_configured_file_that_is_wrong_is_an_error_and_not_passed_over() {
    let mut config = Config::default();
    config.hypervisor.path = Some("/nonexistent/qemu".into());
    config.guest.kernel = Some("/dev".into());
    assert!(find_vmm(&config).unwrap_err().to_string().contains("/nonexistent/qemu: no such file"));
    let kernel = Prefix::at("/").kernel(&config).unwrap_err().to_string();
    assert!(
        kernel.contains("/dev: not a regular file") && kernel.contains("kernel.path"),
        "{kernel}"
    );
}
