//! What the rows of the table can't say: paths on the host, and fields that depend on each other.

pub(crate) mod devices;
pub(crate) mod namespaces;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    checked::Checked, document::Document, error::SpecError, load::Neighbours, mounts, process,
    resources,
};

/// Longest name that sethostname(2) takes.
const HOST_NAME_MAX: usize = 64;

/// Turns a document whose types are right into a checked configuration; `guest` is what the table kept for the guest.
pub(crate) fn check(
    mut document: Document,
    config: &Value,
    mut guest: Value,
    bundle: PathBuf,
    neighbours: &Neighbours<'_>,
) -> Result<Checked, SpecError> {
    check_version(&document, config)?;
    let process = process::check(&mut document, guest["process"].take(), "process")?;
    guest["process"] = process.guest.clone();
    let rootfs = check_rootfs(&document, config, &bundle)?;
    let network = namespaces::check(&mut document, config, &mut guest, neighbours)?;
    check_names(&document, config)?;
    check_paths(&document, config)?;
    check_sysctls(&document, config)?;
    check_seccomp(&mut document, config)?;
    check_hooks(&document, config)?;
    let disks = devices::check(&mut document, config, &mut guest)?;
    let limits = resources::limits(&document, &config["linux"]["resources"])?;
    if let Some(resources) = guest.pointer_mut("/linux/resources") {
        resources::unified::take(resources);
    }
    namespaces::complete(config, &mut guest);
    let mounts = mounts::check(&mut document, config, &mut guest, &bundle)?;
    Ok(Checked {
        read_only_root: guest["root"]["readonly"] == true,
        rootfs,
        process,
        hostname: text(&config["hostname"]).unwrap_or_else(namespaces::inherited_name),
        network,
        volumes: mounts.volumes,
        disks,
        cgroups_path: text(&config["linux"]["cgroupsPath"]),
        limits,
        annotations: annotations(&config["annotations"]),
        hooks: config["hooks"].clone(),
        bundle,
        warnings: document.warnings,
        explained: document.explained,
        guest,
        mounts: mounts.points,
    })
}

/// Goes through every rule of [`check`], whatever the others and the table say. Nothing is made of it.
pub(crate) fn survey(
    document: &mut Document,
    config: &Value,
    bundle: &Path,
) -> Result<(), SpecError> {
    // Nobody gets it. It has an element wherever the configuration has one, whatever that is.
    let mut guest = config.clone();
    let checked = check_version(document, config);
    document.settle(checked)?;
    if config["process"].is_object() {
        let checked = process::check(document, config["process"].clone(), "process");
        document.settle(checked)?;
    }
    let checked = check_rootfs(document, config, bundle);
    document.settle(checked)?;
    let checked = namespaces::check(document, config, &mut guest, &|_, _| None);
    document.settle(checked)?;
    for rule in [check_names, check_paths, check_sysctls, check_hooks] {
        document.settle(rule(document, config))?;
    }
    let checked = check_seccomp(document, config);
    document.settle(checked)?;
    devices::check(document, config, &mut guest)?;
    let checked = resources::limits(document, &config["linux"]["resources"]);
    document.settle(checked)?;
    mounts::check(document, config, &mut guest, bundle)?;
    Ok(())
}

/// Engines write 1.0.2-dev as well as 1.3.0; minor versions only add.
fn check_version(document: &Document, config: &Value) -> Result<(), SpecError> {
    let version = config["ociVersion"].as_str().unwrap_or_default();
    if !version.starts_with("1.") {
        let why = format!("must be some version 1.x, is {version:?}");
        return Err(document.wrong("ociVersion", why));
    }
    Ok(())
}

fn check_rootfs(document: &Document, config: &Value, bundle: &Path) -> Result<PathBuf, SpecError> {
    let path = config["root"]["path"].as_str().unwrap_or_default();
    if path.is_empty() {
        return Err(document.wrong("root.path", "must not be empty"));
    }
    let path = bundle.join(path);
    let fault = |source| host_path(document, "root.path", &path, source);
    if !fs::metadata(&path).map_err(fault)?.is_dir() {
        return Err(fault(io::Error::from(io::ErrorKind::NotADirectory)));
    }
    Ok(path)
}

/// An error about a path that a field names.
pub(crate) fn host_path(
    document: &Document,
    field: &str,
    path: &Path,
    source: io::Error,
) -> SpecError {
    let (document, field, path) = (document.name.clone(), field.to_owned(), path.to_owned());
    SpecError::HostPath { document, field, path, source }
}

fn check_names(document: &Document, config: &Value) -> Result<(), SpecError> {
    for field in ["hostname", "domainname"] {
        let name = config[field].as_str().unwrap_or_default();
        if name.len() > HOST_NAME_MAX {
            let why = format!("must not be longer than {HOST_NAME_MAX} bytes");
            return Err(document.wrong(field, why));
        }
        if !name.is_empty() && !namespaces::has(config, "uts") {
            return Err(document.wrong(field, "needs a uts namespace"));
        }
    }
    Ok(())
}

/// What is masked or protected is named as the container sees it from its root.
fn check_paths(document: &Document, config: &Value) -> Result<(), SpecError> {
    for name in ["maskedPaths", "readonlyPaths"] {
        let paths = elements(&config["linux"][name]).iter().enumerate();
        let relative = |path: &Value| !path.as_str().unwrap_or_default().starts_with('/');
        if let Some((index, path)) = paths.into_iter().find(|(_, path)| relative(path)) {
            let field = format!("linux.{name}[{index}]");
            return Err(document.wrong(field, format!("must be an absolute path, is {path}")));
        }
    }
    Ok(())
}

/// Names become paths below `/proc/sys` of the guest, with dots for slashes; a slash stands for itself. The host's name has
/// a field of its own, and runc has it that one of the two is a mistake.
fn check_sysctls(document: &Document, config: &Value) -> Result<(), SpecError> {
    for name in config["linux"]["sysctl"].as_object().into_iter().flat_map(|map| map.keys()) {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
        let parts_are_names = name.split(['.', '/']).all(|part| !part.is_empty());
        if !parts_are_names || !name.bytes().all(plain) {
            let field = format!("linux.sysctl[{name:?}]");
            return Err(document.wrong(field, "is not the name of a kernel parameter"));
        }
        if matches!(name.as_str(), "kernel.hostname" | "kernel/hostname") {
            let field = format!("linux.sysctl[{name:?}]");
            return Err(document.wrong(field, "is not allowed: the OCI field for it is hostname"));
        }
    }
    Ok(())
}

fn check_seccomp(document: &mut Document, config: &Value) -> Result<(), SpecError> {
    const NOTIFY: &str = "SCMP_ACT_NOTIFY";
    const WHY: &str = "a listener on the host can't serve a guest's system calls";
    let seccomp = &config["linux"]["seccomp"];
    if seccomp["defaultAction"] == NOTIFY {
        return Err(document.refuse("linux.seccomp.defaultAction", WHY));
    }
    if elements(&seccomp["flags"])
        .iter()
        .any(|flag| flag == "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV")
    {
        document.translate("linux.seccomp.flags", "no listener, so nothing to wait for killable");
    }
    let rules = elements(&seccomp["syscalls"]);
    match rules.iter().position(|rule| rule["action"] == NOTIFY) {
        Some(index) => Err(document.refuse(format!("linux.seccomp.syscalls[{index}].action"), WHY)),
        None => Ok(()),
    }
}

/// Hooks are not searched for.
fn check_hooks(document: &Document, config: &Value) -> Result<(), SpecError> {
    let lists = config["hooks"].as_object().into_iter().flatten();
    for (kind, list) in lists {
        for (index, hook) in list.as_array().into_iter().flatten().enumerate() {
            if !Path::new(hook["path"].as_str().unwrap_or_default()).is_absolute() {
                let field = format!("hooks.{kind}[{index}].path");
                return Err(document.wrong(field, "must be an absolute path"));
            }
        }
    }
    Ok(())
}

fn annotations(map: &Value) -> BTreeMap<String, String> {
    let entries = map.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

/// The elements of a list; none of what is absent.
pub(crate) fn elements(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

/// A string that says something.
fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}
